"""A network as one function from an image to its logits, in a SavedModel: what formats start from.

The input is `image`, raw pixels 0..255 as float32 [batch, H, W, C]; the output is `logits`, or
`probabilities`, float32 [batch, K].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import keras
import tensorflow as tf
from keras import layers

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
    """

    folder: Path
    model: keras.Model
    shape: tuple[int, ...]
    output: str


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


def signature(shape: tuple[int, ...]) -> tf.TensorSpec:
    """Of images of shape (H, W, C), with a free batch."""
    return tf.TensorSpec([None, *shape], tf.float32, name=IMAGE)
