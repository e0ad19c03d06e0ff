"""Epochs around the engine: validation, the best epoch, early stopping, resume, non-finite stop.

The trainer knows nothing of distillation: a teacher, a scratch student and a distilled student are
trained by the same function.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kd_cli.checkpoint import State, append_row, read_rows, rewrite_rows
from kd_cli.data import Split
from kd_cli.engine import Engine, predict_rows, predictor
from kd_cli.metrics import score
from kd_cli.models import dead_layers
from kd_cli.progress import TrainingProgress
from kd_cli.tracking import Tracker

log = logging.getLogger("kd")
CHUNK_SECONDS = 0.5  # so that progress moves and Ctrl-C is heard


class NonFiniteError(RuntimeError):
    """The loss became NaN or infinite."""


@dataclass
class Fit:
    """Where a training stands. It is saved with the state after every epoch.

    Attributes:
        epoch, step: Finished epochs and steps.
        best_epoch: The epoch chosen on validation; without a validation split the last one.
        best, last: Validation `accuracy` and `nll` of those epochs; empty without a split.
        stopped: `finished` or `early stopping`; empty while training goes on.
        train_seconds, seconds: Training steps alone, and everything.
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
    examples: int = 0
    warnings: dict[str, str] = field(default_factory=dict)


def better(new: dict[str, float], old: dict[str, float], monitor: str) -> bool:
    """Whether a validation result beats another; equal accuracies are told apart by the NLL."""
    if not old:
        return True
    if monitor == "nll" or new["accuracy"] == old["accuracy"]:
        return new["nll"] < old["nll"]
    return new["accuracy"] > old["accuracy"]


def fit(
    engine: Engine,
    validation: Split | None,
    *,
    out: Path,
    owner: dict[str, Any],
    label: str,
    epochs: int,
    total_steps: int,
    patience: int | None,
    monitor: str,
    tracker: Tracker,
) -> tuple[Fit, list[np.ndarray]]:
    """Trains the engine's only learner, continuing from `out/state` where there is one.

    Args:
        engine: With one learner.
        validation: Chooses the best epoch and stops early; None trains to the end.
        out: The run's directory; `history.jsonl` and `state/` are written there.
        owner: Kept with the state, to tell whose it is.
        label: Short name for the progress.
        epochs: At most so many.
        total_steps: At most so many steps; ends inside the last epoch.
        patience: Epochs without a better result before stopping; None never stops.
        monitor: `accuracy` or `nll`.
        tracker: Gets every epoch's row.

    Returns:
        Where it ended, and the weights of the best epoch. The model holds those of the last one.

    Raises:
        NonFiniteError: Names epoch, step and term.
    """
    (learner,) = engine.learners
    model = learner.model
    state = State(out / "state")
    variables = [*model.variables, *learner.optimizer.variables]
    saved = state.load(variables)
    now = Fit(**saved) if saved else Fit()
    best_weights = model.get_weights()
    history = out / "history.jsonl"
    if saved:
        best_weights = state.best_weights(now.best_epoch)
        log.info("%s: continuing after epoch %d", label, now.epoch)
    rows = [row for row in read_rows(history) if row["epoch"] <= now.epoch]
    rewrite_rows(history, rows)
    predict = predictor(model)
    chunk = 4
    before = now.seconds
    started = time.monotonic()

    with TrainingProgress(label, epochs, engine.size, now.epoch) as progress:
        while not now.stopped and now.epoch < epochs and now.step < total_steps:
            epoch = now.epoch + 1
            engine.start_epoch(epoch)
            steps = min(engine.steps_per_epoch, total_steps - now.step)
            begun, done = time.monotonic(), 0
            while done < steps:
                chunk_begun = time.monotonic()
                stop = min(done + chunk, steps)
                engine.run(now.step, done, stop)
                _stop_if_broken(engine, epoch, label)
                took = time.monotonic() - chunk_begun
                if done:  # the first chunk may trace
                    chunk = max(1, min(2 * chunk, round(chunk * CHUNK_SECONDS / max(took, 1e-6))))
                done = stop
                examples = min(done * engine.batch_size, engine.size)
                spent = time.monotonic() - begun
                progress.step(epoch, examples, engine.means(0, examples), examples / spent)
            seconds = time.monotonic() - begun
            now.epoch, now.step = epoch, now.step + steps
            now.train_seconds += seconds
            now.examples += examples
            row = {
                "epoch": epoch,
                "step": now.step,
                "learning_rate": float(learner.learning_rate),
                "train": engine.means(0, examples),
                "validation": None,
                "seconds": seconds,
                "examples_per_second": examples / seconds,
            }
            if validation is not None:
                logits = predict_rows(predict, validation)
                _stop_if_nan(logits, epoch, label)
                row["validation"] = score(logits, validation.labels[validation.rows])
                now.last = row["validation"]
            is_best = validation is None or better(now.last, now.best, monitor)
            if is_best:
                now.best_epoch, now.best = epoch, now.last
                best_weights = model.get_weights()
            if patience is not None and validation is not None:
                now.stopped = "early stopping" if epoch - now.best_epoch >= patience else ""
            ends = now.stopped or epoch == epochs or now.step == total_steps
            if ends or epoch & (epoch - 1) == 0:  # epochs 1, 2, 4, 8, ... and the last
                _check_health(now, model, validation or engine.split, label)
            now.seconds = before + time.monotonic() - started
            append_row(history, row)
            state.save(variables, owner, vars(now), best_weights if is_best else None)
            tracker.epoch(row, model)
            progress.epoch(row)
    now.stopped = now.stopped or "finished"
    return now, best_weights


def _stop_if_broken(engine: Engine, epoch: int, label: str) -> None:
    broken = engine.first_broken()
    if broken:
        step, _, term = broken
        raise NonFiniteError(
            f"{label}: the term '{term}' of the loss is not finite at epoch {epoch}, "
            f"step {step + 1}; lower learning_rate, or look at the images' range (input.scale)"
        )


def _stop_if_nan(logits: np.ndarray, epoch: int, label: str) -> None:
    if not np.isfinite(logits).all():
        raise NonFiniteError(
            f"{label}: the logits on the validation split are not finite after epoch {epoch}, "
            "though every loss was; the last update broke the weights; lower learning_rate"
        )


def _check_health(now: Fit, model: Any, split: Split, label: str) -> None:
    """Warns of dead hidden layers and of an accuracy at chance; takes back what no longer holds.

    A layer that dropout or BatchNormalization feeds can come back to life.
    """
    found = {}
    # Spread over the rows: a folder's images come class by class.
    rows = split.rows[:: -(-len(split) // 256)]
    for layer, units in dead_layers(model, split.images[rows].astype(np.float32)).items():
        found[f"layer '{layer}'"] = (
            f"{label}: all {units} hidden units of layer '{layer}' are dead (never above 0 on "
            f"{len(rows)} images) after epoch {now.epoch}; what lies before it learns nothing"
        )
    if now.last:
        labels = split.labels[split.rows]
        chance = np.bincount(labels).max() / len(labels)
        margin = 2 * math.sqrt(chance * (1 - chance) / len(labels))
        if now.last["accuracy"] <= chance + margin:
            found["validation accuracy"] = (
                f"{label}: validation accuracy {now.last['accuracy']:.4f} after epoch {now.epoch} "
                f"is at chance ({chance:.4f}, the most frequent class)"
            )
    for mark, text in found.items():
        if mark not in now.warnings:
            log.warning("%s", text)
    for mark in now.warnings.keys() - found.keys():
        log.info("%s: after epoch %d no longer: %s", label, now.epoch, now.warnings[mark])
    now.warnings = found
