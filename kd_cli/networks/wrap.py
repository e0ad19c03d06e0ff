"""Networks as functions `(image_shape, num_classes, *, ...) -> keras.Model` that end in logits.

A network is reached through `_target_`, so any Keras function or a user's own serves as well.
`build_network` puts the `input` adapter before it and refuses what is no classifier on logits.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers
from omegaconf import DictConfig

from kd_cli.config.instantiate import build
from kd_cli.errors import ConfigError

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
    x = layers.Rescaling(adapter.scale, adapter.offset, name=ADAPTER)(x)
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


def with_precision(model: keras.Model, policy: str) -> keras.Model:
    """A copy of `model` that computes under another dtype policy; its logits stay float32.

    Args:
        model: Behind its adapter; the adapter stays as it is.
        policy: A Keras dtype policy, such as `mixed_bfloat16`.
    """
    last = model.layers[-1]
    while isinstance(last, keras.Model):
        last = last.layers[-1]

    def convert(layer: layers.Layer) -> layers.Layer:
        config = layer.get_config()
        if layer is not last and not layer.name.startswith(ADAPTER):
            config["dtype"] = policy
        return layer.__class__.from_config(config)

    copy = keras.models.clone_model(model, clone_function=convert, recursive=True)
    copy.set_weights(model.get_weights())
    return copy


def check_network(network: Any, num_classes: int, what: str) -> None:
    """Refuses a network that does not end in one logit per class.

    Raises:
        ConfigError: No Keras model, another number of outputs, or a softmax or sigmoid at its end.
    """
    if not isinstance(network, keras.Model):
        raise ConfigError(f"{what}: expected a keras.Model, received {type(network).__name__}")
    shape = getattr(network, "output_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 2:
        raise ConfigError(
            f"{what}: expected one output of shape [batch, {num_classes}], received {shape}"
        )
    if shape[-1] != num_classes:
        raise ConfigError(
            f"{what}: the network has {shape[-1]} outputs, the dataset has {num_classes} classes; "
            "set its number of outputs to ${dataset.num_classes}"
        )
    name = _last_activation(network)
    if name not in ("softmax", "sigmoid") and _sums_to_one(network):
        name = "softmax"
    if name in ("softmax", "sigmoid"):
        raise ConfigError(
            f"{what}: the network ends in a {name}, kd needs logits; set the activation of its "
            "last layer to null (keras.applications: classifier_activation: null)"
        )


def _last_activation(network: keras.Model) -> str:
    last = network.layers[-1]
    while isinstance(last, keras.Model):
        last = last.layers[-1]
    if isinstance(last, layers.Softmax):
        return "softmax"
    return getattr(getattr(last, "activation", None), "__name__", "")


def _sums_to_one(network: keras.Model) -> bool:
    """Whether the outputs on some images are probabilities, however they were made.

    The images are black, white, and noise of little and of full contrast, so unlike that logits
    which happen to sum to 1 on all of them do not occur. bfloat16 rounds by up to 1 in 256.
    """
    shape = [2, *(side or 64 for side in network.input_shape[1:])]
    noise = np.random.default_rng(0).uniform(0, 1, shape)
    noise *= np.reshape([32, 255], [2, *([1] * (len(shape) - 1))])
    images = np.concatenate([np.zeros_like(noise[:1]), np.full_like(noise[:1], 255), noise])
    outputs = np.asarray(network(images.astype(np.float32), training=False), dtype=np.float64)
    return bool((outputs >= 0).all() and (abs(outputs.sum(axis=-1) - 1) < 1e-2).all())


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
    probe = keras.Model(network.inputs, [layer.output for layer in hidden])
    outputs = probe(x, training=False)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    return {
        layer.name: int(output.shape[-1])
        for layer, output in zip(hidden, outputs, strict=True)
        if float(keras.ops.max(output)) <= 0
    }
