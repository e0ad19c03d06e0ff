"""Contrastive representation distillation: an image's two embeddings find each other among many."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kd_cli.distillation.interface import Outputs, requires
from kd_cli.errors import ConfigError

_EPSILON = 1e-7


@requires(
    head=False,
    labels=True,
    unmixed=True,
    words="NCE of student and teacher embeddings against stored ones of other classes",
)
class CRD(keras.layers.Layer):
    """Noise-contrastive estimation between embeddings of student and teacher, both ways.

    Two banks hold an embedding of every training image. For each image the loss compares its
    student's embedding with the teacher's bank (itself against `negatives` images of other classes)
    and its teacher's embedding with the student's bank. The banks follow by momentum.

    Args:
        pairs: One pair of layers, vectors [C] such as pooled.
        negatives: Images of other classes for each image; drawn with replacement.
        dimensions: Of the embeddings.
        nce_temperature: Divides the scalar products.
        bank_momentum: Share of the old embedding that is kept.

    The two constants that bring the products to probabilities are set by the first batch, and have
    no gradient. Memory: two banks of n x dimensions, and a step's [B, negatives, dimensions].

    Source: Tian, Krishnan, Isola 2020, "Contrastive representation distillation", equations 10 to
    19; agrees with RepDistiller, the authors' code.
    """

    def __init__(
        self,
        *,
        pairs: Sequence[Sequence[str]],
        negatives: int = 16384,
        dimensions: int = 128,
        nce_temperature: float = 0.07,
        bank_momentum: float = 0.5,
    ) -> None:
        super().__init__(name="crd")
        if len(pairs) != 1:
            raise ConfigError(f"crd compares one pair of layers, and pairs has {len(pairs)}")
        self.ours, self.theirs = pairs[0]
        self.negatives = negatives
        self.dimensions = dimensions
        self.nce_temperature = nce_temperature
        self.bank_momentum = bank_momentum

    def build(self, student: Mapping[str, Any], teacher: Mapping[str, Any], labels: Any) -> None:
        labels = np.asarray(labels)
        self.count = len(labels)
        width = self.dimensions
        self.embeddings = [keras.layers.Dense(width, name=name) for name in ("student", "teacher")]
        for dense, shape in zip(
            self.embeddings, (student[self.ours], teacher[self.theirs]), strict=True
        ):
            dense.build((None, math.prod(shape)))
        spread = keras.initializers.RandomUniform(-math.sqrt(3 / width), math.sqrt(3 / width))
        # (math.sqrt(3 / width) is RepDistiller's 1 / sqrt(width / 3).)
        self.banks = [
            self.add_weight(shape=(self.count, width), initializer=spread, trainable=False, name=n)
            for n in ("student_bank", "teacher_bank")
        ]
        self.scales = self.add_weight(
            shape=(2,), initializer="zeros", trainable=False, name="scales"
        )
        self.seeds = keras.random.SeedGenerator()
        # Images class by class, so that those of all other classes are one range with a gap.
        self.order = tf.constant(np.argsort(labels, kind="stable"), tf.int64)
        known, sizes = np.unique(labels, return_counts=True)
        if len(known) < 2:
            raise ConfigError("crd compares examples of different classes, and all are of one")
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        place = np.searchsorted(known, np.arange(known.max() + 1)).clip(0, len(known) - 1)
        self.starts = tf.constant(starts[place], tf.int64)
        self.sizes = tf.constant(sizes[place], tf.int64)

    def call(self, labels: Any, student: Outputs, teacher: Outputs) -> dict[str, tf.Tensor]:
        index = student["index"]
        return self.contrast(
            student["features"][self.ours],
            teacher["features"][self.theirs],
            tf.concat([index[:, None], self.draw(labels)], axis=1),
        )

    def draw(self, labels: tf.Tensor) -> tf.Tensor:
        """[B, negatives] images of other classes than each image's; evenly, with replacement."""
        labels = tf.cast(labels, tf.int64)
        start, size = tf.gather(self.starts, labels), tf.gather(self.sizes, labels)
        shape = (tf.shape(labels)[0], self.negatives)
        share = keras.random.uniform(shape, dtype="float32", seed=self.seeds)
        others = tf.cast(self.count - size, tf.float32)[:, None]
        number = tf.minimum(tf.cast(share * others, tf.int64), self.count - size[:, None] - 1)
        number += tf.where(number >= start[:, None], size[:, None], 0)
        return tf.gather(self.order, number)

    def contrast(self, ours: Any, theirs: Any, chosen: tf.Tensor) -> dict[str, tf.Tensor]:
        """The two terms [B].

        Args:
            ours, theirs: Features [B, ...].
            chosen: [B, 1 + negatives] rows of the banks, an image's own first.
        """
        count = tf.shape(chosen)[0]
        vectors = [
            tf.math.l2_normalize(dense(tf.reshape(x, [count, -1])), axis=1, epsilon=1e-24)
            for dense, x in zip(self.embeddings, (ours, theirs), strict=True)
        ]
        # A vector against the bank of the other network.
        close = [
            tf.exp(tf.einsum("bkd,bd->bk", tf.gather(bank, chosen), vector) / self.nce_temperature)
            for vector, bank in zip(vectors, reversed(self.banks), strict=True)
        ]
        first = tf.stack([tf.reduce_mean(x) for x in close]) * self.count
        self.scales.assign(tf.where(self.scales > 0, self.scales, tf.stop_gradient(first)))
        scales = tf.convert_to_tensor(self.scales)
        own = chosen[:, 0]
        for vector, bank in zip(vectors, self.banks, strict=True):
            kept = self.bank_momentum * tf.gather(bank, own)
            moved = kept + (1 - self.bank_momentum) * tf.stop_gradient(vector)
            moved = tf.math.l2_normalize(moved, axis=1, epsilon=1e-24)
            bank.assign(tf.tensor_scatter_nd_update(bank, own[:, None], moved))
        terms = [
            self._estimate(x / scale) for x, scale in zip(close, tf.unstack(scales), strict=True)
        ]
        return dict(zip(("student", "teacher"), terms, strict=True))

    def _estimate(self, x: tf.Tensor) -> tf.Tensor:
        """[B, 1 + negatives] -> [B]: -log of being told from the noise, its own and the others."""
        noise = (tf.cast(tf.shape(x)[1], tf.float32) - 1) / self.count
        own = tf.math.log(x[:, 0] / (x[:, 0] + noise + _EPSILON))
        others = tf.math.log(noise / (x[:, 1:] + noise + _EPSILON))
        return -own - tf.reduce_sum(others, axis=1)
