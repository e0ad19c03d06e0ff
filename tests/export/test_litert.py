"""LiteRT files against NumPy: the float ones, and the arithmetic of the int8 ones."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_cli.errors import ConfigError
from kd_cli.export import graph, litert
from kd_cli.export.formats import CantConvertError

layers = keras.layers
SHAPE = (5, 5, 2)


@pytest.fixture(scope="module")
def images():
    found = np.random.default_rng(0).integers(0, 256, (70, *SHAPE)).astype(np.uint8)
    found[0].flat[:2] = 0, 255
    return found


@pytest.fixture(scope="module")
def model():
    """Convolution, ReLU and a dense layer; LiteRT rounds no weights of fewer than 1,024 numbers."""
    network = keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.Rescaling(1 / 255, -0.5),
            layers.Conv2D(64, 3),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(4),
        ]
    )
    generator = np.random.default_rng(1)
    network.set_weights([generator.normal(0, 0.1, w.shape) for w in network.get_weights()])
    return network


def forward(model, images):
    """The same network in NumPy."""
    kernel, bias, weights, last = [w.astype(np.float64) for w in model.get_weights()]
    x = images.astype(np.float64) / 255 - 0.5
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))  # [n, i, j, c, h, w]
    x = np.einsum("nijchw,hwcf->nijf", windows, kernel) + bias
    return np.maximum(x, 0).reshape(len(x), -1) @ weights + last


def exported(model, folder, precision="float32", images=None, softmax=False):
    made = graph.write(model, SHAPE, softmax, folder / "saved_model")
    path = folder / "a.tflite"
    litert.convert(made, path, precision, images)
    return litert.open_file(path)


def test_a_float_file_is_the_network(model, images, tmp_path):
    opened = exported(model, tmp_path)
    assert (opened.image.name, opened.logits.name) == ("image", "logits")
    assert (opened.image.dtype, opened.image.shape) == ("float32", (None, *SHAPE))
    assert opened.image.scale is None
    np.testing.assert_allclose(opened(images), forward(model, images), atol=2e-5)
    np.testing.assert_allclose(opened(images[:1]), forward(model, images[:1]), atol=2e-5)


def test_probabilities(model, images, tmp_path):
    opened = exported(model, tmp_path, softmax=True)
    assert opened.logits.name == "probabilities"
    powers = np.exp(forward(model, images))
    np.testing.assert_allclose(opened(images), powers / powers.sum(1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("precision", ["float16", "dynamic", "int8"])
def test_a_rounded_file_is_near_the_network(model, images, tmp_path, precision):
    opened = exported(model, tmp_path, precision, images)
    difference = np.abs(opened(images) - forward(model, images)).max()
    assert difference < {"float16": 5e-3, "dynamic": 0.1, "int8": 0.1}[precision]
    assert difference > 1e-5  # it is rounded
    assert opened.image.dtype == ("uint8" if precision == "int8" else "float32")


def test_int8_arithmetic_by_hand(images, tmp_path):
    """One dense layer: weights of a step for each class, bytes in, and a step of the output."""
    network = keras.Sequential([keras.Input(SHAPE), layers.Flatten(), layers.Dense(4)])
    generator = np.random.default_rng(2)
    network.set_weights([generator.normal(0, 1, w.shape) for w in network.get_weights()])
    opened = exported(network, tmp_path, "int8", images)
    assert (opened.image.scale, opened.image.zero_point) == (1.0, 0)
    assert opened.image.dtype == "uint8" and opened.logits.dtype == "int8"
    weights, bias = network.get_weights()
    x = images.reshape(len(images), -1).astype(np.float64)
    step = np.abs(weights).max(axis=0) / 127
    real = x @ (np.rint(weights / step) * step) + bias
    # The range of the outputs is that of the calibration images, in 255 steps.
    whole = x @ weights + bias
    np.testing.assert_allclose(opened.logits.scale, (whole.max() - whole.min()) / 255, rtol=1e-3)
    numbers = opened.run(images)
    expected = np.rint(real / opened.logits.scale) + opened.logits.zero_point
    assert np.abs(numbers - np.clip(expected, -128, 127)).max() <= 1
    assert (numbers == expected).mean() > 0.9


def inverse(x):
    return tf.linalg.inv(x[..., 0])


def needing(function):
    inputs = keras.Input(SHAPE)

    class Own(layers.Layer):
        def call(self, x):
            return function(x)

    return keras.Model(inputs, layers.Dense(4)(layers.Flatten()(Own()(inputs))))


def test_an_operation_that_litert_has_not(tmp_path):
    made = graph.write(needing(inverse), SHAPE, False, tmp_path / "saved_model")
    with pytest.raises(CantConvertError, match="no operator for MatrixInverse"):
        litert.convert(made, tmp_path / "a.tflite", "float32", None)
    assert not (tmp_path / "a.tflite").exists()


def test_a_flex_operator_is_refused(tmp_path):
    made = graph.write(needing(inverse), SHAPE, False, tmp_path / "saved_model")
    converter = tf.lite.TFLiteConverter.from_saved_model(str(made.folder))
    converter.target_spec.supported_ops = [
        tf.lite.OpsSet.TFLITE_BUILTINS,
        tf.lite.OpsSet.SELECT_TF_OPS,
    ]
    (tmp_path / "flex.tflite").write_bytes(converter.convert())
    with pytest.raises(ConfigError, match="holds the operator FlexMatrixInverse, which"):
        litert.open_file(tmp_path / "flex.tflite")


@pytest.mark.parametrize("content", [b"", b"no LiteRT file", b"\x1c\0\0\0TFL3" + bytes(40)])
def test_a_damaged_file(tmp_path, content):
    (tmp_path / "a.tflite").write_bytes(content)
    with pytest.raises(ConfigError, match="can't be read as a LiteRT file"):
        litert.open_file(tmp_path / "a.tflite")
