"""`kd tune`: searches for good values of some keys, and says how to confirm the best.

Each trial is an ordinary point of a sweep. Trials are compared on the validation split. Test
accuracy is not in the table: the best of many trials on test would be chosen for its luck, and
nothing would be left to measure it with. Nothing here imports TensorFlow.
"""

from __future__ import annotations

import csv
import logging
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from kd_cli.commands.compare import SEEDS, count_of
from kd_cli.commands.job import is_sweep
from kd_cli.commands.spaces import Space, split
from kd_cli.commands.table import COMMANDS, Request
from kd_cli.config.overrides import is_typed, override_key
from kd_cli.config.quoting import command_line
from kd_cli.errors import ConfigError, RunFailed
from kd_cli.files import atomic, where_possible, write_json
from kd_cli.report.columns import NATS, NONE, PERCENT
from kd_cli.runs.identity import sweep_id
from kd_cli.runs.session import Session
from kd_cli.terminal import brief, console, messages, print_table, shown

if TYPE_CHECKING:
    from kd_cli.commands.search import Search, Tried

log = logging.getLogger("kd")
PRUNERS = ("none", "median")
TRIALS = 20
_SHOWN = 15  # rows of the table


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

    session, until = Session(), time.monotonic() + 60 * asked.minutes
    search = Search(
        COMMANDS["distill"], asked.overrides, asked.spaces, asked.prune, request.config_dir, session
    )
    if asked.compare:
        from kd_cli.commands.tune_compare import compare

        return compare(asked, search, until)
    with messages():
        failed = search.run(asked.trials, until)
        winner = show(search)
    print(
        "The best of many trials is so partly by luck, and test was not read. To confirm it with "
        f"fresh seeds:\n{confirmation(search, winner)}"
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


def confirmation(search: Search, winner: Tried) -> str:
    """The command that compares the winner with its scratch student, on seeds of their own."""
    dropped = ("sweep", "seed", "init_seed", "data_seed")
    kept = [one for one in search.overrides if override_key(one) not in dropped]
    seeds = ",".join(map(str, fresh_seeds(search, SEEDS)))
    return command_line("compare", [*kept, *winner.typed, f"seeds={seeds}"], search.config_dir)


def fresh_seeds(search: Search, count: int) -> list[int]:
    """The first seeds that the search has not seen."""
    plan = search.plan
    seen = {plan.seed, plan.init_seed, plan.data_seed, plan.augment_seed}
    return [seed for seed in range(count + len(seen)) if seed not in seen][:count]


def show(search: Search, among: int | None = None) -> Tried:
    """Prints the table of a search, writes its files, and returns the winner.

    Args:
        search: It has run.
        among: Only the first so many trials count; None counts all.

    Raises:
        RunFailed: No trial has finished.
    """
    every, winner = search.tried()[:among], search.winner(among)
    if winner is None:
        why = next((one.why for one in every if one.why), "there was no time for one")
        raise RunFailed(f"no trial of {shown(search.place)} has finished ({why})")
    ranked = sorted(every, key=search.rank)
    counts = Counter(one.outcome for one in ranked)
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    heads = ["trial", *[space.name for space in search.spaces]]
    heads += ["validation, %", "validation NLL", "epochs", "outcome"]
    print_table(
        f"{shown(search.place)}: {len(every)} trials ({told}), sorted by validation "
        f"{search.monitor}",
        heads,
        [_row(search, one) for one in ranked[:_SHOWN]],
    )
    if len(ranked) > _SHOWN:
        print(f"{len(ranked) - _SHOWN} more: {shown(search.place / 'trials.csv')}")
    for one in every:
        if one.outcome == "failed":
            text = f"kd: failed: trial {one.number}: {one.why.splitlines()[0]}"
            console.print(text, style="red", markup=False, soft_wrap=True)
    importances = search.study.importances()
    if importances:
        shares = [f"{key.lstrip('+')} {share:.2f}" for key, share in importances.items()]
        print(f"importance (PED-ANOVA): {', '.join(shares)}")
    with where_possible(search.place):
        _write(search, ranked, winner, importances)
        print(f"figure: {shown(search.place / 'search.png')}")
    return winner


def _row(search: Search, one: Tried) -> list[str]:
    accuracy, nll = one.validation.get("accuracy"), one.validation.get("nll")
    return [
        str(one.number),
        *[brief(one.values[space.key]) for space in search.spaces],
        NONE if accuracy is None else PERCENT.text(accuracy),
        NONE if nll is None else NATS.text(nll),
        str(one.epochs or NONE),
        one.outcome,
    ]


def _write(
    search: Search, ranked: Sequence[Tried], winner: Tried, importances: dict[str, float]
) -> None:
    """Leaves `trials.csv`, `search.json` and `search.png` in the search's folder."""
    rows = [
        {
            "trial": one.number,
            "outcome": one.outcome,
            **{space.name: one.values[space.key] for space in search.spaces},
            "validation_accuracy": one.validation.get("accuracy"),
            "validation_nll": one.validation.get("nll"),
            "epochs": one.epochs,
            "directory": one.directory,
            "why": one.why,
        }
        for one in ranked
    ]
    with atomic(search.place / "trials.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    told = {
        "schema_version": 1,
        "command": search.command.word,
        "overrides": search.overrides,
        "spaces": {space.name: space.text.partition("=")[2] for space in search.spaces},
        "objective": search.monitor,
        "prune": search.prune,
        "winner": winner.number,
        "confirm": confirmation(search, winner),
        "importances": importances,
        "trials": rows,
    }
    write_json(search.place / "search.json", told)
    with atomic(search.place / "search.png") as temporary:
        temporary.write_bytes(_figure(search, ranked, winner, importances))


def _figure(
    search: Search, ranked: Sequence[Tried], winner: Tried, importances: dict[str, float]
) -> bytes:
    from kd_cli.report.search_plots import Slice, search_figure

    factor, label = (100, "accuracy [%]") if search.monitor == "accuracy" else (1, "NLL [nats]")
    slices = []
    for space in search.spaces:
        points: dict[str, list[tuple[Any, float]]] = {"finished": [], "pruned": [], "winner": []}
        for one in ranked:
            kind = "winner" if one.number == winner.number else one.outcome
            if kind in points and one.validation:
                value = factor * one.validation[search.monitor]
                points[kind].append((one.values[space.key], value))
        share = importances.get(space.key)
        ends = space.low, space.high
        slices.append(Slice(space.name, space.choices, ends, space.log, share, points))
    return search_figure(slices, f"validation {label}")
