"""The one place that quotes: texts inside overrides, and commands that you may type as printed.

Hydra's grammar of overrides knows few characters outside quotes. `understood` quotes what you typed
where it can only be a text; `quoted` is for what kd itself writes into an override.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from typing import Any

from kd_cli.config.overrides import override_key
from kd_cli.errors import ConfigError

# The last words of keys whose values are paths or names, so that 2024_01 is no number there.
_TEXTS = re.compile(r"(.*[._])?(path|file|dir|subdir|checkpoint|weights|outputs|sweep|name|what)")
# What no reader of overrides can take for anything but this very text.
_PLAIN = re.compile(r"(?:[A-Za-z_/]|\.{1,2}/)[\w./-]*", re.ASCII)
_KEY = re.compile(r"[+~]*[\w$@:./-]+", re.ASCII)
_WORDS = ("null", "true", "false", "inf", "nan")
# What begins or ends lists, mappings, functions and quotes.
_STRUCTURE = re.compile(r"[\[\](){}'\"]")


def quoted(text: str | os.PathLike[str]) -> str:
    """A text as the value of an override, whatever characters it has; no `${...}` is replaced."""
    return _in_quotes(re.sub(r"(\\*)\$\{", r"\1\1\\${", os.fspath(text)))


def _in_quotes(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    from hydra.core.override_parser.types import Quote, QuotedString

    # Double ones where they do: your shell's own are single.
    return QuotedString(text, Quote.single if '"' in text else Quote.double).with_quotes()


def understood(override: str, sweeping: bool = False) -> str:
    """An override as typed, with its value in quotes where it can only be meant as a text.

    That is a path or a name that Hydra would read as something else (a number, a list of two), and
    any value with a character that Hydra does not know. What remains unreadable is left alone.

    Args:
        override: As typed.
        sweeping: Whether commas part the values of a sweep; of a file of that very name they don't.

    Raises:
        ConfigError: Its key has characters that no key has, or a path that exists has `${`.
    """
    place, equals, value = override.partition("=")
    if not _KEY.fullmatch(place):
        raise ConfigError(unreadable(override))
    text = is_text(override)
    if not equals or (not text and _PLAIN.fullmatch(value)):
        return override
    if text and (value == "~" or value.startswith("~/")):
        value = os.path.expanduser(value)
        override = f"{place}={value}"
    exists = text and os.path.lexists(os.path.expanduser(value))
    if exists and "${" in value:
        raise ConfigError(no_reference(value))
    meant = _value(override)
    if meant is _UNREADABLE:
        if not text and _STRUCTURE.search(value):
            return override
        parts = value.split(",") if sweeping and not exists else [value]
        return f"{place}={','.join(map(_in_quotes, parts))}"
    if text and isinstance(meant, int | float):
        return f"{place}={_in_quotes(value)}"
    # Values of a sweep, which Hydra reads, are one text all the same where there is no sweep.
    swept = text and not isinstance(meant, str | list | dict | None)
    if (swept and not sweeping) or (exists and meant != value):
        return f"{place}={_in_quotes(value)}"
    return override


def is_text(override: str) -> bool:
    """Whether the value of an override is a path or a name."""
    return _TEXTS.fullmatch(override_key(override)) is not None


def text_of(override: str) -> str:
    """The value of an override that is a path or a name, without its quotes."""
    meant = _value(override)
    return meant if isinstance(meant, str) else override.partition("=")[2]


def command_line(word: str, overrides: Sequence[str], config_dir: str | None = None) -> str:
    """A command that does the same in a POSIX shell when it is typed as it stands."""
    folder = [] if config_dir is None else ["--config-dir", config_dir]
    return shlex.join(["kd", word, *folder, *overrides])


def no_reference(path: object) -> str:
    """Says that a path looks like a reference to another key."""
    return f"{path}: YAML reads ${{ as a reference to a key; give it another name, or a link to it"


def unreadable(override: str) -> str:
    """Says what to type in place of an override that Hydra can't read."""
    place, _, value = override.partition("=")
    if "=" not in override or not _KEY.fullmatch(place):
        return f"can't read {override}: expected key=value, as in epochs=3 (kd distill --help)"
    text = shlex.quote(f"{place}={_in_quotes(value)}")
    return (
        f"can't read {override}: a bracket or a quote is missing, or it is a text, whose brackets, "
        f"commas and quotes must stand in quotes: {text}"
    )


_UNREADABLE = object()


def _value(override: str) -> Any:
    """The value of an override as Hydra reads it: a text without its quotes, a number, or other.

    `_UNREADABLE` where its parser, or a function that the value calls, refuses it.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import QuotedString
    from hydra.errors import HydraException

    try:
        value = OverridesParser.create().parse_override(override)._value
    except HydraException:
        return _UNREADABLE
    return value.text if isinstance(value, QuotedString) else value
