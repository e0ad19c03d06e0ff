"""The tokenizers that a source of texts may use: made from the training texts, or of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kd_cli.data.listing import plain
from kd_cli.data.subwords import NAME, Subwords
from kd_cli.data.words import Words
from kd_cli.errors import ConfigError, first_line
from kd_cli.files import read_json

Tokenizer = Words | Subwords
_MADE = {"words": Words, "bpe": Subwords}
_KEY = "dataset.source.tokenizer"


def read(content: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that `to_json` gave.

    Raises:
        ValueError: It is something else.
    """
    if content.get("tokenizer") != NAME:
        return Words.read(content)
    inner, length = content.get("content"), content.get("length")
    if not isinstance(inner, dict) or not isinstance(length, int) or length < 1:
        raise ValueError("it has no content and length")
    return Subwords.read(inner, length)


def given(name: str, length: int, vocabulary: int) -> Tokenizer | None:
    """The tokenizer of a file; None for one that is made from the training texts.

    Args:
        name: words, bpe, or a file: vocabulary.json of a run, or a tokenizer.json.
        length: Of its rows.
        vocabulary: Most ids.

    Raises:
        ConfigError: The file is neither, or has more ids.
    """
    if name in _MADE:
        return None
    key = f"{_KEY}={plain(name)}"
    content = read_json(Path(name).expanduser(), f"type another {_KEY}")
    if content is None:
        raise ConfigError(
            f"{key} is not a file; expected {', '.join(_MADE)}, the vocabulary.json of a run, or a "
            f"{NAME}"
        )
    try:
        own = "tokenizer" in content
        found = replace(read(content), length=length) if own else Subwords.read(content, length)
    except ValueError as error:
        raise ConfigError(f"{key} can't be used: {first_line(error)}") from error
    if found.size > vocabulary:
        raise ConfigError(
            f"{key} has {found.size:,} ids; type dataset.vocabulary={found.size} (now {vocabulary})"
        )
    return found


def made(name: str, texts: Sequence[str], vocabulary: int, length: int) -> Tokenizer:
    """A tokenizer of a kind that `given` does not read from a file."""
    return _MADE[name].of(texts, vocabulary, length)
