"""Texts as a source: read, split, and turned into token ids once."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from kd_cli.config.inputs import PADDING, UNKNOWN
from kd_cli.data import text_files
from kd_cli.data.arrays import Arrays, decoded, stamp
from kd_cli.data.listing import plain, shortened
from kd_cli.data.splits import stratified
from kd_cli.data.text_files import Rows
from kd_cli.data.words import FIRST, Words
from kd_cli.errors import ConfigError, first_line
from kd_cli.files import read_json

log = logging.getLogger("kd")

# Part of the key of decoded texts: another number where the same files give other ids.
READER = 1
_FEW = 20  # classes that nobody takes for numbers of rows
_MANY_CUT = 0.1  # of the training texts: from then on it is a warning


def text(
    path: str,
    cache_dir: str,
    length: int,
    vocabulary: int,
    text_column: str = "text",
    label_column: str = "label",
    test_fraction: float = 0.2,
    test_seed: int = 0,
    vocabulary_file: str | None = None,
) -> Arrays:
    """Texts in CSV, TSV or JSON Lines, or in one folder of .txt files per class.

    A folder has a train and a test split, and may have validation: files such as train.csv, or
    folders with class folders in them. A file, or a folder of class folders, is split. The word
    list is made from the training texts, of which dataset.validation_fraction may hold some out.

    Args:
        path: The file or folder.
        cache_dir: Where the token ids are kept.
        length: Tokens of each text; longer texts are cut at their end, shorter ones padded.
        vocabulary: Most ids, with padding and unknown.
        text_column, label_column: Columns of a file, by their names in its first line.
        test_fraction: Share of each class that becomes the test split, where there is none.
        test_seed: Draws that split.
        vocabulary_file: The vocabulary.json of a run, whose word list is used in place of one of
            the training texts.

    Raises:
        ConfigError: A file that can't be read, or a label that no training text has.
    """
    given = given_words(vocabulary_file, length, vocabulary)
    root = Path(path).expanduser()
    parts = text_files.parts_of(root)
    if "all" not in parts and (test_fraction, test_seed) != (0.2, 0):
        raise ConfigError(
            f"dataset.source.test_fraction={test_fraction} and test_seed={test_seed} change "
            f"nothing: {plain(root)} has a test split; leave them out"
        )
    files = [file for part in parts.values() for file in _files(part)]
    above = root if root.is_dir() else root.parent
    key = {
        "text": plain(root.name),
        "files": stamp(files, above),
        "parts": sorted(parts),
        "columns": [text_column, label_column],
        "tokens": [length, vocabulary],
        "split": [test_fraction, test_seed],
        "reader": READER,
        "words": None if given is None else given.to_json(),
    }

    def decode() -> Arrays:
        rows = {part: _rows(file, text_column, label_column) for part, file in parts.items()}
        if "all" in rows:
            rows = _split(rows["all"], test_fraction, test_seed)
        return tokenized(rows, vocabulary, length, given)

    return decoded(Path(cache_dir), key, decode, f"the texts of {plain(root)}")


def text_num_classes(path: str, text_column: str, label_column: str) -> int:
    """How many labels the training texts have."""
    parts = text_files.parts_of(Path(path).expanduser())
    part = parts["train"] if "train" in parts else parts["all"]
    return len(classes_of(_rows(part, text_column, label_column)))


def classes_of(rows: Rows) -> list[str]:
    """The classes, in the order of their numbers: whole numbers by value, others by name.

    Raises:
        ConfigError: There are fewer than two, or most texts have one of their own.
    """
    names = set(rows.labels)
    if len(names) < 2:
        raise ConfigError(
            f"{plain(rows.where)}: every text has the label '{plain(names.pop())}'; expected two "
            "classes at least"
        )
    if len(names) > max(_FEW, len(rows.labels) / 2):
        raise ConfigError(
            f"{plain(rows.where)}: {len(rows.labels):,} texts have {len(names):,} labels, which "
            "are no classes; type dataset.source.label_column=NAME"
        )
    try:
        return sorted(names, key=lambda name: (int(name), name))
    except ValueError:
        return sorted(names)


def _files(part: Path) -> list[Path]:
    return [p for p in sorted(part.rglob("*")) if p.is_file()] if part.is_dir() else [part]


def _rows(part: Path, text_column: str, label_column: str) -> Rows:
    files = _files(part)
    above = part if part.is_dir() else part.parent
    return _read(part, text_column, label_column, stamp(files, above))


@functools.lru_cache(maxsize=3)  # the classes are asked for before the texts
def _read(part: Path, text_column: str, label_column: str, changed: str) -> Rows:
    return text_files.read(part, text_column, label_column)


def _split(rows: Rows, fraction: float, seed: int) -> dict[str, Rows]:
    if not 0 < fraction < 1:
        raise ConfigError(f"dataset.source.test_fraction={fraction} must be between 0 and 1")
    numbers = {name: number for number, name in enumerate(classes_of(rows))}
    labels = np.array([numbers[label] for label in rows.labels])
    test = stratified(labels, fraction, seed)
    train = np.setdiff1d(np.arange(len(labels)), test)
    if not len(test) or not len(train):
        raise ConfigError(
            f"{plain(rows.where)}: no class has the 2 texts of which one can be taken for the test "
            "split"
        )
    return {"train": rows.take(train), "test": replace(rows.take(test), left={})}


def given_words(path: str | None, length: int, vocabulary: int) -> Words | None:
    """The word list of a vocabulary.json; None where there is no file.

    Raises:
        ConfigError: It can't be read, or has more ids than `vocabulary`.
    """
    if path is None:
        return None
    content = read_json(Path(path).expanduser(), "type another dataset.source.vocabulary_file")
    key = f"dataset.source.vocabulary_file={plain(path)}"
    if content is None:
        raise ConfigError(f"{key} is not a file; expected the vocabulary.json of a run")
    try:
        words = Words.read(content)
    except ValueError as error:
        raise ConfigError(f"{key} is no vocabulary.json of kd: {first_line(error)}") from error
    if len(words.words) + FIRST > vocabulary:
        raise ConfigError(
            f"{key} has {len(words.words) + FIRST:,} ids; type dataset.vocabulary="
            f"{len(words.words) + FIRST} (now {vocabulary})"
        )
    return replace(words, length=length)


def tokenized(
    rows: Mapping[str, Rows], vocabulary: int, length: int, given: Words | None = None
) -> Arrays:
    """Token ids and class numbers of texts; the word list comes from the training texts.

    Args:
        rows: Of the splits train and test, and validation where there is one.
        vocabulary, length: As in `text`.
        given: A word list to be used in its place.

    Raises:
        ConfigError: A label that no training text has.
    """
    classes = classes_of(rows["train"])
    numbers = {name: number for number, name in enumerate(classes)}
    words = given or Words.of(rows["train"].texts, vocabulary, length)
    splits, notices = {}, [one.notice() for one in rows.values()]
    for part, one in rows.items():
        for label, place in zip(one.labels, one.places, strict=True):
            if label not in numbers:
                raise ConfigError(
                    f"{plain(one.where)}, {place}: the label '{plain(label)}' is no class; the "
                    f"training texts have {shortened(classes)}"
                )
        ids, cut = words.ids(one.texts)
        labels = np.array([numbers[label] for label in one.labels], np.int64)
        splits[part] = (ids, labels)
        if part == "train":
            told = _about(one, words, ids, cut, vocabulary)
            log.info("%s", told)
            notices += [told] if cut > _MANY_CUT * len(ids) else []
        else:
            notices.append(_copies(rows["train"], one, part))
    return Arrays(
        **splits,
        class_names=tuple(classes),
        notice="; ".join(filter(None, notices)),
        tokenizer=words.to_json(),
    )


def _about(rows: Rows, words: Words, ids: np.ndarray, cut: int, vocabulary: int) -> str:
    unknown = (ids == UNKNOWN).sum() / (ids != PADDING).sum()
    count = len(words.words)
    all_of = "" if count == vocabulary - FIRST else " (all that occur twice)"
    return (
        f"{plain(rows.where)}: {len(ids):,} training texts, {count:,} words{all_of}; "
        f"{100 * unknown:.1f} % of their words are not among them, {100 * cut / len(ids):.1f} % of "
        f"the texts are longer than dataset.length={words.length} and cut"
    )


def _copies(train: Rows, held: Rows, part: str) -> str:
    """Says which texts of a split are training texts too."""
    known = {text.strip() for text in train.texts}
    same = [p for text, p in zip(held.texts, held.places, strict=True) if text.strip() in known]
    if not same:
        return ""
    are = f"{part} texts are training texts" if len(same) > 1 else f"{part} text is a training text"
    return (
        f"{len(same):,} {are}, too ({plain(held.where)}, {shortened(same)}); what is measured on "
        "must not be trained on"
    )
