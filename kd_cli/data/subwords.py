"""Texts become token ids by the package `tokenizers`: parts of words, trained or of a given file.

The file is a `tokenizer.json`, as that package and the Hugging Face hub write it. It holds data, no
code. (Training is byte-pair encoding, which gives the same tokens each time. The package's training
of WordPiece does not, so it is not offered; a given file may be WordPiece.)
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from kd_cli.config.inputs import PADDING, UNKNOWN
from kd_cli.errors import ConfigError, first_line

_SPECIAL = ["[PAD]", "[UNK]"]  # the ids 0 and 1
NAME = "tokenizer.json"


@dataclass(frozen=True)
class Subwords:
    """A tokenizer of the package.

    Attributes:
        text: Its tokenizer.json.
        length: Of a row of ids.
    """

    text: str
    length: int
    noun = "tokens"

    @classmethod
    def of(cls, texts: Iterable[str], vocabulary: int, length: int) -> Self:
        """Byte-pair encoding trained on texts, with up to `vocabulary` ids.

        Source: Sennrich et al. 2016, "Neural machine translation of rare words with subword units".
        """
        package = _package()
        tokenizer = package.Tokenizer(package.models.BPE(unk_token=_SPECIAL[UNKNOWN]))
        steps = [package.normalizers.NFC(), package.normalizers.Lowercase()]
        tokenizer.normalizer = package.normalizers.Sequence(steps)
        tokenizer.pre_tokenizer = package.pre_tokenizers.Whitespace()
        trainer = package.trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=_SPECIAL, show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer.to_str(), length)

    @classmethod
    def read(cls, content: Mapping[str, Any], length: int) -> Self:
        """A tokenizer.json.

        Raises:
            ValueError: It is none, or its id 0 is not padding, which networks leave out.
        """
        found = cls(json.dumps(content, ensure_ascii=False), length)
        first = found._tokenizer.id_to_token(PADDING)
        if first is None or "pad" not in first.lower():
            raise ValueError(f"its id 0 is '{first}', and networks take id 0 for padding")
        return found

    @functools.cached_property
    def _tokenizer(self) -> Any:
        try:
            tokenizer = _package().Tokenizer.from_str(self.text)
        except ConfigError:
            raise
        except Exception as error:  # the package raises Exception itself
            raise ValueError(f"no {NAME} ({first_line(error)})") from error
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.length)
        return tokenizer

    @functools.cached_property
    def unknown(self) -> int:
        model = json.loads(self.text).get("model", {})
        found = self._tokenizer.token_to_id(model.get("unk_token") or "")
        return UNKNOWN if found is None else found

    @property
    def size(self) -> int:
        """How many ids there are."""
        return max(self._tokenizer.get_vocab().values()) + 1

    def ids(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """As `words.Words.ids`."""
        rows, cut = np.full((len(texts), self.length), PADDING, np.int32), 0
        encodings = self._tokenizer.encode_batch(list(texts))
        for row, encoding in zip(rows, encodings, strict=True):
            found = encoding.ids or [self.unknown]
            cut += bool(encoding.overflowing)
            row[: len(found)] = found
        return rows, cut

    def not_known(self, text: str) -> list[str]:
        """The parts of a text that have no id of their own."""
        encoding = self._tokenizer.encode(text)
        parts = zip(encoding.ids, encoding.offsets, strict=True)
        return [text[begin:end] for number, (begin, end) in parts if number == self.unknown]

    def to_json(self) -> dict[str, Any]:
        """Plain data that says all of it."""
        return {"tokenizer": NAME, "length": self.length, "content": json.loads(self.text)}


def _package() -> Any:
    try:
        import tokenizers
        import tokenizers.models
        import tokenizers.normalizers
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise ConfigError(
            "parts of words need the package tokenizers: pip install tokenizers (or kd-cli[text]); "
            "dataset.source.tokenizer=words needs none"
        ) from error
    return tokenizers
