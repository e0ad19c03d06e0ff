"""The exponential moving average of a network's weights (EMA)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf


class Average:
    """The average of a network's weights over the updates, with more weight on the later ones.

    After update n, counted from 1, each average a of a weight w is m * a + (1 - m) * w with
    m = min(momentum, (1 + n) / (10 + n)): at the beginning it follows the weights closely, and
    forgets the initial ones. All weights are averaged, the statistics of batch normalisation too;
    those that are no floating-point numbers are copied.

    Args:
        model: Averages begin at its weights.
        momentum: Above 0 and below 1.

    Source: `tf.train.ExponentialMovingAverage` with `num_updates`. (timm averages the statistics
    too; Keras averages trainable weights only, with a momentum that does not change.)
    """

    def __init__(self, model: keras.Model, momentum: float) -> None:
        self.model = model
        self.momentum = tf.Variable(momentum, dtype=tf.float64, trainable=False)
        self.variables = [
            tf.Variable(weight.value, trainable=False, dtype=weight.dtype)
            for weight in model.weights
        ]

    def begin_again(self, model: keras.Model, momentum: float) -> None:
        """Takes over the weights of a fresh model, and another momentum."""
        self.momentum.assign(momentum)
        for mine, theirs in zip(self.variables, model.weights, strict=True):
            mine.assign(theirs.value)

    def update(self, step: tf.Tensor) -> None:
        """Takes the weights after update number `step`, counted from 0, into account."""
        done = tf.cast(step, tf.float64) + 1
        share = 1 - tf.minimum(self.momentum, (1 + done) / (10 + done))
        for mine, weight in zip(self.variables, self.model.weights, strict=True):
            if mine.dtype.is_floating:
                new = tf.convert_to_tensor(weight.value)
                mine.assign_sub(tf.cast(share, mine.dtype) * (mine - new))
            else:
                mine.assign(weight.value)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the averages as its weights."""
        own: list[Any] = self.model.get_weights()
        self.model.set_weights([variable.numpy() for variable in self.variables])
        try:
            yield
        finally:
            self.model.set_weights(own)
