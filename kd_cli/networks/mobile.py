"""Networks made for devices, in the forms of the CIFAR tables: MobileNetV2 and the ShuffleNets.

On a CPU training them is slow for their few multiply-adds, ShuffleNet V1 most: its convolutions in
groups take ten times as long as those of a ResNet-20.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from kd_cli.networks.blocks import NORMAL, UNIFORM, convolution, depthwise, head

# Expansion, channels at full width, blocks and stride of each stage.
_MOBILE = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(image_shape: list[int], num_classes: int, *, width: float = 0.5) -> keras.Model:
    """MobileNetV2 for small images: ReLU in place of ReLU6, and strides 2 at four places.

    Args:
        image_shape: [H, W, C]; of 32x32 the last maps are 2x2.
        num_classes: Number of logits.
        width: Factor of all channels but the last 1,280; 0.5 is MobileNetV2 of the tables, with
            697,546 parameters for 10 classes.

    Source: Sandler et al. 2018, "MobileNetV2: Inverted Residuals", as in RepDistiller.
    """
    inputs = keras.Input(image_shape)
    x = convolution(inputs, int(32 * width), stride=2)
    for expansion, channels, blocks, stride in _MOBILE:
        for block in range(blocks):
            x = _inverted(x, int(channels * width), expansion, 1 if block else stride)
    x = convolution(x, 1280, size=1)
    start = keras.initializers.RandomNormal(stddev=0.01)
    return keras.Model(inputs, head(x, num_classes, start), name="mobilenet_v2")


def shufflenet_v1(image_shape: list[int], num_classes: int) -> keras.Model:
    """ShuffleNet V1 with three groups: 862,768 parameters for 10 classes.

    Source: Zhang et al. 2018, "ShuffleNet", as in RepDistiller: with a ReLU after the convolution
    for each channel, too.
    """
    inputs = keras.Input(image_shape)
    x = convolution(inputs, 24, size=1, initial=UNIFORM)
    for width, blocks in ((240, 4), (480, 8), (960, 4)):
        for block in range(blocks):
            x = _shuffle_v1(x, width, groups=3, stride=1 if block else 2)
    return keras.Model(inputs, head(x, num_classes), name="shufflenet_v1")


def shufflenet_v2(image_shape: list[int], num_classes: int) -> keras.Model:
    """ShuffleNet V2 at width 1: 1,263,278 parameters for 10 classes.

    Source: Ma et al. 2018, "ShuffleNet V2", as in RepDistiller.
    """
    inputs = keras.Input(image_shape)
    x = convolution(inputs, 24, size=1, initial=UNIFORM)
    for width, blocks in ((116, 3), (232, 7), (464, 3)):
        half = width // 2
        left = depthwise(x, stride=2, initial=UNIFORM, activate=False)
        left = convolution(left, half, size=1, initial=UNIFORM)
        x = _shuffled(layers.Concatenate()([left, _right(x, half, stride=2)]), 2)
        for _ in range(blocks):
            parts = [x[..., :half], _right(x[..., half:], half, stride=1)]
            x = _shuffled(layers.Concatenate()(parts), 2)
    x = convolution(x, 1024, size=1, initial=UNIFORM)
    return keras.Model(inputs, head(x, num_classes), name="shufflenet_v2")


def _inverted(x: Any, width: int, expansion: int, stride: int) -> Any:
    """Wider by a 1x1 (at expansion 1, too), a 3x3 for each channel, narrow again by a 1x1."""
    inner = expansion * x.shape[-1]
    # The authors' 2 / (9 * channels); Keras counts one output for each channel.
    each = {**NORMAL, "scale": 2 / inner}
    y = depthwise(convolution(x, inner, size=1), stride=stride, initial=each, activate=True)
    y = convolution(y, width, size=1, activate=False)
    return layers.Add()([x, y]) if stride == 1 and x.shape[-1] == width else y


def _shuffle_v1(x: Any, width: int, groups: int, stride: int) -> Any:
    """A 1x1 in groups, a shuffle, a 3x3 for each channel, a 1x1 in groups; beside it the input."""
    before = x.shape[-1]
    width = width - before if stride > 1 else width
    first = 1 if before == 24 else groups
    y = convolution(x, width // 4, size=1, groups=first, initial=UNIFORM)
    y = depthwise(_shuffled(y, first), stride=stride, initial=UNIFORM, activate=True)
    y = convolution(y, width, size=1, groups=groups, activate=False, initial=UNIFORM)
    if stride == 1:
        return layers.ReLU()(layers.Add()([x, y]))
    # PyTorch's average counts the zeros around.
    pooled = layers.AveragePooling2D(3, strides=2)(layers.ZeroPadding2D(1)(x))
    return layers.ReLU()(layers.Concatenate()([y, pooled]))


def _right(x: Any, width: int, stride: int) -> Any:
    """The branch of ShuffleNet V2 that computes: 1x1, a 3x3 for each channel, 1x1."""
    y = convolution(x, width, size=1, initial=UNIFORM)
    y = depthwise(y, stride=stride, initial=UNIFORM, activate=False)
    return convolution(y, width, size=1, initial=UNIFORM)


def _shuffled(x: Any, groups: int) -> Any:
    """Channels in another order: the first of each group, then the second of each, and so on."""
    if groups == 1:
        return x
    height, width, channels = x.shape[1:]
    x = layers.Reshape((height, width, groups, channels // groups))(x)
    return layers.Reshape((height, width, channels))(layers.Permute((1, 2, 4, 3))(x))
