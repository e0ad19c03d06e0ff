"""Trains a run and writes its network, its predictions and its record."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kd_cli.config.plans import is_mutual, peer_name
from kd_cli.data.dataset import Dataset, Split
from kd_cli.device import set_up
from kd_cli.errors import ConfigError
from kd_cli.files import remove_leftovers, save_model, temporary_of, write_npz
from kd_cli.runs import identity, quality
from kd_cli.runs.asked import Run
from kd_cli.runs.directory import write_configuration
from kd_cli.runs.environment import environment
from kd_cli.runs.ownership import inputs, refuse_other_inputs
from kd_cli.runs.record import (
    BySplit,
    DatasetRecord,
    Deployed,
    EpochScore,
    Record,
    Score,
    Timings,
    Validation,
)
from kd_cli.runs.session import Session
from kd_cli.runs.state import State
from kd_cli.terminal import log_file
from kd_cli.training import assembly
from kd_cli.training.balance import balance
from kd_cli.training.trackers import trackers_of

if TYPE_CHECKING:
    from kd_cli.distillation.teacher_outputs import Outputs
    from kd_cli.training.loop import Training
    from kd_cli.training.step import Engine


log = logging.getLogger("kd")


# What a run ended with: its record, or why it failed.
Result = Record | Exception
Results = dict[Path, Result]


@dataclass(frozen=True)
class Taught:
    """What a student's run needs from its teacher: outputs, record fields, warnings.

    Attributes:
        outputs: The teacher's logits for the training; None if the data hold its labels.
        seconds: Spent on computing the teacher's outputs before the training.
        record: Fields of the run's `Record`.
        arrays: For `predictions.npz`.
        warnings: For the `Record`, by the run's directory.
        said: The teacher's logits [n, K] of training images, and their labels [n].
        compared: Gives training images and its logits [n, K] of them as in evaluation.
    """

    outputs: Outputs | None
    seconds: float
    record: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    warnings: dict[Path, list[str]] = field(default_factory=dict)
    said: tuple[np.ndarray, np.ndarray] | None = None
    compared: Callable[[], tuple[Split, np.ndarray]] | None = None


def train_inside(
    run: Run,
    dataset: Dataset,
    started: float,
    role: str,
    session: Session,
    taught: Taught | None = None,
) -> Record:
    """One run inside another: with its own log, and its configuration as Hydra leaves it.

    Returns:
        Its record; its failure is raised.
    """
    write_configuration(Run(run.plan, run.out, run.typed))
    handler = log_file(run.out / "kd.log")
    log.addHandler(handler)
    try:
        result = train([run], dataset, started, role, session, taught)[run.out]
    finally:
        log.removeHandler(handler)
        handler.close()
    if isinstance(result, Exception):
        raise result
    return result


def _refuse_other_state(run: Run, dataset: Dataset) -> None:
    state = State(run.out / "state").owner()
    if state is not None:
        refuse_other_inputs(state["inputs"], inputs(run.plan, dataset), run.out)


def train(
    runs: list[Run],
    dataset: Dataset,
    started: float,
    role: str,
    session: Session,
    taught: Taught | None = None,
) -> Results:
    """Trains the runs' networks, and leaves everything that a run leaves in their directories."""
    results: Results = {}
    for run in runs:
        try:
            _refuse_other_state(run, dataset)
        except ConfigError as error:
            results[run.out] = error
    runs = [run for run in runs if run.out not in results]
    if not runs or (results and is_mutual(runs[0].plan)):
        return results
    plans = [run.plan for run in runs]
    outputs = taught.outputs if taught else None
    engine = assembly.engine_for(plans, dataset, role, outputs, session)
    from kd_cli.networks.doubts import doubts
    from kd_cli.training.loop import LoopSettings, RunSettings, fit

    for text in dict.fromkeys(x for one in engine.learners for x in doubts(one.model, role)):
        log.warning("%s", text)
    deployed = [one.objective.deployed for one in engine.learners]
    for text in dict.fromkeys(Deployed(**one).words() for one in deployed if one):
        log.info("student: what is trained and saved is %s", text)
    for text in dict.fromkeys(one.head.words() for one in engine.learners if one.head):
        log.info("%s: %s", role, text)
    settings = [
        RunSettings(
            run.out,
            {"run_id": identity.run_id(run.plan), "inputs": inputs(run.plan, dataset)},
            _label(run, role, len(runs)),
            trackers_of(run, session),
            epochs=assembly.epochs(run.plan, dataset),
            total_steps=assembly.length(run.plan, dataset)[0],
            head_epochs=run.plan.freeze_epochs,
        )
        for run in runs
    ]
    shared = LoopSettings(
        patience=plans[0].early_stopping.patience,
        monitor=plans[0].early_stopping.monitor,
        minutes=plans[0].checkpoint.minutes,
        prepare=engine.views.evaluate if engine.views else None,
    )
    for run in runs:
        if engine.views is not None and run.plan.augment.preview:
            from kd_cli.data.views import preview

            preview(engine.views, dataset.train, run.out / "augment.png")
    if not dataset.train.labelled and dataset.validation is None:
        log.info(
            "the training images have no labels and there is no validation/: training goes to its "
            "end, and the last epoch is used"
        )
    gradients = _gradients(engine) if taught and outputs else [None] * len(runs)
    of = {run.out: run for run in runs}
    gradients = dict(zip(of, gradients, strict=True))
    for training in fit(engine, dataset.validation, settings, shared):
        run, record = of[training.run.out], None
        if training.error is None:
            about = (dataset, role, started, taught, gradients[run.out])
            record = training.attempt(_finish, run, training, *about)
        results[run.out] = training.error or record
        if training.error is None:
            trackers_of(run, session).finish(record.to_json())
        session.trackers.pop(run.out, None)
    return results


def _label(run: Run, role: str, runs: int) -> str:
    """Whose progress it is, of so many runs that train together."""
    if is_mutual(run.plan):
        return peer_name(run.plan)
    return role if runs == 1 else run.out.name


def _gradients(engine: Engine) -> list[dict[str, Any] | None]:
    """What each learner's record says of its loss terms at the first step."""
    import tensorflow as tf

    several = [len(learner.terms) > 1 for learner in engine.learners]
    try:
        # A training that continues stands at its initial weights here too.
        batch = engine.first_batch() if any(several) else ()
        return [
            balance(learner, *batch).to_record() if more else None
            for learner, more in zip(engine.learners, several, strict=True)
        ]
    except tf.errors.ResourceExhaustedError:  # a step fits, but two gradients of it do not
        return [None] * len(several)


def _finish(
    run: Run,
    training: Training,
    dataset: Dataset,
    role: str,
    started: float,
    taught: Taught | None,
    gradients: dict[str, Any] | None,
) -> Record:
    """Reads the test split, once; writes model, predictions, and the record last."""
    from kd_cli.networks.doubts import doubts
    from kd_cli.networks.keras_file import weights_hash
    from kd_cli.networks.predict import predict_rows
    from kd_cli.training.loop import NonFiniteError

    plan, out, ended, learner = run.plan, run.out, training.now, training.learner
    labels = dataset.test.labels[dataset.test.rows]
    model = learner.model
    prepare = training.shared.prepare
    last_logits = predict_rows(learner.predict, dataset.test, prepare)
    model.set_weights(training.best_weights)
    test_logits = predict_rows(learner.predict, dataset.test, prepare)
    if not (np.isfinite(test_logits).all() and np.isfinite(last_logits).all()):
        raise NonFiniteError("the logits on the test split are not finite; lower learning_rate")
    save_model(out / "model.keras", model)
    arrays = {"labels": labels, f"{role}_logits": test_logits}
    if dataset.validation is not None:
        arrays["validation_labels"] = dataset.validation.labels[dataset.validation.rows]
        arrays[f"validation_{role}_logits"] = predict_rows(
            learner.predict, dataset.validation, prepare
        )
    arrays |= taught.arrays if taught else {}
    write_npz(out / "predictions.npz", arrays)

    validation = None
    if dataset.validation is not None:
        validation = Validation(
            best=EpochScore(epoch=ended.best_epoch, **ended.best),
            last=EpochScore(epoch=ended.epoch, **ended.last),
        )
    told = dict(taught.record) if taught else {}
    if taught and taught.said:  # at the run's own temperature: a joint sweep has several
        said = quality.certainty(*taught.said, plan.get("temperature"))
        told["teacher"] = {**told["teacher"], "on_training": said}
    fidelity = None
    if taught and "teacher_logits" in arrays:
        fidelity = quality.fidelity_of_splits(arrays, plan.get("temperature"))
    if fidelity and taught.compared:
        part, theirs = taught.compared()
        ours = predict_rows(learner.predict, part, prepare)
        fidelity["training"] = quality.fidelity_on_training(ours, theirs, part.labels[part.rows])
    record = Record(
        command=plan.command,
        run_id=training.run.owner["run_id"],
        config=identity.run_spec(plan),
        inputs=training.run.owner["inputs"],
        seed=plan.seed,
        **environment(),
        device=set_up(plan.device),
        precision=plan.precision,
        dataset=DatasetRecord(
            name=dataset.name,
            image_shape=list(dataset.image_shape),
            class_names=list(dataset.class_names),
            train=len(dataset.train),
            labelled=dataset.labelled,
            validation=len(dataset.validation) if dataset.validation else 0,
            test=len(dataset.test),
            train_per_class=dataset.per_class(dataset.train),
            test_per_class=dataset.per_class(dataset.test),
            fingerprint=dataset.fingerprint,
            split_fingerprint=dataset.split_fingerprint,
            held_out_fingerprint=dataset.held_out_fingerprint,
        ),
        input=f"pixels 0..255, [batch, {', '.join(map(str, model.input_shape[1:]))}]",
        network=plan[role].name,
        parameters=model.count_params(),
        parameters_for_distilling=learner.objective.count_params() or None,
        deployed=learner.objective.deployed,
        loss=learner.objective.words(),
        alpha=plan.get("alpha"),
        temperature=plan.get("temperature"),
        class_weights=learner.objective.hyper.get("class_weights"),
        epochs_done=ended.epoch,
        steps_done=ended.step,
        stopped=ended.stopped,
        warnings=[
            *(taught.warnings.get(out, []) if taught else []),
            *doubts(model, role),
            *ended.warnings.values(),
        ],
        selection=(
            "the last epoch: without a validation split none can be chosen but by test"
            if dataset.validation is None
            else f"the best epoch by validation {training.shared.monitor}"
        ),
        validation=validation,
        test=Score(**quality.score(test_logits, labels)),
        test_last=Score(**quality.score(last_logits, labels)),
        quality=BySplit(**quality.of_splits(arrays, role)),
        fidelity=fidelity,
        gradients=gradients,
        weights_sha256=weights_hash(model),
        timings=Timings(
            learners=ended.learners,
            total_seconds=max(time.monotonic() - started, ended.seconds),
            train_seconds=ended.train_seconds,
            seconds_per_epoch=ended.train_seconds / max(ended.epoch, 1),
            examples_per_second=ended.examples / max(ended.train_seconds, 1e-9),
            teacher_forward_seconds=taught.seconds if taught else 0.0,
        ),
        **told,
    )
    record.write(out)
    point_latest(out, Path(plan.outputs))
    return record


def point_latest(out: Path, outputs: Path) -> None:
    """A link in `outputs` to the last finished run; a convenience that may fail."""
    link = outputs / "latest"
    if not outputs.is_dir():  # the run was sent elsewhere
        return
    remove_leftovers(outputs)
    temporary = temporary_of(link)
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(out, link.parent))
        os.replace(temporary, link)
    except OSError as error:
        log.warning("%s does not point to this run: %s", link, error.strerror)
