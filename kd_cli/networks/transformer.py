"""Vision transformers for small images, with a token of their own for the teacher's outputs.

They are made of Keras's layers alone, so `model.keras` loads without kd. Keras has no layer that is
just a table of weights: a dense layer without bias on a single 1 gives its kernel, which is one.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from kd_cli.errors import ConfigError


def vit(
    image_shape: list[int],
    num_classes: int,
    *,
    patch: int = 4,
    width: int = 128,
    blocks: int = 6,
    heads: int = 4,
    mlp: int = 512,
    distillation_token: bool = True,
) -> keras.Model:
    """A ViT with a class token and, as in DeiT, a distillation token; logits are the heads' mean.

    The heads are layers `class_head` and `token_head`, for a loss that trains each on its own.

    Args:
        image_shape: [H, W, C], sides that are multiples of `patch`.
        num_classes: Number of logits.
        patch: Side of the square patches, each of which becomes a token.
        width: Channels of a token, a multiple of `heads`.
        blocks: Attention and two dense layers, each behind a LayerNormalization.
        heads: Of the attention.
        mlp: Width between the two dense layers of a block.
        distillation_token: False leaves the second token and `token_head` out.

    The defaults have 1,207,444 parameters for 32x32x3 and 10 classes; width 192, 12 blocks, 3 heads
    and mlp 768 are DeiT-Ti. No dropout, no stochastic depth.

    Raises:
        ConfigError: Sides or a width that can't be divided.

    Source: Touvron et al. 2021, "Training data-efficient image transformers & distillation through
    attention", and Dosovitskiy et al. 2021.
    """
    height, side = image_shape[:2]
    if height % patch or side % patch:
        raise ConfigError(
            f"vit: image_shape={list(image_shape)} must have sides that are multiples of "
            f"patch={patch}"
        )
    if width % heads:
        raise ConfigError(f"vit: width={width} must be a multiple of heads={heads}")
    tokens = 2 if distillation_token else 1
    patches = (height // patch) * (side // patch)
    inputs = keras.Input(image_shape)
    x = layers.Conv2D(width, patch, strides=patch, name="patches")(inputs)
    x = layers.Reshape((patches, width))(x)
    one = ops.ones_like(x[:1, :1, 0])
    first = layers.ZeroPadding1D((0, patches))(_table(one, tokens, width, "tokens"))
    x = layers.Add()([layers.ZeroPadding1D((tokens, 0))(x), first])
    x = layers.Add()([x, _table(one, tokens + patches, width, "positions")])
    for _ in range(blocks):
        y = _norm(x)
        attention = layers.MultiHeadAttention(heads, width // heads, kernel_initializer=_start())
        x = layers.Add()([x, attention(y, y)])
        y = layers.Dense(mlp, activation="gelu", kernel_initializer=_start())(_norm(x))
        x = layers.Add()([x, layers.Dense(width, kernel_initializer=_start())(y)])
    x = _norm(x)
    outputs = [
        layers.Dense(num_classes, kernel_initializer=_start(), dtype="float32", name=name)(x[:, n])
        for n, name in enumerate(("class_head", "token_head")[:tokens])
    ]
    if distillation_token:
        outputs = [layers.Average(dtype="float32", name="logits")(outputs)]
    return keras.Model(inputs, outputs[0], name="vit")


def _table(one: Any, rows: int, width: int, name: str) -> Any:
    """Weights [1, rows, width]."""
    start = _start()
    x = layers.Dense(rows * width, use_bias=False, kernel_initializer=start, name=name)(one)
    return layers.Reshape((rows, width))(x)


def _norm(x: Any) -> Any:
    return layers.LayerNormalization(epsilon=1e-6)(x)


def _start() -> keras.initializers.Initializer:
    # The authors truncate at +-2, a hundred standard deviations. (An initializer for each layer:
    # one that is used twice gives the same numbers again.)
    return keras.initializers.RandomNormal(stddev=0.02)
