"""SavedModel folders: TensorFlow's own format, for TensorFlow Serving and other programs on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import tensorflow as tf

from kd_cli.export.graph import Graph
from kd_cli.export.tensors import Opened, Tensor
from kd_cli.networks.predict import predictor
from kd_cli.networks.saved_model import load_saved_model


def convert(graph: Graph, path: Path, precision: str, images: np.ndarray | None) -> None:
    """Writes a network as a SavedModel: float32, the only precision that the format has."""
    shutil.copytree(graph.folder, path)


def open_file(path: Path, threads: int | None = None) -> Opened:
    """Opens any SavedModel for inference, in this process and with its threads.

    Raises:
        ConfigError: As `load_saved_model`, which executes nothing but operations on numbers.
    """
    model = load_saved_model(path, "saved_model")
    predict = predictor(model)
    return Opened(
        Tensor("image", "float32", tuple(model.input_shape)),
        Tensor("logits", "float32", tuple(model.output_shape)),
        lambda numbers: predict(tf.constant(numbers)).numpy(),
        f"tensorflow {tf.__version__}",
    )
