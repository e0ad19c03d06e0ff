"""The user's mistakes in one line: what was received, what was expected, what to type."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from typing import Any


class ConfigError(Exception):
    """A mistake of the user's: shown in one line, without a traceback, with exit code 2."""


class RunFailed(Exception):
    """A run broke; its traceback is in its log and error.json. Exit code 1."""


class Pruned(Exception):
    """A search has given a run up, because others were better after as many epochs.

    Attributes:
        record: What becomes `pruned.json`.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        super().__init__(f"pruned after epoch {record['epoch']}")
        self.record = record


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# The disk is full, over quota, or read-only.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def failure_line(error: BaseException) -> str:
    """What ended a run, in one line: for a disk that takes no more, what to do."""
    if isinstance(error, OSError) and error.errno in DISK:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}; the same command continues once it can write"
    return first_line(error)


def was_interrupted(error: BaseException) -> bool:
    """Whether Ctrl-C made an error: C++ code turns the interrupt into one of its own."""
    one: BaseException | None = error
    seen: set[int] = set()
    while one is not None and id(one) not in seen:  # (raised again, errors may stand in a circle)
        if isinstance(one, KeyboardInterrupt):
            return True
        seen.add(id(one))
        one = one.__cause__ or one.__context__
    return False


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
