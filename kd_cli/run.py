"""The three commands, from data to result; runs that share data and teacher train together."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from kd_cli import assembly, data, identity, metrics
from kd_cli.checkpoint import State, save_model, write_json, write_npz
from kd_cli.config import check, compose, override_key
from kd_cli.data import Dataset
from kd_cli.device import request, set_up
from kd_cli.errors import ConfigError
from kd_cli.ownership import check_before_start, inputs, lock, refuse_other_inputs
from kd_cli.progress import log_file, shown
from kd_cli.summary import print_result

if TYPE_CHECKING:
    from kd_cli.answers import Outputs
    from kd_cli.trainer import Training

log = logging.getLogger("kd")


@dataclass(frozen=True)
class Run:
    """A run that was asked for.

    Attributes:
        plan: Its checked configuration, from `config.check`.
        out: Its directory.
        typed: The overrides that the user typed, for the teacher that may have to be trained.
    """

    plan: DictConfig
    out: Path
    typed: list[str]


# What a run ended with: the content of its metrics.json, or why it failed.
Result = dict[str, Any] | Exception
Results = dict[Path, Result]


def execute(run: Run, table: bool = True) -> dict[str, Any]:
    """Runs a checked configuration, or answers with its finished result.

    Args:
        run: Its directory exists.
        table: Whether to print the result (a sweep prints one table at its end).

    Returns:
        The content of `metrics.json`.
    """
    (result,) = execute_together([run])
    if isinstance(result, Exception):
        raise result
    if table:
        print_result(result, run.plan, run.out, run.typed)
    return result


def execute_together(runs: list[Run]) -> list[Result]:
    """Runs configurations that share data, batches and teacher, in one graph.

    Returns:
        Their results in order. A run that fails for itself (another process holds its directory,
        its loss is not finite) leaves the others alone; what concerns all is raised.
    """
    started = time.monotonic()
    request(runs[0].plan.device)
    dataset = data.load(runs[0].plan.dataset)
    results: Results = {}
    with contextlib.ExitStack() as locks:
        unfinished = []
        for run in {run.out: run for run in runs}.values():  # two points may be the same run
            try:
                locks.enter_context(lock(run.out))
                record = metrics.read(run.out)
                if record is None:
                    assembly.check_labels(run.plan, dataset)
                    unfinished.append(run)
                else:
                    refuse_other_inputs(record["inputs"], inputs(run.plan, dataset), run.out)
                    log.info("%s is finished; rerun=true makes a new run beside it", shown(run.out))
                    results[run.out] = record
            except ConfigError as error:
                results[run.out] = error
        if unfinished:
            results |= _COMMANDS[unfinished[0].plan.command](unfinished, dataset, started)
    return [results[run.out] for run in runs]


def train_teacher(runs: list[Run], dataset: Dataset, started: float) -> Results:
    """Trains teachers with cross-entropy and keeps them in their directories."""
    return _train(runs, dataset, started, "teacher")


def train_student(runs: list[Run], dataset: Dataset, started: float) -> Results:
    """Trains students with cross-entropy, without a teacher: the baseline."""
    return _train(runs, dataset, started, "student")


def distill(runs: list[Run], dataset: Dataset, started: float) -> Results:
    """Distils one teacher into students; trains the teacher first where it is missing."""
    plan, typed = runs[0].plan, runs[0].typed
    device = set_up(plan.device)
    from kd_cli import answers
    from kd_cli import teacher as teachers

    views = assembly.augmentation(plan, dataset)
    answers.why_live(plan, views)  # its mistakes, before a teacher's training
    teacher = teachers.find(plan, dataset)
    if teacher is None:
        assembly.parts(plan, dataset, "student")  # its mistakes, before the teacher's training
        begun = time.monotonic()
        _train_missing_teacher(plan, dataset, typed)
        started += time.monotonic() - begun  # the teacher's record has its own time
        teacher = teachers.find(plan, dataset)
        views = assembly.augmentation(plan, dataset)  # the teacher's training had its own
    total_steps, steps_per_epoch = assembly.length(plan, dataset)
    epochs = -(-total_steps // steps_per_epoch)
    outputs = answers.outputs(teacher, plan, dataset, views, epochs)
    test_logits = answers.logits(teacher, plan, dataset, "test", views)
    labels = dataset.test.labels[dataset.test.rows]
    scores = metrics.score(test_logits, labels)
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
        "parameters": teacher.model.count_params(),
        "outputs": outputs.how,
        "precision": teacher.precision,
    }
    return _train(runs, dataset, started, "student", _Taught(outputs, test_logits, record))


@dataclass(frozen=True)
class _Taught:
    """What a distilled student's run needs to know of its teacher.

    Attributes:
        outputs: For the training.
        test_logits: [n, K] on the test split.
        record: For `metrics.json`.
    """

    outputs: Outputs
    test_logits: np.ndarray
    record: dict[str, Any]


_COMMANDS = {"train-teacher": train_teacher, "train-student": train_student, "distill": distill}


def _refuse_other_state(run: Run, dataset: Dataset) -> None:
    state = State(run.out / "state").owner()
    if state is not None:
        refuse_other_inputs(state["inputs"], inputs(run.plan, dataset), run.out)


def _train(
    runs: list[Run],
    dataset: Dataset,
    started: float,
    role: str,
    taught: _Taught | None = None,
) -> Results:
    """Trains the runs' networks, and leaves everything that a run leaves in their directories."""
    results: Results = {}
    for run in runs:
        try:
            _refuse_other_state(run, dataset)
        except ConfigError as error:
            results[run.out] = error
    runs = [run for run in runs if run.out not in results]
    if not runs:
        return results
    plans = [run.plan for run in runs]
    engine = assembly.engine_for(plans, dataset, role, taught.outputs if taught else None)
    from kd_cli.tracking import tracker
    from kd_cli.trainer import Place, Plan, fit

    places = [
        Place(
            run.out,
            {"run_id": identity.run_id(run.plan), "inputs": inputs(run.plan, dataset)},
            role if len(runs) == 1 else run.out.name,
            tracker(run.plan.get("tracker"), run.out),
        )
        for run in runs
    ]
    total_steps, steps_per_epoch = assembly.length(plans[0], dataset)
    shared = Plan(
        epochs=-(-total_steps // steps_per_epoch),
        total_steps=total_steps,
        patience=plans[0].early_stopping.patience,
        monitor=plans[0].early_stopping.monitor,
        minutes=plans[0].checkpoint.minutes,
        prepare=engine.views.evaluate if engine.views else None,
    )
    for run in runs:
        if engine.views is not None and run.plan.augment.preview:
            from kd_cli.views import preview

            preview(engine.views, dataset.train, run.out / "augment.png")
    if not dataset.train.labelled and dataset.validation is None:
        log.info(
            "the training images have no labels and there is no validation/: training goes to its "
            "end, and the last epoch is kept"
        )
    trainings = fit(engine, dataset.validation, places, shared)
    for run, training in zip(runs, trainings, strict=True):
        if training.error is None:
            training.attempt(_finish, run, training, dataset, role, started, taught)
        results[run.out] = training.error or metrics.read(run.out)
    return results


def _finish(
    run: Run,
    training: Training,
    dataset: Dataset,
    role: str,
    started: float,
    taught: _Taught | None,
) -> None:
    """Reads the test split, once; writes model, predictions, and metrics last."""
    from kd_cli.engine import predict_rows
    from kd_cli.losses import formula
    from kd_cli.teacher import weights_hash
    from kd_cli.trainer import NonFiniteError

    plan, out, ended, learner = run.plan, run.out, training.now, training.learner
    labels = dataset.test.labels[dataset.test.rows]
    model = learner.model
    prepare = training.plan.prepare
    test_last = metrics.score(predict_rows(learner.predict, dataset.test, prepare), labels)
    model.set_weights(training.best_weights)
    test_logits = predict_rows(learner.predict, dataset.test, prepare)
    if not np.isfinite(test_logits).all():
        raise NonFiniteError("the logits on the test split are not finite; lower learning_rate")
    save_model(out / "model.keras", model)
    arrays = {"labels": labels, f"{role}_logits": test_logits}
    if taught:
        arrays["teacher_logits"] = taught.test_logits
    write_npz(out / "predictions.npz", arrays)

    record = {
        "schema_version": metrics.SCHEMA_VERSION,
        "command": plan.command,
        "run_id": training.place.owner["run_id"],
        "config": identity.run_spec(plan),
        "inputs": training.place.owner["inputs"],
        "seed": plan.seed,
        **metrics.environment(),
        "device": set_up(plan.device),
        "precision": plan.precision,
        "dataset": {
            "name": dataset.name,
            "image_shape": list(dataset.image_shape),
            "class_names": list(dataset.class_names),
            "train": len(dataset.train),
            "labelled": len(dataset.train) if dataset.train.labelled else 0,
            "validation": len(dataset.validation) if dataset.validation else 0,
            "test": len(dataset.test),
            "fingerprint": dataset.fingerprint,
            "split_fingerprint": dataset.split_fingerprint,
        },
        "input": f"pixels 0..255, [batch, {', '.join(map(str, model.input_shape[1:]))}]",
        "network": plan[role].name,
        "parameters": model.count_params(),
        "loss": formula(plan.loss["_target_"], learner.hyper),
        "alpha": plan.get("alpha"),
        "temperature": plan.get("temperature"),
        "epochs_done": ended.epoch,
        "steps_done": ended.step,
        "stopped": ended.stopped,
        "warnings": list(ended.warnings.values()),
        "test": metrics.score(test_logits, labels),
        "test_last": test_last,
        "weights_sha256": weights_hash(model),
        "timings": {
            "learners": ended.learners,
            "total_seconds": max(time.monotonic() - started, ended.seconds),
            "train_seconds": ended.train_seconds,
            "seconds_per_epoch": ended.train_seconds / max(ended.epoch, 1),
            "examples_per_second": ended.examples / max(ended.train_seconds, 1e-9),
            "teacher_forward_seconds": taught.outputs.seconds if taught else 0.0,
        },
    }
    if dataset.validation is not None:
        record["validation"] = {
            "best": {"epoch": ended.best_epoch, **ended.best},
            "last": {"epoch": ended.epoch, **ended.last},
        }
    if taught:
        record["teacher"] = taught.record
    write_json(out / "metrics.json", record)
    _point_latest(out)


def _train_missing_teacher(plan: DictConfig, dataset: Dataset, typed: list[str]) -> None:
    """Trains the teacher as `kd train-teacher` would with the same data, teacher and recipe."""
    kept = [override for override in typed if _belongs_to_teacher(override)]
    out = Path(plan.teacher_dir)
    teacher_plan = check(compose("train-teacher", kept), kept)
    check_before_start(teacher_plan, out)
    assembly.parts(teacher_plan, dataset, "teacher")  # its mistakes, before there is a directory
    with lock(out, wait=True):
        if metrics.read(out) is not None:
            return  # another process has trained it meanwhile
        log.info(
            "no teacher in %s yet: training it first (%s)",
            shown(out),
            shlex.join(["kd", "train-teacher", *kept]),
        )
        (out / ".hydra").mkdir(exist_ok=True)
        OmegaConf.save(teacher_plan, out / ".hydra" / "config.yaml")
        OmegaConf.save(OmegaConf.create(kept), out / ".hydra" / "overrides.yaml")
        handler = log_file(out / "kd.log")
        log.addHandler(handler)
        try:
            run = Run(teacher_plan, out, kept)
            result = train_teacher([run], dataset, time.monotonic())[out]
            if isinstance(result, Exception):
                raise result
        finally:
            log.removeHandler(handler)
            handler.close()


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


def _belongs_to_teacher(override: str) -> bool:
    key = override_key(override)
    if key in ("teacher.checkpoint", "teacher.train_if_missing", "teacher.precision"):
        return False
    return key.split(".")[0] in _TEACHER_KEYS or key.startswith("recipe.teacher")


def _point_latest(out: Path) -> None:
    """`outputs/latest` is a link to the last finished run; a convenience that may fail."""
    link = identity.OUTPUTS / "latest"
    temporary = link.with_name(f".tmp-{os.getpid()}-latest")
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(out, link.parent))
        os.replace(temporary, link)
    except OSError as error:
        log.warning("%s does not point to this run: %s", link, error.strerror)
