"""Small networks: functions `(image_shape, num_classes, *, ...) -> keras.Model` to logits."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from kd_cli.errors import ConfigError
from kd_cli.networks.blocks import convolution, head

_VGG = {8: 1, 13: 2}  # convolutions of each group


def mlp(
    image_shape: list[int],
    num_classes: int,
    *,
    units: list[int],
    activation: str = "relu",
    dropout: float = 0.0,
) -> keras.Model:
    """Flatten, then a dense layer (and dropout) per entry of `units`, then the logits."""
    inputs = keras.Input(image_shape)
    x = layers.Flatten()(inputs)
    x = _dense_part(x, units, activation, False, dropout)
    return keras.Model(inputs, _logits(x, num_classes), name="mlp")


def cnn(
    image_shape: list[int],
    num_classes: int,
    *,
    filters: list[int],
    kernel_size: int = 3,
    strides: int = 1,
    padding: str = "same",
    activation: str | None | list[str | None] = "relu",
    batch_norm: bool = False,
    pool: int | None | list[int | None] = None,
    pool_strides: int | None = None,
    block_dropout: float | list[float] = 0.0,
    units: list[int] | None = None,
    units_batch_norm: bool = False,
    dropout: float = 0.0,
) -> keras.Model:
    """Blocks of convolution, normalisation, activation, max pooling and dropout, then dense layers.

    Args:
        image_shape: [H, W, C].
        num_classes: Number of logits.
        filters: One block per entry.
        kernel_size: Of every convolution, as `strides` and `padding`.
        strides: Of every convolution.
        padding: `same` or `valid`.
        activation: `relu`, `leaky_relu` (slope 0.2) or any other of Keras; null for none. A list
            gives one per block; the dense layers take `relu`.
        batch_norm: BatchNormalization between each convolution and its activation.
        pool: Size of the max pooling (padding `same`); null for none; a list gives one per block.
        pool_strides: Its stride; null is the pooling's size.
        block_dropout: Rate at the end of a block; a list gives one per block.
        units: Widths of the dense layers before the logits.
        units_batch_norm: BatchNormalization between a dense layer and its ReLU.
        dropout: Rate after each dense layer.
    """
    inputs = keras.Input(image_shape)
    x = inputs
    count = len(filters)
    blocks = zip(
        filters,
        _per_block(activation, count, "activation"),
        _per_block(pool, count, "pool"),
        _per_block(block_dropout, count, "block_dropout"),
        strict=True,
    )
    for width, name, size, rate in blocks:
        x = layers.Conv2D(width, kernel_size, strides=strides, padding=padding)(x)
        if batch_norm:
            x = layers.BatchNormalization()(x)
        x = _activation(name)(x) if name else x
        if size:
            x = layers.MaxPooling2D(size, strides=pool_strides, padding="same")(x)
        x = layers.Dropout(rate)(x) if rate else x
    x = layers.Flatten()(x)
    x = _dense_part(x, units or [], "relu", units_batch_norm, dropout)
    return keras.Model(inputs, _logits(x, num_classes), name="cnn")


def vgg(image_shape: list[int], num_classes: int, *, depth: int) -> keras.Model:
    """Five groups of 3x3 convolutions with BatchNormalization, the mean and one dense layer.

    Args:
        image_shape: [H, W, C], sides of at least 8: three groups end in a max pooling of 2.
        num_classes: Number of logits.
        depth: 8 (3,918,858 parameters for 10 classes) or 13; it counts dense layers that this form
            of the network has not.

    Raises:
        ConfigError: Another depth, or smaller images.

    Source: Simonyan and Zisserman 2015, as in RepDistiller.
    """
    if depth not in _VGG:
        raise ConfigError(f"vgg: depth={depth} must be {' or '.join(map(str, _VGG))}")
    if min(image_shape[:2]) < 8:
        raise ConfigError(
            f"vgg halves images three times: image_shape={list(image_shape)} must have sides of at "
            "least 8"
        )
    inputs = keras.Input(image_shape)
    x = inputs
    for group, width in enumerate((64, 128, 256, 512, 512)):
        for _ in range(_VGG[depth]):
            x = convolution(x, width, bias=True)
        if group < 3:
            x = layers.MaxPooling2D(2)(x)
    start = keras.initializers.RandomNormal(stddev=0.01)
    return keras.Model(inputs, head(x, num_classes, start), name=f"vgg{depth}")


def _per_block(value: Any, count: int, key: str) -> list[Any]:
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise ConfigError(f"{key}={value} has {len(value)} entries for {count} blocks (filters)")
    return value


def _activation(name: str) -> layers.Layer:
    if name == "leaky_relu":
        return layers.LeakyReLU(negative_slope=0.2)
    return layers.ReLU() if name == "relu" else layers.Activation(name)


def _dense_part(x: Any, units: list[int], activation: str, batch_norm: bool, dropout: float) -> Any:
    for width in units:
        x = layers.Dense(width)(x)
        if batch_norm:
            x = layers.BatchNormalization()(x)
        x = _activation(activation)(x)
        x = layers.Dropout(dropout)(x) if dropout else x
    return x


def _logits(x: Any, num_classes: int) -> Any:
    # float32 under a mixed policy too: bfloat16 logits have three significant digits.
    return layers.Dense(num_classes, dtype="float32", name="logits")(x)
