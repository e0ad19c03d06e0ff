"""Teachers that give probabilities, or one output, become networks on logits; by NumPy."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from kd_cli.errors import ConfigError
from kd_cli.networks.keras_file import weights_hash
from kd_cli.networks.logits import FLOOR, LogProbabilities, as_logits
from kd_cli.networks.wrap import check_network, with_precision

IMAGES = np.random.default_rng(1).uniform(0, 255, (5, 2, 3, 1)).astype(np.float32)


def network(*after) -> keras.Model:
    """Pixels / 255, and then the layers or operations given."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((2, 3, 1))
    x = layers.Rescaling(1 / 255)(layers.Flatten()(inputs))
    for part in after:
        x = part(x)
    return keras.Model(inputs, x)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


EXACT = {
    "activation": lambda: network(layers.Dense(3, activation="softmax")),
    "layer": lambda: network(layers.Dense(3), layers.Softmax()),
    "activation layer": lambda: network(layers.Dense(3), layers.Activation("softmax")),
    "nested": lambda: network(keras.Sequential([layers.Dense(3), layers.Softmax()])),
}
BY_LOGARITHM = {
    "operation": lambda: network(layers.Dense(3), keras.ops.softmax),
    "behind it": lambda: network(layers.Dense(3), layers.Softmax(), layers.Dropout(0.5)),
    "twice": lambda: network(*[layers.Dense(3), *[layers.Softmax()] * 2]),
}


@pytest.mark.parametrize("name", [*EXACT, *BY_LOGARITHM])
def test_the_probabilities_are_those_of_before(name):
    model = (EXACT | BY_LOGARITHM)[name]()
    teacher, done = as_logits(model, 3, "t")
    assert done.startswith("its softmax is taken off" if name in EXACT else "it ends in a softmax")
    logits, expected = np.asarray(teacher(IMAGES)), np.asarray(model(IMAGES))
    np.testing.assert_allclose(softmax(logits), expected, atol=1e-6)
    check_network(teacher, 3, "t")
    assert weights_hash(teacher) == weights_hash(model)
    assert np.isfinite(np.asarray(with_precision(teacher, "mixed_bfloat16")(IMAGES))).all()


def test_a_softmax_that_is_taken_off_gives_the_very_logits():
    """Also where its probabilities are 0 and 1 in float32."""
    dense = layers.Dense(3, activation="softmax")
    model = network(dense)
    kernel, bias = np.eye(6, 3) * 500, np.array([1.0, 2.0, 3.0])
    dense.set_weights([kernel, bias])
    teacher, _ = as_logits(model, 3, "t")
    expected = IMAGES.reshape(5, 6) / 255 @ kernel + bias
    np.testing.assert_allclose(teacher(IMAGES), expected, rtol=1e-5)


def test_log_probabilities_have_a_floor():
    p = np.array([[0.25, 0.75, 0.0], [1.0, 1e-40, 1e-30]], np.float32)
    logits = np.asarray(LogProbabilities()(p))
    np.testing.assert_allclose(logits, np.log(np.maximum(p, FLOOR)), rtol=1e-6)
    np.testing.assert_allclose(softmax(logits), p, atol=1e-7)
    assert logits.min() == pytest.approx(-87.34, abs=0.01)


@pytest.mark.parametrize("last", [None, "log_softmax"])
def test_logits_stay_as_they_are(last):
    model = network(layers.Dense(3, activation=last))
    assert as_logits(model, 3, "t") == (model, "")


def test_log_of_a_softmax_is_on_logits_already():
    model = network(layers.Dense(3, activation="softmax"), keras.ops.log)
    assert as_logits(model, 3, "t") == (model, "")


def test_a_sigmoid_of_several_classes_is_refused():
    with pytest.raises(ConfigError, match="t: the network ends in a sigmoid, kd needs logits"):
        as_logits(network(layers.Dense(3, activation="sigmoid")), 3, "t")


ONE = {
    "logit": [layers.Dense(1)],
    "sigmoid": [layers.Dense(1, activation="sigmoid")],
    "sigmoid layer": [layers.Dense(1), layers.Activation("sigmoid")],
}


@pytest.mark.parametrize("name", ONE)
def test_one_output_decides_between_two_classes(name):
    model = network(*ONE[name])
    teacher, done = as_logits(model, 2, "t")
    assert "its one output z gives the logits [0, z] of the two classes" in done
    assert ("sigmoid is taken off" in done) == (name != "logit")
    given, logits = np.asarray(model(IMAGES))[:, 0], np.asarray(teacher(IMAGES))
    one = given if name != "logit" else 1 / (1 + np.exp(-given))
    np.testing.assert_allclose(softmax(logits), np.stack([1 - one, one], axis=1), atol=1e-6)
    assert (logits[:, 0] == 0).all()
    check_network(teacher, 2, "t")
    with pytest.raises(ConfigError, match="has 1 outputs, the dataset has 3 classes"):
        as_logits(model, 3, "t")


def test_one_output_that_may_be_a_probability_is_refused():
    with pytest.raises(ConfigError, match="between 0 and 1 on all images tried: a probability"):
        as_logits(network(layers.Dense(1), keras.ops.sigmoid), 2, "t")
