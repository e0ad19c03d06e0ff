"""A file of a runtime as a Keras network of one layer, which can't be trained: for teachers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from kd_cli.errors import ConfigError
from kd_cli.export.check import are_probabilities, as_logits
from kd_cli.export.formats import FORMATS, kind_of
from kd_cli.export.tensors import Opened, fitted
from kd_cli.files import file_hash
from kd_cli.networks.wrap import ADAPTER, probe
from kd_cli.runs.model_file import has_input

log = logging.getLogger("kd")


class InRuntime(keras.layers.Layer):
    """Images [B, H, W, C] to logits [B, K], computed by the file's own runtime on the CPU.

    Args:
        opened: The file.
        shape: (H, W, C) of the images.
        classes: K.
        sha256: Of the file, so that the layer's configuration tells it from another.
        logarithm: Whether the file gives probabilities, whose logarithms are the logits.
    """

    def __init__(
        self,
        opened: Opened,
        shape: tuple[int, ...],
        classes: int,
        sha256: str,
        logarithm: bool = False,
    ) -> None:
        super().__init__(trainable=False, name="runtime", dtype="float32")
        self.opaque = f"a file for {opened.runtime}"
        self._opened = opened
        self._shape = shape
        self._classes = classes
        self._sha256 = sha256
        self._logarithm = logarithm
        self.built = True

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return (input_shape[0], self._classes)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self._sha256, "logarithm": self._logarithm}

    def call(self, inputs: Any) -> Any:
        def run(images: Any) -> Any:
            return as_logits(self._opened(images), self._opened.logits, self._logarithm)

        logits = tf.numpy_function(run, [inputs], tf.float32, stateful=False)
        return tf.ensure_shape(logits, [None, self._classes])


def load_exported(path: Path, shape: tuple[int, ...], what: str) -> keras.Model:
    """Opens a LiteRT or ONNX file as a network from images to logits.

    Args:
        path: The file.
        shape: (H, W, C) of the images that it would get; files may leave sizes free.
        what: The key that gave it, for errors.

    Raises:
        ConfigError: Its runtime is missing, it can't be read, holds what kd does not execute, or
            does not take one batch of images and give logits or probabilities.
    """
    row = FORMATS[kind_of(path)]
    row.require()
    opened = row.load().open_file(path)
    taken, given = opened.image.shape, opened.logits.shape
    if len(taken) != 4 or len(given) != 2:
        raise ConfigError(
            f"{what}={path}: expected an image [batch, height, width, channels] and logits [batch, "
            f"classes], received {list(taken)} and {list(given)}"
        )
    if len(shape) != 3:
        raise ConfigError(f"{what}={path} takes images, it would get token ids {list(shape)}")
    opened, turned = fitted(opened, shape)
    if turned:
        log.info("%s: it takes images with their channels first", path)
    sides = tuple(own or other for own, other in zip(opened.image.shape[1:], shape, strict=True))
    classes = given[1] or opened(tf.zeros([1, *sides]).numpy()).shape[1]
    inputs = keras.Input(sides, name="images")
    images = keras.layers.Rescaling(1.0, name=ADAPTER)(inputs) if has_input(path) else inputs

    def network(logarithm: bool) -> keras.Model:
        layer = InRuntime(opened, sides, classes, file_hash(path), logarithm)
        return keras.Model(inputs, layer(images), name="runtime_teacher")

    plain = network(False)
    if not are_probabilities(probe(plain), opened.logits):
        return plain
    log.info("%s: its outputs are probabilities; their logarithms are its logits", path)
    return network(True)
