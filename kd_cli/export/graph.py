"""A network as one function from an image to its logits, in a SavedModel: what formats start from.

The input is `image`, raw pixels 0..255 as float32 [batch, H, W, C]; the output is `logits`, or
`probabilities`, float32 [batch, K].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import tensorflow as tf
from keras import layers

from kd_cli.errors import first_line
from kd_cli.export.formats import CantConvertError

if TYPE_CHECKING:
    from kd_cli.export.page import Beside

IMAGE, LOGITS, PROBABILITIES = "image", "logits", "probabilities"
SIGNATURE = "serving_default"


@dataclass(frozen=True)
class Graph:
    """A network that can be converted.

    Attributes:
        folder: A SavedModel, whose signature is `SIGNATURE`.
        model: The same in Keras; inputs and outputs have names of Keras's own.
        shape: (H, W, C) of the images.
        output: `LOGITS` or `PROBABILITIES`.
        beside: What a page shows beside it.
    """

    folder: Path
    model: keras.Model
    shape: tuple[int, ...]
    output: str
    beside: Beside | None = None


def write(model: keras.Model, shape: tuple[int, ...], softmax: bool, folder: Path) -> Graph:
    """Writes the SavedModel of a network.

    Args:
        model: From raw pixels to logits, in float32.
        shape: (H, W, C) of the images.
        softmax: Whether probabilities come out.
        folder: Where it is written; it need not exist.
    """
    output = PROBABILITIES if softmax else LOGITS
    last = layers.Activation("softmax" if softmax else "linear", name=f"kd_{output}")
    whole = keras.Model(model.inputs, last(model.outputs[0]))

    @tf.function(input_signature=[signature(shape)], autograph=False)
    def function(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {output: whole(image, training=False)}

    archive = keras.export.ExportArchive()
    archive.track(whole)
    archive.add_endpoint(SIGNATURE, function)
    archive.write_out(str(folder), verbose=False)
    return Graph(folder, whole, shape, output)


def in_float32(model: keras.Model) -> keras.Model:
    """A network that computes in float32: itself, or a copy of one of mixed precision.

    Weights are float32 in both. Runtimes have few operators for bfloat16, or none.

    Raises:
        CantConvertError: A layer can't be copied.
    """
    if all(layer.dtype_policy.compute_dtype == "float32" for layer in model._flatten_layers()):
        return model

    def convert(layer: layers.Layer) -> layers.Layer:
        config = layer.get_config()
        if isinstance(layer, layers.Layer):  # an operation computes in the type that it gets
            config["dtype"] = "float32"
        return layer.__class__.from_config(config)

    try:
        copy = keras.models.clone_model(model, clone_function=convert, recursive=True)
        copy.set_weights(model.get_weights())
    except Exception as error:  # of a layer of the user's own
        raise CantConvertError(
            f"a layer can't be copied to float32: {first_line(error)}"
        ) from error
    return copy


def signature(shape: tuple[int, ...]) -> tf.TensorSpec:
    """Of images of shape (H, W, C), with a free batch."""
    return tf.TensorSpec([None, *shape], tf.float32, name=IMAGE)
