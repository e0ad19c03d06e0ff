"""Networks of keras.applications: their pixels, their weights, and what is refused."""

import sys

import keras
import numpy as np
import pytest

from kd_cli.config.check import check
from kd_cli.config.compose import compose
from kd_cli.errors import ConfigError
from kd_cli.networks.applications import _function, application
from kd_cli.runs.identity import run_dir
from kd_cli.runs.resolvers import register_resolvers

SMALL = {"architecture": "MobileNetV2", "options": {"alpha": 0.35}}
IMAGES = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
NAMES = [name for name in dir(keras.applications) if name[0].isupper()]


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_what_keras_makes_of_them(name):
    function, preprocess = _function(name)
    theirs = sys.modules[function.__module__].preprocess_input
    inputs = keras.Input((32, 32, 3))
    made = keras.Model(inputs, preprocess(inputs))
    np.testing.assert_allclose(made(IMAGES), theirs(IMAGES.copy()), rtol=1e-5, atol=1e-4)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file as Keras's users have it, and the features of its network."""
    path = tmp_path_factory.mktemp("weights") / "small.weights.h5"
    keras.utils.set_random_seed(1)
    body = keras.applications.MobileNetV2(
        (32, 32, 3), alpha=0.35, include_top=False, weights=None, pooling="avg"
    )
    for layer in body.layers:  # statistics of a trained network
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(keras.random.uniform(layer.moving_mean.shape, -0.1, 0.1))
    body.save_weights(path)
    return path, body(keras.applications.mobilenet_v2.preprocess_input(IMAGES.copy())).numpy()


def test_given_weights_give_keras_s_features_also_in_training(weights):
    path, features = weights
    model = application([32, 32, 3], 4, weights=str(path), dropout=0.0, **SMALL)
    pooled = keras.Model(model.inputs, model.layers[-1].input)
    for training in (False, True):  # BatchNormalization keeps its statistics
        found = pooled(IMAGES, training=training)
        np.testing.assert_allclose(found, features, rtol=1e-4, atol=1e-5)
    assert model.output_shape == (None, 4)
    assert len(model.trainable_weights) > 50
    frozen = application([32, 32, 3], 4, weights=str(path), frozen=True, **SMALL)
    assert [weight.shape for weight in frozen.trainable_weights] == [(1280, 4), (4,)]


MISTAKES = {
    "name": ({"architecture": "ResNet"}, "ResNet is not in keras.applications; expected one of"),
    "size": ({"architecture": "VGG16", "image_shape": [8, 8, 3]}, "at least 32x32"),
    "option": ({**SMALL, "options": {"alhpa": 1}}, "unexpected keyword argument 'alhpa'"),
    "no file": ({**SMALL, "weights": "no.h5"}, "weights=no.h5 is not a file; expected imagenet"),
    "frozen": ({**SMALL, "frozen": True}, "frozen=true keeps random weights"),
    "grey": ({**SMALL, "weights": "w.h5", "image_shape": [32, 32, 1]}, "need 3 channels"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name):
    given, said = MISTAKES[name]
    with pytest.raises(ConfigError, match=said) as refused:
        application(**{"image_shape": [32, 32, 3], "num_classes": 4, **given})
    assert "\n" not in str(refused.value)


def test_weights_of_another_network_are_one_line(weights, tmp_path):
    path, _ = weights
    with pytest.raises(ConfigError, match=r"do not fit: .*expected a file without the top") as no:
        application([32, 32, 3], 4, weights=str(path), architecture="MobileNetV2")  # alpha 1
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(ConfigError, match="do not fit"):
        application([32, 32, 3], 4, weights=str(tmp_path / "text.h5"), **SMALL)
    assert "\n" not in str(no.value)


def test_what_can_not_be_fetched_says_where_to_put_it(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    address = "https://example.org/w/mobilenet_v2_no_top.h5"

    def fail(*_, weights, **__):
        raise Exception(f"URL fetch failure on {address}: None -- no route")

    monkeypatch.setattr(keras.applications, "MobileNetV2", fail)
    with pytest.raises(ConfigError) as refused:
        application([32, 32, 3], 4, weights="imagenet", **SMALL)
    assert f"put mobilenet_v2_no_top.h5 into {tmp_path}/models (it comes from {address})" in str(
        refused.value
    )


def test_the_content_of_a_file_of_weights_is_in_the_run_id(work):
    register_resolvers()
    words = ["dataset=digits", "teacher=application", "teacher.network.weights=w.h5"]
    found = []
    for text in ("a", "b", "a"):
        (work / "w.h5").write_text(text)
        found.append(run_dir(check(compose("train-teacher", words), words)))
    assert found[0] == found[2] != found[1]


@pytest.mark.slow
def test_a_teacher_from_given_weights_trains_and_teaches(kd, work, weights):
    generator = np.random.default_rng(0)
    labels = np.arange(64) % 2
    images = generator.uniform(0, 99, (64, 32, 32, 3)) + 100 * labels[:, None, None, None]
    parts = {"x": images.astype(np.uint8), "y": labels}
    np.savez("d.npz", **{f"{k}_{p}": v for k, v in parts.items() for p in ("train", "test")})
    words = [
        "dataset=npz", "dataset.path=d.npz", "teacher=application", "student=mlp", "epochs=1",
        "teacher.network.architecture=MobileNetV2", "+teacher.network.options.alpha=0.35",
        f"teacher.network.weights={weights[0]}", "teacher.network.frozen=true",
        "teacher.training.epochs=2", "loss=[hinton,hint]", "loss.hint.pairs=[[pooled,pooled]]",
    ]  # fmt: skip
    done = kd("distill", *words)
    assert done.code == 0, done.err
    explained = kd("explain", *words)
    assert explained.code == 0 and "pooled" in explained.out
