"""What a search has found: its table, its files, and the command that confirms the best."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from typing import Any

from kd_cli.commands.compare import SEED_KEYS, SEEDS
from kd_cli.commands.search import Search, Tried
from kd_cli.config.overrides import override_key
from kd_cli.config.quoting import command_line
from kd_cli.errors import RunFailed
from kd_cli.files import atomic, where_possible, write_json
from kd_cli.report.columns import NATS, NONE, PERCENT
from kd_cli.terminal import brief, console, print_table, shown

_SHOWN = 15  # rows of the table


def confirmation(search: Search, winner: Tried) -> str:
    """The command that compares the winner with its scratch student, on seeds of their own."""
    dropped = ("sweep", *SEED_KEYS)
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
