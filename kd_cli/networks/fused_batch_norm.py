"""BatchNormalization by TensorFlow's fused kernel while training.

Keras 3.15 builds it from some thirty small operations, which take half of the training step of
cifar10_bn_cnn's teacher on a CPU; the fused kernel makes that step 1.5 times faster. Only how the
layer computes is exchanged, on the layer object: what is saved is Keras's own layer.
"""

from __future__ import annotations

import functools
from typing import Any

import keras
import tensorflow as tf


def fuse_batch_norm(model: keras.Model) -> None:
    """Lets every BatchNormalization over the channels of images train with the fused kernel."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            fuse_batch_norm(layer)
        elif type(layer) is keras.layers.BatchNormalization and _fits(layer):
            layer.call = functools.partial(_call, layer)


def _fits(layer: keras.layers.BatchNormalization) -> bool:
    plain = layer.scale and layer.center and not layer.renorm and not layer.synchronized
    return plain and layer.axis in (-1, 3) and layer.compute_dtype == "float32"


def _call(
    layer: keras.layers.BatchNormalization, inputs: Any, training: Any = None, mask: Any = None
) -> Any:
    if not (training and layer.trainable) or mask is not None or len(inputs.shape) != 4:
        return type(layer).call(layer, inputs, training=training, mask=mask)
    empty = tf.zeros([0])
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=tf.convert_to_tensor(layer.gamma),
        offset=tf.convert_to_tensor(layer.beta),
        mean=empty,
        variance=empty,
        epsilon=layer.epsilon,
        exponential_avg_factor=1.0,
        is_training=True,
    )
    # The kernel returns the unbiased variance, n / (n - 1); Keras keeps the biased one.
    count = tf.cast(tf.size(inputs) // inputs.shape[-1], tf.float32)
    variance *= (count - 1) / count
    keep = layer.momentum
    layer.moving_mean.assign(layer.moving_mean * keep + mean * (1 - keep))
    layer.moving_variance.assign(layer.moving_variance * keep + variance * (1 - keep))
    return outputs
