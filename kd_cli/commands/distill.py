"""`kd distill`: trains the student with a teacher; trains the teacher first if it is missing."""

from __future__ import annotations

import functools
import logging
import time

from omegaconf import DictConfig

from kd_cli.config.overrides import is_typed, teacher_overrides
from kd_cli.config.plans import member_plans, teacher_augment_follows, teacher_plan
from kd_cli.config.quoting import command_line
from kd_cli.data.dataset import Dataset, load_dataset
from kd_cli.device import set_up
from kd_cli.runs import identity
from kd_cli.runs.asked import Run
from kd_cli.runs.ownership import check_before_start, lock, similar_teachers
from kd_cli.runs.record import Record
from kd_cli.runs.session import Session
from kd_cli.terminal import shown
from kd_cli.training import assembly
from kd_cli.training.train import Results, Taught, train, train_inside

log = logging.getLogger("kd")


def distill(runs: list[Run], dataset: Dataset, started: float, session: Session) -> Results:
    """Distils one teacher into students; trains the teacher first if it is missing."""
    plan = runs[0].plan
    device = set_up(plan.device)
    from kd_cli.distillation import loss_checks, teacher_checks, teacher_outputs, teacher_tables
    from kd_cli.distillation.prepare import prepare
    from kd_cli.distillation.teacher_features import Features, wanted_by

    views = assembly.augmentation(plan, dataset, session)
    for run in runs:
        loss_checks.refuse(run.plan, dataset, views)
    prepared = prepare(plan, dataset, views, session)
    if prepared is None:
        begun = time.monotonic()
        _train_missing_teacher(runs, dataset, session)
        started += time.monotonic() - begun  # the teacher's record has its own time
        prepared = prepare(plan, dataset, views, session)
    teacher, scores = prepared.teacher, prepared.quality["test"]
    doubts = {run.out: prepared.warnings(run.plan) for run in runs}
    for text in dict.fromkeys(text for lines in doubts.values() for text in lines):
        log.warning("%s", text)
    longest = max(assembly.epochs(run.plan, dataset) for run in runs)
    features = Features(teacher.model, wanted_by([run.plan for run in runs]))
    outputs = teacher_outputs.outputs(teacher, features, plan, dataset, views, longest, session)
    log.info(
        "teacher: %s%s, test %.4f (%s, %s, on %s)",
        teacher.name,
        f", {teacher.training}" if teacher.training else "",
        scores["accuracy"],
        shown(teacher.path),
        outputs.how,
        device,
    )
    own = teacher_checks.recorded(teacher.members[0] if teacher.members else teacher)
    record = {
        "path": shown(teacher.path),
        "name": teacher.name,
        "weights_sha256": teacher.weights_sha256,
        "training": teacher.training or "unknown",
        "labelled": own.dataset.labelled if own else None,
        "test_accuracy": scores["accuracy"],
        "test_nll": scores["nll"],
        "quality": prepared.quality,
        "parameters": teacher.parameters,
        "outputs": outputs.how,
        "precision": teacher.precision,
    }
    said = teacher_tables.on_training(teacher, outputs.logits, dataset, views)
    compared = functools.cache(
        lambda: teacher_tables.in_evaluation(teacher, plan, outputs.logits, dataset, views)
    )
    record = {"teacher": record}
    taught = Taught(outputs, outputs.seconds, record, prepared.arrays, doubts, said, compared)
    return train(runs, dataset, started, "student", session, taught)


def _train_missing_teacher(runs: list[Run], dataset: Dataset, session: Session) -> None:
    """Trains the teacher as `kd train-teacher` would from the same description."""
    from kd_cli.distillation.teacher_features import Features, wanted_by
    from kd_cli.networks.ensemble import together

    plan, members = runs[0].plan, member_plans(runs[0].plan)
    data, wanted = dataset, teacher_plan(members[0])
    if wanted.dataset != plan.dataset:  # it may know more labels
        data = load_dataset(wanted.dataset, plan.device)
    # The mistakes of both networks, before there is a directory.
    untrained = assembly.parts(wanted, data, "teacher").model
    if len(members) > 1:
        untrained = together([untrained] * len(members))
    for run in runs:
        features = Features(untrained, wanted_by([run.plan]))
        student = assembly.parts(run.plan, dataset, "student", features)
        student.objective.terms(dataset.num_classes, dataset.train.labelled > 0)
    for one in members:
        _train_teacher(one, data, runs[0], session)


def _train_teacher(plan: DictConfig, dataset: Dataset, run: Run, session: Session) -> None:
    """Trains the one teacher of a plan, unless it is there; `run` is the one that wants it."""
    wanted, out = teacher_plan(plan), identity.teacher_dir(plan)
    kept = teacher_overrides(run.typed, teacher_augment_follows(plan))
    if run.plan.teacher.members > 1:
        kept = [one for one in kept if not is_typed("teacher.training.seed", [one])]
        kept.append(f"teacher.training.seed={wanted.seed}")
    check_before_start(wanted, out)
    with lock(out, wait=True):
        if Record.read(out) is not None:
            return  # another process has trained it meanwhile
        log.info(
            "no teacher in %s yet: training it first (%s)",
            shown(out),
            command_line("train-teacher", kept, run.config_dir),
        )
        for line in similar_teachers(plan)[:3]:
            log.info("  or %s", line)
        train_inside(Run(wanted, out, kept), dataset, time.monotonic(), "teacher", session)
