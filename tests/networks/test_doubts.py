"""Networks that are warned about before they are trained."""

from __future__ import annotations

import keras
import pytest
from keras import layers
from omegaconf import OmegaConf

from kd_cli.networks.doubts import doubts
from kd_cli.networks.wrap import with_adapter


def behind(
    scale: float | list[float], offset: float | list[float], *first: layers.Layer
) -> keras.Model:
    shape = (4, 4, len(scale) if isinstance(scale, list) else 1)
    network = keras.Sequential([keras.Input(shape), *first, layers.Flatten(), layers.Dense(3)])
    adapter = OmegaConf.create({"size": None, "scale": scale, "offset": offset})
    return with_adapter(network, adapter, shape, "student")


# Of 0..255 is left by the two scalings: 255/255/255, 2/127.5 around -1, (0..1 - 120) / 60.
TWICE = {
    "rescaling": ((1 / 255, 0, layers.Rescaling(1 / 255)), "Rescaling", "0..0.003922"),
    "both ways": ((1 / 127.5, -1, layers.Rescaling(1 / 127.5, -1)), "Rescaling", "-1.008..-0.9922"),
    "a number a channel": (
        ([1 / 255], [0], layers.Rescaling(1 / 255)), "Rescaling", "0..0.003922"
    ),
    "three channels": (
        ([1 / 255] * 3, [0] * 3, layers.Rescaling(1 / 255)), "Rescaling", "0..0.003922"
    ),
    "behind a flip": (
        (1 / 255, 0, layers.RandomFlip(), layers.Rescaling(1 / 255)), "Rescaling", "0..0.003922"
    ),
    "nested": (
        (1 / 255, 0, keras.Sequential([layers.Rescaling(1 / 255)])), "Rescaling", "0..0.003922"
    ),
    "normalization": (
        (1 / 255, 0, layers.Normalization(mean=120.0, variance=3600.0)),
        "Normalization",
        "-2..-1.983",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TWICE)
def test_pixels_that_are_scaled_twice(name):
    built, layer, left = TWICE[name]
    (line,) = doubts(behind(*built), "student")
    assert line.startswith("student.input.scale=0.00")
    assert f"the network begins with {layer}" in line and f"left is {left};" in line
    assert line.endswith("type student.input.scale=1 student.input.offset=0")


@pytest.mark.parametrize(
    "built",
    [
        (1, 0, layers.Rescaling(1 / 255)),
        (1 / 255, 0),
        (1 / 255, 0, layers.Rescaling(2, -1)),  # 0..1 becomes -1..1
        (1 / 255, 0, layers.Normalization(mean=0.4, variance=0.09)),
        (1 / 255, 0, layers.Conv2D(2, 1), layers.Rescaling(1 / 255)),  # not its beginning
    ],
)
def test_pixels_that_are_scaled_once(built):
    assert doubts(behind(*built), "student") == []


def test_nothing_to_train():
    frozen = behind(1 / 255, 0)
    frozen.trainable = False
    (line,) = doubts(frozen, "student")
    assert "student: the network has nothing to train (all 2 of its weights are frozen)" in line
    inputs = keras.Input((4, 4, 3))
    bare = keras.Model(inputs, layers.GlobalAveragePooling2D()(inputs))
    assert "(no weights)" in doubts(bare, "teacher")[0]
