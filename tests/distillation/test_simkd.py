"""SimKD against its authors' code (PyTorch, in float64), closed forms and NumPy."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kd_cli.distillation.objective import of_plan
from kd_cli.distillation.simkd import SimKD
from kd_cli.errors import ConfigError
from kd_cli.networks.residual import resnet, resnet9
from kd_cli.networks.reused_head import with_reused_head
from kd_cli.networks.simple import cnn, mlp
from kd_cli.networks.taps import Graph

VALUES = dict(np.load(Path(__file__).with_name("simkd_values.npz")))
MAPS = [["map", "map"]]


def images_last(name):
    return tf.constant(np.moveaxis(VALUES[name], 1, -1), tf.float32)


def network(side, channels, classes=10, *, pooling=layers.GlobalAveragePooling2D, tail=()):
    """The identity as a convolution, so that the input is the last map; pooling, a dense layer."""
    inputs = keras.Input((side, side, channels))
    x = layers.Conv2D(channels, 1, use_bias=False)(inputs)
    x = layers.Dense(classes, name="logits")(pooling()(x))
    for layer in tail:
        x = layer(x)
    model = keras.Model(inputs, x)
    model.layers[1].set_weights([np.eye(channels)[None, None]])
    return model


@pytest.fixture
def authors():
    """A student that the method has rebuilt, with the authors' weights."""
    teacher = network(2, 24)
    head = [VALUES["in/teacher_head_kernel_torch"].T, VALUES["in/teacher_head_bias"]]
    teacher.get_layer("logits").set_weights(head)
    made = SimKD(pairs=MAPS).deploy(network(2, 12), teacher)
    for number, place in enumerate((0, 3, 6), start=1):
        kernel = VALUES[f"simkd/w/transfer.{place}.weight"].transpose(2, 3, 1, 0)
        made.get_layer(f"simkd_conv{number}").set_weights([kernel])
        norm = made.get_layer(f"simkd_norm{number}")
        scale = [VALUES[f"simkd/w/transfer.{place + 1}.{n}"] for n in ("weight", "bias")]
        norm.set_weights([*scale, *norm.get_weights()[2:]])
    return made


def test_value_logits_and_gradients_are_the_authors(authors):
    fs = tf.nn.relu(images_last("in/fs2_raw"))
    ft = tf.nn.relu(images_last("in/ft2_raw"))
    weights = {}
    for number, place in enumerate((0, 3, 6), start=1):
        (kernel,) = authors.get_layer(f"simkd_conv{number}").trainable_weights
        gamma, beta = authors.get_layer(f"simkd_norm{number}").trainable_weights
        weights |= {f"{place}.weight": kernel, f"{place + 1}.weight": gamma,
                    f"{place + 1}.bias": beta}  # fmt: skip
    tapped = Graph(authors, "student").with_taps(["map"])
    with tf.GradientTape() as tape:
        tape.watch(fs)
        logits, made = tapped(fs, training=True)
        features = ({"features": {"map": one}} for one in (made, ft))
        terms = SimKD(pairs=MAPS).call(None, *features)
        loss = tf.reduce_mean(terms["simkd"])
    assert terms["simkd"].shape == (16,)
    assert float(loss) == pytest.approx(float(VALUES["simkd/factor2"]), rel=1e-5)
    np.testing.assert_allclose(logits, VALUES["simkd/factor2/logits"], rtol=1e-4, atol=1e-5)
    by_input, by_weights = tape.gradient(loss, (fs, weights))

    def close(found, expected):
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=atol)

    close(by_input, np.moveaxis(VALUES["simkd/factor2/d_fs2"], 1, -1))
    assert len(by_weights) == 9
    for name, found in by_weights.items():
        expected = VALUES[f"simkd/factor2/d_w_transfer.{name}"]
        close(found, expected.transpose(2, 3, 1, 0) if expected.ndim == 4 else expected)


def test_the_head_is_the_teachers_and_is_not_trained(authors):
    head = authors.get_layer("teacher_logits")
    kernel, _ = head.get_weights()
    np.testing.assert_allclose(kernel, VALUES["in/teacher_head_kernel_torch"].T, rtol=1e-6)
    assert not head.trainable_weights
    assert len(authors.trainable_weights) == 1 + 9  # of the body and the projector


@pytest.mark.parametrize(("factor", "inner"), [(1, 64), (2, 32), (4, 16)])
def test_parameters_by_hand(factor, inner):
    student = resnet([32, 32, 3], 10, depth=8, stem=16, widths=[16, 32, 64])
    teacher = resnet([32, 32, 3], 10, depth=20, stem=16, widths=[16, 32, 64])
    head = 64 * 10 + 10
    projector = 64 * inner + 9 * inner * inner + inner * 64 + 4 * (inner + inner + 64)
    made, parts = with_reused_head(student, teacher, factor)
    assert parts == {
        "configured": student.count_params(),
        "body": student.count_params() - head,
        "projector": projector,
        "head": head,
    }
    assert made.count_params() == student.count_params() + projector


def test_a_file_holds_it_without_code_of_ours(tmp_path):
    student = cnn([8, 8, 1], 10, filters=[3, 5], pool=2, units=[7])
    teacher = resnet9([8, 8, 1], 10, width=4)  # largest value of each channel, scores / 8
    teacher.set_weights([np.random.default_rng(0).normal(size=w.shape) for w in teacher.weights])
    made, _ = with_reused_head(student, teacher, 2)
    pixels = np.random.default_rng(1).normal(size=(3, 8, 8, 1)).astype(np.float32)
    found, last = Graph(made, "student").with_taps(["map"])(pixels)
    kernel = teacher.get_layer("scores").get_weights()[0]
    np.testing.assert_allclose(found, np.max(last, (1, 2)) @ kernel / 8, rtol=1e-4, atol=1e-5)
    made.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", custom_objects={})
    assert all(type(layer).__module__.startswith("keras.") for layer in again.layers)
    np.testing.assert_array_equal(again(pixels), made(pixels))


def test_a_finer_student_is_averaged_down_and_a_coarser_one_averages_the_teacher():
    pixels = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    made, _ = with_reused_head(network(4, 3), network(2, 6), 2)
    body = keras.Model(made.inputs[0], made.get_layer("simkd_pool").output)
    blocks = pixels.reshape(2, 2, 2, 2, 2, 3).mean((2, 4))
    np.testing.assert_allclose(body(pixels), blocks, rtol=1e-5, atol=1e-6)
    made, _ = with_reused_head(network(2, 3), network(4, 6), 2)
    assert Graph(made, "student").find("map").shape == (2, 2, 6)
    ours = np.random.default_rng(1).normal(size=(2, 2, 2, 3)).astype(np.float32)
    sides = ({"features": {"map": tf.constant(one)}} for one in (ours, pixels))
    (value,) = SimKD(pairs=MAPS).call(None, *sides).values()
    np.testing.assert_allclose(value, ((ours - blocks) ** 2).mean((1, 2, 3)), rtol=1e-5)


def without_map():
    inputs = keras.Input((2, 2, 3))
    return keras.Model(inputs, layers.Dense(10)(layers.Flatten()(inputs)))


def any_size():
    inputs = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 1)(inputs))
    return keras.Model(inputs, layers.Dense(10)(x))


def with_lambda():
    inputs = keras.Input((2, 2, 3))
    x = layers.Conv2D(4, 1)(layers.Lambda(lambda t: 2 * t, name="twice")(inputs))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


REFUSED = {
    "an mlp as student": (
        lambda: mlp([2, 2, 3], 10, units=[4]), lambda: network(2, 6), "the student has no 'map'"
    ),
    "no map": (lambda: network(2, 3), without_map, "the teacher has no 'map'"),
    "flattened": (
        lambda: network(2, 3),
        lambda: cnn([4, 4, 3], 10, filters=[4], pool=2),
        "not global pooling and one dense layer alone (it has flatten",
    ),
    "two dense layers": (
        lambda: network(2, 3),
        lambda: network(2, 6, 4, tail=[layers.Dense(10, name="second")]),
        "one dense layer alone (it has second)",
    ),
    "an activation": (
        lambda: network(2, 3),
        lambda: network(2, 6, tail=[layers.Activation("tanh", name="bent")]),
        "one dense layer alone (it has bent)",
    ),
    "sides": (
        lambda: network(3, 3), lambda: network(2, 6), "last map is 3x3 and the teacher's 2x2: one"
    ),
    "a lambda": (with_lambda, lambda: network(2, 6), "the student has a Lambda layer (twice)"),
    "any size": (any_size, lambda: network(2, 6), "the size of the student's last map is not kn"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_networks_that_do_not_fit_are_refused(name):
    student, teacher, said = REFUSED[name]
    with pytest.raises(ConfigError) as error:
        SimKD(pairs=MAPS).deploy(student(), teacher())
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"factor": 0}, "factor=0 must be a whole number, at least 1"),
        ({"factor": 1.5}, "factor=1.5 must be a whole number"),
        ({"pairs": [["stage1", "map"]]}, "pairs must be"),
    ],
)
def test_options_that_can_not_be(keys, said):
    with pytest.raises(ConfigError, match=said.replace("[", r"\[")):
        SimKD(**{"pairs": MAPS, **keys})


def test_a_factor_above_the_width_and_two_rebuilding_losses_are_refused():
    with pytest.raises(ConfigError, match="factor=7 is more than the 6 channels"):
        SimKD(pairs=MAPS, factor=7).deploy(network(2, 3), network(2, 6))
    node = {"_target_": "kd_cli.distillation.SimKD", "pairs": MAPS}
    twice = of_plan({"simkd": node, "other": node})
    with pytest.raises(ConfigError, match="simkd and other each change what the student is"):
        twice.deploy(network(2, 3), network(2, 6))
