"""Overrides as the user typed them."""

from __future__ import annotations

import re

from kd_cli.config.keys import TRAINING, UNUSED

# Root keys that say how the teacher is made, beside all of `teacher`.
_TEACHER_KEYS = (
    *("dataset", "experiment", "pair", "debug", "augment"),
    *("data_dir", "cache_dir", "outputs", "device"),
)


def override_key(override: str) -> str:
    """The key that an override names: `+a.b=1` gives `a.b`, `~a` gives `a`, `db@x=y` gives `db`."""
    return override.lstrip("+~").split("=", 1)[0].split("@", 1)[0].replace("/", ".").strip()


def place_of(override: str) -> str:
    """The key that an override changes: as `override_key`, but `db@x=y` gives `x`."""
    key = override.lstrip("+~").split("=", 1)[0].strip()
    return key.partition("@")[2].partition(":")[0] or override_key(override)


def is_typed(key: str, overrides: list[str] | tuple[str, ...]) -> bool:
    """Whether an override changes this key, or one below it."""
    return any(f"{place_of(override)}.".startswith(f"{key}.") for override in overrides)


def for_teacher(overrides: list[str]) -> list[str]:
    """The overrides of `kd train-teacher`: what it trains with stands at `teacher.training`.

    `epochs=3` becomes `teacher.training.epochs=3`, and `schedule=cosine` becomes
    `schedule@teacher.training.schedule=cosine`. Augmentation stays at the root: the teacher's
    follows it.
    """
    return [_for_teacher(override) for override in overrides]


def _for_teacher(override: str) -> str:
    found = re.match(r"([+~]*)(\w+)([.=].*|$)", override, flags=re.DOTALL)
    if found is None or found[2] not in TRAINING or found[2] == "augment":
        return override
    mark, key, rest = found.groups()
    if key in ("schedule", "optimizer") and rest[:1] != ".":  # the choice of an option
        return f"{mark}{key}@teacher.training.{key}{rest}"
    return f"{mark}teacher.training.{key}{rest}"


def teacher_overrides(typed: list[str], follows: bool = True) -> list[str]:
    """Of a distill run's overrides those with which `kd train-teacher` trains its teacher.

    Args:
        typed: Of distill.
        follows: Whether the teacher is augmented as the student.
    """
    dropped = list(UNUSED["train-teacher"])
    if not follows and not is_typed("teacher.training.augment", typed):
        dropped.append("augment")  # the recipe gives the teacher its own
    return [
        override
        for override in typed
        if not any(f"{place_of(override)}.".startswith(f"{key}.") for key in dropped)
        and (
            place_of(override).split(".")[0] in ("teacher", *_TEACHER_KEYS)
            or place_of(override) == "hydra.searchpath"
        )
    ]


def scratch_overrides(typed: list[str]) -> list[str]:
    """Of a distill run's overrides those with which `kd train-student` trains its baseline."""
    unused = (*UNUSED["train-student"], "rerun")
    return [o for o in typed if not any(f"{place_of(o)}.".startswith(f"{key}.") for key in unused)]
