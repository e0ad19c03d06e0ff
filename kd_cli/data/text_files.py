"""Texts with labels in files: CSV, TSV and JSON Lines, or a folder of .txt files for each class."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_cli.data.listing import SPLITS, plain, shortened
from kd_cli.errors import ConfigError, first_line

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
_KINDS = "a .csv, .tsv or .jsonl file, or a folder"
_SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
# Texts are longer than the 128 KiB that Python's reader allows.
csv.field_size_limit(2**31 - 1)


@dataclass
class Rows:
    """Texts of one file or folder.

    Attributes:
        where: The file or folder.
        texts, labels: One of each for a row.
        places: Where each stands: `line 3`, or the name of its file.
        left: What is left out, by why.
    """

    where: Path
    texts: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    left: dict[str, list[str]] = field(default_factory=dict)

    def add(self, text: str, label: str, place: str) -> None:
        """A row, unless its text or label is empty."""
        if not text.strip() or not label.strip():
            why = "without a label" if text.strip() else "without a text"
            self.left.setdefault(why, []).append(place)
            return
        self.texts.append(text)
        self.labels.append(label.strip())
        self.places.append(place)

    def take(self, numbers: Sequence[int]) -> Rows:
        """Some of the rows, with all that is left out."""
        kept = [[one[n] for n in numbers] for one in (self.texts, self.labels, self.places)]
        return Rows(self.where, *kept, self.left)

    def notice(self) -> str:
        """What is left out in a line; empty where nothing is."""
        told = [f"{len(places):,} {why} ({shortened(places)})" for why, places in self.left.items()]
        return f"{plain(self.where)}: left out {', '.join(told)}" if told else ""


def parts_of(path: Path) -> dict[str, Path]:
    """The files or folders of the splits; `all` alone where there is one that is to be split.

    Raises:
        ConfigError: There is nothing to read, a split is there twice, or train or test is missing.
    """
    if path.is_file():
        _require_kind(path)
        return {"all": path}
    if not path.is_dir():
        raise ConfigError(f"dataset.path={plain(path)} does not exist; expected {_KINDS}")
    found: dict[str, Path] = {}
    entries = [p for p in sorted(path.iterdir()) if not p.name.startswith(".")]
    for entry in entries:
        is_table = entry.is_file() and entry.suffix.lower() in TABLES
        name = (entry.stem if is_table else entry.name).casefold()
        split = _SPLIT_OF.get(name) if is_table or entry.is_dir() else None
        if split is None:
            continue
        if split in found:
            raise ConfigError(
                f"{plain(path)} has two {split} splits, {plain(found[split].name)} and "
                f"{plain(entry.name)}; remove one of them"
            )
        found[split] = entry
    missing = [part for part in ("train", "test") if part not in found]
    if found and missing:
        raise ConfigError(
            f"{plain(path)} has {plain(next(iter(found.values())).name)} but no {missing[0]} "
            f"split; expected train and test, such as train.csv and test.csv"
        )
    if found or any(entry.is_dir() for entry in entries):
        return found or {"all": path}
    raise ConfigError(
        f"{plain(path)} holds no texts; expected train.csv and test.csv (or .tsv, .jsonl), or a "
        "folder of .txt files for each class"
    )


def read(path: Path, text_column: str, label_column: str) -> Rows:
    """The texts of a file, or of a folder of class folders.

    Args:
        path: Of `parts_of`.
        text_column, label_column: Names of the columns of a file.

    Raises:
        ConfigError: It can't be read, lacks a column, or holds no text.
    """
    if path.is_dir():
        rows = _folder(path)
    else:
        _require_kind(path)
        content = _decoded(path)
        if not content.strip():
            raise ConfigError(f"{plain(path)} is empty; expected texts with labels")
        lines = _json_lines if path.suffix.lower() in (".jsonl", ".ndjson") else _table
        rows = lines(path, content, text_column, label_column)
    if not rows.texts:
        told = f" ({rows.notice()})" if rows.left else ""
        raise ConfigError(f"{plain(path)} holds no text with a label{told}")
    return rows


def _require_kind(path: Path) -> None:
    if path.suffix.lower() not in TABLES:
        raise ConfigError(f"dataset.path={plain(path)} has another ending; expected {_KINDS}")


def _decoded(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{plain(path)} can't be read: {error.strerror or error}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{plain(path)} is not UTF-8 (line {line} has the byte 0x{data[error.start]:02x}); "
            "save it as UTF-8, as with: iconv -f LATIN1 -t UTF-8"
        ) from error


def _table(path: Path, content: str, text_column: str, label_column: str) -> Rows:
    tabs = path.suffix.lower() == ".tsv"
    delimiter = "\t" if tabs else ","
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    rows, names = Rows(path), None
    last = 0
    try:
        for fields in reader:
            place, last = f"line {last + 1}", reader.line_num
            if not any(one.strip() for one in fields):
                if names is not None:
                    rows.left.setdefault("empty", []).append(place)
                continue
            if names is None:
                names = [name.strip() for name in fields]
                text = _column(plain(path), names, text_column, "text")
                label = _column(plain(path), names, label_column, "label")
                continue
            if len(fields) != len(names):
                raise ConfigError(
                    f"{plain(path)}, {place} has {len(fields)} fields, the first line "
                    f"{len(names)}; put texts with {'tabs' if tabs else 'commas'} into quotes"
                )
            rows.add(fields[text], fields[label], place)
    except csv.Error as error:
        raise ConfigError(
            f"{plain(path)} can't be read from line {last + 1} on ({first_line(error)}); a quote "
            'in a text is written twice, and such a text stands in quotes: "say ""no"""'
        ) from error
    return rows


def _column(where: str, names: list[str], name: str, what: str) -> int:
    if names.count(name) == 1:
        return names.index(name)
    if name in names:
        raise ConfigError(f"{where} has two columns '{plain(name)}'; rename one of them")
    raise ConfigError(
        f"{where} has no column '{plain(name)}', it has {shortened(names)}; "
        f"type dataset.source.{what}_column=NAME"
    )


def _json_lines(path: Path, content: str, text_column: str, label_column: str) -> Rows:
    rows = Rows(path)
    for number, line in enumerate(content.split("\n"), 1):
        place = f"line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{plain(path)}, {place} is no JSON ({first_line(error)}); expected an object on "
                f'each line, as in {{"{text_column}": "...", "{label_column}": "..."}}'
            ) from error
        if not isinstance(row, dict):
            raise ConfigError(f"{plain(path)}, {place} is no object of keys and values")
        names = [str(name) for name in row]
        _column(f"{plain(path)}, {place}", names, text_column, "text")
        _column(f"{plain(path)}, {place}", names, label_column, "label")
        rows.add(_plain_text(row[text_column]), _plain_text(row[label_column]), place)
    return rows


def _plain_text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _folder(root: Path) -> Rows:
    rows = Rows(root)
    classes = [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    for folder in classes:
        for file in _files(folder):
            place = plain(file.relative_to(root))
            if file.suffix.lower() != ".txt":
                rows.left.setdefault("of other files", []).append(place)
                continue
            rows.add(_decoded(file), folder.name, place)
    return rows


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            yield path
