"""tests/export/torch_cnn.onnx, which PyTorch wrote, and the same network in Keras."""

from pathlib import Path

import keras
import onnx
from onnx import numpy_helper

TORCH = Path(__file__).parent / "export" / "torch_cnn.onnx"


def twin() -> keras.Model:
    """From images [B, 6, 6, 1] of 0..1 to logits [B, 4], with the weights of the file."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(4, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(8, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(4),
        ]
    )
    known = {w.name: numpy_helper.to_array(w) for w in onnx.load(TORCH).graph.initializer}
    model.set_weights(
        [
            known["0.weight"].transpose(2, 3, 1, 0),
            known["0.bias"],
            known["4.weight"].transpose(2, 3, 1, 0),
            known["4.bias"],
            known["7.weight"].T,
            known["7.bias"],
        ]
    )
    return model
