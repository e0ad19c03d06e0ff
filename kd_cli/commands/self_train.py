"""`kd self-train`: trains a student on labels that it has given to unlabelled images, in rounds.

Round 0 learns from the labelled images alone. In each further round the last round's network labels
`dataset.unlabelled`. A new student, with augmentation and dropout as noise, learns from the labels
and from those pseudo-labels that are confident enough, equally many of each class.

Sources: Lee 2013, "Pseudo-Label", for hard labels; Xie et al. 2020, "Self-training with Noisy
Student improves ImageNet classification", sections 2 and 3.1, for all else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from kd_cli.config.plans import scratch_plan
from kd_cli.data.dataset import Dataset, Split
from kd_cli.device import set_up
from kd_cli.errors import ConfigError
from kd_cli.files import atomic
from kd_cli.runs import identity, vocabulary
from kd_cli.runs.asked import Run
from kd_cli.runs.ownership import check_before_start, inputs, refuse_other_inputs
from kd_cli.runs.record import Record, RoundRecord
from kd_cli.runs.session import Session
from kd_cli.training import assembly
from kd_cli.training.train import Results, Taught, point_latest, train_inside

log = logging.getLogger("kd")
NEVER = -1e4  # the logit of a class whose share is 0: its exponential is 0


def self_train(runs: list[Run], dataset: Dataset, started: float, session: Session) -> Results:
    """Trains each run's rounds in `round-0`, `round-1`, ... of its directory, one after another.

    A finished round is not trained again, so more `rounds` continue where fewer ended.
    """
    # Those without a label are learned from with pseudo-labels alone.
    dataset = dataclasses.replace(dataset, train=dataset.train.with_labels())
    return {run.out: _rounds(run, dataset, session) for run in runs}


def _rounds(run: Run, dataset: Dataset, session: Session) -> Record:
    plan = run.plan
    set_up(plan.device)
    views = assembly.augmentation(plan, dataset, session)
    if plan.pseudo.labels == "soft" and views is not None and views.mixes:
        raise ConfigError(
            "mixup does not work with pseudo.labels=soft; remove mixup from augment.train, or type "
            "pseudo.labels=hard"
        )
    first = Run(scratch_plan(plan), run.out / "round-0", run.typed)
    check_before_start(first.plan, first.out)
    record = Record.read(first.out)
    if record is None:
        log.info("round 0: training on the %s labelled examples", f"{len(dataset.train):,}")
        record = train_inside(first, dataset, time.monotonic(), "student", session)
    else:
        refuse_other_inputs(record["inputs"], inputs(first.plan, dataset), first.out)
    records = [record]
    for number in range(1, plan.rounds + 1):
        begun = time.monotonic()
        before = run.out / f"round-{number - 1}"
        this = Run(_plan(plan, number, records[-1]), run.out / f"round-{number}", run.typed)
        check_before_start(this.plan, this.out)
        record = Record.read(this.out)
        if record is None:
            logits = _logits(plan, dataset, before, records[-1], session)
            enlarged, taught = _training_set(this, dataset, logits, begun)
            record = train_inside(this, enlarged, begun, "student", session, taught)
        else:
            # Its split counts the pseudo-labels: those of a network that its run id knows.
            now = {
                key: value for key, value in inputs(this.plan, dataset).items() if key != "split"
            }
            refuse_other_inputs(record["inputs"], now, this.out)
        records.append(record)
    return _conclude(run, dataset, records)


def _plan(plan: DictConfig, number: int, before: Mapping[str, Any]) -> DictConfig:
    """The configuration of a round above 0; it includes the hash of the network that labels.

    Each round has its own seeds. With those of the last round the student would start from the same
    weights as its teacher, and see the same pixels in the same order.
    """
    plain = OmegaConf.to_container(plan)
    plain["round"] = {"number": number, "teacher": before["weights_sha256"]}
    for key in ("init_seed", "data_seed", "augment_seed"):
        plain[key] = int(identity.digest([plain[key], number], 7), 16)
    if plan.pseudo.epochs is not None:
        plain["epochs"], plain["steps"] = plan.pseudo.epochs, None
    if plan.pseudo.labels == "soft":
        plain["round"]["label_smoothing"] = plan.loss.ce.label_smoothing
        node = {"_target_": "kd_cli.distillation.soft_cross_entropy", "_partial_": True}
        plain["loss"] = {"soft": node}
    return OmegaConf.create(plain)


def _logits(
    plan: DictConfig, dataset: Dataset, before: Path, record: Record, session: Session
) -> np.ndarray:
    """Logits [n, K] of the last round's network for the unlabelled images, as in evaluation."""
    from kd_cli.distillation import teacher as teachers
    from kd_cli.distillation import teacher_tables

    teacher = teachers.of_run(before, record, plan, dataset, session)
    views = assembly.augmentation(plan, dataset, session)
    if not (views and views.nodes + views.last) and not _drops(teacher.model):
        log.warning(
            "the student trains without augmentation and dropout, so it can only copy its teacher; "
            "type augment=flip_crop, or choose a student with dropout"
        )
    return teacher_tables.logits(teacher, plan, dataset, "unlabelled", views, session)


def _drops(model: Any) -> bool:
    """Whether a layer is one of dropout or stochastic depth."""
    layers = getattr(model, "layers", [])
    return any("Drop" in type(x).__name__ or "Depth" in type(x).__name__ for x in layers) or any(
        _drops(x) for x in layers
    )


def select(
    confidence: np.ndarray,
    labels: np.ndarray,
    classes: int,
    threshold: float,
    balance: bool = True,
    per_class: int | None = None,
) -> np.ndarray:
    """Chooses the images that a round learns from.

    Of each class the most confident ones are chosen. If a class has fewer than wanted, its images
    are repeated in turn, so that their counts differ by at most one (the paper draws the repeats).
    Of equally confident images the first come first.

    Args:
        confidence: [n] probability of the label.
        labels: [n] pseudo-labels.
        classes: Number of classes.
        threshold: Only what is more confident counts.
        balance: Whether every class that has any gets the same number.
        per_class: That number; None shares what passes the threshold among all classes.

    Returns:
        [m] sorted positions in 0..n-1, with repeats.
    """
    order = np.argsort(-confidence, kind="stable")
    order = order[confidence[order] > threshold]
    if not balance or not len(order):
        return np.sort(order)
    count = per_class or -(-len(order) // classes)
    of_each = [order[labels[order] == label] for label in range(classes)]
    return np.sort(np.concatenate([np.resize(own, count) for own in of_each if len(own)]))


def _training_set(
    run: Run, dataset: Dataset, logits: np.ndarray, begun: float
) -> tuple[Dataset, Taught]:
    """What a round learns from: its training rows with their labels, and soft targets.

    Raises:
        ConfigError: When no image is confident enough.
    """
    plan, number, unlabelled = run.plan, run.plan.round.number, dataset.unlabelled
    labels = logits.argmax(axis=1)
    scaled = np.asarray(logits, np.float64)
    confidence = 1 / np.exp(scaled - scaled.max(axis=1, keepdims=True)).sum(axis=1)
    options = plan.pseudo
    chosen = select(
        confidence,
        labels,
        dataset.num_classes,
        options.threshold,
        options.balance,
        options.per_class,
    )
    if not len(chosen):
        raise ConfigError(
            f"round {number}: no example is labelled with more confidence than pseudo.threshold="
            f"{options.threshold:g} (the highest is {confidence.max():.4f}); lower pseudo.threshold"
        )
    distinct = np.unique(chosen)
    above = np.bincount(labels[confidence > options.threshold], minlength=dataset.num_classes)
    report = {
        "round": number,
        "labels": options.labels,
        "threshold": options.threshold,
        "unlabelled": len(unlabelled),
        "above_threshold": above.tolist(),
        "images": len(distinct),
        "rows": len(chosen),
        "per_class": np.bincount(labels[chosen], minlength=dataset.num_classes).tolist(),
    }
    hidden = unlabelled.labels[unlabelled.rows]
    known, right = "", distinct[hidden[distinct] >= 0]
    if len(right):  # the only use of labels that were hidden
        report["accuracy"] = float((labels == hidden)[right].mean())
        of = "" if len(right) == len(distinct) else f" of {len(right):,}"
        known = f", {report['accuracy']:.4f}{of} right (known because the labels were only hidden)"
    log.info(
        "round %d: round %d's network labelled %s examples; %s with confidence above %g; %s chosen "
        "(%s training rows with repeats)%s",
        number,
        number - 1,
        f"{len(unlabelled):,}",
        f"{above.sum():,}",
        options.threshold,
        f"{len(distinct):,}",
        f"{len(chosen):,}",
        known,
    )
    empty = [name for name, n in zip(dataset.class_names, above, strict=True) if not n]
    if empty:
        log.warning("round %d: no example is labelled as %s", number, ", ".join(empty))
    enlarged = with_pseudo_labels(dataset, unlabelled.rows[chosen], labels[chosen])
    record = {"pseudo_labels": report}
    if options.labels == "hard":
        return enlarged, Taught(None, time.monotonic() - begun, record)
    targets = soft_targets(
        dataset.train.labels[dataset.train.rows],
        np.asarray(logits[chosen], np.float32),
        plan.round.label_smoothing,
    )
    sha = hashlib.sha256(f"{enlarged.split_fingerprint}".encode() + targets.tobytes()).hexdigest()
    from kd_cli.distillation.teacher_outputs import Outputs

    seconds = time.monotonic() - begun
    outputs = Outputs(sha, "soft pseudo-labels", {"logits": [targets]}, None, None, None, seconds)
    enlarged = dataclasses.replace(enlarged, split_fingerprint=sha)
    return enlarged, Taught(outputs, seconds, record)


def with_pseudo_labels(dataset: Dataset, rows: np.ndarray, labels: np.ndarray) -> Dataset:
    """The dataset whose training rows are the labelled ones and `rows` [m] with `labels` [m].

    `rows` may repeat. All other labels of the training pool become -1, the hidden ones too.
    """
    old = dataset.train
    known = np.full(len(old.labels), -1, np.int64)
    known[rows] = labels
    known[old.rows] = old.labels[old.rows]
    sha = hashlib.sha256(dataset.split_fingerprint.encode())
    for array in (rows, labels):
        sha.update(np.ascontiguousarray(array, np.int64).data)
    return dataclasses.replace(
        dataset,
        train=Split(old.images, known, np.concatenate([old.rows, rows])),
        unlabelled=None,
        pseudo_labelled=len(rows),
        split_fingerprint=sha.hexdigest(),
    )


def soft_targets(labels: np.ndarray, logits: np.ndarray, label_smoothing: float) -> np.ndarray:
    """Logits [n + m, K]: for labelled rows, logits whose softmax is the smoothed one-hot label;
    then the given logits.

    So one loss works for the labelled and the pseudo-labelled rows.

    Args:
        labels: [n] class numbers.
        logits: [m, K].
        label_smoothing: Of the labelled rows, 0 to below 1.
    """
    classes = logits.shape[1]
    shares = (1 - label_smoothing) * np.eye(classes)[labels] + label_smoothing / classes
    known = np.log(shares, out=np.full_like(shares, NEVER), where=shares > 0)
    return np.concatenate([known.astype(np.float32), logits])


def _conclude(run: Run, dataset: Dataset, records: list[Record]) -> Record:
    """Copies the last round's network and predictions to the run's directory; writes its record."""
    plan, last = run.plan, records[-1]
    folders = [run.out / f"round-{number}" for number in range(len(records))]
    for name in ("model.keras", "predictions.npz", vocabulary.FILE):
        if not (folders[-1] / name).exists():  # of images there is no vocabulary
            continue
        with atomic(run.out / name) as temporary:
            shutil.copyfile(folders[-1] / name, temporary)
    rounds = [_summary(folder, record) for folder, record in zip(folders, records, strict=True)]
    record = dataclasses.replace(
        last,
        run_id=identity.run_id(plan),
        config=identity.run_spec(plan),
        inputs=inputs(plan, dataset),
        pseudo_labels=None,  # each round's are in `rounds`
        rounds=rounds,
        best_round=_best(records, plan.early_stopping.monitor) if last.validation else None,
        timings=dataclasses.replace(
            last.timings,
            total_seconds=sum(one.seconds for one in rounds),
            train_seconds=sum(one.timings.train_seconds for one in records),
        ),
    )
    record.write(run.out)
    point_latest(run.out, Path(plan.outputs))
    return record


def _summary(folder: Path, record: Record) -> RoundRecord:
    """What the record of all rounds says of one."""
    return RoundRecord(
        directory=folder.name,
        labelled=record.dataset.labelled,
        pseudo_labels=record.pseudo_labels,
        validation=record.validation.best if record.validation else None,
        test=record.test,
        weights_sha256=record.weights_sha256,
        seconds=record.timings.total_seconds,
    )


def _best(records: list[Record], monitor: str) -> int:
    """The round whose network is the best on the validation split."""
    from kd_cli.training.loop import better

    best = 0
    for number, record in enumerate(records):
        if better(record.validation.best, records[best].validation.best, monitor):
            best = number
    return best
