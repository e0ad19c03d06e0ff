"""A row of the table of keys: default, help, range, and which commands do not use it."""

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
        help: What it means, for `--help`.
        must: Which values are allowed, and that in words (after "must be"). None is not checked.
        unused: Why a command does not use the key, by command; a typed one is refused with that.
        place: It says where or how to run and does not change the result; not in the run id.
        variable: A loss takes it as a variable of the graph: another value traces no new step.
        short: Reports and tables name it by its last word, whatever its prefix.
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
