"""A network as one function from an image to its logits, in a SavedModel: what formats start from.

The input is `image`, raw pixels 0..255 as float32 [batch, H, W, C]; the output is `logits`, or
`probabilities`, float32 [batch, K].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

IMAGE, LOGITS, PROBABILITIES = "image", "logits", "probabilities"
SIGNATURE = "serving_default"


@dataclass(frozen=True)
class Graph:
    """A network that can be converted.

    Attributes:
        folder: A SavedModel, whose signature is `SIGNATURE`.
        function: The same as a traced function.
        output: `LOGITS` or `PROBABILITIES`.
    """

    folder: Path
    function: Callable[..., Any]
    output: str


def write(model: keras.Model, shape: tuple[int, ...], softmax: bool, folder: Path) -> Graph:
    """Writes the SavedModel of a network.

    Args:
        model: From raw pixels to logits.
        shape: (H, W, C) of the images.
        softmax: Whether probabilities come out.
        folder: Where it is written; it need not exist.
    """
    output = PROBABILITIES if softmax else LOGITS

    @tf.function(
        input_signature=[tf.TensorSpec([None, *shape], tf.float32, name=IMAGE)], autograph=False
    )
    def function(image: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = tf.cast(model(image, training=False), tf.float32)
        return {output: tf.nn.softmax(logits) if softmax else logits}

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(SIGNATURE, function)
    archive.write_out(str(folder), verbose=False)
    return Graph(folder, function, output)
