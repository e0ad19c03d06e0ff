"""A SavedModel directory as a network: the format of many published teachers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from kd_cli.errors import ConfigError, first_line
from kd_cli.networks.saved_model_graph import refused


class Frozen(keras.layers.Layer):
    """Images [B, H, W, C] to logits [B, K] by a function of a SavedModel.

    Args:
        loaded: The object that owns the function's variables.
        function: The concrete function, or what dispatches to it.
        concrete: Its signature and variables.
        sha256: Of the graph, so that the layer's configuration tells it from another.
    """

    def __init__(
        self, loaded: Any, function: Callable[..., Any], concrete: Any, sha256: str
    ) -> None:
        super().__init__(trainable=False, name="saved_model", dtype="float32")
        self.opaque = "a SavedModel"
        self._loaded = loaded  # a function holds its variables weakly
        self._function = function
        self._signature = concrete.structured_input_signature
        self._variables = list(concrete.variables)
        self._outputs = _logits(concrete.structured_outputs).shape[1]
        self._sha256 = sha256
        self.built = True

    @property
    def weights(self) -> list[Any]:
        # TensorFlow's variables, as they are: Keras would keep a copy of each.
        return self._variables

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return (input_shape[0], self._outputs)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "saved_model_sha256": self._sha256}

    def call(self, inputs: Any) -> Any:
        args, keywords = tf.nest.map_structure(
            lambda part: inputs if isinstance(part, tf.TensorSpec) else part, self._signature
        )
        return _logits(self._function(*args, **keywords))


def load_saved_model(path: Path, what: str) -> keras.Model:
    """Reads a SavedModel's directory as a Keras model of one layer, which can't be trained.

    Args:
        path: Holds `saved_model.pb` and `variables/`.
        what: The key that gave the directory, for errors.

    Raises:
        ConfigError: When TensorFlow can't load it, its graph holds an operation that is not allowed
            (`saved_model_graph`), or none of its functions takes one batch of float32 images and
            gives logits.
    """
    content = (path / "saved_model.pb").read_bytes()
    try:
        # Before it is loaded, because loading runs its initializers.
        for graph in saved_model_pb2.SavedModel.FromString(content).meta_graphs:
            found = refused(graph)
            if found:
                raise ConfigError(
                    f"{what}={path} holds {found}, which kd does not execute: it allows only "
                    "operations that compute on numbers; export the network without it"
                )
        loaded = tf.saved_model.load(path)
    except (DecodeError, OSError, ValueError, KeyError, tf.errors.OpError) as error:
        raise ConfigError(f"{what}={path} can't be loaded: {first_line(error)}") from error
    received = []
    for name, function, concrete in _functions(loaded):
        specs = [x for x in tf.nest.flatten(concrete.structured_input_signature) if _is_spec(x)]
        logits = _logits(concrete.structured_outputs)
        if len(specs) == 1 and _takes_images(specs[0]) and logits is not None:
            inputs = keras.Input(specs[0].shape[1:], name="images")
            layer = Frozen(loaded, function, concrete, hashlib.sha256(content).hexdigest())
            return keras.Model(inputs, layer(inputs), name="saved_model_teacher")
        outputs = tf.nest.map_structure(lambda x: str(x.shape), concrete.structured_outputs)
        taken = [f"{spec.dtype.name} {spec.shape}" for spec in specs]
        received.append(f"{name}: {', '.join(taken)} -> {outputs}")
    raise ConfigError(
        f"{what}={path}: expected a signature from float32 images [batch, H, W, C] to logits "
        f"[batch, classes] (named 'logits' where there are several outputs); received "
        f"{'; '.join(received) or 'none'}"
    )


def _functions(loaded: Any) -> Iterator[tuple[str, Callable[..., Any], Any]]:
    """Name, function and signature: `serving_default`, other signatures, then the call itself."""
    signatures = dict(loaded.signatures)
    for name in sorted(signatures, key=lambda name: (name != "serving_default", name)):
        yield name, signatures[name], signatures[name]
    for concrete in loaded.__call__.concrete_functions if callable(loaded) else []:
        # (A network traced for training too has a second one.)
        if not any(x is True for x in tf.nest.flatten(concrete.structured_input_signature)):
            yield "__call__", loaded, concrete


def _is_spec(part: Any) -> bool:
    return isinstance(part, tf.TensorSpec)


def _takes_images(spec: tf.TensorSpec) -> bool:
    return spec.dtype == tf.float32 and spec.shape.rank == 4 and spec.shape[0] is None


def _logits(outputs: Any) -> Any:
    """Of outputs or their specs: the one named `logits`, or the only one of two dimensions."""
    if isinstance(outputs, Mapping) and "logits" in outputs:
        outputs = outputs["logits"]
    flat = [x for x in tf.nest.flatten(outputs) if x.shape.rank == 2]
    return flat[0] if len(flat) == 1 else None
