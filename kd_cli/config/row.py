"""A row of the table of keys: default, help, range, and which commands do not use it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

Range = tuple[Callable[[Any], bool], str]


def key(
    default: Any,
    help: str = "",
    must: Range | None = None,
    *,
    must_of: Mapping[str, Range] | None = None,
    unused: Mapping[str, str] | None = None,
    place: bool = False,
    variable: bool = False,
    short: bool = False,
) -> Any:
    """A row of the table.

    Args:
        default: A value, an interpolation, or a dataclass for a group of keys.
        help: What it means, for `--help`.
        must: Which values are allowed, and that in words (after "must be"). None is not checked.
        must_of: As `must`, by command, where a command means something else by the key.
        unused: Why a command does not use the key, by command; a typed one is refused with that.
        place: It says where or how to run and does not change the result; not in the run id.
        variable: A loss takes it as a variable of the graph: another value traces no new step.
        short: Reports and tables name it by its last word, whatever its prefix.
    """
    metadata = {
        "help": help,
        "must": must,
        "must_of": dict(must_of or {}),
        "unused": dict(unused or {}),
        "place": place,
        "variable": variable,
        "short": short,
    }
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    if isinstance(default, list):
        return dataclasses.field(default_factory=list, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def above(low: float) -> Range:
    return lambda value: low < value < math.inf, f"above {low:g}"


def at_least(low: float, more: str = "") -> Range:
    return lambda value: low <= value < math.inf, f"at least {low:g}{more}"


def between(low: float, high: float) -> Range:
    return lambda value: low <= value <= high, f"between {low} and {high}"


def one_of(*values: str, more: str = "") -> Range:
    return lambda value: value in values, f"{', '.join(values[:-1])} or {values[-1]}{more}"


MOST_CLASSES = 10_000_000  # a layer for more takes all memory, and a stray label may ask for it


def is_name(value: str) -> bool:
    """Whether a word can name a folder of a run: it leads nowhere else, and every tool shows it."""
    plain = value.isprintable() and value == value.strip() and not set(value) & set("/\\")
    return plain and not value.startswith(".") and 0 < len(value.encode()) <= NAME_BYTES


def are_names(value: str) -> bool:
    """Whether each part of `a/b` can, as in the sets of tensorflow-datasets that have several."""
    return all(map(is_name, value.split("/")))


# A directory's name holds two of them, settings and a hash; file systems take 255 bytes.
NAME_BYTES = 80
_RULE = f"1 to {NAME_BYTES} printable bytes that do not begin with a dot"
NAME: Range = (is_name, f"a name for a folder: {_RULE}, without / and \\")
NAMES: Range = (are_names, f"a name for a folder: {_RULE}, without \\; or several with / between")
PLACE: Range = (
    lambda value: value.strip() != "",
    "a folder, and not empty (leave it out for the default)",
)
DEVICE: Range = (
    lambda value: re.fullmatch(r"auto|cpu|gpu(:\d+)?", value) is not None,
    "auto, cpu, gpu or gpu:N",
)
SEED: Range = (lambda value: 0 <= value < 2**31, "between 0 and 2147483647")
SHARE: Range = (lambda value: 0 <= value < 1, "at least 0 and below 1")
FACTOR: Range = (lambda value: 0 < value <= 1, "above 0 and at most 1")
MODULE: Range = (
    lambda value: (
        all(part.isidentifier() for part in value.split(".")) and not value.endswith(".py")
    ),
    "the dotted name of a Python module, as in my_layers (no .py, no folder)",
)
LABELLED: Range = (
    lambda value: 0 < value <= 1,
    "above 0 and at most 1 (the share of the training images whose labels are used)",
)


FILES: Range = (
    lambda value: (
        isinstance(value, str)
        or (isinstance(value, list) and bool(value) and all(isinstance(x, str) for x in value))
    ),
    "a file or folder, or a list of them, as in [a.keras,b.keras]",
)


def is_number(value: Any) -> bool:
    kind = isinstance(value, int | float) and not isinstance(value, bool)
    return kind and math.isfinite(value)


CHANNELS: Range = (
    lambda value: (
        is_number(value) or (isinstance(value, list) and bool(value) and all(map(is_number, value)))
    ),
    "a number, or a list of one for each channel",
)


def _channels_last(shape: list[int]) -> bool:
    """Whether a shape is [H, W, C], and not [C, H, W] of images as other programs write them."""
    if len(shape) != 3 or min(shape) < 1:
        return False
    height, width, channels = shape
    first = height in (1, 3, 4) and width > 4 and channels > 4
    return not (first and (width == channels or (height == 3 and channels > 16)))


IMAGE_SHAPE: Range = (
    _channels_last,
    "[height, width, channels] (of images that have their channels first, save "
    "np.moveaxis(images, 1, -1))",
)


def _weights(value: Any) -> bool:
    if not isinstance(value, list):
        return value == "balanced"
    numbers = [one for one in value if isinstance(one, int | float) and not isinstance(one, bool)]
    fine = all(0 <= one < math.inf for one in numbers)
    return len(numbers) == len(value) and fine and any(numbers)


CLASS_WEIGHTS: Range = (
    _weights,
    "balanced, or a list of one number for each class, at least 0 and not all 0, or null",
)


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping under dotted keys."""
    found: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
