"""Networks as functions `(image_shape, num_classes, *, ...) -> keras.Model` that end in logits.

A network is reached through `_target_`, so any Keras function or a user's own serves as well.
`build_network` puts the `input` adapter before it and refuses what is no classifier on logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers
from omegaconf import DictConfig, OmegaConf

from kd_cli.config.instantiate import build
from kd_cli.errors import ConfigError, first_line
from kd_cli.networks.taps import Graph, Tapped

# The adapter's first layer is named so that a `.keras` file tells whether it has one already.
ADAPTER = "kd_input"


def build_network(
    node: DictConfig, image_shape: tuple[int, ...], num_classes: int, precision: str, what: str
) -> keras.Model:
    """Builds `node.network` behind its `node.input` adapter, so that it takes raw pixels 0..255.

    Args:
        node: The checked `teacher` or `student` node.
        image_shape: (H, W, C) of the dataset.
        num_classes: Number of outputs that the network must have.
        precision: Keras dtype policy around the build.
        what: `teacher` or `student`, for errors.

    Raises:
        ConfigError: When the network can't be built, or `check_network` refuses it.
    """
    keras.config.set_dtype_policy(precision)
    try:
        network = build(node.network, f"{what}.network")
        check_network(network, num_classes, what)
        return with_adapter(network, node.input, image_shape, what)
    finally:
        keras.config.set_dtype_policy("float32")


def rebuilt(
    model: keras.Model,
    change: Callable[[keras.Model], keras.Model],
    adapter: DictConfig,
    precision: str,
    what: str,
) -> keras.Model:
    """A model of `build_network` with another network behind its adapter.

    Args:
        model: What `build_network` gave.
        change: Its network -> the other one.
        adapter, precision, what: As when it was built.
    """
    keras.config.set_dtype_policy(precision)
    try:
        network = change(model.layers[-1])
        return with_adapter(network, adapter, tuple(model.input_shape[1:]), what)
    finally:
        keras.config.set_dtype_policy("float32")


def with_adapter(
    network: keras.Model, adapter: DictConfig, image_shape: tuple[int, ...], what: str
) -> keras.Model:
    """`network` behind layers that resize and rescale raw pixels, as one functional model."""
    inputs = keras.Input(image_shape, name="pixels")
    x = inputs
    if adapter.size is not None and tuple(image_shape[:2]) != (adapter.size, adapter.size):
        # Keras calls this layer with training=True where nothing is said, and lets that reach the
        # dropout behind it: a plain `model(images)` would draw masks.
        x = layers.Resizing(adapter.size, adapter.size, name=f"{ADAPTER}_size")(x, training=False)
    scale, offset = (_plain(adapter[key]) for key in ("scale", "offset"))
    x = layers.Rescaling(scale, offset, name=ADAPTER)(x)
    expected = tuple(network.input_shape[1:])
    if any(e not in (None, r) for e, r in zip(expected, x.shape[1:], strict=False)) or len(
        expected
    ) != len(x.shape[1:]):
        raise ConfigError(
            f"{what}: the network takes images of shape {list(expected)}, it would get "
            f"{list(x.shape[1:])}; set its input shape to ${{dataset.image_shape}}, or "
            f"{what}.input.size"
        )
    return keras.Model(inputs, network(x), name=what)


def _plain(value: Any) -> Any:
    return list(value) if OmegaConf.is_list(value) else value


class CantCopyError(Exception):
    """A layer of a network can't be copied; the message says why."""


def with_precision(model: keras.Model, policy: str) -> keras.Model:
    """A copy of `model` that computes under another dtype policy; its logits stay float32.

    Args:
        model: Behind its adapter; the adapter stays as it is.
        policy: A Keras dtype policy, such as `mixed_bfloat16`.

    Raises:
        CantCopyError: A layer can't be copied.
    """
    last = model.layers[-1]
    while isinstance(last, keras.Model):
        last = last.layers[-1]
    return _copied(
        model, policy, lambda layer: layer is not last and not layer.name.startswith(ADAPTER)
    )


def in_float32(model: keras.Model) -> keras.Model:
    """A network that computes in float32: itself, or a copy of one of mixed precision.

    Raises:
        CantCopyError: A layer can't be copied.
    """
    if all(layer.dtype_policy.compute_dtype == "float32" for layer in model._flatten_layers()):
        return model
    return _copied(model, "float32", lambda layer: True)


def _copied(
    model: keras.Model, policy: str, changes: Callable[[layers.Layer], bool]
) -> keras.Model:
    """A copy with the same weights, which are float32 under any policy."""

    def convert(layer: layers.Layer) -> layers.Layer:
        config = layer.get_config()
        # (An operation such as keras.ops.exp computes in the type that it gets.)
        if isinstance(layer, layers.Layer) and changes(layer):
            config["dtype"] = policy
        if isinstance(layer, layers.Lambda):  # built by the user's code: no file may hold one
            return layer.__class__.from_config(config, safe_mode=False)
        return layer.__class__.from_config(config)

    try:
        copy = keras.models.clone_model(model, clone_function=convert, recursive=True)
        set_weights(copy, model.get_weights())
    except Exception as error:  # of a layer of the user's own
        raise CantCopyError(f"a layer can't be copied to {policy} ({first_line(error)})") from error
    return copy


def set_weights(model: keras.Model, values: list[np.ndarray]) -> None:
    """Gives a model other weights; what Normalization makes of its own is made anew."""
    model.set_weights(values)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()


def check_network(network: Any, num_classes: int, what: str) -> None:
    """Refuses a network that does not end in one logit per class.

    Raises:
        ConfigError: As `check_outputs`, or a softmax or sigmoid at its end.
    """
    check_outputs(network, num_classes, what)
    found = ending(network)
    if found:
        raise no_logits(found, what)


def check_outputs(network: Any, num_classes: int, what: str) -> None:
    """Refuses a network that does not have one output per class.

    Raises:
        ConfigError: No Keras model, one whose layers can't be seen, or another number of outputs.
    """
    expected = "a functional model, keras.Model(inputs, outputs)"
    if not isinstance(network, keras.Model):
        raise ConfigError(f"{what}: expected a keras.Model, received {type(network).__name__}")
    if not getattr(network, "inputs", None):
        if isinstance(network, keras.Sequential):
            received = "a Sequential model without an Input"
        else:
            received = f"{type(network).__name__}, a subclassed keras.Model"
        raise ConfigError(
            f"{what}: received {received}, whose shapes kd can't see; expected {expected}, or a "
            "Sequential model that begins with keras.Input(image_shape)"
        )
    if len(network.inputs) != 1:
        raise ConfigError(
            f"{what}: the network has {len(network.inputs)} inputs; expected {expected}, with the "
            "images as its only input"
        )
    shape = network.output_shape
    if not isinstance(shape, tuple) or len(shape) != 2:
        raise ConfigError(
            f"{what}: expected one output of shape [batch, {num_classes}], received {shape}"
        )
    if shape[-1] != num_classes:
        raise ConfigError(
            f"{what}: the network has {shape[-1]} outputs, the dataset has {num_classes} classes; "
            "set its number of outputs to ${dataset.num_classes}"
        )


def ending(network: keras.Model) -> str:
    """`softmax` or `sigmoid` where a network ends in one; empty for logits."""
    name = last_activation(network)
    if name in ("softmax", "sigmoid"):
        return name
    return "softmax" if sums_to_one(probe(network)) else ""


def no_logits(found: str, what: str) -> ConfigError:
    return ConfigError(
        f"{what}: the network ends in a {found}, kd needs logits; set the activation of its "
        "last layer to null (keras.applications: classifier_activation: null)"
    )


def last_operation(network: keras.Model) -> Any:
    """What gives a network's outputs: a layer, or an operation such as `keras.ops.softmax`."""
    last: Any = network
    while isinstance(last, keras.Model) and getattr(last, "outputs", None):
        last = last.outputs[0]._keras_history.operation
    return last


def last_activation(network: keras.Model) -> str:
    """The name of the activation in which a network ends; empty where its last layer has none."""
    last = last_operation(network)
    if isinstance(last, layers.Softmax):
        return "softmax"
    return getattr(getattr(last, "activation", None), "__name__", "")


def probe(network: keras.Model) -> np.ndarray:
    """Outputs [4, K] on images that are unlike: black, white, noise of little and full contrast."""
    shape = [2, *(side or 64 for side in network.input_shape[1:])]
    noise = np.random.default_rng(0).uniform(0, 1, shape)
    noise *= np.reshape([32, 255], [2, *([1] * (len(shape) - 1))])
    images = np.concatenate([np.zeros_like(noise[:1]), np.full_like(noise[:1], 255), noise])
    outputs = network(images.astype(np.float32), training=False)
    return np.asarray(keras.ops.cast(outputs, "float32"))


def sums_to_one(outputs: np.ndarray) -> bool:
    """Whether outputs [4, K] of `probe` are probabilities, however they were made.

    Logits that happen to sum to 1 on all of them do not occur. bfloat16 rounds by up to 1 in 256.
    """
    sums = outputs.astype(np.float64).sum(axis=-1)
    return bool((outputs >= 0).all() and (abs(sums - 1) < 1e-2).all())


def dead_layers(model: keras.Model, images: np.ndarray) -> dict[str, int]:
    """Hidden ReLU layers of which no unit is ever above 0 on `images`, with their widths.

    A unit that gives 0 for every image passes no gradient and stays as it is.

    Args:
        model: A model that `build_network` made.
        images: [n, H, W, C] raw pixels.
    """
    network = model.layers[-1]
    if not isinstance(network, keras.Model):
        return {}
    hidden = [
        layer
        for layer in network.layers[:-1]
        if isinstance(layer, layers.ReLU)
        or getattr(getattr(layer, "activation", None), "__name__", "") == "relu"
    ]
    if not hidden:
        return {}
    x = keras.ops.convert_to_tensor(images)
    for layer in model.layers[1:-1]:
        x = layer(x)
    # (Not by `layer.output`: a layer of a student that SimKD has rebuilt has two.)
    graph = Graph(network, "network")
    numbers = [n for n, place in enumerate(graph.places) if place.operation in hidden]
    outputs = Tapped(graph, numbers)(x, training=False)
    return {
        graph.places[number].operation.name: int(output.shape[-1])
        for number, output in zip(numbers, outputs, strict=True)
        if float(keras.ops.max(output)) <= 0
    }
