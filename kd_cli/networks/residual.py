"""Residual networks for small images: ResNet-9, and the ResNets of the CIFAR tables.

Convolutions have no bias and are padded with zeros on all sides, as in PyTorch: Keras's `same` pads
a convolution of stride 2 below and to the right alone. BatchNormalization has PyTorch's values
(epsilon 1e-5, momentum 0.9 as Keras counts it), not Keras's.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from kd_cli.errors import ConfigError


def resnet9(image_shape: list[int], num_classes: int, *, width: int = 64) -> keras.Model:
    """ResNet-9: eight 3x3 convolutions, two residual blocks, about 94 % on CIFAR-10 in 24 epochs.

    Args:
        image_shape: [H, W, C], sides of at least 8.
        num_classes: Number of logits.
        width: Channels of the first convolution; the others have 2, 4 and 8 times as many. 64 is
            the published one: 6,573,120 parameters for 32x32x3 and 10 classes.

    Source: Page 2018, "How to train your ResNet", `dawn_utils.py`.
    """
    if min(image_shape[:2]) < 8:
        raise ConfigError(
            f"resnet9 halves images three times: image_shape={list(image_shape)} must have sides "
            "of at least 8"
        )
    inputs = keras.Input(image_shape)
    x = _convolution(inputs, width)
    x = layers.MaxPooling2D(2)(_convolution(x, 2 * width))
    x = layers.Add()([x, _convolution(_convolution(x, 2 * width), 2 * width)])
    x = layers.MaxPooling2D(2)(_convolution(x, 4 * width))
    x = layers.MaxPooling2D(2)(_convolution(x, 8 * width))
    x = layers.Add()([x, _convolution(_convolution(x, 8 * width), 8 * width)])
    x = layers.GlobalMaxPooling2D()(x)  # of 32x32: the published pooling of 4
    x = layers.Dense(num_classes, use_bias=False, dtype="float32", name="scores")(x)
    logits = layers.Rescaling(0.125, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="resnet9")


def resnet(
    image_shape: list[int],
    num_classes: int,
    *,
    depth: int,
    stem: int = 16,
    widths: tuple[int, ...] | list[int] = (16, 32, 64),
) -> keras.Model:
    """A ResNet of `depth` = 6n + 2 layers: three stages of n blocks, the mean and a dense layer.

    Args:
        image_shape: [H, W, C].
        num_classes: Number of logits.
        depth: 8, 14, 20, 32, 44, 56, 110 and so on. resnet8 has 78,042 parameters for 10 classes.
        stem: Channels of the first convolution. 32 makes resnet8x4 of resnet8, with the next.
        widths: Channels of the stages. (64, 128, 256) are those of resnet8x4.

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2, with 1x1
    convolutions as shortcuts, as RepDistiller and mdistiller have them.
    """
    if depth < 8 or depth % 6 != 2:
        raise ConfigError(f"resnet: depth={depth} must be 8, 14, 20 and so on: 6n + 2")
    inputs = keras.Input(image_shape)
    x = _convolution(inputs, stem)
    for stage, width in enumerate(widths):
        for block in range((depth - 2) // 6):
            x = _block(x, width, stride=2 if stage and not block else 1)
    x = layers.GlobalAveragePooling2D()(x)
    uniform = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")  # +-1/sqrt(fan_in)
    logits = layers.Dense(num_classes, kernel_initializer=uniform, dtype="float32", name="logits")
    return keras.Model(inputs, logits(x), name=f"resnet{depth}")


def _block(x: Any, width: int, stride: int) -> Any:
    """Two convolutions, and beside them the input: a 1x1 convolution of it where shapes differ."""
    y = _convolution(x, width, stride=stride)
    y = _convolution(y, width, activate=False)
    if stride > 1 or x.shape[-1] != width:
        x = _convolution(x, width, size=1, stride=stride, activate=False)
    return layers.ReLU()(layers.Add()([x, y]))


def _convolution(
    x: Any, width: int, *, size: int = 3, stride: int = 1, activate: bool = True
) -> Any:
    """Convolution, BatchNormalization and, if `activate`, ReLU."""
    if size > 1 and stride > 1:
        x = layers.ZeroPadding2D(size // 2)(x)
    x = layers.Conv2D(
        width,
        size,
        strides=stride,
        padding="valid" if stride > 1 else "same",
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(2, "fan_out", "untruncated_normal"),
    )(x)
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)
    return layers.ReLU()(x) if activate else x
