"""The spaces of a search: what you type for `kd tune`, in the grammar of Hydra's overrides.

`interval(a,b)`, `int(interval(a,b))`, `range(a,b)` and `choice(a,b)`; with `tag(log,interval(a,b))`
equal factors are equally likely.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kd_cli.commands.sweep import parsed
from kd_cli.config.keys import PLACES, walk
from kd_cli.config.overrides import place_of
from kd_cli.errors import ConfigError

DIGITS = 4  # significant ones of a value between two others, so that a person can type it
_SEEDS = ("seed", "init_seed", "data_seed", "augment_seed")
_NO_SPACE = {
    "dataset": "trials are compared on the same validation images; type one value",
    "early_stopping.monitor": "it is what trials are compared by; type objective=nll",
    **dict.fromkeys(PLACES, "it is no setting of the training; type one value"),
}


@dataclass(frozen=True)
class Space:
    """The values that a search may give to a key.

    Attributes:
        key: As typed, with its + or @.
        text: The whole of what was typed.
        choices: Of a list: the values as you would type them. Else empty.
        low, high: Of numbers: the least and the greatest value.
        step: Between neighbours; None where every value between the two may be taken.
        whole: Whether they are whole numbers.
        log: Whether equal factors are equally likely.
    """

    key: str
    text: str
    choices: tuple[str, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    whole: bool = False
    log: bool = False

    @property
    def name(self) -> str:
        """The key without its +."""
        return self.key.lstrip("+")

    def value(self, found: Any) -> Any:
        """What is typed for a value that the search proposes: a number with few digits."""
        if self.choices or self.whole:
            return found
        digits = DIGITS if self.step is None else 10
        return min(max(float(f"{found:.{digits}g}"), self.low), self.high)

    def override(self, found: Any) -> str:
        """The override with a value that the search proposes."""
        value = self.value(found)
        return f"{self.key}={value if self.choices or self.whole else repr(value)}"

    def proposal(self, value: Any) -> Any:
        """What the search would have to propose for a value; None where it is not in the space.

        A null, which turns a setting off, counts as 0.
        """
        value = 0 if value is None else value
        if self.choices:
            return next((one for one in self.choices if _means(one, value)), None)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not self.low <= value <= self.high:
            return None
        steps = 0 if self.step is None else (value - self.low) / self.step
        return value if math.isclose(steps, round(steps), abs_tol=1e-6) else None

    def probes(self) -> list[Any]:
        """Values that are checked before a search begins: all of a list; ends of an interval."""
        return list(self.choices) or [self.low, self.high]

    def spec(self) -> dict[str, Any]:
        """What makes it the same space, however it was typed."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "text"}


def split(overrides: Sequence[str], config_dir: str | None) -> tuple[list[str], list[Space]]:
    """Overrides with one value, and spaces, each in the order in which they were typed.

    Raises:
        ConfigError: An override can't be read, is a space without a choice, or of a key that a
            search can't choose.
    """
    single: list[str] = []
    spaces: dict[str, Space] = {}
    for override in parsed(list(overrides), config_dir):
        line, key = override.input_line, override.get_key_element()
        if not override.is_sweep_override():
            single.append(line)
            spaces.pop(key, None)  # of a key that is typed twice the last counts
            continue
        single = [one for one in single if one.partition("=")[0] != key]
        spaces[key] = _space(override, key, line)
        _refuse(spaces[key])
    return single, list(spaces.values())


def _space(override: Any, key: str, line: str) -> Space:
    from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, RangeSweep

    found = override.value()
    values = line.partition("=")[2]
    if isinstance(found, Glob):
        raise ConfigError(f"{line}: name the options, as in {key}='choice(a,b)'")
    if isinstance(found, ChoiceSweep) and found.simple_form:
        raise ConfigError(
            f"{line} is a list of values, and tune chooses among them only where you type "
            f"{key}='choice({values})'"
        )
    if getattr(found, "shuffle", False):
        raise ConfigError(f"{line}: tune takes values in its own order; leave shuffle out")
    tags = getattr(found, "tags", set())
    if tags - {"log"}:
        raise ConfigError(f"{line}: the only tag is log, as in {key}='tag(log,interval(1e-4,1))'")
    log = "log" in tags
    if isinstance(found, IntervalSweep):
        space = _interval(key, line, found.start, found.end, log)
    elif isinstance(found, RangeSweep):
        space = _range(key, line, list(found.range()))
    else:
        choices = tuple(dict.fromkeys(override.sweep_string_iterator()))
        if len(choices) < 2:
            raise ConfigError(f"{line} gives no choice; type {key}={''.join(choices) or '...'}")
        space = Space(key, line, choices=choices)
    if log and not isinstance(found, IntervalSweep):
        raise ConfigError(f"{line}: log is of an interval: {key}='tag(log,interval(1,64))'")
    return space


def _interval(key: str, line: str, low: float, high: float, log: bool) -> Space:
    whole = isinstance(low, int) and isinstance(high, int)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"{line}: the first end must be below the second, and both be numbers")
    if log and low <= 0:
        raise ConfigError(f"{line}: with log both ends must be above 0")
    if not whole and _is_whole(place_of(line)):
        raise ConfigError(
            f"{line}: {place_of(line)} is a whole number; type "
            f"{key}='int(interval({low:g},{high:g}))'"
        )
    return Space(key, line, low=low, high=high, step=1 if whole else None, whole=whole, log=log)


def _range(key: str, line: str, values: list[float]) -> Space:
    if len(values) < 2:
        raise ConfigError(f"{line} gives no choice; a range leaves its end out")
    values = sorted(values)
    whole = all(isinstance(value, int) for value in values)
    step = values[1] - values[0] if whole else round(values[1] - values[0], 10)
    return Space(key, line, low=values[0], high=values[-1], step=step, whole=whole)


def _means(typed: str, value: Any) -> bool:
    """Whether a value of a list, as typed, is this one."""
    if isinstance(value, bool):
        return typed.lower() == str(value).lower()
    try:
        return float(typed) == value
    except ValueError:
        return typed.strip("'\"") == str(value)


def _is_whole(key: str) -> bool:
    """Whether the table of keys says that a key is a whole number."""
    row = dict(walk()).get(key)
    kinds = typing.get_args(row.type) if row and isinstance(row.type, types.UnionType) else ()
    return row is not None and int in (row.type, *kinds)


def _refuse(space: Space) -> None:
    place = place_of(space.text)
    why = _NO_SPACE.get(place) or _NO_SPACE.get(place.split(".")[0])
    if place.rpartition(".")[2] in _SEEDS:
        why = "the best of several seeds is the luckiest one; type one seed"
    if place.split(".")[0] == "hydra":
        why = "it is no setting of the training; leave it out"
    if why:
        raise ConfigError(f"{space.text}: a search can't choose {place}: {why}")
