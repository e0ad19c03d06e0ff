"""Residual networks for small images: ResNet-9, those of the CIFAR tables, ResNet-18 and 50."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from kd_cli.errors import ConfigError
from kd_cli.networks.blocks import bare_convolution, convolution, head, norm


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
    x = convolution(inputs, width)
    x = layers.MaxPooling2D(2)(convolution(x, 2 * width))
    x = layers.Add()([x, convolution(convolution(x, 2 * width), 2 * width)])
    x = layers.MaxPooling2D(2)(convolution(x, 4 * width))
    x = layers.MaxPooling2D(2)(convolution(x, 8 * width))
    x = layers.Add()([x, convolution(convolution(x, 8 * width), 8 * width)])
    x = layers.GlobalMaxPooling2D()(x)  # of 32x32: the published pooling of 4
    x = layers.Dense(num_classes, use_bias=False, dtype="float32", name="scores")(x)
    outputs = layers.Rescaling(0.125, dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name="resnet9")


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
    x = convolution(inputs, stem)
    for stage, width in enumerate(widths):
        for block in range((depth - 2) // 6):
            x = _block(x, width, stride=2 if stage and not block else 1)
    return keras.Model(inputs, head(x, num_classes), name=f"resnet{depth}")


def wide_resnet(image_shape: list[int], num_classes: int, *, depth: int, width: int) -> keras.Model:
    """A wide ResNet `wrn_{depth}_{width}` of `depth` = 6n + 4 layers, without dropout.

    Args:
        image_shape: [H, W, C].
        num_classes: Number of logits.
        depth: 16, 22, 28, 40 and so on: three stages of n blocks.
        width: The stages have 16, 32 and 64 times as many channels. wrn_16_2 has 691,674 parameters
            for 10 classes.

    Source: Zagoruyko and Komodakis 2016, "Wide Residual Networks", as in RepDistiller.
    """
    if depth < 10 or depth % 6 != 4:
        raise ConfigError(f"wide_resnet: depth={depth} must be 10, 16, 22 and so on: 6n + 4")
    inputs = keras.Input(image_shape)
    x = bare_convolution(inputs, 16)
    for stage, channels in enumerate((16 * width, 32 * width, 64 * width)):
        for block in range((depth - 4) // 6):
            stride = 2 if stage and not block else 1
            y = norm(x)
            if x.shape[-1] != channels:  # the shortcut begins after norm and ReLU
                x = bare_convolution(y, channels, size=1, stride=stride)
            y = convolution(y, channels, stride=stride)
            x = layers.Add()([x, bare_convolution(y, channels)])
    return keras.Model(inputs, head(norm(x), num_classes), name=f"wrn_{depth}_{width}")


def imagenet_resnet(image_shape: list[int], num_classes: int, *, depth: int) -> keras.Model:
    """ResNet-18 or ResNet-50 with a first convolution for small images: 3x3, stride 1, no pooling.

    Args:
        image_shape: [H, W, C].
        num_classes: Number of logits.
        depth: 18 (11,173,962 parameters for 10 classes) or 50 (23,520,842).

    Raises:
        ConfigError: Another depth.

    Source: He et al. 2016, as in RepDistiller.
    """
    if depth not in _IMAGENET:
        raise ConfigError(f"imagenet_resnet: depth={depth} must be 18 or 50")
    blocks, build = _IMAGENET[depth]
    inputs = keras.Input(image_shape)
    x = convolution(inputs, 64)
    for stage, count in enumerate(blocks):
        for block in range(count):
            x = build(x, 64 * 2**stage, stride=2 if stage and not block else 1)
    return keras.Model(inputs, head(x, num_classes), name=f"resnet{depth}")


def _block(x: Any, width: int, stride: int) -> Any:
    """Two convolutions, and beside them the input."""
    y = convolution(x, width, stride=stride)
    return _joined(x, convolution(y, width, activate=False), stride)


def _bottleneck(x: Any, width: int, stride: int) -> Any:
    """Narrow by a 1x1 convolution, 3x3, four times as wide by a 1x1; beside them the input."""
    y = convolution(convolution(x, width, size=1), width, stride=stride)
    return _joined(x, convolution(y, 4 * width, size=1, activate=False), stride)


def _joined(x: Any, y: Any, stride: int) -> Any:
    """The ReLU of y plus the input x, of which a 1x1 convolution is taken where shapes differ."""
    width = y.shape[-1]
    if stride > 1 or x.shape[-1] != width:
        x = convolution(x, width, size=1, stride=stride, activate=False)
    return layers.ReLU()(layers.Add()([x, y]))


# Blocks of each stage, and their kind.
_IMAGENET = {18: ((2, 2, 2, 2), _block), 50: ((3, 4, 6, 3), _bottleneck)}
