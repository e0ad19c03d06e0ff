"""The training step: one `tf.function` that runs a chunk of steps for k >= 1 learners.

For each step it takes the batch's rows out of the epoch's permutation, gathers the images from the
memory, asks the teacher, and updates each learner with its own Keras optimizer. Start and stop are
tensors, so a chunk can last a fraction of a second and costs no retrace.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kd_cli.data import Split
from kd_cli.errors import LOSS_KEYS
from kd_cli.fused import fuse_batch_norm

# (images, rows of the pool) -> {"logits": [B, K]}: a live network or its cached outputs.
Teacher = Callable[[tf.Tensor, tf.Tensor], Mapping[str, tf.Tensor]]
_EVALUATION_BYTES = 32 * 2**20  # of float32 pixels at once, and at most 500 images
_REGULARISATION = "regularisation"


@dataclass(eq=False)
class Learner:
    """A network in training with all that its steps need.

    Attributes:
        model: Takes raw pixels 0..255 and gives logits.
        optimizer: A Keras optimizer; its learning rate is set at every step from `schedule`.
        loss: `(labels, student, teacher, *, hyper) -> {term: [B]}`, or one array [B].
        hyper: Keywords of the loss; they become variables, so a new value does not trace again.
        schedule: step -> learning rate.
    """

    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    loss: Callable[..., Any]
    hyper: Mapping[str, Any]
    schedule: Callable[[Any], Any]
    terms: list[str] = field(init=False)

    def __post_init__(self) -> None:
        fuse_batch_norm(self.model)
        self.optimizer.build(self.model.trainable_variables)
        # Only those whose losses are known to take tensors: a user's loss may want a plain number.
        self.keywords = {
            key: tf.Variable(value, dtype=tf.bool if isinstance(value, bool) else tf.float32)
            if key in LOSS_KEYS
            else value
            for key, value in self.hyper.items()
        }
        blank = {"logits": tf.zeros([1, self.model.output_shape[-1]])}
        # Traced, as in training, so that a loss that only works eagerly is found now.
        traced = tf.function(lambda *batch: self.evaluate_loss(*batch), autograph=False)
        self.terms = list(traced(tf.zeros([1], tf.int64), blank, blank))

    @property
    def learning_rate(self) -> Any:
        """The optimizer's variable."""
        return self.optimizer.learning_rate

    def evaluate_loss(self, labels: Any, student: Any, teacher: Any) -> dict[str, tf.Tensor]:
        value = self.loss(labels, student, teacher, **self.keywords)
        return dict(value) if isinstance(value, Mapping) else {"loss": value}


class Engine:
    """Trains learners on one split, in memory.

    Args:
        learners: They all see the same batches.
        split: Training rows of a pool of images.
        batch_size: Examples per step; the last batch of an epoch is as small as it comes.
        data_seed: With the epoch it fixes the order of the examples.
        teacher: See `Teacher`; None for a loss that uses none.
    """

    def __init__(
        self,
        learners: list[Learner],
        split: Split,
        batch_size: int,
        data_seed: int,
        teacher: Teacher | None = None,
    ) -> None:
        self.learners = learners
        self.split = split
        self.batch_size = batch_size
        self.data_seed = data_seed
        self.teacher = teacher
        self.size = len(split)
        self.steps_per_epoch = -(-self.size // batch_size)
        self.images = tf.constant(split.images)
        self.labels = tf.constant(split.labels, dtype=tf.int64)
        self.rows = tf.constant(split.rows, dtype=tf.int64)
        self.order = tf.Variable(self.rows, trainable=False)
        # Sums over the epoch so far: a row per learner, its terms and the number of right answers.
        # (A network's own losses may appear only when it is called: one column is theirs.)
        width = max(len(learner.terms) for learner in learners) + 2
        self.sums = tf.Variable(tf.zeros([len(learners), width], tf.float64), trainable=False)
        # First step at which a term was not finite, and which learner and term; -1 for none.
        self.broken = tf.Variable(tf.fill([3], tf.constant(-1, tf.int64)), trainable=False)

    def start_epoch(self, epoch: int) -> None:
        """Draws the examples' order, a function of (data_seed, epoch), and clears the sums."""
        self.order.assign(
            tf.random.experimental.stateless_shuffle(self.rows, seed=[self.data_seed, epoch])
        )
        self.sums.assign(tf.zeros_like(self.sums))

    def run(self, first_step: int, start: int, stop: int) -> None:
        """Runs the steps [start, stop) of the epoch whose first step is number `first_step`."""
        self._chunk(*(tf.constant(value, tf.int64) for value in (first_step, start, stop)))

    def means(self, learner: int, examples: int) -> dict[str, float]:
        """Means over the epoch so far: `loss`, each of its terms, and `accuracy`."""
        terms = self.learners[learner].terms
        row = self.sums.numpy()[learner] / max(examples, 1)
        values = {"loss": float(row[: len(terms)].sum())}
        if len(terms) > 1:
            values |= {name: float(row[number]) for number, name in enumerate(terms)}
        values["accuracy"] = float(row[-1])
        return values

    def first_broken(self) -> tuple[int, int, str] | None:
        """(step, learner, term) of the first value that was not finite, or None."""
        step, learner, term = (int(value) for value in self.broken.numpy())
        if step < 0:
            return None
        return step, learner, self.learners[learner].terms[term]

    @functools.cached_property
    def _chunk(self) -> Callable[..., None]:
        number = tf.TensorSpec([], tf.int64)
        return tf.function(self._steps, [number, number, number], autograph=False)

    def _steps(self, first_step: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> None:
        def body(step: tf.Tensor) -> tf.Tensor:
            rows = self.order[step * self.batch_size : (step + 1) * self.batch_size]
            images = tf.cast(tf.gather(self.images, rows), tf.float32)
            labels = tf.gather(self.labels, rows)
            teacher = self.teacher(images, rows) if self.teacher is not None else None
            for number, learner in enumerate(self.learners):
                self._learn(number, learner, first_step + step, images, labels, teacher)
            return step + 1

        tf.while_loop(
            lambda step: (step < stop) & (self.broken[0] < 0),
            body,
            [start],
            parallel_iterations=1,
        )

    def _learn(
        self,
        number: int,
        learner: Learner,
        step: tf.Tensor,
        images: tf.Tensor,
        labels: tf.Tensor,
        teacher: Mapping[str, tf.Tensor] | None,
    ) -> None:
        optimizer = learner.optimizer
        with tf.GradientTape() as tape:
            logits = tf.cast(learner.model(images, training=True), tf.float32)
            terms = learner.evaluate_loss(labels, {"logits": logits}, teacher)
            means = [tf.reduce_mean(value) for value in terms.values()]
            if learner.model.losses:
                means.append(tf.add_n([tf.cast(v, tf.float32) for v in learner.model.losses]))
                if _REGULARISATION not in learner.terms:
                    learner.terms.append(_REGULARISATION)
            loss = optimizer.scale_loss(tf.add_n(means))
        variables = learner.model.trainable_variables
        gradients = tape.gradient(loss, variables)
        learner.learning_rate.assign(tf.cast(learner.schedule(step), tf.float32))
        optimizer.apply(gradients, variables)

        count = tf.cast(tf.shape(labels)[0], tf.float64)
        right = tf.reduce_sum(tf.cast(tf.argmax(logits, -1) == labels, tf.float64))
        padding = self.sums.shape[1] - len(means) - 1
        row = tf.concat(
            [
                tf.cast(tf.stack(means), tf.float64) * count,
                tf.zeros([padding], tf.float64),
                [right],
            ],
            axis=0,
        )
        self.sums.scatter_nd_add([[number]], row[None])
        bad = tf.logical_not(tf.math.is_finite(tf.stack(means)))
        found = tf.stack([step, tf.constant(number, tf.int64), tf.argmax(tf.cast(bad, tf.int32))])
        first = tf.reduce_any(bad) & (self.broken[0] < 0)
        self.broken.assign(tf.where(first, found, self.broken))


def predictor(model: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """A traced function from raw pixels [B, H, W, C] to float32 logits, in inference mode."""

    @tf.function(
        input_signature=[tf.TensorSpec([None, *model.input_shape[1:]], tf.float32)], autograph=False
    )
    def predict(images: tf.Tensor) -> tf.Tensor:
        return tf.cast(model(images, training=False), tf.float32)

    return predict


def predict_rows(
    predict: Callable[[tf.Tensor], tf.Tensor],
    split: Split,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Logits [n, K] of the rows of a split, in their order.

    Args:
        predict: From `predictor`.
        split: Which rows of which images.
        progress: Called with the number of examples done.
    """
    parts = []
    size = max(1, min(500, _EVALUATION_BYTES // (4 * int(np.prod(split.images.shape[1:])))))
    for start in range(0, len(split), size):
        rows = split.rows[start : start + size]
        parts.append(predict(tf.constant(split.images[rows], tf.float32)).numpy())
        if progress:
            progress(start + len(rows))
    return np.concatenate(parts)


def cached_teacher(logits: np.ndarray, split: Split) -> Teacher:
    """A teacher that looks up its logits [n, K] of the split's rows instead of computing them."""
    position = np.full(len(split.labels), -1, dtype=np.int64)
    position[split.rows] = np.arange(len(split))
    table, index = tf.constant(logits), tf.constant(position)
    return lambda images, rows: {"logits": tf.gather(table, tf.gather(index, rows))}
