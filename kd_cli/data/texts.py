"""Texts as a source: read, split, and turned into token ids once."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from kd_cli.config.inputs import PADDING
from kd_cli.data import text_files
from kd_cli.data import tokenizer as tokenizers
from kd_cli.data.arrays import Arrays, decoded, stamp
from kd_cli.data.listing import plain, shortened
from kd_cli.data.splits import stratified
from kd_cli.data.text_files import Rows
from kd_cli.data.tokenizer import Tokenizer
from kd_cli.errors import ConfigError

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
    tokenizer: str = "words",
) -> Arrays:
    """Texts in CSV, TSV or JSON Lines, or in one folder of .txt files per class.

    A folder has a train and a test split, and may have validation: files such as train.csv, or
    folders with class folders in them. A file, or a folder of class folders, is split. The
    tokenizer is made from the training texts, of which dataset.validation_fraction may hold some
    out.

    Args:
        path: The file or folder.
        cache_dir: Where the token ids are kept.
        length: Tokens of each text; longer texts are cut at their end, shorter ones padded.
        vocabulary: Most ids, with padding and unknown.
        text_column, label_column: Columns of a file, by their names in its first line.
        test_fraction: Share of each class that becomes the test split, where there is none.
        test_seed: Draws that split.
        tokenizer: `words`, a word list, or `bpe`, parts of words, made from the training texts; or
            a file: the vocabulary.json of a run, or a tokenizer.json.

    Raises:
        ConfigError: A file that can't be read, or a label that no training text has.
    """
    of_file = tokenizers.given(tokenizer, length, vocabulary)
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
        "tokenizer": key_of(tokenizer, of_file),
    }

    def decode() -> Arrays:
        rows = {part: _rows(file, text_column, label_column) for part, file in parts.items()}
        if "all" in rows:
            rows = _split(rows["all"], test_fraction, test_seed)
        return tokenized(rows, vocabulary, length, tokenizer, of_file)

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


def tokenized(
    rows: Mapping[str, Rows], vocabulary: int, length: int, name: str, of_file: Tokenizer | None
) -> Arrays:
    """Token ids and class numbers of texts.

    Args:
        rows: Of the splits train and test, and validation where there is one.
        vocabulary, length: As in `text`.
        name: Of the tokenizer, which is made from the training texts.
        of_file: One to be used in its place.

    Raises:
        ConfigError: A label that no training text has.
    """
    classes = classes_of(rows["train"])
    numbers = {name: number for number, name in enumerate(classes)}
    train = rows["train"].texts
    tokenizer = of_file or tokenizers.made(name, train, vocabulary, length)
    splits, notices = {}, [one.notice() for one in rows.values()]
    for part, one in rows.items():
        for label, place in zip(one.labels, one.places, strict=True):
            if label not in numbers:
                raise ConfigError(
                    f"{plain(one.where)}, {place}: the label '{plain(label)}' is no class; the "
                    f"training texts have {shortened(classes)}"
                )
        ids, cut = tokenizer.ids(one.texts)
        labels = np.array([numbers[label] for label in one.labels], np.int64)
        splits[part] = (ids, labels)
        if part == "train":
            told = _about(one, tokenizer, ids, cut)
            log.info("%s", told)
            notices += [told] if cut > _MANY_CUT * len(ids) else []
        else:
            notices.append(_copies(rows["train"], one, part))
    return Arrays(
        **splits,
        class_names=tuple(classes),
        notice="; ".join(filter(None, notices)),
        tokenizer=tokenizer.to_json(),
    )


def key_of(name: str, of_file: Tokenizer | None) -> str:
    """What of a tokenizer decides the ids: how it is made, or a hash of its file's content."""
    if of_file is None:
        return name
    return hashlib.sha256(json.dumps(of_file.to_json(), sort_keys=True).encode()).hexdigest()


def _about(rows: Rows, tokenizer: Tokenizer, ids: np.ndarray, cut: int) -> str:
    unknown = (ids == tokenizer.unknown).sum() / (ids != PADDING).sum()
    return (
        f"{plain(rows.where)}: {len(ids):,} training texts, {tokenizer.size:,} token ids; "
        f"{100 * unknown:.1f} % of their {tokenizer.noun} are unknown, {100 * cut / len(ids):.1f} "
        f"% of the texts are longer than dataset.length={tokenizer.length} and cut"
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
