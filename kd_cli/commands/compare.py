"""`kd compare`: trains the same student with and without a teacher, and gives a verdict.

A comparison is two sweeps into one folder: the scratch student, then the distilled ones, each with
the seeds 0, 1, ... So a pair starts from the same weights and sees the same batches for the same
number of epochs. The teacher is trained once. Finished runs are not repeated, so an interrupted
comparison continues. Nothing here imports TensorFlow.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from kd_cli.commands import job
from kd_cli.commands.job import is_sweep
from kd_cli.commands.sweep import expand
from kd_cli.commands.table import COMMANDS, Request
from kd_cli.config.overrides import override_key, scratch_overrides
from kd_cli.errors import ConfigError
from kd_cli.files import remove_leftovers, where_possible, write_json
from kd_cli.report import files_for_devices, groups
from kd_cli.report.build import build_report, left_out, write_report
from kd_cli.report.columns import NONE, PERCENT, In, columns
from kd_cli.report.statistics import MAX_SEEDS, MIN_SEEDS
from kd_cli.runs import finished
from kd_cli.runs.finished import validation_accuracy
from kd_cli.runs.identity import sweep_id
from kd_cli.runs.session import Session
from kd_cli.terminal import messages, print_table, shown

log = logging.getLogger("kd")
SEEDS = 5
# Scratch students with a setting more, to see whether a teacher does more than that setting would.
CONTROLS = {"label_smoothing": "label_smoothing=0.1"}
SEED_KEYS = ("seed", "init_seed", "data_seed")


def run(request: Request) -> int:
    """Trains both sweeps of the comparison, and prints the verdicts."""
    flags = request.flags if is_sweep(request.flags) else [*request.flags, "--multirun"]
    parts = [
        job.prepare(Request(COMMANDS[word], overrides, flags, request.config_dir))
        for word, overrides in sweeps(request.overrides, request.config_dir)
    ]
    session = Session()
    codes = [job.train(part, session, table=False) for part in parts]
    with messages():
        conclude(parts[0].points[0].parent)
    return max(codes)


def sweeps(overrides: list[str], config_dir: str | None = None) -> list[tuple[str, list[str]]]:
    """The sweeps of a comparison: scratch students first, because they cost no teacher.

    Args:
        overrides: As typed: those of `kd distill`, swept or not, `seeds=N` or
            `seeds=7,8,9`, and `controls=...`.
        config_dir: The user's `--config-dir`.

    Returns:
        The word and the overrides of each sweep, as a user could type it.

    Raises:
        ConfigError: Too few or too many seeds, or a key that would make the pairs unequal.
    """
    seeds, kept, controls = list(range(SEEDS)), [], []
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "seeds":
            seeds = _seeds(value)
        elif key == "controls":
            controls = _controls(value)
        elif override_key(override) in SEED_KEYS:
            raise ConfigError(
                f"compare sets the seeds itself; replace {override} by seeds=N, the number of seeds"
            )
        elif override_key(override) == "rerun":
            raise ConfigError(
                f"compare does not take rerun: it reuses finished runs; remove {override}"
            )
        else:
            kept.append(override)
    if not any(override_key(o) == "sweep" for o in kept):
        swept = expand(kept, config_dir)[1] if kept else set()
        unswept = [o for o in kept if override_key(o) not in swept]
        kept.append(f"sweep=compare-{sweep_id('compare', unswept)}")
    kept.append(f"seed={','.join(map(str, seeds))}")
    scratch = scratch_overrides(kept)
    more = [("train-student", [*scratch, CONTROLS[control]]) for control in controls]
    return [("train-student", scratch), *more, ("distill", kept)]


def _seeds(value: str) -> list[int]:
    """`5` are the first five; `7,8,9` are these."""
    words = value.strip("[]").split(",")
    if len(words) == 1:
        return list(range(count_of(value)))
    if not all(word.isdigit() and int(word) < 2**31 for word in words):
        raise ConfigError(f"seeds={value}: each must be a whole number, at least 0, below 2**31")
    found = list(dict.fromkeys(map(int, words)))
    if not MIN_SEEDS <= len(found) <= MAX_SEEDS:
        raise ConfigError(f"seeds={value}: expected {MIN_SEEDS} to {MAX_SEEDS} different seeds")
    return found


def count_of(value: str) -> int:
    """How many seeds were asked for.

    Raises:
        ConfigError: It is no number, or too few for a verdict, or too many.
    """
    if not value.isdigit() or not MIN_SEEDS <= int(value) <= MAX_SEEDS:
        raise ConfigError(
            f"seeds={value} must be a whole number from {MIN_SEEDS} to {MAX_SEEDS}: the verdict "
            f"rests on the differences between at least {MIN_SEEDS} pairs"
        )
    return int(value)


def _controls(value: str) -> list[str]:
    names = [name.strip() for name in value.strip("[]").split(",") if name.strip()]
    for name in names:
        if name not in CONTROLS:
            raise ConfigError(f"controls={value}: expected some of {', '.join(CONTROLS)}")
    return names


def conclude(folder: Path) -> None:
    """Prints the verdicts; writes `comparison.json` and the report.

    `comparison.json` has each distilled group's differences by seed, interval and verdict.
    """
    found = finished.find([folder])
    if found.unfinished or found.unreadable:
        log.warning("left out of the comparison: %s", left_out(found))
    every, _ = groups.grouped([*found.runs, *finished.unseen_teachers(found.runs)])
    verdicts = groups.compared(every)
    shown_columns = columns(In.COMPARE, [run for group in every for run in group.runs])
    rows, sentences, record = [], [], []
    for group in every:
        one = verdicts.get(group.key)
        against, verdict = NONE, NONE
        if one:
            against = PERCENT.text(one.result.mean, sign="+") if one.result else NONE
            verdict = one.verdict
            sentences.append(f"{group.name}: {one.sentence}")
            record.append(_record(group, one))
        cells = [column.over(group.runs) for column in shown_columns]
        rows.append([group.name, str(len(group.runs)), *cells, against, verdict])
    with where_possible(folder):
        remove_leftovers(folder)
        write_json(folder / "comparison.json", {"schema_version": 1, "against_scratch": record})
    if not rows:
        return
    heads = [column.header for column in shown_columns]
    heads = ["", "seeds", *heads, "test against scratch, points", "verdict"]
    print_table(f"{shown(folder)}: mean and standard deviation over seeds", heads, rows)
    for sentence in sentences:
        print(sentence)
    chosen = "Epochs are chosen by validation accuracy"
    if not any(group.summary(validation_accuracy) for group in every):
        chosen = "There is no validation split, so the last epochs count"
    print(f"{chosen}; the verdict is a paired t test on test accuracy, one pair per seed.")
    with where_possible(folder / "report"):
        exported, left = files_for_devices.find(found.runs, [])
        for line in left:
            log.warning("%s", line)
        write_report(folder / "report", build_report(found, [shown(folder)], exported))
        print(f"report:            {shown(folder / 'report' / 'report.html')}")
    files = files_for_devices.of_groups(exported, every)
    if files:
        of_files = files_for_devices.table(files)
        print_table(
            "exported files on test", of_files.columns, [row.cells for row in of_files.rows]
        )
        print(files_for_devices.smallest(files))


def _record(group: groups.Group, one: groups.Comparison) -> dict[str, Any]:
    result = one.result
    return {
        "group": group.name,
        "settings": dict(group.settings),
        "runs": [run.folder.name for run in group.runs if run.folder],
        "verdict": one.verdict,
        "sentence": one.sentence,
        **({"paired": dataclasses.asdict(result)} if result else {}),
    }
