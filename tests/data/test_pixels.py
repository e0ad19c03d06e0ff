"""Ranges of pixels: what is certain is converted, what is doubtful told, the rest refused."""

import logging
import re

import numpy as np
import pytest

from kd_cli.data.arrays import Arrays
from kd_cli.data.dataset import load_dataset
from kd_cli.data.pixels import formed, to_bytes
from kd_cli.errors import ConfigError
from tests.data.test_dataset import node

X = np.random.default_rng(3).integers(0, 256, (12, 4, 5, 2)).astype(np.uint8)
X[0, 0, 0], X[8, 0, 0] = (0, 255), (0, 255)
Y = np.arange(12) % 3


def arrays(images: np.ndarray, test: np.ndarray | None = None, **keywords) -> Arrays:
    """Eight images for training, and the last four, or `test`, for test."""
    return Arrays((images[:8], Y[:8]), (images[8:] if test is None else test, Y[8:]), **keywords)


def pixels(found: Arrays) -> np.ndarray:
    return np.concatenate([found.train[0], found.test[0]])


BITS = (X > 128).astype(np.uint8)
HALF = (X / 255).astype(np.float16)
CERTAIN = {
    "float32 in -1..1": ((X / 127.5 - 1).astype(np.float32), X, "-1..1"),
    "slightly above 1": ((X * (1.0005 / 255)).astype(np.float32), X * 1.0005, "0 to 1.0005"),
    "float64 in 0..1": (X / 255, X, "0..1, multiplied by 255"),
    "float16 in 0..1": (HALF, HALF.astype(np.float64) * 255, "0..1"),
    "uint16": (X.astype(np.uint16) * 257, X, "uint16 pixels run from 0 to 65535, divided by 257"),
    "big-endian uint16": (X.astype(">u2") * 257, X, "divided by 257"),
    "0 and 1 as uint8": (BITS, BITS * 255.0, "0 and 1, multiplied by 255"),
    "0 and 1 as int64": (BITS.astype(np.int64), BITS * 255.0, "0 and 1"),
    "bool": (X > 128, BITS * 255.0, "true or false"),
    "bicubic 0..255": (X * 1.0 - 0.5, X - 0.5, "-0.5 to 254.5, taken as 0..255"),
    "uint8": (X, X, ""),
    "int64 in 0..255": (X.astype(np.int64), X, ""),
    "float32 in 0..255": (X.astype(np.float32), X, ""),
    "uint16 in 0..255": (X.astype(np.uint16), X, ""),
}


@pytest.mark.parametrize("name", CERTAIN)
def test_what_is_certain_is_converted_and_told(name, caplog):
    given, expected, told = CERTAIN[name]
    caplog.set_level(logging.INFO, logger="kd")
    found, doubt = to_bytes(arrays(given), "toy")
    np.testing.assert_allclose(pixels(found), expected, rtol=1e-5, atol=1e-4)
    assert doubt == ""
    assert told in caplog.text and bool(told) == ("pixels" in caplog.text)
    assert pixels(found).dtype in (np.uint8, np.float32)
    again, doubt = to_bytes(found, "toy")  # what is in range stays as it is
    np.testing.assert_array_equal(pixels(again), pixels(found))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (X.view(np.int8), "integer pixels run from -128 to 127.*scale=1 dataset.source.offset=128"),
        (X / 16, "run from 0 to 15.9375.*type dataset.source.scale=16 "),
        (X / 255 * 1.3, "run from 0 to 1.3.*scale=196.154"),
        ((X / 255 - 0.5) / 0.25, "from -2 to 2.*scale=63.75 dataset.source.offset=127.5"),
        (X.astype(np.int32) * 257, "from 0 to 65535.*scale=0.00389105"),
        (X - 123.0, "from -123 to 132"),
        (X.astype("U3"), "of type <U3; expected numbers"),
        (X.astype(np.complex64), "of type complex64; expected numbers"),
        (X.astype(object), "of type object; expected numbers"),
        (np.where(X > 250, np.nan, X), "hold NaN or infinite pixels"),
        (np.where(X > 250, np.inf, X).astype(np.float16), "hold NaN or infinite pixels"),
    ],
)
def test_what_can_not_be_known_is_refused_with_its_range(given, told):
    with pytest.raises(ConfigError, match=told) as error:
        to_bytes(arrays(given), "toy", keys=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "expected", "told"),
    [
        (X // 16, X // 16, "uint8 pixels run from 0 to 15, taken as 0..255.*scale=17 "),
        (X.astype(np.uint16) * 16, X * (16 / 257), "0 to 4080, divided by 257.*scale=0.0625"),
        (np.zeros_like(X), np.zeros_like(X), "toy: every pixel is 0"),
        (np.zeros(X.shape, bool), np.zeros_like(X), "toy: every pixel is 0"),
        (X / 255**2, X / 255, "float pixels run from 0 to 0.0039.*by 255: very dark.*scale=65025"),
    ],
)
def test_what_is_doubtful_is_told_with_its_range(given, expected, told):
    found, doubt = to_bytes(arrays(given), "toy", keys=True)
    np.testing.assert_allclose(pixels(found), expected, rtol=1e-6)
    assert re.search(told, doubt)


@pytest.mark.parametrize(
    ("train", "test", "told"),
    [
        (X / 255, X[8:] * 1.0, "train 0 to 1, test 0 to 255"),
        (X, BITS[8:], "train .* to 255, test 0 to 1"),
        (X / 127.5 - 1, X[8:] / 255, "train -1 to 1, test 0 to 1"),
    ],
)
def test_splits_of_different_ranges_are_refused(train, test, told):
    with pytest.raises(ConfigError, match=f"have different ranges .{told}"):
        to_bytes(arrays(train, test), "toy")


def test_a_scale_is_taken_as_it_is():
    values = (X / 255 - 0.5) / 0.25
    found, doubt = to_bytes(arrays(values, scale=1), "toy")
    np.testing.assert_allclose(pixels(found), values, rtol=1e-6)
    found, _ = to_bytes(arrays(X // 16, scale=17, offset=-3), "toy")  # bytes too
    np.testing.assert_allclose(pixels(found), X // 16 * 17.0 - 3)
    assert (doubt, found.scale, found.offset) == ("", 1, 0)


@pytest.mark.parametrize(
    ("given", "test", "scale", "told"),
    [
        (X, X[8:] / 255, 2.0, "train uint8, test float64.*one scale of 2"),
        (X * 1e30, None, 1e30, "hold NaN or infinite pixels"),
        (X, None, float("nan"), "scale=nan"),
        (X, None, 0.0, "scale=0"),
        (X, None, "dark", "scale=dark"),
    ],
)
def test_a_scale_that_can_not_be_right_is_refused(given, test, scale, told):
    with pytest.raises(ConfigError, match=told):
        to_bytes(arrays(given, test, scale=scale), "toy")


def test_bytes_are_not_copied():
    given = arrays(X)
    found, _ = to_bytes(given, "toy")
    assert found.train[0] is given.train[0]


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ((X.tolist(), Y), "train images are of type list; expected a NumPy array"),
        ((X, Y.tolist()), "train labels are of type list"),
        ((X, Y[:5]), r"images have shape \(12, 4, 5, 2\) and their labels \(5,\)"),
        ((X[0, :, :, 0], Y[:4]), r"shape \(4, 5\) and their labels \(4,\); expected \[N, H, W\]"),
        ((X, Y.astype(float)), "labels are float64; expected whole class numbers"),
        (X, "train must be a pair"),
        (None, "there is no train split"),
        ((np.ma.masked_array(X, X > 250), Y), r"train pixels are masked; fill them"),
    ],
)
def test_what_a_source_of_ones_own_returns_is_looked_at(train, told):
    with pytest.raises(ConfigError, match=f"toy: .*{told}"):
        formed(Arrays(train, (X, Y)), "toy")


def told() -> Arrays:
    return arrays(X, notice="three were left out")


def test_the_notice_of_a_source_of_ones_own_is_told(caplog):
    load_dataset(node({"_target_": f"{__name__}.told"}, (4, 5, 2), 3))
    assert "three were left out" in caplog.text


def thirteen_bands() -> Arrays:
    """A source of one's own: multispectral reflectances in 0..1."""
    images = np.linspace(0, 1, 12 * 3 * 3 * 13).reshape(12, 3, 3, 13)
    return arrays(images)


def grey() -> Arrays:
    return arrays(X[..., 0])


def test_a_source_of_ones_own_has_any_number_of_channels():
    module = {"_target_": f"{__name__}.thirteen_bands"}
    dataset = load_dataset(node(module, (3, 3, 13), 3))
    assert dataset.train.images.shape == (8, 3, 3, 13)
    assert (dataset.train.images.min(), dataset.test.images.max()) == (0, 255)
    flat = load_dataset(node({"_target_": f"{__name__}.grey"}, (4, 5, 1), 3))
    np.testing.assert_array_equal(flat.train.images[..., 0], X[:8, ..., 0])
