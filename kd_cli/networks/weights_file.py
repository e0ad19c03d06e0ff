"""Weights for the features of a network, out of a file of a whole network or of its features.

Files are read as numbers: no code in them is executed. Layers go by their order, as in Keras, since
the names of many are numbers that count what else was built in that process.
"""

from __future__ import annotations

import logging
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
from keras import layers

from kd_cli.errors import ConfigError, first_line
from kd_cli.networks.keras_file import load_keras

log = logging.getLogger("kd")
# Layers with the name and the arrays that a file has for each; None where it has none.
Found = Iterator[tuple[layers.Layer, str, list[Any] | None]]


def load_features(base: keras.Model, path: Path, what: str) -> None:
    """Puts the weights of a file into a network without its last layers.

    Args:
        base: Takes all that it has; what the file has behind it is left out.
        path: A `.keras` file, a `.weights.h5` file of Keras 3, or an `.h5` file of weights or of a
            model as Keras wrote them before.
        what: The key that gave the file, for errors.

    Raises:
        ConfigError: No such file, another kind of file, or weights of another network; with the
            first layer that differs.
    """
    if not path.is_file():
        raise ConfigError(f"{what} is not a file; expected imagenet, null or {_KINDS}")
    try:
        if zipfile.is_zipfile(path):
            _assign(_of_model(base, load_keras(path, "network.weights")), what)
        elif h5py.is_hdf5(path):
            with h5py.File(path, "r") as file:
                root = _inside(file, "model_weights") if "model_weights" in file else file
                found = _of_groups if "layers" in root else _of_names
                _assign(found(base, root), what)
        else:
            raise ConfigError(f"{what} is neither a zip nor an HDF5 file; expected {_KINDS}")
    except (OSError, KeyError, ValueError, TypeError) as error:  # of a damaged file
        raise ConfigError(f"{what} can't be read: {first_line(error)}") from error


_KINDS = "a .keras, .weights.h5 or .h5 file"


def _assign(found: Found, what: str) -> None:
    for layer, name, arrays in found:
        weights = layer.weights
        wanted = [tuple(weight.shape) for weight in weights]
        if arrays is None:
            raise ConfigError(f"{what} is of another network: it has no layer for {layer.name}")
        shapes = [tuple(array.shape) for array in arrays]
        if shapes != wanted:
            raise ConfigError(
                f"{what} is of another network: its layer {name} has weights of shape "
                f"{_shapes(shapes)}, {layer.name} takes {_shapes(wanted)}; name the file's own "
                "network with network.architecture and its options"
            )
        for weight, array in zip(weights, arrays, strict=True):
            weight.assign(np.asarray(array, np.float32))
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()


def _shapes(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes) or "none"


def _leaves(model: keras.Model) -> Iterator[layers.Layer]:
    """Layers with weights, of models inside it too, in order."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _leaves(layer)
        elif layer.weights:
            yield layer


def _in_order(wanted: list[layers.Layer], names: list[str], arrays: list[list[Any]]) -> Found:
    for number, layer in enumerate(wanted):
        has = number < len(names)
        yield layer, names[number] if has else "", arrays[number] if has else None
    if names[len(wanted) :]:
        log.info("the file's last layers (%s) are left out", ", ".join(names[len(wanted) :]))


def _of_model(base: keras.Model, model: keras.Model) -> Found:
    """Of a `.keras` file."""
    theirs = list(_leaves(model))
    names = [layer.name for layer in theirs]
    return _in_order(list(_leaves(base)), names, [layer.get_weights() for layer in theirs])


def _of_names(base: keras.Model, root: Any) -> Found:
    """Of an `.h5` file that lists the names of layers and of their weights."""
    names, arrays = [], []
    for name in _listed(root, "layer_names"):
        group = _inside(root, name)
        weights = _listed(group, "weight_names")
        if weights:
            names.append(name)
            arrays.append([_inside(group, weight)[()] for weight in weights])
    return _in_order([layer for layer in base.layers if layer.weights], names, arrays)


def _of_groups(model: keras.Model, root: Any) -> Found:
    """Of a `.weights.h5` file: layers/conv2d, layers/conv2d_1 and so on, counted by class."""
    groups, seen = _inside(root, "layers"), Counter()
    for layer in model.layers:
        name = _snake_case(type(layer).__name__)
        key = f"{name}_{seen[name]}" if seen[name] else name
        seen[name] += 1
        if not layer.weights:
            continue
        if key not in groups:
            yield layer, "", None
        elif isinstance(layer, keras.Model):
            yield from _of_groups(layer, _inside(groups, key))
        else:
            place = _inside(groups, f"{key}/vars")
            arrays = [_inside(place, str(number))[()] for number in range(len(place))]
            yield layer, str(place.attrs.get("name", key)), arrays


def _snake_case(name: str) -> str:
    """Of a class, as Keras names its group: BatchNormalization becomes batch_normalization."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _listed(group: Any, name: str) -> list[str]:
    """An attribute of names; a long one lies in parts."""
    parts = [group.attrs[name]] if name in group.attrs else []
    while f"{name}{len(parts)}" in group.attrs:
        parts.append(group.attrs[f"{name}{len(parts)}"])
    return [one.decode() if isinstance(one, bytes) else str(one) for part in parts for one in part]


def _inside(group: Any, path: str) -> Any:
    """What lies in the file itself; a link may lead to another one.

    Raises:
        KeyError: It is not there.
        ValueError: It is a link.
    """
    for name in path.split("/"):
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"it lacks {path}, or has a link there")
        group = group[name]
    if isinstance(group, h5py.Dataset) and (group.external or group.is_virtual):
        raise ValueError(f"{path} lies in another file")
    return group
