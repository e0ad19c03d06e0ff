"""How long a run takes, for `kd explain`: measured on a few training steps that nothing keeps."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from kd_cli.data.dataset import Dataset, Split
from kd_cli.training import assembly

if TYPE_CHECKING:
    from kd_cli.data.views import Views
    from kd_cli.distillation.teacher_outputs import Planned
    from kd_cli.networks.predict import LiveTeacher
    from kd_cli.training.step import Engine

SAMPLES = 5
LONG = 0.05  # seconds: in less, starting the steps counts more than the steps
MOST = 5.0  # seconds after which no further sample is taken: a slow network has one or two

ABOUT = (
    "estimates from a few steps, for this machine as it is now; loading and saving are not in them"
)


@dataclass(frozen=True)
class Pace:
    """What a training takes on this machine, in seconds.

    Attributes:
        first: The first step, which also traces and compiles.
        step: A later step, without a live teacher.
        batch: Of a step, making its batch: reading and augmenting the images.
        image: An image in evaluation.
    """

    first: float
    step: float
    batch: float
    image: float


@dataclass(frozen=True)
class Training:
    """A training whose length and pace are known; `live` is a teacher's seconds for each batch."""

    pace: Pace
    steps: int
    per_epoch: int
    validation: int
    test: int

    def epoch(self, live: float = 0.0) -> float:
        """Seconds of an epoch with its validation."""
        return self.per_epoch * (self.pace.step + live) + self.pace.image * self.validation

    def total(self, live: float = 0.0) -> float:
        """Seconds from the first step on; test is read after the last epoch and for the best."""
        evaluated = self.validation * math.ceil(self.steps / self.per_epoch) + 2 * self.test
        steps = self.steps * (self.pace.step + live)
        return self.pace.first + steps + self.pace.image * evaluated


@dataclass(frozen=True)
class Distilling:
    """The parts of a distillation.

    Attributes:
        student: Its training.
        teacher: The teacher's, if it has to be trained.
        batch: The teacher's seconds for the images of a training step.
        image: The teacher's seconds for an image.
        images: Training images.
        views: Versions of an image whose outputs are stored; 0 for a live teacher.
        missing: Of these, how many the cache does not have.
        teachers: How many are trained first.
        could: What to type so that the outputs of a live teacher are stored; empty if no cache
            serves.
    """

    student: Training
    teacher: Training | None
    batch: float
    image: float
    images: int
    views: int
    missing: int
    could: str
    teachers: int = 1

    def lines(self) -> list[str]:
        """For a person, a line each."""
        one, live = self.student, 0.0 if self.views else self.batch
        view = self.image * self.images
        once = self.missing * view
        total = one.total(live) + once
        found = [ABOUT]
        if self.teacher is not None:
            own = self.teacher
            first = own.total() * self.teachers
            each = f"{self.teachers} times " if self.teachers > 1 else ""
            found.append(f"teacher, trained first: {each}{_each(own)}, {duration(first)} in all")
            total += first
        found.append(f"student: {_each(one, live)}, {duration(one.total(live))} in all")
        if not self.batch:
            pass  # a file of logits
        elif self.views:
            versions = f"{self.views} views of " if self.views > 1 else ""
            of = f"{versions}{self.images:,} images"
            work = f"{duration(once)} once for {of}" if once else f"outputs of {of} are stored"
            if 0 < self.missing < self.views:
                work += f" ({self.views - self.missing} of the views are stored)"
            saved = one.total(self.batch) - one.total() - once
            gain = "saves" if saved >= 0 else "costs"
            found.append(
                f"live teacher: {_each(one, self.batch)}; cached: {work}, then {_each(one)}: the "
                f"cache {gain} {duration(abs(saved))} in this run"
            )
        elif self.could:
            of = " for each of K" if "views" in self.could else ""
            found.append(
                f"live teacher: {duration(one.per_epoch * self.batch)} of each epoch; "
                f"with {self.could}: {duration(view)} once{of}, then {_each(one)}"
            )
        else:
            share = duration(one.per_epoch * self.batch)
            found.append(f"live teacher: {share} of each epoch, and no cache serves")
        shared = one.steps * (one.pace.batch + live)
        also = "" if self.views else " and the teacher"
        found.append(
            f"hydra/launcher=joint: sharing the batches{also} saves {duration(shared)} "
            f"({100 * shared / one.total(live):.0f} %) for each further student"
        )
        found.append(f"this run: {duration(total)} in all")
        return found


def _each(training: Training, live: float = 0.0) -> str:
    return f"{duration(training.epoch(live))} an epoch"


def duration(seconds: float) -> str:
    """Two digits: an estimate has no more."""
    if seconds < 0.001:
        return "under 0.001 s"
    for limit, unit, name in ((60, 1, "s"), (3600, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.2g} {name}"
    return f"{seconds / 86400:,.0f} days"


def distilling(
    engine: Engine,
    plan: DictConfig,
    dataset: Dataset,
    views: Views | None,
    ask: LiveTeacher | None,
    planned: Planned,
    teacher: Training | None,
    teachers: int = 1,
) -> Distilling | None:
    """Measures a distillation; None where the loss is not finite, which stops a training.

    It trains the engine's learner, so that this must be the last use of it.

    Args:
        engine: Of the run, with one learner and what `planned` has in place of a teacher.
        plan, dataset, views: Of the run.
        ask: The teacher; None for a file of its logits.
        planned: What the run will get from it.
        teacher: Its own training, if it has to be trained.
        teachers: How many of them teach.
    """
    images, *_ = engine.first_batch()
    student = training(engine, plan, dataset)
    if student is None:
        return None
    batch = forward(ask, images) if ask else 0.0
    could = [] if plan.cache.logits != "none" else ["cache.logits=float32"]
    if views is not None and views.nodes and plan.view == "consistent":
        could.append("cache.views=K")
    if views is not None and (views.mixes or plan.view == "independent"):
        could = []
    return Distilling(
        student,
        teacher,
        batch,
        batch / int(images.shape[0]),
        len(dataset.train),
        planned.views,
        planned.missing,
        " ".join(could),
        teachers,
    )


def training(engine: Engine, plan: DictConfig, dataset: Dataset) -> Training | None:
    """Measures a training on its own steps; None where its loss is not finite."""
    total, per_epoch = assembly.length(plan, dataset)
    found = pace(engine, dataset.validation or dataset.test)
    if found is None:
        return None
    held = len(dataset.validation) if dataset.validation else 0
    return Training(found, total, per_epoch, held, len(dataset.test))


def pace(engine: Engine, evaluated: Split) -> Pace | None:
    """Seconds of an engine with one learner, which is trained; None if its loss is not finite."""
    from kd_cli.networks.predict import predict_rows

    (learner,) = engine.learners
    per_epoch = engine.steps_per_epoch
    # Steps that train the last layer alone take less than the others.
    epochs = itertools.count(1 + (learner.head.until // per_epoch if learner.head else 0))
    epoch, done = 0, per_epoch

    def steps(run: Callable[[int, int, int], Any]) -> Callable[[int], None]:
        def do(count: int) -> None:
            nonlocal epoch, done
            if done + count > per_epoch:
                epoch, done = next(epochs), 0
                engine.start_epoch(epoch)
            run((epoch - 1) * per_epoch, done, done + count)
            learner.first_broken()  # it waits until the steps are done
            done += count

        return do

    train, make = steps(engine.run), steps(engine.make_batches)
    first = _took(train, 1)
    step = seconds_each(train, per_epoch)
    if learner.first_broken():
        return None
    make(1)
    batch = min(step, seconds_each(make, per_epoch))
    few = Split(evaluated.images, evaluated.labels, evaluated.rows[: engine.batch_size])
    prepare = engine.views.evaluate if engine.views else None

    def evaluate(count: int) -> None:
        for _ in range(count):
            predict_rows(learner.predict, few, prepare)

    evaluate(1)
    return Pace(first, step, batch, seconds_each(evaluate, 1) / len(few))


def forward(ask: LiveTeacher, images: Any) -> float:
    """A teacher's seconds for a batch, in a graph as in training."""
    import tensorflow as tf

    @tf.function(autograph=False)
    def repeated(count: Any) -> Any:
        def body(number: Any, before: Any) -> tuple[Any, Any]:
            # Each pass depends on the one before, so that none is left out.
            return number + 1, tf.reduce_mean(ask(images + 1e-30 * before)["logits"])

        begin = [tf.constant(0), tf.zeros([])]
        return tf.while_loop(lambda n, _: n < count, body, begin, parallel_iterations=1)[1]

    def do(count: int) -> None:
        repeated(tf.constant(count)).numpy()

    do(1)
    return seconds_each(do, 1000)


def seconds_each(do: Callable[[int], None], most: int) -> float:
    """Median seconds of one of the things that `do(count)` does.

    The count doubles until they take `LONG`; then come up to `SAMPLES` samples in about `MOST`
    seconds.

    Args:
        do: Has been called before, so that nothing is traced now.
        most: Largest count.
    """
    count, took = 1, _took(do, 1)
    while took < LONG and count < most:
        count = min(2 * count, most)
        took = _took(do, count)
    samples = [took]
    while len(samples) < SAMPLES and sum(samples) + took < MOST:
        samples.append(_took(do, count))
    return statistics.median(samples) / count


def _took(do: Callable[[int], None], count: int) -> float:
    begun = time.perf_counter()
    do(count)
    return time.perf_counter() - begun
