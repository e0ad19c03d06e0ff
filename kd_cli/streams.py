"""Standard streams that end no run: closed ones, readers that leave, and few characters.

What a run finds is in its directory. So a message that nobody reads, or that the terminal has no
characters for, is no reason to stop, and none to call a finished run failed.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any

# The reader of a pipe has left, or the terminal is gone.
_NOBODY_READS = (errno.EPIPE, errno.EIO)
_ASCII = {"±": "+-", "–": "-", "—": "-", "−": "-", "×": "x", "…": "...", "→": "->", "•": "*"}


def _substitute(error: UnicodeError) -> tuple[str, int]:
    """Puts ASCII in place of characters that a stream's encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_ASCII.get(character, "?") for character in lacking), error.end


codecs.register_error("kd", _substitute)


def encodable(text: str, encoding: str | None) -> str:
    """A text in the characters that an encoding has."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, "kd").decode(encoding)


class Patient:
    """A text stream that drops what can't be written.

    Attributes:
        failure: Why it drops, where that is not just a reader who left; None while all is well.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.failure: OSError | None = None
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="kd")

    def write(self, text: str) -> int:
        self._attempt(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._attempt(self.stream.flush)

    def close(self) -> None:
        """Closes nothing: absl closes its stream when that is not the current stderr any more."""
        self.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _attempt(self, act: Any, *args: Any) -> None:
        try:
            act(*args)
        except OSError as error:
            if error.errno not in _NOBODY_READS:
                self.failure = error
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, self.stream.fileno())
            os.close(sink)


@contextlib.contextmanager
def patient() -> Iterator[Patient]:
    """Makes stdout and stderr patient, and gives stdout.

    A descriptor that was closed becomes one that takes everything: else the next file that is
    opened would get its number, and with it what libraries in C print.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    saved = sys.stdout, sys.stderr
    with contextlib.ExitStack() as opened:
        out, err = (
            Patient(stream or opened.enter_context(open(os.devnull, "w"))) for stream in saved
        )
        sys.stdout, sys.stderr = out, err  # type: ignore[assignment]
        try:
            yield out
        finally:
            out.flush()
            err.flush()
            if None not in saved:
                sys.stdout, sys.stderr = saved
