"""BiT ResNets: pre-activation ResNets with group norm and weight-standardised convolutions.

Big Transfer, Kolesnikov et al. 2020 (arXiv 1912.11370): weight standardisation after Qiao et al.
2019 (1903.10520), group norm after Wu and He 2018 (1803.08494). Each layer is named as its weights
are in the published `.npz` files, with dots for the slashes, which Keras does not allow.
"""

from __future__ import annotations

import logging
import re
import zipfile
from pathlib import Path
from typing import Any

import keras
from keras import layers, ops

from kd_cli.data.archives import npz_headers
from kd_cli.errors import ConfigError, first_line
from kd_cli.files import open_npz

log = logging.getLogger("kd")
# Units per block.
_UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_HEAD = "head.conv2d"


@keras.saving.register_keras_serializable(package="kd")
class StdConv2D(layers.Conv2D):
    """A convolution whose kernel [H, W, I, O] has mean 0 and variance 1 over H, W, I per output."""

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        # float32 under a mixed policy too: the mean and variance of bfloat16 numbers are rough.
        return super().add_weight(*args, **{**kwargs, "autocast": False})

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        mean, variance = ops.moments(kernel, axes=[0, 1, 2], keepdims=True)
        kernel = (kernel - mean) / ops.sqrt(variance + 1e-10)
        return super().convolution_op(inputs, ops.cast(kernel, inputs.dtype))


def bit_resnet(image_shape: list[int], num_classes: int, *, depth: int, width: int) -> keras.Model:
    """BiT ResNet `R{depth}x{width}`; its head starts at zero, as published.

    Args:
        image_shape: [H, W, C].
        num_classes: Number of logits.
        depth: 50 or 101.
        width: Factor of all widths, at least 1; published are 1 and 3.

    Raises:
        ConfigError: For another depth or width.
    """
    if depth not in _UNITS:
        raise ConfigError(f"depth={depth} must be {' or '.join(map(str, _UNITS))}")
    if not isinstance(width, int) or width < 1:
        raise ConfigError(f"width={width} must be a whole number, at least 1 (published: 1 and 3)")
    inputs = keras.Input(image_shape)
    x = _conv(inputs, 64 * width, 7, 2, "root_block.")
    # With zeros, which can be the maximum of negative numbers: padding "same" never is.
    x = layers.ZeroPadding2D(1, name="root_block.pool_pad")(x)
    x = layers.MaxPooling2D(3, strides=2, name="root_block.pool")(x)
    for block, units in enumerate(_UNITS[depth]):
        for unit in range(units):
            stride = 2 if block > 0 and unit == 0 else 1
            x = _unit(x, 64 * width * 2**block, stride, f"block{block + 1}.unit{unit + 1:02d}.")
    x = _norm(x, "")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    # float32 under a mixed policy too, as all logits.
    head = layers.Dense(num_classes, kernel_initializer="zeros", dtype="float32", name=_HEAD)
    return keras.Model(inputs, head(x), name="bit_resnet")


def _unit(x: Any, filters: int, stride: int, name: str) -> Any:
    """Bottleneck of 1x1, 3x3 and 1x1 convolutions, each after its norm and ReLU."""
    shortcut = x
    x = _norm(x, f"{name}a.")
    if name.endswith("unit01."):  # wider than its input
        shortcut = _conv(x, 4 * filters, 1, stride, f"{name}a.proj.")
    x = _conv(x, filters, 1, 1, f"{name}a.")
    x = _conv(_norm(x, f"{name}b."), filters, 3, stride, f"{name}b.")
    x = _conv(_norm(x, f"{name}c."), 4 * filters, 1, 1, f"{name}c.")
    return layers.Add(name=f"{name}add")([x, shortcut])


def _norm(x: Any, name: str) -> Any:
    x = layers.GroupNormalization(32, epsilon=1e-5, name=f"{name}group_norm")(x)
    return layers.ReLU(name=f"{name}relu")(x)


def _conv(x: Any, filters: int, size: int, stride: int, name: str) -> Any:
    if stride > 1 and size > 1:
        # Padding "same" would put one zero less before the first pixel than the published network.
        x = layers.ZeroPadding2D(size // 2, name=f"{name}pad")(x)
    return StdConv2D(
        filters,
        size,
        strides=stride,
        padding="same" if stride == 1 else "valid",
        use_bias=False,
        name=f"{name}standardized_conv2d",
    )(x)


def load_published(model: keras.Model, path: Path, what: str, new_head: bool = False) -> None:
    """Puts the weights of a published BiT `.npz` file into a model.

    Args:
        model: A `bit_resnet` behind its adapter.
        path: With keys such as `resnet/block1/unit01/a/proj/standardized_conv2d/kernel`.
        what: The key that gave the file, for errors: `teacher.weights`.
        new_head: Leave the head as it is when the file's is for another number of classes.

    Raises:
        ConfigError: Another network, no `.npz` file, a missing key or a wrong shape.
    """
    network = model.layers[-1]
    if not any(isinstance(x, StdConv2D) for x in getattr(network, "layers", [])):
        raise ConfigError(
            f"{what}={path} is for BiT networks, teacher.network is another "
            f"({network.name}); type teacher=bit_resnet101x3, or leave {what} out"
        )

    def unread(error: Exception) -> ConfigError:
        reason = first_line(error)
        return ConfigError(
            f"{what}={path} can't be read: {reason}; expected a .npz file of BiT weights"
        )

    try:
        npz_headers(path, more=None)  # before anything is unpacked
    except (OSError, ConfigError) as error:
        raise unread(error) from error
    try:
        with open_npz(path) as archive:
            _assign(network, archive, f"{what}={path}", new_head)
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise unread(error) from error


def _assign(network: keras.Model, archive: Any, what: str, new_head: bool) -> None:
    # Some files number their convolutions: .../a/standardized_conv2d_3/kernel.
    files = {re.sub(r"(standardized_conv2d)_\d+/", r"\1/", key): key for key in archive.files}
    wanted = {
        f"resnet/{layer.name.replace('.', '/')}/{weight.name}": (weight, layer.name == _HEAD)
        for layer in network.layers
        for weight in layer.weights
    }
    network_of_file = "choose that of the file with teacher.network.depth and teacher.network.width"
    # A deeper network has all that a shallower one has.
    extra = sorted(key for key in files if key.startswith("resnet/block") and key not in wanted)
    if extra:
        raise ConfigError(f"{what} holds {extra[0]}, which the network lacks; {network_of_file}")
    new = []
    for key, (weight, in_head) in wanted.items():
        array = archive[files[key]] if key in files else None
        if array is not None and in_head and array.shape[:2] == (1, 1):
            array = array[0, 0]  # the published head is a 1x1 convolution
        expected = tuple(weight.shape)
        if array is not None and array.shape == expected and array.dtype.kind == "f":
            weight.assign(array)
        elif in_head and new_head and (array is None or array.shape[-1:] != expected[-1:]):
            new.append(key)
        else:
            hint = f"fine-tune it first: kd train-teacher {what}" if in_head else network_of_file
            if array is None:
                raise ConfigError(f"{what} lacks {key}, which the network needs; {hint}")
            raise ConfigError(
                f"{what}: {key} is {array.dtype} of shape {list(array.shape)}, the network needs "
                f"float32 of shape {list(expected)}; {hint}"
            )
    if new:
        log.info("%s: its last layer is for other classes; yours keeps its initial values", what)
