"""Epochs around the engine: validation, the best epoch, early stopping, resume, non-finite stop.

The trainer knows nothing of distillation: a teacher, a scratch student, a distilled student and the
students of a joint sweep are trained by the same function.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kd_cli.data.dataset import Split
from kd_cli.files import append_row, discard, read_rows, rewrite_rows
from kd_cli.networks.predict import Prepare, predict_rows
from kd_cli.runs.quality import score
from kd_cli.runs.state import State, settle
from kd_cli.terminal import TrainingProgress, shown
from kd_cli.training import peers
from kd_cli.training.standing import Fit, check_health
from kd_cli.training.step import Engine, Learner
from kd_cli.training.trackers import Trackers

log = logging.getLogger("kd")
CHUNK_SECONDS = 0.5  # so that progress moves and Ctrl-C is heard
_NEVER = 2**62  # a step that does not come


class NonFiniteError(RuntimeError):
    """The loss became NaN or infinite."""


def better(new: dict[str, float], old: dict[str, float], monitor: str) -> bool:
    """Whether a validation result beats another; equal accuracies are told apart by the NLL."""
    if not old:
        return True
    if monitor == "nll" or new["accuracy"] == old["accuracy"]:
        return new["nll"] < old["nll"]
    return new["accuracy"] > old["accuracy"]


@dataclass(frozen=True)
class RunSettings:
    """Settings of one run: directory, label, trackers, length.

    Attributes:
        out: The run's directory; `history.jsonl` and `state/` are written there.
        owner: Kept with the state, to tell whose it is.
        label: Short name for the progress.
        trackers: Are told of every epoch.
        epochs: At most so many.
        total_steps: At most so many steps; ends inside the last epoch.
        head_epochs: So many first epochs train the last layer alone.
    """

    out: Path
    owner: dict[str, Any]
    label: str
    trackers: Trackers
    epochs: int
    total_steps: int
    head_epochs: int = 0

    def label_in(self, epoch: int) -> str:
        """Whose progress an epoch is, and what of it is trained where that is not all."""
        return f"{self.label}, last layer" if epoch <= self.head_epochs else self.label


@dataclass(frozen=True)
class LoopSettings:
    """Settings that all runs of an engine share.

    Attributes:
        patience: Epochs without a better result before stopping; None never stops. Where the last
            layer is trained first, they count from the epoch that ends this.
        monitor: `accuracy` or `nll`.
        minutes: Longest time without a saved state.
        prepare: What becomes of stored images in evaluation; None leaves them.
    """

    patience: int | None
    monitor: str
    minutes: float
    prepare: Prepare | None = None


class Training:
    """One learner's training: it continues from `run.out/state` where there is one.

    Args:
        learner: With its initial weights.
        run: What is its own.
        shared: What it shares with others.
        mutual: Whether it learns from others. Then they all go on until none has more to do, fail
            together, and their states count together.

    Attributes:
        peers: These others, itself included; else itself alone.
        now: Where it stands.
        best_weights: Weights of the best epoch so far.
        error: Why it was given up, or None.
    """

    def __init__(
        self, learner: Learner, run: RunSettings, shared: LoopSettings, mutual: bool = False
    ) -> None:
        self.learner = learner
        self.run = run
        self.shared = shared
        self.error: Exception | None = None
        self.peers = [self]
        self.state = State(run.out / "state", held=mutual)
        self.history = run.out / "history.jsonl"
        self.now = Fit()
        self.best_weights: list[np.ndarray] = []
        self.before = 0.0
        self.started = self.saved = time.monotonic()
        self.attempt(self._begin)

    def _begin(self) -> None:
        run, learner = self.run, self.learner
        for folder in (run.out, self.state.folder):  # what a kill left of a write
            for left in folder.glob(".tmp-*"):
                discard(left)
        saved = self.state.load(learner.variables)
        if saved:
            if set(saved) != set(Fit.__dataclass_fields__):
                raise self.state.of_another_version()
            self.now = Fit(**saved)
        self.best_weights = learner.model.get_weights()
        if self.now.best_epoch:
            self.best_weights = self.state.best_weights(self.now.best_epoch)
        if saved:
            log.info(
                "%s: continuing after epoch %d (step %d)",
                run.label,
                self.now.epoch,
                self.now.step,
            )
        rows = {str(row.get("epoch")): row for row in read_rows(self.history)}
        rows = [rows[str(n + 1)] for n in range(self.now.epoch) if str(n + 1) in rows]
        if len(rows) < self.now.epoch:
            log.warning(
                "%s is damaged: %d of %d epochs are missing there; the training goes on from its "
                "state without them",
                shown(self.history),
                self.now.epoch - len(rows),
                self.now.epoch,
            )
        rewrite_rows(self.history, rows)
        self.before = self.now.seconds
        run.trackers.start({"run_id": run.owner["run_id"], "epoch": self.now.epoch})

    @property
    def goes_on(self) -> bool:
        return self.error is None and any(not one._ended for one in self.peers)

    @property
    def _ended(self) -> bool:
        """Whether it has done all that it has to do itself."""
        now, run = self.now, self.run
        return bool(now.stopped or now.epoch >= run.epochs or now.step >= run.total_steps)

    def check_terms(self, epoch: int) -> None:
        """Gives up when a term of the loss was not finite."""
        broken = self.learner.first_broken()
        if broken:
            step, term = broken
            self._give_up(
                f"the term '{term}' of the loss is not finite at epoch {epoch}, step {step + 1}; "
                "lower learning_rate, or look at the images' range (input.scale)"
            )

    def attempt(self, act: Callable[..., Any], *args: Any) -> Any:
        """Calls `act`; its failure ends this training and no other."""
        try:
            return act(*args)
        except Exception as error:
            self.error = error
            return None

    def _give_up(self, why: str) -> None:
        self.error = NonFiniteError(f"{self.run.label}: {why}")

    @property
    def due(self) -> bool:
        """Whether the last saved state is older than `shared.minutes`."""
        return time.monotonic() - self.saved >= 60 * self.shared.minutes

    def save_inside_epoch(self, step: int, seconds: float) -> None:
        """Saves the state."""
        counters = dict(vars(self.now), step=step, epoch_seconds=seconds)
        counters["seconds"] = self.before + time.monotonic() - self.started
        self.state.save(self.learner.variables, self.run.owner, counters, None)
        self.saved = time.monotonic()

    def end_epoch(
        self, step: int, seconds: float, examples: int, validation: Split | None, rest: Split
    ) -> dict[str, Any] | None:
        """Validates, keeps what is best, saves; returns the row of the history.

        None when the logits on the validation split are not finite: the training is given up.
        """
        now, shared, model = self.now, self.shared, self.learner.model
        epoch = now.epoch + 1
        row = {
            "epoch": epoch,
            "step": step,
            "learning_rate": float(self.learner.learning_rate),
            "train": self.learner.means(examples),
            "validation": None,
            "seconds": seconds,
            "examples_per_second": examples / seconds,
        }
        if validation is not None:
            logits = predict_rows(self.learner.predict, validation, shared.prepare)
            if not np.isfinite(logits).all():
                self._give_up(
                    f"the logits on the validation split are not finite after epoch {epoch}, "
                    "though every loss was; the last update broke the weights; lower learning_rate"
                )
                return None
            row["validation"] = now.last = score(logits, validation.labels[validation.rows])
        now.epoch, now.step = epoch, step
        now.train_seconds += seconds
        now.epoch_seconds = 0.0
        now.examples += examples
        is_best = validation is None or better(now.last, now.best, shared.monitor)
        if is_best:
            now.best_epoch, now.best = epoch, now.last
            self.best_weights = model.get_weights()
        if shared.patience is not None and validation is not None:
            thawed = self.run.head_epochs if self.run.head_epochs < self.run.epochs else 0
            since = max(now.best_epoch, thawed)
            now.stopped = "early stopping" if epoch - since >= shared.patience else ""
        if self._ended or epoch & (epoch - 1) == 0:  # epochs 1, 2, 4, 8, ... and the last
            check_health(now, self.learner, validation or rest, shared.prepare, self.run.label)
        now.seconds = self.before + time.monotonic() - self.started
        append_row(self.history, row)
        best = self.best_weights if is_best else None
        self.state.save(self.learner.variables, self.run.owner, vars(now), best)
        self.saved = time.monotonic()
        return row


def fit(
    engine: Engine, validation: Split | None, runs: list[RunSettings], shared: LoopSettings
) -> Iterator[Training]:
    """Trains the engine's learners to their ends, each continuing from its own saved state.

    Args:
        engine: Its learners belong to `runs`, one each.
        validation: Chooses the best epoch and stops early; None trains to the end.
        runs: What is each one's own.
        shared: What they share.

    Yields:
        Each as it ends, while those that train longer wait. Its model holds the weights of its
        last step, and may be given others.
    """
    if engine.mutual:
        settle([State(run.out / "state") for run in runs])
    trainings = [
        Training(learner, run, shared, engine.mutual)
        for learner, run in zip(engine.learners, runs, strict=True)
    ]
    if engine.mutual:
        peers.join(trainings)
    label = runs[0].label if len(runs) == 1 else f"{len(runs)} students"
    for training in trainings:
        training.now.learners = max(training.now.learners, len(trainings))
    waiting, chunk = list(trainings), 1
    longest, done = max(run.epochs for run in runs), trainings[0].now.epoch
    with TrainingProgress(label, longest, engine.size, done) as progress:
        while any(training.goes_on for training in trainings):
            epoch = 1 + min(t.now.epoch for t in trainings if t.goes_on)
            active = [t for t in trainings if t.goes_on and t.now.epoch == epoch - 1]
            chunk = _run_epoch(engine, trainings, active, epoch, chunk, progress, validation)
            if any(training.goes_on for training in trainings):
                yield from _ended(waiting)
    yield from _ended(waiting)


def _ended(waiting: list[Training]) -> Iterator[Training]:
    """Takes those that have ended out of the list."""
    for training in [one for one in waiting if not one.goes_on]:
        waiting.remove(training)
        training.now.stopped = training.now.stopped or "finished"
        yield training


def _run_epoch(
    engine: Engine,
    trainings: list[Training],
    active: list[Training],
    epoch: int,
    chunk: int,
    progress: TrainingProgress,
    validation: Split | None,
) -> int:
    """One epoch of those that have not done it yet; returns the chunk's length for the next one."""
    first_step = (epoch - 1) * engine.steps_per_epoch
    # Alike for all that are active: those of an engine end after whole epochs, or all together.
    steps = min(engine.steps_per_epoch, active[0].run.total_steps - first_step)
    for training in trainings:
        training.learner.from_step.assign(training.now.step if training in active else _NEVER)
        if training in active and training.now.step == first_step:
            training.learner.clear_sums()
    done = begun_at = min(training.now.step for training in active) - first_step
    before = max(training.now.epoch_seconds for training in active)
    engine.start_epoch(epoch, done)
    if len(trainings) == 1:
        progress.label = trainings[0].run.label_in(epoch)
    begun = time.monotonic()
    while done < steps and any(training.error is None for training in active):
        chunk_begun = time.monotonic()
        stop = min(done + chunk, steps)
        engine.run(first_step, done, stop)
        for training in active:
            training.check_terms(epoch)
        peers.fail_together(trainings)
        took = time.monotonic() - chunk_begun
        if done > begun_at:  # the first chunk may trace
            chunk = max(1, min(2 * chunk, round((stop - done) * CHUNK_SECONDS / max(took, 1e-6))))
        done = stop
        examples = min(done * engine.batch_size, engine.size)
        spent = time.monotonic() - begun
        going = [training for training in active if training.error is None]
        if going:
            values = _mean([training.learner.means(examples) for training in going])
            trained = examples - begun_at * engine.batch_size
            progress.step(epoch, examples, values, trained / spent)
        if done < steps:
            late = [one for one in going if any(peer.due for peer in one.peers)]
            for training in late:
                if first_step + done > training.now.step:
                    training.attempt(training.save_inside_epoch, first_step + done, before + spent)
            peers.release(trainings)
    seconds = before + time.monotonic() - begun
    ended = []
    for training in active:
        if training.error is None:
            row = training.attempt(
                training.end_epoch, first_step + steps, seconds, examples, validation, engine.split
            )
            ended += [] if row is None else [(training, row)]
    peers.release(trainings)
    for training, row in ended:
        run = training.run
        # After the state: an epoch that is trained again was not told before.
        if training.error is None:
            training.attempt(run.trackers.epoch, row, training.learner.model)
        progress.epoch(run.label_in(epoch), row, run.epochs, run.out)
    peers.fail_together(trainings)
    rows = [row for _, row in ended]
    if len(trainings) > 1 and rows and not engine.mutual:
        parts = ("train",) if validation is None else ("train", "validation")
        means = {part: _mean([row[part] for row in rows]) for part in parts}
        progress.epoch(f"mean of {len(rows)}", {**rows[0], **means}, progress.epochs, None)
    return chunk


def _mean(values: list[dict[str, float]]) -> dict[str, float]:
    """Means over learners, of what they all have."""
    shared = [key for key in values[0] if all(key in one for one in values)]
    return {key: sum(one[key] for one in values) / len(values) for key in shared}
