"""The table at the end of a run: teacher, distilled and scratch student, and the files."""

from __future__ import annotations

import contextlib
from pathlib import Path

from kd_cli.config.overrides import scratch_overrides
from kd_cli.config.plans import is_taught, scratch_plan, trains_teacher
from kd_cli.config.quoting import command_line, quoted
from kd_cli.report.columns import In, columns
from kd_cli.runs import identity
from kd_cli.runs.asked import Run
from kd_cli.runs.finished import FinishedRun, test_accuracy
from kd_cli.runs.record import Record, RecordError, RoundRecord
from kd_cli.terminal import print_table, shown


def print_result(record: Record, run: Run) -> None:
    """Teacher, distilled student and scratch student side by side, and where the files are.

    The run is finished: what can't be read of the others is told, and is no failure.
    """
    plan, out = run.plan, run.out
    own = "teacher" if trains_teacher(plan) else "scratch student"
    name = "distilled student" if is_taught(plan) else own
    runs: dict[str, FinishedRun] = {}
    files, missing = {}, ""
    if record.teacher:
        runs["teacher"] = _teacher(FinishedRun(record))
        files["teacher"] = record.teacher.path
    runs[name] = FinishedRun(record)
    if record.teacher:
        scratch, files["scratch student"] = scratch_of(record, run)
        if isinstance(scratch, FinishedRun):
            runs["scratch student"] = scratch
        else:
            missing = scratch
    elif trains_teacher(plan) and out.resolve() != identity.teacher_dir(plan).resolve():
        given = f"teacher_dir={quoted(shown(out))}"
        files["to distil from it"] = command_line("distill", [given], run.config_dir)
    files[name] = shown(out)
    measured = columns(In.RUN, list(runs.values()))
    rows = [
        [name, *[column.cell(column.value(run)) for column in measured]]
        for name, run in runs.items()
    ]
    if missing:
        rows.append(["scratch student", missing, *[""] * (len(measured) - 1)])
    heads = ["", *[column.header for column in measured]]
    print_table(f"{record.dataset.name}: accuracy", heads, rows)
    if "distilled student" in runs:
        print(_distance(runs))
    if record.validation is None:
        print(f"epoch:             {record.selection}")
    for name, where in files.items():
        print(f"{name + ':':<19}{where}")


def _distance(runs: dict[str, FinishedRun]) -> str:
    """How far the distilled student is from teacher and scratch student, in test accuracy."""
    own = test_accuracy(runs["distilled student"])
    parts = []
    for name in ("scratch student", "teacher"):
        if name in runs:
            points = 100 * (own - test_accuracy(runs[name]))
            where = "above" if points >= 0 else "below"
            parts.append(f"{abs(points):.2f} points {where} the {name}")
    return f"on test:           {', '.join(parts)} (one seed; kd compare gives a verdict)"


def _teacher(run: FinishedRun) -> FinishedRun:
    """A distilled student's teacher: as its own record says, else as the student's does."""
    with contextlib.suppress(RecordError):
        own = Record.read(Path(run.record["teacher"]["path"]))
        if own is not None:
            return FinishedRun(own)
    return run.teacher


def scratch_of(record: Record, run: Run) -> tuple[FinishedRun | str, str]:
    """A taught student's scratch student and its directory.

    Where there is none: what stands in its row, and why. Without labels there is no row.
    """
    if record.dataset.labelled == 0:
        return "", "needs labels, which the training examples do not have"
    folder = identity.run_dir(scratch_plan(run.plan))
    try:
        scratch = Record.read(folder)
    except RecordError as error:
        return "not readable", str(error)
    data = ("fingerprint", "split_fingerprint")
    if scratch and all(scratch.dataset[key] == record.dataset[key] for key in data):
        return FinishedRun(scratch), shown(folder)
    command = command_line("train-student", scratch_overrides(run.typed), run.config_dir)
    return "not trained yet", f"not trained yet: {command}"


def print_rounds(record: Record, out: Path) -> None:
    """What each round of self-training learned from, and how good its network is."""
    runs = [_as_run(one) for one in record.rounds]
    measured = columns(In.ROUNDS, runs)
    rows = [
        [str(number), *[column.cell(column.value(run)) for column in measured]]
        for number, run in enumerate(runs)
    ]
    heads = ["round", *[column.header for column in measured]]
    print_table(f"{record.dataset.name}: accuracy after each round", heads, rows)
    if record.best_round is not None:
        print(f"best on validation: round {record.best_round}")
    print(f"the last round's network: {shown(out / 'model.keras')}")


def _as_run(one: RoundRecord) -> FinishedRun:
    """What the record of all rounds says of one, under the keys of a run's record."""
    return FinishedRun(
        {
            "dataset": {"labelled": one.labelled},
            "pseudo_labels": one.pseudo_labels,
            "validation": {"best": one.validation},
            "test": one.test,
            "timings": {"total_seconds": one.seconds},
        }
    )
