"""Several teachers as one: their probabilities at the loss's temperature, averaged."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def combined(members: tf.Tensor, temperature: Any, weights: tf.Tensor | None) -> tf.Tensor:
    """Logits z with softmax(z / T) = sum over m of w_m softmax(z_m / T): exact at that T.

    Args:
        members: [B, M, K] logits of M teachers.
        temperature: T.
        weights: [B, M], which sum to 1; None for 1 / M each.
    """
    temperature = tf.cast(temperature, tf.float32)
    log_p = tf.nn.log_softmax(members / temperature)
    if weights is None:
        log_weights = -tf.math.log(tf.cast(tf.shape(members)[1], tf.float32))
    else:
        log_weights = tf.math.log(tf.maximum(weights, 1e-30))[..., None]
    return temperature * tf.reduce_logsumexp(log_p + log_weights, axis=1)


def confidence(members: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """[B, M] weights: a teacher that is nearer to the label counts more.

    w_m = (1 - exp(CE_m) / sum of exp(CE)) / (M - 1). An image without a label weights all alike.
    Mixed labels are shares of the classes.

    Source: Zhang, Chen, Wang 2022, "Confidence-aware multi-teacher knowledge distillation",
    equations 2 and 3.
    """
    log_p = tf.nn.log_softmax(members)
    count = tf.shape(members)[1]
    if len(labels.shape) == 2:
        loss = -tf.reduce_sum(labels[:, None] * log_p, axis=-1)
    else:
        rows = tf.repeat(tf.maximum(labels, 0)[:, None], count, axis=1)
        loss = -tf.gather(log_p, rows, batch_dims=2)
        loss = tf.where(labels[:, None] >= 0, loss, 0.0)
    return (1 - tf.nn.softmax(loss, axis=1)) / tf.cast(count - 1, tf.float32)
