"""The recipes' networks by their parameters, and what may not be trained on logits."""

import functools

import keras
import numpy as np
import pytest
from keras import layers
from omegaconf import DictConfig, OmegaConf

from kd_cli.config.check import check
from kd_cli.config.compose import compose
from kd_cli.errors import ConfigError
from kd_cli.networks.simple import cnn
from kd_cli.networks.wrap import build_network, check_network, dead_layers, with_adapter
from kd_cli.runs.resolvers import register_resolvers

IDENTITY = OmegaConf.create({"size": None, "scale": 1.0, "offset": 0.0})


@functools.cache
def plan(*overrides: str) -> DictConfig:
    register_resolvers()
    return check(compose("distill", list(overrides)), overrides)


@functools.cache
def built(role: str, *overrides: str) -> keras.Model:
    cfg = plan(*overrides)
    shape = tuple(cfg.dataset.image_shape)
    return build_network(cfg[role], shape, cfg.dataset.num_classes, "float32", role)


def inner(model: keras.Model) -> list[layers.Layer]:
    """The layers of the network behind the adapter."""
    return model.layers[-1].layers


def conv(inputs: int, outputs: int) -> int:
    return 3 * 3 * inputs * outputs + outputs


def dense(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def norm(width: int) -> int:
    return 4 * width


# Role, overrides, parameters by hand and typed in. A stride of 2 halves the side, `valid` takes 2.
BN_TEACHER = conv(3, 64) + norm(64) + conv(64, 32) + norm(32) + conv(32, 16) + norm(16)
RECIPES = [
    (
        "teacher",
        ["experiment=cifar10_bn_cnn"],
        BN_TEACHER + dense(26 * 26 * 16, 16) + dense(16, 10),
        198_570,
    ),
    (
        "student",
        ["experiment=cifar10_bn_cnn"],
        conv(3, 64) + norm(64) + dense(30 * 30 * 64, 16) + dense(16, 10),
        923_834,
    ),
    (
        "teacher",
        ["experiment=cifar10_bn_cnn_mended"],
        BN_TEACHER + dense(26 * 26 * 16, 16) + norm(16) + dense(16, 10),
        198_634,
    ),
    (
        "student",
        ["experiment=cifar10_bn_cnn_mended"],
        conv(3, 64) + norm(64) + dense(30 * 30 * 64, 16) + norm(16) + dense(16, 10),
        923_898,
    ),
    (
        "teacher",
        ["experiment=cifar10_cnn", "teacher=cifar10_cnn_v1"],
        conv(3, 256) + conv(256, 512) + dense(8 * 8 * 512, 10),
        1_515_018,
    ),
    (
        "teacher",
        ["experiment=cifar10_cnn", "teacher=cifar10_cnn_v2"],
        conv(3, 256) + conv(256, 256) + conv(256, 512) + dense(4 * 4 * 512, 128) + dense(128, 10),
        2_827_402,
    ),
    (
        "teacher",
        ["experiment=cifar10_cnn"],
        conv(3, 256) + conv(256, 256) + conv(256, 512) + dense(4 * 4 * 512, 128) + dense(128, 10),
        2_827_402,
    ),
    (
        "student",
        ["experiment=cifar10_cnn"],
        conv(3, 32) + conv(32, 32) + dense(8 * 8 * 32, 16) + dense(16, 10),
        43_098,
    ),
    (
        "teacher",
        ["experiment=mnist_cnn"],
        conv(1, 256) + conv(256, 512) + dense(7 * 7 * 512, 10),
        1_433_610,
    ),
    (
        "student",
        ["experiment=mnist_cnn"],
        conv(1, 16) + conv(16, 32) + dense(7 * 7 * 32, 10),
        20_490,
    ),
    (
        "teacher",
        ["experiment=fashion_mnist_mlp"],
        dense(784, 512) + dense(512, 256) + dense(256, 128) + dense(128, 10),
        567_434,
    ),
    (
        "student",
        ["experiment=fashion_mnist_mlp"],
        dense(784, 128) + dense(128, 10),
        101_770,
    ),
]


@pytest.mark.parametrize(
    ("role", "overrides", "by_hand", "typed"),
    RECIPES,
    ids=[
        f"{role}-{'-'.join(o.split('=')[1] for o in overrides)}" for role, overrides, *_ in RECIPES
    ],
)
def test_parameters_of_a_recipe_network(role, overrides, by_hand, typed):
    model = built(role, *overrides)
    assert by_hand == typed
    assert model.count_params() == typed
    assert model.output_shape == (None, 10)
    assert model.input_shape == (None, *plan(*overrides).dataset.image_shape)


BLOCK = ["Conv2D", "LeakyReLU", "MaxPooling2D"]


@pytest.mark.parametrize(
    ("role", "experiment", "expected"),
    [
        ("student", "mnist_cnn", [*BLOCK, "Conv2D", "Flatten", "Dense"]),
        (
            "student",
            "cifar10_cnn",
            [*BLOCK, *BLOCK, "Dropout", "Flatten", "Dense", "ReLU", "Dropout", "Dense"],
        ),
        (
            "student",
            "cifar10_bn_cnn",
            ["Conv2D", "BatchNormalization", "ReLU", "Flatten", "Dense", "ReLU", "Dense"],
        ),
        (
            "student",
            "cifar10_bn_cnn_mended",
            [
                *("Conv2D", "BatchNormalization", "ReLU", "Flatten"),
                *("Dense", "BatchNormalization", "ReLU", "Dense"),
            ],
        ),
        (
            "teacher",
            "fashion_mnist_mlp",
            ["Flatten", "Dense", "ReLU", "Dense", "ReLU", "Dense", "ReLU", "Dense"],
        ),
    ],
)
def test_order_of_the_layers(role, experiment, expected):
    model = built(role, f"experiment={experiment}")
    assert [type(layer).__name__ for layer in inner(model)[1:]] == expected


@pytest.mark.parametrize(
    ("role", "overrides", "rates"),
    [
        ("teacher", ["experiment=cifar10_cnn", "teacher=cifar10_cnn_v2"], []),
        ("teacher", ["experiment=cifar10_cnn"], [0.2, 0.3, 0.4, 0.5]),
        ("student", ["experiment=cifar10_cnn"], [0.2, 0.5]),
    ],
)
def test_dropout_rates_of_cifar10_cnn(role, overrides, rates):
    model = built(role, *overrides)
    assert [x.rate for x in inner(model) if isinstance(x, layers.Dropout)] == rates


def test_leaky_relu_has_the_slope_of_the_recipes():
    model = built("student", "experiment=mnist_cnn")
    assert [x.negative_slope for x in inner(model) if isinstance(x, layers.LeakyReLU)] == [0.2]


def test_max_pooling_of_the_recipes_overlaps():
    model = built("student", "experiment=mnist_cnn")
    pool = next(x for x in inner(model) if isinstance(x, layers.MaxPooling2D))
    assert (pool.pool_size, pool.strides, pool.padding) == ((2, 2), (1, 1), "same")


def head(*last: layers.Layer, outputs: int = 3) -> keras.Model:
    """A dense classifier of 2x2 images with `last` layers at its end."""
    model = keras.Sequential([keras.Input((2, 2, 1)), layers.Flatten(), layers.Dense(outputs)])
    for layer in last:
        model.add(layer)
    return model


def functional(end) -> keras.Model:
    """The same with a function of the logits at its end."""
    inputs = keras.Input((2, 2, 1))
    return keras.Model(inputs, end(layers.Dense(3)(layers.Flatten()(inputs))))


def hidden_softmax(image_shape: list[int]) -> keras.Model:
    """A user's network, reached through `_target_`."""
    inputs = keras.Input(image_shape)
    return keras.Model(inputs, keras.ops.softmax(layers.Dense(3)(layers.Flatten()(inputs))))


def test_logits_are_accepted():
    check_network(head(), 3, "student")


def test_logits_of_any_image_size_are_accepted():
    inputs = keras.Input((None, None, 1))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(2, 3)(inputs))
    check_network(keras.Model(inputs, layers.Dense(3)(x)), 3, "student")


@pytest.mark.parametrize(
    "network",
    [
        lambda: head(layers.Dense(3, activation="softmax")),
        lambda: head(layers.Softmax()),
        lambda: head(layers.Activation("softmax")),
        lambda: functional(keras.ops.softmax),
        lambda: functional(lambda x: layers.Dropout(0.1)(layers.Softmax()(x))),
        lambda: functional(lambda x: keras.Sequential([layers.Softmax()])(x)),
    ],
    ids=["dense", "layer", "activation", "operation", "before-dropout", "nested"],
)
def test_a_softmax_at_the_end_is_refused(network):
    with pytest.raises(ConfigError, match="student: the network ends in a softmax.* logits"):
        check_network(network(), 3, "student")


@pytest.mark.parametrize(
    ("outputs", "refused"),
    [
        ([0.1, 0.2, 0.7], True),
        ([0.0, 0.0, 1.0], True),
        ([0.1, 0.2, 0.704], True),  # as bfloat16 rounds
        ([0.1, 0.2, 0.6], False),
        ([-0.1, 0.2, 0.9], False),
        ([1.2, -0.3, 0.1], False),
    ],
)
def test_probabilities_that_no_layer_tells(outputs, refused):
    network = functional(lambda logits: 0 * logits + np.array(outputs, np.float32))
    if refused:
        with pytest.raises(ConfigError, match="student: the network ends in a softmax"):
            check_network(network, 3, "student")
    else:
        check_network(network, 3, "student")


@pytest.mark.parametrize("seed", range(3))
def test_logits_that_sum_to_one_on_some_images_are_accepted(seed):
    """Two logits x and 1 - x lie in 0..1 on a black image, and elsewhere not."""
    inputs = keras.Input((2, 2, 1))
    brightness = keras.ops.mean(inputs, axis=(1, 2, 3))[:, None] * (0.001 + 0.01 * seed)
    check_network(
        keras.Model(inputs, keras.ops.concatenate([brightness, 1 + brightness], axis=1)), 2, "t"
    )


@pytest.mark.parametrize(
    "last", [layers.Dense(3, activation="sigmoid"), layers.Activation("sigmoid")]
)
def test_a_sigmoid_at_the_end_is_refused(last):
    with pytest.raises(ConfigError, match="ends in a sigmoid"):
        check_network(head(last), 3, "student")


def test_another_number_of_outputs_is_refused():
    with pytest.raises(ConfigError, match="has 4 outputs, the dataset has 3 classes"):
        check_network(head(outputs=4), 3, "teacher")


def test_two_outputs_are_refused():
    inputs = keras.Input((2, 2, 1))
    x = layers.Flatten()(inputs)
    network = keras.Model(inputs, [layers.Dense(3)(x), layers.Dense(3)(x)])
    with pytest.raises(ConfigError, match="expected one output of shape"):
        check_network(network, 3, "teacher")


def test_a_map_of_logits_is_refused():
    inputs = keras.Input((2, 2, 1))
    with pytest.raises(ConfigError, match="expected one output of shape"):
        check_network(keras.Model(inputs, layers.Conv2D(3, 1)(inputs)), 3, "teacher")


def test_what_is_no_model_is_refused():
    with pytest.raises(ConfigError, match="expected a keras.Model, received Dense"):
        check_network(layers.Dense(3), 3, "teacher")


def test_a_users_softmax_is_refused_and_the_dtype_policy_put_back():
    node = OmegaConf.create(
        {
            "input": IDENTITY,
            "network": {"_target_": f"{__name__}.hidden_softmax", "image_shape": [2, 2, 1]},
        }
    )
    with pytest.raises(ConfigError, match="ends in a softmax"):
        build_network(node, (2, 2, 1), 3, "mixed_bfloat16", "student")
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize("shape", [(3, 2, 1), (2, 2, 3)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ConfigError, match=r"takes images of shape \[2, 2, 1\].*get \[\d, 2, \d\]"):
        with_adapter(head(), IDENTITY, shape, "student")


def test_a_network_of_flat_inputs_is_refused():
    network = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    with pytest.raises(ConfigError, match=r"takes images of shape \[4\]"):
        with_adapter(network, IDENTITY, (4, 4, 1), "student")


@pytest.mark.parametrize("key", ["activation", "pool", "block_dropout"])
def test_a_list_of_another_length_than_the_blocks_is_refused(key):
    with pytest.raises(ConfigError, match=rf"{key}=\[.*\] has 1 entries for 2 blocks"):
        cnn([8, 8, 1], 3, filters=[2, 2], **{key: [None]})


def test_a_list_of_another_length_is_told_through_the_yaml():
    with pytest.raises(ConfigError, match=r"pool=\[2\] has 1 entries for 2 blocks"):
        built("student", "student=cnn_small", "student.network.pool=[2]")


def identity(side: int) -> keras.Model:
    return keras.Sequential([keras.Input((side, side, 1)), layers.Flatten()])


def test_the_adapter_scales_and_shifts():
    adapter = OmegaConf.create({"size": None, "scale": 2 / 255, "offset": -1.0})
    model = with_adapter(identity(2), adapter, (2, 2, 1), "student")
    outputs = model(np.array([0, 51, 127.5, 255], "float32").reshape(1, 2, 2, 1))
    np.testing.assert_allclose(outputs, [[-1, -0.6, 0, 1]], atol=1e-6)


def test_the_adapter_resizes():
    adapter = OmegaConf.create({"size": 2, "scale": 1.0, "offset": 0.0})
    model = with_adapter(identity(2), adapter, (4, 4, 1), "student")
    # Bilinear at half the size: the means of the four 2x2 squares of 0..15.
    outputs = model(np.arange(16, dtype="float32").reshape(1, 4, 4, 1))
    np.testing.assert_allclose(outputs, [[2.5, 4.5, 10.5, 12.5]], atol=1e-6)


def test_images_of_the_adapters_size_are_not_resized():
    adapter = OmegaConf.create({"size": 2, "scale": 1.0, "offset": 0.0})
    model = with_adapter(identity(2), adapter, (2, 2, 1), "student")
    assert not [layer for layer in model.layers if isinstance(layer, layers.Resizing)]


def test_input_size_reaches_the_network_through_the_yaml():
    model = built("student", "student.input.size=4")
    assert model.input_shape == (None, 8, 8, 1)
    assert model.layers[-1].input_shape == (None, 4, 4, 1)
    assert model.count_params() == dense(16, 16) + dense(16, 10)


def test_pixels_reach_the_networks_of_the_recipes_as_0_to_1():
    model = built("student", "experiment=mnist_cnn")
    adapter = keras.Model(model.input, model.layers[-2].output)
    pixels = np.full((1, 28, 28, 1), 255, "float32")
    np.testing.assert_allclose(adapter(pixels), pixels / 255, rtol=1e-6)


def test_a_mixed_network_has_float32_logits():
    cfg = plan()
    model = build_network(cfg.student, (8, 8, 1), 10, "mixed_bfloat16", "student")
    assert [x.compute_dtype for x in inner(model) if isinstance(x, layers.Dense)] == [
        "bfloat16",
        "float32",
    ]
    assert model(np.zeros((1, 8, 8, 1), "float32")).dtype == "float32"
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    assert keras.config.dtype_policy().name == "float32"


def relu_pair(activation_layer: bool) -> tuple[keras.Model, list[layers.Layer], list[str]]:
    """A model of two hidden ReLU layers of 4 and 5 units, its dense layers, its ReLUs' names."""
    inputs = keras.Input((2, 2, 1))
    x = layers.Flatten()(inputs)
    hidden, names = [], []
    for width in (4, 5):
        dense_layer = layers.Dense(width, activation=None if activation_layer else "relu")
        x = dense_layer(x)
        relu = layers.ReLU() if activation_layer else dense_layer
        x = relu(x) if activation_layer else x
        hidden.append(dense_layer)
        names.append(relu.name)
    network = keras.Model(inputs, layers.Dense(3)(x))
    for layer in hidden:
        layer.kernel.assign(np.full(layer.kernel.shape, 0.1))
    return with_adapter(network, IDENTITY, (2, 2, 1), "student"), hidden, names


IMAGES = np.random.default_rng(0).uniform(1, 255, (6, 2, 2, 1)).astype("float32")


def test_living_layers_are_not_called_dead():
    model, _, _ = relu_pair(True)
    assert dead_layers(model, IMAGES) == {}


@pytest.mark.parametrize("activation_layer", [True, False])
def test_a_dead_layer_is_found(activation_layer):
    model, hidden, names = relu_pair(activation_layer)
    hidden[1].bias.assign(np.full(5, -1e6))
    assert dead_layers(model, IMAGES) == {names[1]: 5}


def test_one_living_unit_keeps_a_layer_alive():
    model, hidden, _ = relu_pair(True)
    hidden[1].bias.assign([-1e6, -1e6, -1e6, -1e6, 0])
    assert dead_layers(model, IMAGES) == {}


def test_dead_layers_look_through_the_adapter():
    # Alive on raw pixels, dead on pixels / 255: the sum of four tenths of them is below 0.4.
    model, hidden, names = relu_pair(True)
    hidden[0].bias.assign(np.full(4, -0.5))
    hidden[1].bias.assign(np.full(5, 1.0))
    assert dead_layers(model, IMAGES) == {}
    adapter = OmegaConf.create({"size": None, "scale": 1 / 255, "offset": 0.0})
    scaled = with_adapter(model.layers[-1], adapter, (2, 2, 1), "student")
    assert dead_layers(scaled, IMAGES) == {names[0]: 4}
