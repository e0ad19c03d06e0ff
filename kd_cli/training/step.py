"""The training step: one `tf.function` that runs a chunk of steps for k >= 1 learners.

For each step it takes the batch (`batches.py`) and the teacher's logits, cached or live, and
updates each learner with its own Keras optimizer. Start and stop are tensors, so a chunk can last
a fraction of a second and costs no retrace; what differs between the points of a sweep (alpha,
temperature, initial weights, order) are variables, for the same reason.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from kd_cli.data.batches import source
from kd_cli.data.dataset import Split
from kd_cli.data.views import Views
from kd_cli.distillation.teacher_features import unpacked
from kd_cli.networks.inputs import as_given
from kd_cli.networks.predict import LiveTeacher
from kd_cli.training.learner import Learner


def step_together(
    learners: Sequence[Learner],
    step: tf.Tensor,
    images: tf.Tensor,
    labels: tf.Tensor,
    index: tf.Tensor,
) -> None:
    """One step of learners that teach each other.

    All look at the batch with the weights of the last step. Then each learns from its labels and
    from what the others said, as its losses' teacher: logits [B, k - 1, K] without a gradient.
    (Algorithm 1 of Zhang et al. 2018 asks the others again after each update: more passes.)
    """
    tapes = [tf.GradientTape() for _ in learners]
    seen = []
    for learner, tape in zip(learners, tapes, strict=True):
        with tape:
            seen.append(learner.outputs(images, index))
    said = [tf.stop_gradient(one["logits"]) for one in seen]
    for number, (learner, tape) in enumerate(zip(learners, tapes, strict=True)):
        others = tf.stack([one for n, one in enumerate(said) if n != number], axis=1)
        with tape:  # it goes on
            means = learner.means_of(labels, seen[number], {"logits": others}, step)
            loss = learner.optimizer.scale_loss(tf.add_n(means))
        learner.learn_from(step, tape, loss, labels, seen[number]["logits"], means)


class Engine:
    """Trains learners on one split: one graph, one pass over the data.

    A learner takes part in the steps from its `from_step` on, until a term of its loss is not
    finite; so learners may start, stop and continue at different steps.

    Args:
        learners: They all see the same batches and the same teacher.
        split: Training rows of a pool of images.
        batch_size: Examples that the networks see at once.
        data_seed: With the epoch it fixes the order of the examples.
        stored: What the teacher says of the split's rows, in its order: arrays [n, width] by name,
            one per view; `logits`, and what losses want of its layers.
        shapes: Of the latter, by name and tap.
        teacher: A teacher to be asked at every step instead.
        views: The augmentation; None trains on the images as they are stored.
        repeats: After so many epochs the views come again, because only of these the teacher's
            logits are known; None has new ones in every epoch.
        budget: Bytes of images and logits that may be held in memory; more are streamed.
        mutual: Whether the learners teach each other. Then all take every step, until a term of
            one of them is not finite.
        accumulate: A step takes so many batches as the parts of one, and makes one update.

    Attributes:
        batch_size: Examples per step; the last step of an epoch has as many as are left.
        part: Examples that the networks see at once.
    """

    def __init__(
        self,
        learners: list[Learner],
        split: Split,
        batch_size: int,
        data_seed: int,
        *,
        stored: Mapping[str, Sequence[np.ndarray]] | None = None,
        shapes: Mapping[str, Mapping[str, tuple[int, ...]]] | None = None,
        teacher: LiveTeacher | None = None,
        views: Views | None = None,
        repeats: int | None = None,
        budget: float = float("inf"),
        mutual: bool = False,
        accumulate: int = 1,
    ) -> None:
        self.mutual = mutual
        self.accumulate = accumulate
        self.part = batch_size
        batch_size *= accumulate
        self.learners = learners
        self.split = split
        self.batch_size = batch_size
        self.data_seed = data_seed
        self.teacher = teacher
        self.views = views
        self.repeats = repeats
        self.size = len(split)
        self.steps_per_epoch = -(-self.size // batch_size)
        self.shapes = shapes or {}
        self.source = source(split, stored or {}, batch_size, budget)
        self.rows = tf.constant(split.rows, dtype=tf.int64)
        self._stream: tuple[Any, ...] = ()

    def start_epoch(self, epoch: int, first: int = 0) -> None:
        """Draws the examples' order, a function of (data_seed, epoch).

        Args:
            epoch: From 1.
            first: Step of the epoch from which `run` will be called.
        """
        seed = [self.data_seed, epoch]
        order = tf.random.experimental.stateless_shuffle(self.rows, seed=seed)
        view = (epoch - 1) % self.repeats if self.repeats else epoch - 1
        if self.views is not None:
            self.views.start(view)
        self._stream = self.source.start(order, first, view if self.repeats else 0)

    def run(self, first_step: int, start: int, stop: int) -> None:
        """Runs the steps [start, stop) of the epoch whose first step is number `first_step`."""
        numbers = (tf.constant(value, tf.int64) for value in (first_step, start, stop))
        self._chunk(*numbers, *self._stream)

    def first_batch(
        self, teacher: LiveTeacher | None = None
    ) -> tuple[tf.Tensor, tf.Tensor, dict[str, Any] | None, tf.Tensor]:
        """What the learners get first: images, labels, the teacher's outputs, index.

        Args:
            teacher: To be asked in place of the engine's.
        """
        self.start_epoch(1)
        start = tf.constant(0, tf.int64)
        drawn = self._draw(start, start, *self._stream)
        return self._told(*self._cut(drawn, 0), teacher=teacher)

    def make_batches(self, first_step: int, start: int, stop: int) -> None:
        """Makes the batches of the steps [start, stop) as `run` does, and trains on none."""
        numbers = (tf.constant(value, tf.int64) for value in (first_step, start, stop))
        self._batches(*numbers, *self._stream).numpy()

    def _draw(self, first_step: tf.Tensor, step: tf.Tensor, *stream: Any) -> tuple[Any, ...]:
        """A step's images, labels, the images for the teacher, index, and its stored rows."""
        images, labels, rows, index, stored = self.source.batch(step, *stream)
        if self.views is None:
            images = for_teacher = as_given(images)
        else:
            images, labels, for_teacher = self.views(images, rows, labels, first_step + step)
        return images, labels, for_teacher, index, stored

    def _cut(self, drawn: tuple[Any, ...], start: Any) -> tuple[Any, ...]:
        """The part of a step's examples that begins there."""
        if self.accumulate == 1:
            return drawn
        return tf.nest.map_structure(lambda each: each[start : start + self.part], drawn)

    def _told(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        for_teacher: tf.Tensor,
        index: tf.Tensor,
        stored: dict[str, tf.Tensor],
        teacher: LiveTeacher | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor, dict[str, Any] | None, tf.Tensor]:
        """Images, labels, what the teacher says of them, index."""
        asked = teacher or self.teacher
        if asked is not None:
            return images, labels, asked(for_teacher), index
        return images, labels, unpacked(stored, self.shapes) if stored else None, index

    @functools.cached_property
    def _batches(self) -> Callable[..., tf.Tensor]:
        @functools.partial(tf.function, autograph=False)
        def make(
            first_step: tf.Tensor, start: tf.Tensor, stop: tf.Tensor, *stream: Any
        ) -> tf.Tensor:
            def body(step: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                # Summed up, so that nothing of it is left out.
                parts = tf.nest.flatten(self._draw(first_step, step, *stream))
                every = [tf.reduce_sum(tf.cast(part, tf.float32)) for part in parts]
                return step + 1, total + tf.add_n(every)

            begin = [start, tf.zeros([])]
            return tf.while_loop(lambda step, _: step < stop, body, begin, parallel_iterations=1)[1]

        return make

    @functools.cached_property
    def _chunk(self) -> Callable[..., None]:
        return tf.function(self._steps, autograph=False)

    def _steps(
        self, first_step: tf.Tensor, start: tf.Tensor, stop: tf.Tensor, *stream: Any
    ) -> None:
        def body(step: tf.Tensor) -> tf.Tensor:
            drawn, number = self._draw(first_step, step, *stream), first_step + step
            if self.accumulate == 1:
                self._learn(number, *self._told(*drawn))
            else:
                self._learn_in_parts(number, drawn)
            return step + 1

        def goes_on(step: tf.Tensor) -> tf.Tensor:
            whole = tf.stack([learner.broken[0] < 0 for learner in self.learners])
            return (step < stop) & (tf.reduce_all if self.mutual else tf.reduce_any)(whole)

        tf.while_loop(goes_on, body, [start], parallel_iterations=1)

    def _learn(self, number: tf.Tensor, *batch: Any) -> None:
        if self.mutual:
            images, labels, _, index = batch
            step_together(self.learners, number, images, labels, index)
            return
        for learner in self.learners:
            learner.if_active(learner.learn, number, *batch)

    def _learn_in_parts(self, number: tf.Tensor, drawn: tuple[Any, ...]) -> None:
        """One update on all examples of a step, which the networks see part by part."""

        def part(start: tf.Tensor) -> tf.Tensor:
            self._learn(number, *self._told(*self._cut(drawn, start)))
            return start + self.part

        count = tf.shape(drawn[0])[0]
        tf.while_loop(lambda start: start < count, part, [0], parallel_iterations=1)
        for learner in self.learners:
            learner.if_active(learner.update, number)
