"""Warnings about a network in training: hidden layers that are dead, an accuracy at chance."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from kd_cli.data.dataset import Split
from kd_cli.networks.predict import Prepare
from kd_cli.networks.wrap import dead_layers
from kd_cli.runs.quality import STEPS_TO_LEARN, chance
from kd_cli.training.step import Learner

if TYPE_CHECKING:
    from kd_cli.training.loop import Fit

log = logging.getLogger("kd")


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
    images = images.astype(np.float32) if prepare is None else prepare(images, rows)
    for layer, units in dead_layers(learner.model, images).items():
        found[f"layer '{layer}'"] = (
            f"all {units} hidden units of layer '{layer}' are dead (never above 0 on "
            f"{len(rows)} images) after epoch {now.epoch}; what lies before it learns nothing"
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
