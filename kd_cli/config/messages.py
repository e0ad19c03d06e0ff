"""Errors of Hydra and OmegaConf in one line of the user's words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra.errors import OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from kd_cli.config.overrides import place_of
from kd_cli.config.quoting import unreadable
from kd_cli.errors import suggest

_TYPES = {
    "Float": "a number",
    "Integer": "a whole number",
    "Boolean": "true or false",
    "String": "a text",
}
# Keys of nodes that are built: the function decides which there are.
_BUILT = re.compile(r"(dataset\.source|(teacher|student)\.network|loss|schedule|optimizer)\.")
# What an option needs that sets keys of the root and chooses options of other groups.
GLOBAL = (
    "the first line of the file must be '# @package _global_' and nothing else, so that its keys "
    "count from the root"
)
# Groups of which one option is chosen.
_OF_ONE = ("dataset", "teacher", "student", "schedule", "optimizer", "augment", "debug")
# Groups whose options go into a node of another group.
_INSIDE = {"network": ("student", "teacher")}


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
    if "Cannot convert 'list' to string" in text:
        return f"{key} must be one text, and is a list"
    if "is not a ListConfig, list or tuple" in text:
        example = " of [height, width, channels], as in [32,32,3]" if "shape" in key else ""
        return f"{key}={getattr(error, 'value', '...')} must be a list{example}"
    found = re.search(r"[Ff]ield '(\w+)' is not Optional", text)
    if found:
        return f"{key or found[1]}=null: it needs a value; leave it out for the default"
    found = re.search(r"Value '(.*?)' is not a valid bool", text)
    if found:
        return f"{key}={found[1]} must be true or false"
    return f"{key}: {text}" if key else text


def unknown_key(
    key: str, known: Iterable[str], overrides: Sequence[str] = (), command: str = "distill"
) -> str:
    """Says which key is not known, and what there is instead; with a + where one may be added."""
    if key.startswith("teacher.training.augment."):
        return (
            f"unknown key '{key}': the teacher's augmentation follows the student's; choose one of "
            "its own first, as in: augment@teacher.training.augment=flip_crop"
        )
    group, _, option = key.rpartition("/")
    if option in _INSIDE and group in (*_INSIDE[option], ""):
        places = " or ".join(f"{option}@{p}.{option}=OPTION" for p in _INSIDE[option] if group in p)
        return f"'{key}' stands inside another group: type {places}"
    # (Long keys that share their beginning are near each other, whatever they end in.)
    word = key.rpartition(".")[2]
    near = suggest(key, [name for name in known if suggest(word, [name.rpartition(".")[2]])])
    if _BUILT.match(key) and key != "optimizer.learning_rate":  # whose rate is the schedule's
        typed = next((o for o in overrides if place_of(o) == key and "=" in o), f"{key}=...")
        typed = shlex.quote(f"+{typed.lstrip('+')}")
        near += f"{' If' if near else '; if'} the function takes it, type {typed}"
    return f"unknown key '{key}'{near} (all keys: kd {command} --help)"


def explain_hydra(
    error: Exception, keys: Iterable[str], overrides: Sequence[str] = (), command: str = "distill"
) -> str:
    """A Hydra error while composing, in one line of the user's words.

    Args:
        error: From Hydra.
        keys: All dotted keys that exist, to suggest one.
        overrides: What the user typed.
        command: The word, whose page lists the keys.
    """
    text = str(error)
    if isinstance(error.__cause__, ValidationError):
        return explain(error.__cause__, keys)
    found = re.search(r"In '((?:experiment|pair|debug)/\S+)': Could not override '\w+@", text)
    if found:
        return f"{found[1]}.yaml: {GLOBAL}"
    found = re.search(r"Could not override '([^']+)'", text)
    if found:
        detail = str(error.__cause__ or "").splitlines()
        if detail and "not in struct" not in detail[0] and "not in '" not in detail[0]:
            return f"{found[1]}: {detail[0]}"
        return unknown_key(found[1], keys, overrides, command)
    found = re.search(r"(?:Could not find|Could not load) '([^']+)'", text)
    if found:
        group, _, option = found[1].rpartition("/")
        listed = text.partition("Available options")[2].partition("Config search path")[0]
        available = re.findall(r"^\t([^_\s]\S*)", listed, flags=re.MULTILINE)
        available = available or _options(group, text)
        if group and available:
            return (
                f"no option '{option}' in group '{group}'{suggest(option, available)} "
                f"(available: {', '.join(available)})"
            )
        return f"no config '{found[1]}'{suggest(found[1], available)}"
    found = re.search(r"Could not override '?([^'\s]+)'?\. No match in the defaults list", text)
    if found:
        return unknown_key(found[1], keys, overrides, command)
    found = re.search(r"^(\S+) appears more than once in the final defaults list", text)
    if found:
        return f"{found[1]} is chosen already: type {found[1]}=OPTION without the +"
    if "Multiple values for loss" in text:  # a group that may be a list
        return "loss is chosen already: type it without the +, or add losses up: loss=[hinton,at]"
    found = re.search(r"Ambiguous value for argument '(.+)'", text)
    if found:
        place, _, values = found[1].partition("=")
        whole = shlex.quote(f"{place}=[{values}]")
        return f"{found[1]} is a list of values: add --multirun to sweep over them" + (
            "" if place in _OF_ONE else f", or type one list: {whole}"
        )
    found = re.search(r"Could not delete from config. '([^']+)' does not exist", text)
    if found and found[1] in keys:  # Hydra takes null for nothing
        return f"~{found[1]}: it is null already; leave it out"
    if isinstance(error, OverrideParseException):
        return unreadable(error.override)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _options(group: str, text: str) -> list[str]:
    """The options of a group in the folders that an error of Hydra's names as searched.

    Hydra lists them itself, but not where a list of options is chosen, as in tracker=[foo]. Its own
    groups have options that are in no folder.
    """
    folders = [] if group.startswith("hydra") else re.findall(r"path=file://(.*)", text)
    files = [file for folder in folders for file in Path(folder, group).glob("*.yaml")]
    return sorted({file.stem for file in files if not file.stem.startswith("_")})
