"""A network in training with its optimizer and losses: what one of them does in a step."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from kd_cli.distillation.objective import Objective
from kd_cli.networks.fused_batch_norm import fuse_batch_norm
from kd_cli.networks.predict import predictor
from kd_cli.training.average import Average

REGULARISATION = "regularisation"  # a network's own losses, as a term


class Learner:
    """A network in training with all that its steps need.

    Args:
        model: Takes raw pixels 0..255 or token ids, and gives logits.
        optimizer: A Keras optimizer; its learning rate is set at every step from `schedule`.
        objective: The losses with their weights; built, if one has weights of its own.
        schedule: step -> learning rate.
        labelled: Whether training images have labels. Without any the loss gets None, and there
            is no training accuracy; where some have none their label is -1.
        network: images -> [logits, tap, ...] with the layers of `model`, for an objective that
            names taps of the student.
        ema: Momentum of an average of the weights, which is then what counts; None for none.
        accumulates: Whether an update sums up the gradients of several parts of a batch.

    Attributes:
        average: Of the weights, or None.
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
        ema: float | None = None,
        accumulates: bool = False,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.objective = objective
        self.schedule = schedule
        self.labelled = labelled
        self.network = network or model
        fuse_batch_norm(model)
        optimizer.build(self.trainable_variables)
        self.terms = objective.terms(model.output_shape[-1], labelled)
        # (A network's own losses may appear only when it is called: one column is theirs.)
        self.sums = tf.Variable(tf.zeros([len(self.terms) + 3], tf.float64), trainable=False)
        self.broken = tf.Variable([-1, -1], dtype=tf.int64, trainable=False)
        self.from_step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.average = None if ema is None else Average(model, ema)
        # Of the parts so far: each gradient times the part's examples, and their number. (No state:
        # a training stops between updates.)
        self._gradients = [
            tf.Variable(tf.zeros(one.shape, one.dtype), trainable=False)
            for one in (self.trainable_variables if accumulates else ())
        ]
        self._examples = tf.Variable(0.0, trainable=False) if accumulates else None
        self._unused: set[int] = set()  # weights without a gradient

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
        averages = self.average.variables if self.average else []
        return [*own, *self.optimizer.variables, *averages, self.sums]

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the model has the weights that count: their average, where there is one."""
        return self.average.in_place() if self.average else contextlib.nullcontext()

    def begin_again(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        objective: Objective,
        ema: float | None = None,
    ) -> None:
        """Takes over the initial values of a fresh model, optimizer and objective, and a momentum.

        The traced step, which holds this learner's variables, stays as it is.
        """
        optimizer.build([*model.trainable_variables, *objective.trainable_variables])
        fresh = [*model.variables, *objective.variables, *optimizer.variables]
        own = [*self.model.variables, *self.objective.variables, *self.optimizer.variables]
        for mine, theirs in zip(own, fresh, strict=True):
            mine.assign(theirs)
        if self.average and ema is not None:
            self.average.begin_again(model, ema)
        self.objective.begin_again(objective)
        self.clear_sums()
        self._forget_parts()  # a broken one has left some
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

    def if_active(self, act: Callable[..., None], step: tf.Tensor, *batch: Any) -> None:
        """A part of a training step, left out before `from_step` and after a broken one."""

        def do() -> tf.Tensor:
            act(step, *batch)
            return tf.zeros([])

        active = (step >= self.from_step) & (self.broken[0] < 0)
        tf.cond(active, do, lambda: tf.zeros([]))

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
        student = self.outputs(images, index)
        return student["logits"], self.means_of(labels, student, teacher, step)

    def outputs(self, images: tf.Tensor, index: tf.Tensor) -> dict[str, Any]:
        """What the losses get of the network, in training."""
        outputs = self.network(images, training=True)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        logits, *features = (tf.cast(one, tf.float32) for one in outputs)
        taps = dict(zip(self.objective.student_taps, features, strict=True))
        return {"logits": logits, "features": taps, "index": index}

    def means_of(
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

    def learn(
        self,
        step: tf.Tensor,
        images: tf.Tensor,
        labels: tf.Tensor,
        teacher: Mapping[str, Any] | None,
        index: tf.Tensor,
    ) -> None:
        """A training step on a batch, or what a part of a batch has to say."""
        with tf.GradientTape() as tape:
            logits, means = self.forward(images, labels, teacher, index, step)
            loss = self.optimizer.scale_loss(tf.add_n(means))
        self.learn_from(step, tape, loss, labels, logits, means)

    def learn_from(
        self,
        step: tf.Tensor,
        tape: tf.GradientTape,
        loss: tf.Tensor,
        labels: tf.Tensor,
        logits: tf.Tensor,
        means: list[tf.Tensor],
    ) -> None:
        """Moves the weights along the gradient of `loss`, or sums it up for `update`.

        The epoch's sums grow.
        """
        gradients = tape.gradient(loss, self.trainable_variables)
        if self._gradients:
            self._sum_up(gradients, tf.shape(labels)[0])
        else:
            self._move(step, gradients)

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

    def _sum_up(self, gradients: list[Any], examples: tf.Tensor) -> None:
        count = tf.cast(examples, tf.float32)
        for number, (total, gradient) in enumerate(zip(self._gradients, gradients, strict=True)):
            if gradient is None:
                self._unused.add(number)
            else:
                total.assign_add(tf.cast(count, total.dtype) * tf.convert_to_tensor(gradient))
        self._examples.assign_add(count)

    def update(self, step: tf.Tensor) -> None:
        """Moves the weights along the mean gradient of all examples of the parts since the last."""
        self._move(
            step,
            [
                None if number in self._unused else total / tf.cast(self._examples, total.dtype)
                for number, total in enumerate(self._gradients)
            ],
        )
        self._forget_parts()

    def _forget_parts(self) -> None:
        for total in (*self._gradients, *([self._examples] if self._gradients else [])):
            total.assign(tf.zeros_like(total))

    def _move(self, step: tf.Tensor, gradients: list[Any]) -> None:
        self.learning_rate.assign(tf.cast(self.schedule(step), tf.float32))
        self.optimizer.apply(gradients, self.trainable_variables)
        if self.average:
            self.average.update(step)

    @functools.cached_property
    def predict(self) -> Callable[[tf.Tensor], tf.Tensor]:
        return predictor(self.model)
