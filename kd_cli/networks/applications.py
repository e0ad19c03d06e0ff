"""The networks of keras.applications with a new last layer, from random or given weights.

Each takes raw pixels 0..255: what its weights expect of them (`preprocess_input`) is inside.
"""

from __future__ import annotations

import os
import re
import socket
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
from keras import layers

from kd_cli.errors import ConfigError, first_line
from kd_cli.terminal import shown

_MEANS, _DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours, 0..1
_BLUE_GREEN_RED = (103.939, 116.779, 123.68)  # their means, 0..255, as Caffe had them
_SECONDS = 20  # that a server may be silent


def _none(x: Any) -> Any:
    return x


def _to_one(x: Any) -> Any:
    return layers.Rescaling(1 / 127.5, -1.0, name="preprocess")(x)


def _standardised(x: Any) -> Any:
    scale = [1 / (255 * deviation) for deviation in _DEVIATIONS]
    offset = [-mean / deviation for mean, deviation in zip(_MEANS, _DEVIATIONS, strict=True)]
    return layers.Rescaling(scale, offset, name="preprocess")(x)


def _caffe(x: Any) -> Any:
    offset = [-mean for mean in _BLUE_GREEN_RED]
    return layers.Rescaling(1.0, offset, name="preprocess")(keras.ops.flip(x, axis=-1))


# By how a network's name begins, the longest first: what its preprocess_input does.
_PREPROCESSING: dict[str, Callable[[Any], Any]] = {
    "MobileNetV3": _none,
    "EfficientNet": _none,
    "ConvNeXt": _none,
    "DenseNet": _standardised,
    "ResNet50V2": _to_one,
    "ResNet101V2": _to_one,
    "ResNet152V2": _to_one,
    "ResNet": _caffe,
    "VGG": _caffe,
    "MobileNet": _to_one,
    "Inception": _to_one,
    "Xception": _to_one,
    "NASNet": _to_one,
}


def application(
    image_shape: list[int],
    num_classes: int,
    *,
    architecture: str,
    weights: str | None = None,
    frozen: bool = False,
    dropout: float = 0.2,
    options: Mapping[str, Any] | None = None,
) -> keras.Model:
    """A network of keras.applications: its features, their mean, dropout and a dense layer.

    With weights its BatchNormalization layers stay as they are: they use their statistics in
    training too, as Keras's guide "Transfer learning & fine-tuning" advises.

    Args:
        image_shape: [H, W, C]; the network says how small sides may be.
        num_classes: Number of logits.
        architecture: Its name there, such as MobileNetV3Small.
        weights: `imagenet` for those that Keras fetches once and keeps; a file of weights without
            the top (`..._notop.h5`, or `.weights.h5`); null for random ones. The last layer is
            always a new one.
        frozen: Whether only that last layer is trained (a linear probe).
        dropout: Rate before the last layer.
        options: Further keywords of the function, such as alpha of MobileNetV2.

    Raises:
        ConfigError: There is no such network, it does not take these images or options, or the
            weights are not there or do not fit.
    """
    what = f"network.architecture={architecture}"
    function, preprocess = _function(architecture)
    if frozen and weights is None:
        raise ConfigError(
            f"{what}: frozen=true keeps random weights; type weights=imagenet or weights=FILE too, "
            "or frozen=false"
        )
    if weights is not None and image_shape[2] != 3:
        raise ConfigError(
            f"{what}: weights={weights} need 3 channels, the images have {image_shape[2]}"
        )
    keywords = {"include_top": False, "pooling": "avg", "input_shape": tuple(image_shape)}
    keywords |= dict(options or {})
    fetched = weights == "imagenet"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of images that are not 224x224
            body = _fetched(function, keywords) if fetched else function(weights=None, **keywords)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{what}: {first_line(error)}") from error
    if weights is not None and not fetched:
        _load(body, Path(weights).expanduser(), what)
    for layer in body.layers:
        statistics = isinstance(layer, layers.BatchNormalization)
        layer.trainable = not frozen and not (statistics and weights is not None)
    inputs = keras.Input(image_shape)
    x = body(preprocess(inputs))
    x = layers.Dropout(dropout)(x) if dropout else x
    logits = layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name=architecture.lower())


def _function(architecture: str) -> tuple[Callable[..., keras.Model], Callable[[Any], Any]]:
    known = [name for name in dir(keras.applications) if name[0].isupper()]
    if architecture not in known:
        raise ConfigError(
            f"network.architecture={architecture} is not in keras.applications; expected one of "
            f"{', '.join(known)}"
        )
    preprocess = next(
        (act for begin, act in _PREPROCESSING.items() if architecture.startswith(begin)), None
    )
    if preprocess is None:
        raise ConfigError(
            f"network.architecture={architecture}: kd does not know which pixels it expects; give "
            "it as teacher.network._target_, with teacher.input"
        )
    return getattr(keras.applications, architecture), preprocess


def _fetched(function: Callable[..., keras.Model], keywords: dict[str, Any]) -> keras.Model:
    """With ImageNet weights, from Keras's folder or its server."""
    silent = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)
    try:
        return function(weights="imagenet", **keywords)
    except ValueError:
        raise
    except Exception as error:  # whatever the network, the disk or a damaged file makes of it
        address = re.search(r"https?://\S+?\.(?:h5|keras)", str(error))
        folder = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"
        there = address[0].rpartition("/")[2] if address else "the file"
        raise ConfigError(
            f"weights=imagenet can't be fetched ({first_line(error)}); put {there} into {folder}"
            + (f" (it comes from {address[0]})" if address else "")
        ) from error
    finally:
        socket.setdefaulttimeout(silent)


def _load(body: keras.Model, path: Path, what: str) -> None:
    if not path.is_file():
        raise ConfigError(
            f"{what}: weights={shown(path)} is not a file; expected imagenet or an .h5"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a line for each layer that does not fit
            body.load_weights(path)
    except Exception as error:  # of h5py or Keras: no such file, or other layers
        raise ConfigError(
            f"{what}: weights={shown(path)} do not fit: {first_line(error)}; expected a file "
            "without the top (..._notop.h5), of the same options"
        ) from error
