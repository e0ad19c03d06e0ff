"""Where a training stands, and what there is to warn about: dead layers, an accuracy at chance."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import tensorflow as tf

from kd_cli.data.dataset import Split
from kd_cli.networks.inputs import as_given, many
from kd_cli.networks.predict import Prepare
from kd_cli.networks.wrap import dead_layers
from kd_cli.runs.quality import STEPS_TO_LEARN, chance
from kd_cli.training.learner import Learner

log = logging.getLogger("kd")


@dataclass
class Fit:
    """Where a training stands. It is saved with the state.

    Attributes:
        epoch, step: Finished epochs, and steps.
        best_epoch: The epoch chosen on validation; without a validation split the last one.
        best, last: Validation `accuracy` and `nll` of those epochs; empty without a split.
        stopped: `finished` or `early stopping`; empty while training goes on.
        train_seconds, seconds: Training steps of the finished epochs alone, and everything.
        epoch_seconds: Training steps of the unfinished epoch.
        examples: Trained on in the finished epochs.
        learners: Trainings that shared the seconds, at most.
        warnings: What there is to warn about at present, by what it is about.
    """

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    stopped: str = ""
    train_seconds: float = 0.0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    examples: int = 0
    learners: int = 1
    warnings: dict[str, str] = field(default_factory=dict)


def check_health(
    now: Fit, learner: Learner, split: Split, prepare: Prepare | None, label: str
) -> None:
    """Warns of dead hidden layers and of an accuracy at chance; takes back what no longer holds.

    A layer that dropout or BatchNormalization feeds can come back to life. An accuracy at chance
    counts from `STEPS_TO_LEARN` steps on.
    """
    found = {}
    # Spread over the rows: a folder's images come class by class.
    rows = split.rows[:: -(-len(split) // 256)]
    images = split.images[rows]
    images = as_given(tf.constant(images)) if prepare is None else prepare(images, rows)
    for layer, units in dead_layers(learner.model, images).items():
        found[f"layer '{layer}'"] = (
            f"all {units} hidden units of layer '{layer}' are dead (never above 0 on {len(rows)} "
            f"{many(learner.model)}) after epoch {now.epoch}; what lies before it learns nothing"
        )
    if now.last and now.step >= STEPS_TO_LEARN:
        share, limit = chance(split.labels[split.rows])
        if now.last["accuracy"] <= limit:
            found["validation accuracy"] = (
                f"validation accuracy {now.last['accuracy']:.4f} after epoch {now.epoch} "
                f"is at chance ({share:.4f}, the most frequent class)"
            )
    for mark, text in found.items():
        if mark not in now.warnings:
            log.warning("%s: %s", label, text)
    for mark in now.warnings.keys() - found.keys():
        log.info("%s: after epoch %d no longer: %s", label, now.epoch, now.warnings[mark])
    now.warnings = found
