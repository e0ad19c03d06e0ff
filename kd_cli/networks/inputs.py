"""What a network takes: images [B, H, W, C], or token ids [B, L] of texts.

It is told by the network itself: ids are whole numbers and have two axes.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from kd_cli.errors import ConfigError


def takes_ids(model: keras.Model) -> bool:
    """Whether a model takes token ids, whole numbers, and not images."""
    dtype = keras.backend.standardize_dtype(model.inputs[0].dtype)
    return len(model.input_shape) == 2 and "int" in dtype


def many(model: keras.Model) -> str:
    """What people call the inputs of a model: `images` or `texts`."""
    return "texts" if takes_ids(model) else "images"


def symbolic(shape: tuple[int | None, ...]) -> Any:
    """A symbolic input: pixels (H, W, C), or token ids (L,)."""
    texts = len(shape) == 1
    return keras.Input(
        shape, dtype="int32" if texts else None, name="tokens" if texts else "pixels"
    )


def input_like(model: keras.Model) -> Any:
    """A symbolic input of the shape that a model takes; of any other shape it is pixels, too."""
    shape = model.input_shape[1:]
    return symbolic(shape) if takes_ids(model) else keras.Input(shape, name="pixels")


def check_input(model: keras.Model, shape: tuple[int, ...], what: str) -> None:
    """Refuses a model that takes inputs of another shape than it would get, or of another kind.

    Args:
        model: A model.
        shape: (H, W, C) of images, or (L,) of texts.
        what: For the error.
    """
    expected, texts = tuple(model.input_shape[1:]), len(shape) == 1
    fits = len(expected) == len(shape) and all(
        e in (None, side) for e, side in zip(expected, shape, strict=True)
    )
    if fits and takes_ids(model) == texts:
        return
    would = f"token ids, int32 of shape {list(shape)}" if texts else str(list(shape))
    if texts and fits:
        raise ConfigError(
            f"{what} takes {keras.backend.standardize_dtype(model.inputs[0].dtype)} numbers, it "
            f"would get {would}; it must begin with keras.Input([length], dtype='int32')"
        )
    raise ConfigError(f"{what} takes {taken(model)}, it would get {would}")


def taken(model: keras.Model) -> str:
    what = "token ids" if takes_ids(model) else "images"
    return f"{what} of shape {list(model.input_shape[1:])}"


def spec_of(model: keras.Model, batch: int | None, open_side: int | None = None) -> tf.TensorSpec:
    """What a model is traced with: float32 pixels [B, H, W, C], or int32 token ids [B, L].

    Args:
        model: Takes one of the two.
        batch: B; None for any.
        open_side: In the place of sides that the model leaves open.
    """
    sides = [side or open_side for side in model.input_shape[1:]]
    return tf.TensorSpec([batch, *sides], tf.int32 if takes_ids(model) else tf.float32)


def as_given(inputs: tf.Tensor) -> tf.Tensor:
    """Stored inputs as networks get them: token ids, int32, as they are; pixels as float32."""
    return inputs if inputs.dtype == tf.int32 else tf.cast(inputs, tf.float32)
