"""Networks of keras.applications: their features, their own preprocessing, and a new last layer."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from kd_cli.errors import ConfigError, suggest
from kd_cli.networks.published import published_files
from kd_cli.networks.weights_file import load_features
from kd_cli.networks.wrap import ADAPTER

# What kd decides of Keras's functions, and what counts only with the last layers that are left out.
_OURS = {
    "include_top", "weights", "input_tensor", "input_shape", "pooling", "classes", "name",
    "classifier_activation", "include_preprocessing", "dropout", "dropout_rate",
}  # fmt: skip
# Of ImageNet's colours. Files of EfficientNet hold the deviations where the layer takes variances
# (https://github.com/tensorflow/tensorflow/issues/49930); `imagenet` mends that, a file does not.
_DEVIATIONS = np.array([0.229, 0.224, 0.225])
_MEANS = np.array([0.485, 0.456, 0.406])


def application(
    image_shape: list[int],
    num_classes: int,
    *,
    architecture: str,
    weights: str | None = None,
    dropout: float = 0.2,
    **options: Any,
) -> keras.Model:
    """A network of `keras.applications` with a new last layer; it takes raw RGB pixels 0..255.

    Its first layers do what `preprocess_input` of its module does. Grey images are repeated for the
    three colours. Its features are the mean over the last map.

    Args:
        image_shape: [H, W, C], C 1 or 3; most networks take sides of at least 32.
        num_classes: Number of logits.
        architecture: Name of the function in `keras.applications`, such as MobileNetV3Small.
        weights: `imagenet` for the published ones, out of Keras's cache or from their address; or a
            `.keras`, `.weights.h5` or `.h5` file; null for random ones. Last layers in a file are
            left out.
        dropout: Rate before the last layer.
        **options: Of that function, such as `alpha`.

    Raises:
        ConfigError: No such network or option, images that it can't take, or weights that can't be
            had or are of another network.
    """
    function = _function(architecture, options)
    if image_shape[2] not in (1, 3):
        raise ConfigError(
            f"application: image_shape={list(image_shape)} must have 1 or 3 channels: networks of "
            "keras.applications take RGB"
        )
    base = _base(function, image_shape[:2], weights, options)
    inputs = keras.Input(image_shape)
    x = layers.Concatenate(name="grey_to_rgb")([inputs] * 3) if image_shape[2] == 1 else inputs
    x = base(_preprocessed(x, function))
    x = layers.Dropout(dropout)(x) if dropout else x
    logits = layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="application")


def _function(architecture: str, options: dict[str, Any]) -> Callable[..., keras.Model]:
    """The function of a network, which takes these options."""
    names = [name for name in dir(keras.applications) if name[0].isupper()]
    if architecture not in names:
        near = suggest(str(architecture), names)
        raise ConfigError(
            f"application: architecture={architecture} is no network of keras.applications{near}"
            + ("" if near else f"; it has {', '.join(names)}")
        )
    function = getattr(keras.applications, architecture)
    takes = [name for name in inspect.signature(function).parameters if name not in _OURS]
    for name in options:
        if name not in takes:
            has = f"it takes {', '.join(takes)}" if takes else "it takes none"
            raise ConfigError(f"application: {architecture} takes no option '{name}' here; {has}")
    return function


def _base(
    function: Callable[..., keras.Model],
    sides: list[int],
    weights: str | None,
    options: dict[str, Any],
) -> keras.Model:
    """RGB pixels as the network takes them -> its features [B, width]."""
    known = weights if weights in (None, "imagenet") else None
    try:
        with published_files(function.__name__):
            base = function(
                weights=known,
                include_top=False,
                pooling="avg",
                input_shape=(*sides, 3),
                **options,
            )
    except ValueError as error:
        least = re.search(r"at least (\d+)x\d+", str(error))
        if least is None:
            raise
        raise ConfigError(
            f"application: {function.__name__} takes images of at least {least[1]}x{least[1]}, it "
            f"would get {sides[0]}x{sides[1]}; type input.size={least[1]} behind teacher. or "
            "student."
        ) from error
    if weights != known:
        load_features(base, Path(weights).expanduser(), f"network.weights={weights}")
        _scale_as_published(base)
    return base


def _scale_as_published(base: keras.Model) -> None:
    """Lets an EfficientNet with ImageNet's means in its file scale colours as `imagenet` does."""
    for layer in base.layers:
        held = isinstance(layer, layers.Normalization) and layer.weights  # not given to it
        if held and np.allclose(layer.adapt_mean, _MEANS):
            layer.adapt_variance.assign(_DEVIATIONS**2)
            layer.finalize_state()


def _preprocessed(x: Any, function: Callable[..., keras.Model]) -> Any:
    """What `preprocess_input` of a network's module makes of RGB pixels, as layers.

    It multiplies and shifts each channel, and may turn RGB round to BGR: it is asked what it makes
    of black and of the three colours.
    """
    asked = np.concatenate([np.zeros([1, 3]), 255 * np.eye(3)])[None, None]
    ends = np.asarray(sys.modules[function.__module__].preprocess_input(asked.copy()))[0, 0]
    slopes = (ends[1:] - ends[0]) / 255  # of each output, below each input
    order = np.abs(slopes).argmax(axis=0).tolist()  # of each output, the input
    back = np.argsort(order)
    scale, offset = slopes.max(axis=1).tolist(), ends[0][back].tolist()
    if scale != [1.0] * 3 or any(offset):
        # float32 under any policy, and named as the adapter, so that copies leave it as it is.
        x = layers.Rescaling(scale, offset, dtype="float32", name=f"{ADAPTER}_own")(x)
    return x if order == [0, 1, 2] else keras.ops.take(x, order, axis=-1)
