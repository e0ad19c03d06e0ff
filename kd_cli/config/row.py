"""A row of the table of keys: default, help, range, and who has no use for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

Range = tuple[Callable[[Any], bool], str]


def key(
    default: Any,
    help: str = "",
    must: Range | None = None,
    *,
    unused: Mapping[str, str] | None = None,
    place: bool = False,
    variable: bool = False,
    short: bool = False,
) -> Any:
    """A row of the table.

    Args:
        default: A value, an interpolation, or a dataclass for a group of keys.
        help: What it means, for people.
        must: Which values are allowed, and that in words (after "must be"). None is not asked.
        unused: By command why it has no use for the key; a typed one is refused with that.
        place: It says where or how to run and not what comes out, so it is no part of the run id.
        variable: A loss takes it as a variable of the graph: another value traces no new step.
        short: Reports and tables name it by its last word, wherever it stands.
    """
    metadata = {
        "help": help,
        "must": must,
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


def one_of(*values: str, more: str = "") -> Range:
    return lambda value: value in values, f"{', '.join(values[:-1])} or {values[-1]}{more}"


SEED: Range = (lambda value: 0 <= value < 2**31, "between 0 and 2147483647")
SHARE: Range = (lambda value: 0 <= value < 1, "at least 0 and below 1")


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
