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

import keras
import numpy as np
import tensorflow as tf

from kd_cli.data.batches import source
from kd_cli.data.dataset import Split
from kd_cli.data.views import Views
from kd_cli.distillation.objective import Objective
from kd_cli.distillation.teacher_features import unpacked
from kd_cli.networks.fused_batch_norm import fuse_batch_norm
from kd_cli.networks.predict import LiveTeacher, predictor
from kd_cli.training.head_first import HeadFirst
from kd_cli.training.peers import step_together

REGULARISATION = "regularisation"  # a network's own losses, as a term


class Learner:
    """A network in training with all that its steps need.

    Args:
        model: Takes raw pixels 0..255 and gives logits.
        optimizer: A Keras optimizer; its learning rate is set at every step from `schedule`.
        objective: The losses with their weights; built, if one has weights of its own.
        schedule: step -> learning rate.
        labelled: Whether training images have labels. Without any the loss gets None, and there
            is no training accuracy; where some have none their label is -1.
        network: images -> [logits, tap, ...] with the layers of `model`, for an objective that
            names taps of the student, or a head that is trained first.
        head: The head that is trained alone in the first steps; None trains all weights at once.

    Attributes:
        terms: Names of the loss's terms.
        sums: Over the epoch so far: each term times the examples, then the number of labelled
            examples and of right answers.
        broken: (step, term) of the first value that was not finite; -1 for none.
        from_step: First step in which the learner takes part.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        objective: Objective,
        schedule: Callable[[Any], Any],
        labelled: bool = True,
        network: keras.Model | None = None,
        head: HeadFirst | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.objective = objective
        self.schedule = schedule
        self.labelled = labelled
        self.network = network or model
        self.head = head
        fuse_batch_norm(model)
        optimizer.build(self.trainable_variables)
        if head is not None:
            head.build(objective.trainable_variables)
        self.terms = objective.terms(model.output_shape[-1], labelled)
        # (A network's own losses may appear only when it is called: one column is theirs.)
        self.sums = tf.Variable(tf.zeros([len(self.terms) + 3], tf.float64), trainable=False)
        self.broken = tf.Variable([-1, -1], dtype=tf.int64, trainable=False)
        self.from_step = tf.Variable(0, dtype=tf.int64, trainable=False)

    @property
    def learning_rate(self) -> Any:
        """The optimizer's variable."""
        return self.optimizer.learning_rate

    @property
    def trainable_variables(self) -> list[Any]:
        """The network's weights, and those that losses have of their own."""
        return [*self.model.trainable_variables, *self.objective.trainable_variables]

    @property
    def variables(self) -> list[Any]:
        """All that a training changes: weights, statistics, dropout's seeds, moments, sums."""
        own = [*self.model.variables, *self.objective.variables]
        first = self.head.optimizer.variables if self.head is not None else []
        return [*own, *self.optimizer.variables, *first, self.sums]

    def begin_again(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        objective: Objective,
        head: HeadFirst | None = None,
    ) -> None:
        """Takes over the initial values of a fresh model, optimizer, objective and head.

        The traced step, which holds this learner's variables, stays as it is.
        """
        optimizer.build([*model.trainable_variables, *objective.trainable_variables])
        fresh = [*model.variables, *objective.variables, *optimizer.variables]
        if head is not None:
            fresh += head.build(objective.trainable_variables)
        for mine, theirs in zip(self.variables[:-1], fresh, strict=True):
            mine.assign(theirs)
        self.objective.begin_again(objective)
        self.clear_sums()
        self.broken.assign([-1, -1])
        self.from_step.assign(0)

    def clear_sums(self) -> None:
        self.sums.assign(tf.zeros_like(self.sums))

    def means(self, examples: int) -> dict[str, float]:
        """Means over the epoch so far: `loss`, each of its terms, and with labels `accuracy`."""
        sums = self.sums.numpy()
        row = sums / max(examples, 1)
        values = {"loss": float(row[: len(self.terms)].sum())}
        if len(self.terms) > 1:
            values |= {name: float(row[number]) for number, name in enumerate(self.terms)}
        if self.labelled:
            values["accuracy"] = float(sums[-1] / max(sums[-2], 1))
        return values

    def first_broken(self) -> tuple[int, str] | None:
        """(step, term) of the first value that was not finite, or None."""
        step, term = (int(value) for value in self.broken.numpy())
        return None if step < 0 else (step, self.terms[term])

    def step_if_active(self, step: tf.Tensor, *batch: Any) -> None:
        """One training step, left out before `from_step` and after a broken one."""

        def train() -> tf.Tensor:
            self._step(step, *batch)
            return tf.zeros([])

        active = (step >= self.from_step) & (self.broken[0] < 0)
        tf.cond(active, train, lambda: tf.zeros([]))

    def forward(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        teacher: Mapping[str, Any] | None,
        index: tf.Tensor,
        step: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """The logits [B, K] of a training step, and the batch mean of each of `terms`.

        A network's own losses are the last term, which appears when the network is called. Without
        a step the losses have the weights of the end of their ramps.
        """
        student = self._outputs(images, index)
        return student["logits"], self._means(labels, student, teacher, step)

    def _outputs(self, images: tf.Tensor, index: tf.Tensor) -> dict[str, Any]:
        """What the losses get of the network, in training."""
        outputs = self.network(images, training=True)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        logits, *features = (tf.cast(one, tf.float32) for one in outputs)
        taps = dict(zip(self.objective.student_taps, features, strict=True))
        return {"logits": logits, "features": taps, "index": index}

    def _means(
        self,
        labels: tf.Tensor,
        student: Mapping[str, Any],
        teacher: Mapping[str, Any] | None,
        step: tf.Tensor | None,
    ) -> list[tf.Tensor]:
        """As `forward`, of outputs that are there already."""
        known = labels if self.labelled else None
        terms = self.objective(known, student, teacher, step)
        means = [tf.reduce_mean(value) for value in terms.values()]
        if self.model.losses:
            means.append(tf.add_n([tf.cast(v, tf.float32) for v in self.model.losses]))
            if REGULARISATION not in self.terms:
                self.terms.append(REGULARISATION)
        return means

    def _step(
        self,
        step: tf.Tensor,
        images: tf.Tensor,
        labels: tf.Tensor,
        teacher: Mapping[str, Any] | None,
        index: tf.Tensor,
    ) -> None:
        with tf.GradientTape(persistent=self.head is not None) as tape:
            logits, means = self.forward(images, labels, teacher, index, step)
            loss = self._scaled(means, step)
        self._update(step, tape, loss, labels, logits, means)

    def _scaled(self, means: list[tf.Tensor], step: tf.Tensor) -> tf.Tensor:
        loss = tf.add_n(means)
        if self.head is None:
            return self.optimizer.scale_loss(loss)
        return self.head.scale_loss(loss, step, self.optimizer)

    def _update(
        self,
        step: tf.Tensor,
        tape: tf.GradientTape,
        loss: tf.Tensor,
        labels: tf.Tensor,
        logits: tf.Tensor,
        means: list[tf.Tensor],
    ) -> None:
        """Moves the weights along the gradient of `loss`, and adds to the epoch's sums."""
        rate = tf.cast(self.schedule(step), tf.float32)
        self.learning_rate.assign(rate)

        def move(optimizer: Any, variables: list[Any]) -> None:
            gradients = tape.gradient(loss, variables)
            optimizer.learning_rate.assign(rate)
            optimizer.apply(gradients, variables)

        whole = functools.partial(move, self.optimizer, self.trainable_variables)
        if self.head is None:
            whole()
        else:
            alone = functools.partial(move, self.head.optimizer, self.head.variables)
            self.head.choose(step, alone, whole)

        count = tf.cast(tf.shape(labels)[0], tf.float64)
        # Mixed labels are shares [B, K]: the larger counts.
        mixed = len(labels.shape) == 2
        classes = tf.argmax(labels, -1) if mixed else labels
        known = tf.reduce_sum(labels, -1) > 0 if mixed else labels >= 0
        right = (tf.argmax(logits, -1) == classes) & known
        ends = [tf.reduce_sum(tf.cast(which, tf.float64)) for which in (known, right)]
        padding = tf.zeros([self.sums.shape[0] - len(means) - 2], tf.float64)
        values = tf.cast(tf.stack(means), tf.float64) * count
        self.sums.assign_add(tf.concat([values, padding, ends], axis=0))
        bad = tf.logical_not(tf.math.is_finite(tf.stack(means)))
        found = tf.stack([step, tf.argmax(tf.cast(bad, tf.int32))])
        self.broken.assign(tf.where(tf.reduce_any(bad), found, self.broken))

    @functools.cached_property
    def predict(self) -> Callable[[tf.Tensor], tf.Tensor]:
        return predictor(self.model)


class Engine:
    """Trains learners on one split: one graph, one pass over the data.

    A learner takes part in the steps from its `from_step` on, until a term of its loss is not
    finite; so learners may start, stop and continue at different steps.

    Args:
        learners: They all see the same batches and the same teacher.
        split: Training rows of a pool of images.
        batch_size: Examples per step; the last batch of an epoch is as small as it comes.
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
    ) -> None:
        self.mutual = mutual
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
        """What the learners get at the first step: images, labels, the teacher's outputs, index.

        Args:
            teacher: To be asked in place of the engine's.
        """
        self.start_epoch(1)
        start = tf.constant(0, tf.int64)
        return self._batch(start, start, *self._stream, teacher=teacher)

    def make_batches(self, first_step: int, start: int, stop: int) -> None:
        """Makes the batches of the steps [start, stop) as `run` does, and trains on none."""
        numbers = (tf.constant(value, tf.int64) for value in (first_step, start, stop))
        self._batches(*numbers, *self._stream).numpy()

    def _batch(
        self,
        first_step: tf.Tensor,
        step: tf.Tensor,
        *stream: Any,
        teacher: LiveTeacher | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor, dict[str, Any] | None, tf.Tensor]:
        images, labels, rows, index, stored = self.source.batch(step, *stream)
        if self.views is None:
            images = for_teacher = tf.cast(images, tf.float32)
        else:
            images, labels, for_teacher = self.views(images, rows, labels, first_step + step)
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
                parts = tf.nest.flatten(self._batch(first_step, step, *stream))
                every = [
                    tf.reduce_sum(tf.cast(part, tf.float32)) for part in parts if part is not None
                ]
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
            batch = self._batch(first_step, step, *stream)
            if self.mutual:
                images, labels, _, index = batch
                step_together(self.learners, first_step + step, images, labels, index)
            else:
                for learner in self.learners:
                    learner.step_if_active(first_step + step, *batch)
            return step + 1

        def goes_on(step: tf.Tensor) -> tf.Tensor:
            whole = tf.stack([learner.broken[0] < 0 for learner in self.learners])
            return (step < stop) & (tf.reduce_all if self.mutual else tf.reduce_any)(whole)

        tf.while_loop(goes_on, body, [start], parallel_iterations=1)
