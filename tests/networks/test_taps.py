"""Taps against those of the CIFAR distillation tables, and against a forward pass by hand."""

import keras
import numpy as np
import pytest
from omegaconf import OmegaConf

from kd_cli import networks
from kd_cli.errors import ConfigError
from kd_cli.networks.taps import Graph
from kd_cli.networks.wrap import with_adapter

INPUT = OmegaConf.create({"size": None, "scale": 1 / 255, "offset": 0.0})
CIFAR = (32, 32, 3)


def graph(network, shape=CIFAR):
    return Graph(with_adapter(network, INPUT, shape, "student"), "student")


def small(shape=(8, 8, 1)):
    keras.utils.clear_session(free_memory=False)  # its layers' names are numbered
    return networks.cnn(shape, 4, filters=[3, 5], pool=2, units=[7], dropout=0.5)


# Stages (the stem's left out) and the width of `pooled`, as the distillation tables' codes tap them
# at width 32x32.
PUBLISHED = {
    "resnet8": (
        lambda: networks.resnet(CIFAR, 10, depth=8),
        [(32, 32, 16), (16, 16, 32), (8, 8, 64)],
        64,
    ),
    "wrn_16_2": (
        lambda: networks.wide_resnet(CIFAR, 10, depth=16, width=2),
        [(32, 32, 32), (16, 16, 64), (8, 8, 128)],
        128,
    ),
    "vgg8": (
        lambda: networks.vgg(CIFAR, 10, depth=8),
        [(32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512)],
        512,
    ),
    "shufflenet_v2": (
        lambda: networks.shufflenet_v2(CIFAR, 10),
        [(16, 16, 116), (8, 8, 232), (4, 4, 464)],
        1024,
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n[0] == "s")) for n in PUBLISHED]
)
def test_stages_are_those_of_the_tables(name):
    make, stages, pooled = PUBLISHED[name]
    found = graph(make())
    assert [place.shape for place in found.stages()][-len(stages) :] == stages
    assert found.find("pooled").shape == (pooled,)
    assert found.find("head").shape == (10,)


def test_the_stages_of_a_keras_application():
    """Names of the outputs of its stages, as its authors number them."""
    network = keras.applications.ResNet50V2(
        weights=None, input_shape=(64, 64, 3), classes=5, classifier_activation=None
    )
    names = [place.path for place in graph(network, (64, 64, 3)).stages()]
    assert [name.split("/")[-1] for name in names] == [
        "conv2_block2_out", "conv3_block3_out", "conv4_block5_out", "conv5_block3_out"
    ]  # fmt: skip


def test_one_pass_gives_logits_and_taps():
    """The taps against the layers, called one by one; the weights are the network's own."""
    network = small()
    model = with_adapter(network, INPUT, (8, 8, 1), "student")
    images = np.random.default_rng(0).uniform(0, 255, (3, 8, 8, 1)).astype(np.float32)
    found = Graph(model, "student")
    logits, stage, pooled, named, first, last = found.with_taps(
        ["stage1", "pooled", "conv2d_1", "layer0", "layer-1"]
    )(images, training=False)
    x, by_hand = images / 255, {}
    for layer in network.layers[1:]:
        x = layer(x, training=False) if isinstance(layer, keras.layers.Dropout) else layer(x)
        by_hand[layer.name] = np.asarray(x)
    np.testing.assert_allclose(logits, by_hand["logits"], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(logits, last)
    np.testing.assert_allclose(first, images / 255, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(named, by_hand["conv2d_1"], rtol=1e-4, atol=1e-6)
    activations = [layer.name for layer in network.layers if isinstance(layer, keras.layers.ReLU)]
    np.testing.assert_allclose(stage, by_hand[activations[0]], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        pooled, by_hand[activations[-1]], rtol=1e-4, atol=1e-6
    )  # before the dropout
    assert found.with_taps(["pooled"]).weights[0] is model.weights[0]
    (alone,) = found.with_taps(["stage1"], logits=False)(images)
    np.testing.assert_array_equal(alone, stage)


def nested():
    """A model inside a model, twice the same layer name, and a path around a convolution."""
    block_in = keras.Input((8, 8, 4))
    x = keras.layers.Conv2D(4, 3, padding="same", name="conv")(block_in)
    x = keras.layers.Add(name="sum")([x, block_in])
    block = keras.Model(block_in, keras.layers.ReLU(name="act")(x), name="block")
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(block(x))
    return keras.Model(inputs, keras.layers.Dense(3, name="scores")(x), name="own")


def test_names_inside_nested_models():
    found = graph(nested(), (8, 8, 1))
    assert found.find("block/conv").path == "own/block/conv"
    assert found.find("own/conv").path == "own/conv"
    assert found.find("sum").path == "own/block/sum"
    assert found.find("stage1").path == "own/block/act"
    images = np.random.default_rng(0).uniform(0, 255, (3, 8, 8, 1)).astype(np.float32)
    logits, inner = found.with_taps(["block/conv"])(images)
    np.testing.assert_allclose(logits, found.model(images), rtol=1e-6)
    block = found.model.layers[-1].get_layer("block")
    outer = found.model.layers[-1].get_layer("conv")(images / 255)
    np.testing.assert_allclose(inner, block.get_layer("conv")(outer), rtol=1e-4, atol=1e-6)
    with pytest.raises(ConfigError, match="2 layers that 'conv' may mean: own/conv, own/block/co"):
        found.find("conv")


def test_a_wrong_name_lists_the_names():
    found = graph(small(), (8, 8, 1))
    with pytest.raises(ConfigError) as refused:
        found.find("stage9")
    text = str(refused.value)
    assert "\n" not in text and text.startswith(
        "the student has no layer 'stage9'; it has stage1, "
    )
    for name in ("stage2", "pooled", "head", "conv2d", "logits"):
        assert name in text
    with pytest.raises(ConfigError, match="layer99"):
        found.find("layer99")


def test_a_saved_model_has_no_taps(tmp_path):
    from kd_cli.networks.saved_model import load_saved_model

    small().export(tmp_path / "saved", verbose=False)
    with pytest.raises(ConfigError, match="the teacher is a SavedModel, which shows no layers"):
        Graph(load_saved_model(tmp_path / "saved", "teacher.checkpoint"), "teacher")


class Wrapped(keras.layers.Layer):
    """A layer with a dropout inside whose call knows nothing of `training`."""

    def __init__(self):
        super().__init__()
        self.dropout = keras.layers.Dropout(0.5, seed=1)

    def call(self, inputs):
        return self.dropout(inputs)


def test_training_reaches_the_layers_inside_layers():
    inputs = keras.Input((2, 2, 1))
    x = keras.layers.Dense(6, name="wide")(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, name="scores")(Wrapped()(x)))
    network = Graph(model, "student").with_taps(["layer-2"])
    images = np.ones((4, 2, 2, 1), np.float32)
    _, off = network(images, training=False)
    _, on = network(images, training=True)
    assert (np.asarray(off) != 0).all() and 0 < (np.asarray(on) == 0).sum() < 24
    np.testing.assert_allclose(on[on != 0], 2 * np.asarray(off)[on != 0], rtol=1e-6)


def test_a_layer_s_own_loss_is_counted_once():
    inputs = keras.Input((2, 2, 1))
    x = keras.layers.Flatten()(inputs)
    x = keras.layers.Dense(6, name="wide", activity_regularizer=keras.regularizers.L2(1.0))(x)
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    network = Graph(model, "student").with_taps(["wide"])
    images = np.ones((4, 2, 2, 1), np.float32)
    for _ in range(3):
        _, wide = network(images, training=True)
        (loss,) = model.losses
        assert float(loss) == pytest.approx(float(np.square(wide).sum() / 4), rel=1e-5)
