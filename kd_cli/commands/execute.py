"""The commands, from data to result; runs that share data and teacher train together."""

from __future__ import annotations

import contextlib
import logging
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from kd_cli.commands.result_table import print_result, print_rounds
from kd_cli.commands.self_train import self_train
from kd_cli.config.check import check
from kd_cli.config.compose import compose
from kd_cli.config.overrides import override_key
from kd_cli.data.dataset import Dataset, load_dataset
from kd_cli.device import set_up
from kd_cli.errors import ConfigError
from kd_cli.runs.ownership import check_before_start, inputs, lock, refuse_other_inputs
from kd_cli.runs.record import read_record
from kd_cli.runs.session import Session
from kd_cli.terminal import shown
from kd_cli.training import assembly
from kd_cli.training.train import Result, Results, Run, Taught, train, train_inside

log = logging.getLogger("kd")


def execute(run: Run, session: Session, table: bool = True) -> dict[str, Any]:
    """Runs a checked configuration, or answers with its finished result.

    Args:
        run: Its directory exists.
        session: Of the command.
        table: Whether to print the result (a sweep prints one table at its end).

    Returns:
        The content of `metrics.json`.
    """
    (result,) = execute_together([run], session)
    if isinstance(result, Exception):
        raise result
    if table and "rounds" in result:
        print_rounds(result, run.out)
    elif table:
        print_result(result, run.plan, run.out, run.typed)
    return result


def execute_together(runs: list[Run], session: Session) -> list[Result]:
    """Runs configurations that share data, batches and teacher, in one graph.

    Args:
        runs: Their directories exist.
        session: Of the command.

    Returns:
        Their results in order. A run that fails for itself (another process holds its directory,
        its loss is not finite) leaves the others alone; what concerns all is raised.
    """
    started = time.monotonic()
    results: Results = {}
    with contextlib.ExitStack() as locks:
        found = {}
        for run in {run.out: run for run in runs}.values():  # two points may be the same run
            with _failing_alone(run, results):
                locks.enter_context(lock(run.out))
                record = finished(run)
                if record is None:
                    _ = run.trackers  # their mistakes, before the data are read
                found[run.out] = run, record
        if not found:
            return [results[run.out] for run in runs]
        dataset = load_dataset(runs[0].plan.dataset, runs[0].plan.device)
        unfinished = []
        for run, record in found.values():
            with _failing_alone(run, results):
                if record is None:
                    assembly.check_labels(run.plan, dataset)
                    unfinished.append(run)
                else:
                    refuse_other_inputs(record["inputs"], inputs(run.plan, dataset), run.out)
                    log.info("%s is finished; rerun=true makes a new run beside it", shown(run.out))
                    results[run.out] = record
        if unfinished:
            results |= _COMMANDS[unfinished[0].plan.command](unfinished, dataset, started, session)
    return [results[run.out] for run in runs]


@contextlib.contextmanager
def _failing_alone(run: Run, results: Results) -> Iterator[None]:
    """A mistake in one run becomes its result, and leaves the others alone."""
    try:
        yield
    except ConfigError as error:
        results[run.out] = error


def finished(run: Run) -> dict[str, Any] | None:
    """The content of a finished run's `metrics.json`; None while there is something to do."""
    record = read_record(run.out)
    if record is not None and len(record.get("rounds", ())) <= run.plan.get("rounds", -1):
        return None  # more rounds are wanted than were
    return record


def train_teacher(runs: list[Run], dataset: Dataset, started: float, session: Session) -> Results:
    """Trains teachers with cross-entropy and keeps them in their directories."""
    return train(runs, dataset, started, "teacher", session)


def train_student(runs: list[Run], dataset: Dataset, started: float, session: Session) -> Results:
    """Trains students with cross-entropy, without a teacher: the baseline."""
    return train(runs, dataset, started, "student", session)


def distill(runs: list[Run], dataset: Dataset, started: float, session: Session) -> Results:
    """Distils one teacher into students; trains the teacher first where it is missing."""
    plan, typed = runs[0].plan, runs[0].typed
    device = set_up(plan.device)
    from kd_cli.distillation import teacher_outputs
    from kd_cli.distillation.prepare import prepare

    views = assembly.augmentation(plan, dataset, session)
    prepared = prepare(plan, dataset, views, session)
    if prepared is None:
        assembly.parts(plan, dataset, "student")  # its mistakes, before the teacher's training
        begun = time.monotonic()
        _train_missing_teacher(plan, dataset, typed, session)
        started += time.monotonic() - begun  # the teacher's record has its own time
        prepared = prepare(plan, dataset, views, session)
    teacher, scores = prepared.teacher, prepared.quality["test"]
    doubts = {run.out: prepared.warnings(run.plan) for run in runs}
    for text in dict.fromkeys(text for lines in doubts.values() for text in lines):
        log.warning("%s", text)
    longest = max(assembly.epochs(run.plan, dataset) for run in runs)
    outputs = teacher_outputs.outputs(teacher, plan, dataset, views, longest, session)
    log.info(
        "teacher: %s%s, test %.4f (%s, %s, on %s)",
        teacher.name,
        f", {teacher.training}" if teacher.training else "",
        scores["accuracy"],
        shown(teacher.path),
        outputs.how,
        device,
    )
    record = {
        "path": shown(teacher.path),
        "name": teacher.name,
        "weights_sha256": teacher.weights_sha256,
        "training": teacher.training or "unknown",
        "test_accuracy": scores["accuracy"],
        "test_nll": scores["nll"],
        "quality": prepared.quality,
        "parameters": teacher.model.count_params(),
        "outputs": outputs.how,
        "precision": teacher.precision,
    }
    taught = Taught(outputs, outputs.seconds, {"teacher": record}, prepared.arrays, doubts)
    return train(runs, dataset, started, "student", session, taught)


_COMMANDS = {
    "train-teacher": train_teacher,
    "train-student": train_student,
    "distill": distill,
    "self-train": self_train,
}


def _train_missing_teacher(
    plan: DictConfig, dataset: Dataset, typed: list[str], session: Session
) -> None:
    """Trains the teacher as `kd train-teacher` would with the same data, teacher and recipe."""
    kept = teacher_overrides(typed)
    out = Path(plan.teacher_dir)
    teacher_plan = check(compose("train-teacher", kept), kept)
    check_before_start(teacher_plan, out)
    assembly.parts(teacher_plan, dataset, "teacher")  # its mistakes, before there is a directory
    with lock(out, wait=True):
        if read_record(out) is not None:
            return  # another process has trained it meanwhile
        log.info(
            "no teacher in %s yet: training it first (%s)",
            shown(out),
            shlex.join(["kd", "train-teacher", *kept]),
        )
        train_inside(Run(teacher_plan, out, kept), dataset, time.monotonic(), "teacher", session)


_TEACHER_KEYS = (
    "dataset",
    "teacher",
    "experiment",
    "teacher_dir",
    "data_dir",
    "cache_dir",
    "device",
    "memory_gib",
    "checkpoint",
    "augment",
)


def teacher_overrides(typed: list[str]) -> list[str]:
    """Of a distill run's overrides those with which `kd train-teacher` trains its teacher."""
    return [override for override in typed if _belongs_to_teacher(override)]


def _belongs_to_teacher(override: str) -> bool:
    key = override_key(override)
    if key in ("teacher.checkpoint", "teacher.train_if_missing", "teacher.precision"):
        return False
    return key.split(".")[0] in _TEACHER_KEYS or key.startswith("recipe.teacher")
