"""What several networks are made of: convolutions as PyTorch pads and normalises them.

They are padded with zeros on all sides: Keras's `same` pads a convolution of stride 2 below and to
the right alone. BatchNormalization has PyTorch's values (epsilon 1e-5, momentum 0.9 as Keras counts
it), not Keras's.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

# PyTorch's own initial values of convolutions and dense layers: +-1/sqrt(fan_in).
UNIFORM = dict(scale=1 / 3, mode="fan_in", distribution="uniform")
# Those of the networks of the CIFAR tables: a normal distribution of variance 2 / fan_out.
NORMAL = dict(scale=2, mode="fan_out", distribution="untruncated_normal")


def norm(x: Any, *, activate: bool = True) -> Any:
    """BatchNormalization and, if `activate`, ReLU."""
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)
    return layers.ReLU()(x) if activate else x


def bare_convolution(
    x: Any,
    width: int,
    *,
    size: int = 3,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    initial: dict[str, Any] = NORMAL,
) -> Any:
    """A convolution alone."""
    x = _padded(x, size, stride)
    return layers.Conv2D(
        width,
        size,
        strides=stride,
        padding="valid" if stride > 1 else "same",
        groups=groups,
        use_bias=bias,
        kernel_initializer=keras.initializers.VarianceScaling(**initial),
    )(x)


def convolution(x: Any, width: int, *, activate: bool = True, **options: Any) -> Any:
    """Convolution, BatchNormalization and, if `activate`, ReLU; options as `bare_convolution`."""
    return norm(bare_convolution(x, width, **options), activate=activate)


def depthwise(x: Any, *, stride: int, initial: dict[str, Any], activate: bool) -> Any:
    """A 3x3 convolution for each channel, BatchNormalization and, if `activate`, ReLU."""
    # PyTorch counts one input for each channel; of the kernel [3, 3, C, 1] Keras counts C.
    initial = {**initial, "mode": "fan_out"}
    y = layers.DepthwiseConv2D(
        3,
        strides=stride,
        padding="valid" if stride > 1 else "same",
        use_bias=False,
        depthwise_initializer=keras.initializers.VarianceScaling(**initial),
    )(_padded(x, 3, stride))
    return norm(y, activate=activate)


def head(x: Any, num_classes: int, initial: Any = None) -> Any:
    """The mean over the pixels of [B, H, W, C], and a dense layer, by default as PyTorch begins."""
    x = layers.GlobalAveragePooling2D()(x)
    start = initial or keras.initializers.VarianceScaling(**UNIFORM)
    return layers.Dense(num_classes, kernel_initializer=start, dtype="float32", name="logits")(x)


def _padded(x: Any, size: int, stride: int) -> Any:
    return layers.ZeroPadding2D(size // 2)(x) if size > 1 and stride > 1 else x
