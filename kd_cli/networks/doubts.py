"""What speaks against a network before it is trained or asked, a line each with what to do."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers

from kd_cli.networks.wrap import ADAPTER

# A network's own scaling of what is scaled already gives nearly one value for all pixels: 1/255 of
# 0..1 spans 0.004, and 1/127.5 of -1..1 spans 0.016; a scaling that fits spans 1 or more.
_SPAN = 0.5
# They leave the values of pixels as they are.
_PASSING = (
    layers.InputLayer,
    layers.Identity,
    layers.Concatenate,
    layers.Resizing,
    layers.CenterCrop,
    layers.Cropping2D,
    layers.ZeroPadding2D,
    layers.Reshape,
    layers.Flatten,
    layers.RandomFlip,
    layers.RandomCrop,
    layers.RandomTranslation,
    layers.RandomRotation,
    layers.RandomZoom,
)


def doubts(model: keras.Model, what: str) -> list[str]:
    """What speaks against training a network.

    Args:
        model: Behind its adapter, from `wrap.build_network`.
        what: `teacher` or `student`.
    """
    found = scaled_twice(model, f"{what}.input")
    if not model.trainable_weights:
        has = (
            f"all {len(model.weights)} of its weights are frozen" if model.weights else "no weights"
        )
        found.append(
            f"{what}: the network has nothing to train ({has}), so training changes nothing; set "
            "trainable=True where it is built"
        )
    return found


def scaled_twice(model: keras.Model, key: str) -> list[str]:
    """A line when a network that scales its pixels itself gets pixels that are scaled already.

    Args:
        model: Behind its adapter; without one nothing was scaled.
        key: Of the adapter: `student.input`.
    """
    adapter = next((layer for layer in model.layers if layer.name == ADAPTER), None)
    if adapter is None or np.all(np.asarray(adapter.scale) == 1):
        return []
    first = _first_scaling(model.layers[-1])
    if first is None:
        return []
    scale = np.asarray(adapter.scale)
    pixels = np.array([[0], [255]]) * scale + np.asarray(adapter.offset)  # [2, 1 or channels]
    ends = np.asarray(first(_small(pixels[:, None, None], first)))
    if np.max(np.abs(ends[1] - ends[0])) >= _SPAN:
        return []
    return [
        f"{key}.scale={np.max(scale):.4g}: the network begins with {type(first).__name__}, "
        f"which scales these pixels once more: all that is left is {ends.min():.4g}.."
        f"{ends.max():.4g}; type {key}.scale=1 {key}.offset=0"
    ]


def _small(pixels: np.ndarray, layer: layers.Layer) -> np.ndarray:
    """Two images of one pixel, with the channels that a layer scales one by one."""
    channels = layer.input.shape[-1] if isinstance(layer, layers.Normalization) else None
    return np.broadcast_to(pixels, (2, 1, 1, channels or pixels.shape[-1]))


def _first_scaling(layer: layers.Layer) -> layers.Layer | None:
    """The Rescaling or Normalization that a network begins with; None where there is none."""
    if isinstance(layer, layers.Rescaling | layers.Normalization):
        return layer
    for inner in layer.layers if isinstance(layer, keras.Model) else ():
        if not isinstance(inner, _PASSING):
            return _first_scaling(inner)
    return None
