"""`vocabulary.json` of a run on texts: how texts become the token ids that its network takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_cli.data import tokenizer as tokenizers
from kd_cli.data.tokenizer import Tokenizer
from kd_cli.errors import ConfigError, first_line
from kd_cli.files import read_json, write_json
from kd_cli.runs.identity import digest
from kd_cli.runs.record import Record
from kd_cli.terminal import shown

FILE = "vocabulary.json"


def sha256(tokenizer: Mapping[str, Any]) -> str:
    """Of a tokenizer as plain data."""
    return digest(tokenizer, 64)


def write(folder: Path, tokenizer: Mapping[str, Any]) -> None:
    write_json(folder / FILE, dict(tokenizer))


def refuse_other(place: Path, tokenizer: Mapping[str, Any] | None, key: str = "") -> None:
    """Refuses a network for texts whose words have other numbers.

    Args:
        place: The folder of a run, or a file; a `vocabulary.json` in the folder is its own.
        tokenizer: Of the data that the network is to be given.
        key: That named the place, for the error.

    Raises:
        ConfigError: The two vocabularies differ.
    """
    file = (place if place.is_dir() else place.parent) / FILE
    content = None if tokenizer is None else read_json(file, "remove it, or put it right")
    if content is None or sha256(content) == sha256(tokenizer):
        return
    raise ConfigError(
        f"{f'{key}=' if key else ''}{shown(place)} has another vocabulary than this data (SHA-256 "
        f"{sha256(content)[:12]}, here {sha256(tokenizer)[:12]}), so its words have other numbers; "
        f"type dataset.source.tokenizer={shown(file)}"
    )


def read(folder: Path, record: Record) -> Tokenizer:
    """The tokenizer of a finished run.

    Raises:
        ConfigError: It is lost, damaged, or another run's.
    """
    path, known = folder / FILE, record.dataset.tokenizer_sha256
    if known is None:
        raise ConfigError(
            f"{shown(folder)}: the source of its data gave token ids and no tokenizer, so texts "
            "can't become ids"
        )
    content = read_json(path, "copy the file back from the run that wrote it, or train anew")
    if content is None:
        raise ConfigError(f"{shown(path)} is lost; without it texts can't become token ids")
    if sha256(content) != known:
        raise ConfigError(
            f"{shown(path)} is the vocabulary of another run (SHA-256 {sha256(content)[:12]}, this "
            f"run's is {known[:12]}); put this run's file back, or train anew with rerun=true"
        )
    try:
        return tokenizers.read(content)
    except ValueError as error:
        raise ConfigError(f"{shown(path)} can't be used: {first_line(error)}") from error
