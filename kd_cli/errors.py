"""The user's mistakes in one line: what was received, what was expected, what to type."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable

from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)


class ConfigError(Exception):
    """A mistake of the user's: shown in one line, without a traceback, with exit code 2."""


_TYPES = {
    "Float": "a number",
    "Integer": "a whole number",
    "Boolean": "true or false",
    "String": "a text",
}


def explain(error: OmegaConfBaseException, known: Iterable[str] = ()) -> str:
    """An OmegaConf error in one line of the user's words."""
    text = str(error).splitlines()[0]
    key = getattr(error, "full_key", None) or ""
    if isinstance(error, MissingMandatoryValue):
        return f"{key} is missing: type {key}=..."
    if isinstance(error, InterpolationKeyError):
        return f"{key}: {text}"
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return unknown_key(key, known)
    found = re.search(r"(\w+) raised while resolving interpolation: (.*)", text)
    if found:
        return found[2] if found[1] == "ConfigError" else f"{key}: {found[2]}"
    found = re.search(r"Value '(.*?)'(?: of type '\w+')? could not be converted to (\w+)", text)
    if isinstance(error, ValidationError) and found:
        value, kind = found.groups()
        return f"{key}={value} must be {_TYPES.get(kind, kind)}"
    found = re.search(r"Value '(.*?)' is not a valid bool", text)
    if found:
        return f"{key}={found[1]} must be true or false"
    return f"{key}: {text}" if key else text


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


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


# Root keys that come with the losses that use them: a loss without `${temperature}` has none.
LOSS_KEYS = ("alpha", "temperature", "t_squared")
# Root keys of self-train alone.
ROUND_KEYS = ("rounds", "pseudo")


def unknown_key(key: str, known: Iterable[str]) -> str:
    if key in LOSS_KEYS:
        return f"the chosen loss does not use '{key}'; leave it out, or choose another loss="
    if key.split(".")[0] in ROUND_KEYS and key.split(".")[0] not in known:
        return f"'{key}' belongs to self-train: leave it out, or type kd self-train"
    return f"unknown key '{key}'{suggest(key, known)} (all keys: kd distill --cfg job)"


def explain_hydra(error: Exception, keys: Iterable[str]) -> str:
    """A Hydra error while composing, in one line of the user's words.

    Args:
        error: From Hydra.
        keys: All dotted keys that exist, to suggest one.
    """
    text = str(error)
    found = re.search(r"Could not override '([^']+)'", text)
    if found:
        detail = str(error.__cause__ or "").splitlines()
        if detail and "not in struct" not in detail[0] and "not in '" not in detail[0]:
            return f"{found[1]}: {detail[0]}"
        return unknown_key(found[1], keys)
    found = re.search(r"(?:Could not find|Could not load) '([^']+)'", text)
    if found:
        group, _, option = found[1].rpartition("/")
        listed = text.partition("Available options")[2].partition("Config search path")[0]
        available = re.findall(r"^\t(\S+)", listed, flags=re.MULTILINE)
        if group and available:
            return (
                f"no option '{option}' in group '{group}'{suggest(option, available)} "
                f"(available: {', '.join(available)})"
            )
        return f"no config '{found[1]}'{suggest(found[1], available)}"
    found = re.search(r"Could not override '?([^'\s]+)'?\. No match in the defaults list", text)
    if found:
        return unknown_key(found[1], keys)
    found = re.search(r"Ambiguous value for argument '([^']+)'", text)
    if found:
        return (
            f"{found[1]} is a list of values: add --multirun to sweep over them, or quote it "
            f"('{found[1].split('=')[0]}=[...]') for a list"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and lines[0].startswith(("Error parsing override", "mismatched", "no viable")):
        return f"can't read the override: {' '.join(lines[:2])}"
    return lines[0] if lines else type(error).__name__
