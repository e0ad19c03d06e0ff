"""Texts become token ids: a word list that is made from the training texts.

Id 0 is padding, id 1 every word that is not on the list. The words follow, the most frequent first.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from kd_cli.config.inputs import PADDING, UNKNOWN

PATTERN = r"\w+|[!?]"
FIRST = 2  # the id of the first word
_LEAST = 2  # a word that occurs once in the training texts teaches nothing that another text needs


def tokens_of(text: str) -> list[str]:
    """The words of a text in lower case, and its ! and ?."""
    return re.findall(PATTERN, unicodedata.normalize("NFC", text).lower())


@dataclass(frozen=True)
class Words:
    """A word list.

    Attributes:
        words: The first has the id 2.
        length: Of a row of ids.
    """

    words: tuple[str, ...]
    length: int
    noun = "words"
    unknown = UNKNOWN

    @property
    def size(self) -> int:
        """How many ids there are."""
        return len(self.words) + FIRST

    @classmethod
    def of(cls, texts: Iterable[str], vocabulary: int, length: int) -> Self:
        """The words that occur at least twice, up to `vocabulary` ids with padding and unknown."""
        counts = Counter(word for text in texts for word in tokens_of(text))
        often = [word for word, count in counts.items() if count >= _LEAST]
        often.sort(key=lambda word: (-counts[word], word))
        return cls(tuple(often[: vocabulary - FIRST]), length)

    def ids(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """Rows of ids [N, length], int32, and how many texts were longer and are cut.

        A text without a word is one unknown word, so that no row is all padding.
        """
        known = {word: number for number, word in enumerate(self.words, FIRST)}
        rows, cut = np.full((len(texts), self.length), PADDING, np.int32), 0
        for row, text in zip(rows, texts, strict=True):
            found = [known.get(word, UNKNOWN) for word in tokens_of(text)] or [UNKNOWN]
            cut += len(found) > self.length
            found = found[: self.length]
            row[: len(found)] = found
        return rows, cut

    def not_known(self, text: str) -> list[str]:
        """The words of a text that are not on the list."""
        known = set(self.words)
        return [word for word in tokens_of(text) if word not in known]

    def to_json(self) -> dict[str, Any]:
        """Plain data that says all of it."""
        return {
            "tokenizer": "words",
            "pattern": PATTERN,
            "lower_case": True,
            "unicode": "NFC",
            "length": self.length,
            "padding": PADDING,
            "unknown": UNKNOWN,
            "first": FIRST,
            "words": list(self.words),
        }

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Self:
        """What `to_json` gave.

        Raises:
            ValueError: It is something else.
        """
        words, length = content.get("words"), content.get("length")
        fine = isinstance(words, list) and all(isinstance(word, str) for word in words)
        if not fine or not isinstance(length, int) or length < 1:
            raise ValueError("it has no words and length")
        found = cls(tuple(words), length)
        if found.to_json() != dict(content):
            raise ValueError("another tokenizer than kd's word list")
        return found
