"""`kd tune`: searches for good values of some keys, and says how to confirm the best.

Each trial is an ordinary point of a sweep. Trials are compared on the validation split. Test
accuracy is not in the table: the best of many trials on test would be chosen for its luck, and
nothing would be left to measure it with. Nothing here imports TensorFlow.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from kd_cli.commands.compare import SEEDS, count_of
from kd_cli.commands.job import is_sweep
from kd_cli.commands.spaces import Space, split
from kd_cli.commands.table import COMMANDS, Request
from kd_cli.config.overrides import is_typed, override_key
from kd_cli.errors import ConfigError
from kd_cli.runs.identity import sweep_id
from kd_cli.runs.session import Session
from kd_cli.terminal import messages

PRUNERS = ("none", "median")
TRIALS = 20


@dataclass(frozen=True)
class Asked:
    """What was typed.

    Attributes:
        overrides: Those of distill with one value, the sweep's name among them.
        spaces: What is searched for.
        scratch: Overrides of the scratch student alone, without `scratch.`; of `--compare`.
        trials: In all.
        prune: Of `PRUNERS`.
        minutes: After which no new trial is begun.
        seeds: How many fresh seeds the winners get; of `--compare`.
        compare: Whether the scratch student gets a search too.
    """

    overrides: list[str]
    spaces: list[Space]
    scratch: list[str]
    trials: int = TRIALS
    prune: str = "none"
    minutes: float = float("inf")
    seeds: int = SEEDS
    compare: bool = False


def run(request: Request) -> int:
    """Searches, and shows what was found.

    Raises:
        ConfigError: A mistake in what was typed, and nothing has been written; or Optuna is not
            installed.
        RunFailed: No trial has finished.
    """
    if is_sweep(request.flags):
        raise ConfigError("tune finds its points itself: leave --multirun out")
    asked = asked_for(request.overrides, "--compare" in request.flags, request.config_dir)
    if find_spec("optuna") is None:
        raise ConfigError(
            "tune needs the package optuna; type: pip install 'optuna>=5,<6' (the extra tune)"
        )
    from kd_cli.commands.search import Search
    from kd_cli.commands.search_result import confirmation, show

    session, until = Session(), time.monotonic() + 60 * asked.minutes
    search = Search(
        COMMANDS["distill"], asked.overrides, asked.spaces, asked.prune, request.config_dir, session
    )
    if asked.compare:
        from kd_cli.commands.tune_compare import compare

        return compare(search, asked.scratch, asked.trials, asked.seeds, until)
    with messages():
        failed = search.run(asked.trials, until)
        winner = show(search)
    print(
        "The best of many trials owes some of its lead to luck, and test was not read. To confirm "
        f"it with fresh seeds:\n{confirmation(search, winner)}"
    )
    return 1 if failed else 0


def asked_for(overrides: Sequence[str], compare: bool, config_dir: str | None = None) -> Asked:
    """What was typed, taken apart.

    Args:
        overrides: As typed: those of distill with a value or a space, and tune's own words.
        compare: Whether `--compare` was typed.
        config_dir: The user's `--config-dir`.

    Raises:
        ConfigError: With what was received, what was expected and what to type.
    """
    own: dict[str, Any] = {}
    kept, scratch = [], []
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "trials":
            own["trials"] = _whole(override, value)
        elif key == "minutes":
            own["minutes"] = _positive(override, value)
        elif key == "prune":
            if value not in PRUNERS:
                raise ConfigError(f"{override}: expected {' or '.join(PRUNERS)}")
            own["prune"] = value
        elif key == "objective":
            if value not in ("accuracy", "nll"):
                raise ConfigError(f"{override}: expected accuracy or nll, of the validation split")
            if is_typed("early_stopping.monitor", list(overrides)):
                raise ConfigError(f"{override} sets early_stopping.monitor; leave one of them out")
            kept.append(f"early_stopping.monitor={value}")
        elif (key == "seeds" or key.startswith("scratch.")) and not compare:
            raise ConfigError(
                f"{override} belongs to kd tune --compare: add it, or leave {key} out"
            )
        elif key == "seeds":
            own["seeds"] = count_of(value)
        elif key.startswith("scratch."):
            scratch.append(override.removeprefix("scratch."))
        elif override_key(override) == "rerun":
            raise ConfigError(f"tune reuses finished runs; remove {override}")
        elif override_key(override).startswith("hydra.") and key != "hydra.searchpath":
            raise ConfigError(f"{override}: tune starts its trials itself; leave it out")
        elif override != "sweep=null":  # its default
            kept.append(override)
    single, spaces = split(kept, config_dir)
    if not spaces:
        example = shlex.quote("alpha=interval(0.05,0.95)")
        raise ConfigError(f"tune needs a key with a space to search, as in: kd tune {example}")
    if not any(override_key(one) == "sweep" for one in single):
        single.append(f"sweep=tune-{sweep_id('tune', single)}")
    return Asked(single, spaces, scratch, compare=compare, **own)


def _whole(override: str, value: str) -> int:
    if not value.isdigit() or int(value) < 1:
        raise ConfigError(f"{override} must be a whole number, at least 1: how many trials in all")
    return int(value)


def _positive(override: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ConfigError(f"{override} must be a number of minutes above 0")
    return number
