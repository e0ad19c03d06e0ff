"""Losses that are added up: weights, ramps, names; taps and weights of their own in a step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_cli.data.dataset import Split
from kd_cli.distillation import losses
from kd_cli.distillation.interface import requires
from kd_cli.distillation.objective import Objective, Part, Ramp, of_plan
from kd_cli.distillation.teacher_features import Features, Wanted, unpacked
from kd_cli.networks.taps import Graph
from kd_cli.training.step import Engine, Learner

RNG = np.random.default_rng(3)
IMAGES = RNG.integers(0, 256, (10, 2, 2, 1)).astype(np.uint8)
LABELS = RNG.integers(0, 3, 10)
SPLIT = Split(IMAGES, LABELS, np.arange(10))
TEACHER = RNG.normal(0, 2, (10, 3)).astype(np.float32)
HINTON = {"alpha": 0.3, "temperature": 2.0, "t_squared": True}
PACKAGE = "kd_cli.distillation"


def network(width=4, seed=1):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((2, 2, 1))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.Dense(width, activation="tanh", name="hidden")(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="scores")(x))


def node(name, weight=1.0, **keys):
    return {"_target_": f"{PACKAGE}.{name}", "_partial_": True, "weight": weight, **keys}


def test_terms_are_weighted_and_named_by_their_losses():
    student, teacher = ({"logits": tf.constant(RNG.normal(size=(4, 3)), tf.float32)} for _ in "st")
    labels = tf.constant([0, 1, 2, 0], tf.int64)
    made = of_plan({"kd": node("hinton", 0.5, **HINTON), "ce": node("cross_entropy", 3.0)})
    found = made(labels, student, teacher)
    assert list(found) == ["kd.hard", "kd.soft", "ce"]
    alone = losses.hinton(labels, student, teacher, **HINTON)
    np.testing.assert_allclose(found["kd.soft"], 0.5 * alone["soft"], rtol=1e-6)
    hard = losses.cross_entropy(labels, student, None)["hard"]
    np.testing.assert_allclose(found["ce"], 3 * hard, rtol=1e-6)
    assert list(of_plan({"kd": node("hinton", **HINTON)})(labels, student, teacher)) == [
        "hard", "soft"
    ]  # fmt: skip


def test_the_same_loss_twice_under_two_names():
    one = {"logits": tf.zeros([2, 3])}
    matching = {"temperature": 1.0, "t_squared": False}
    made = of_plan(
        {
            "a": node("function_matching", 2.0, **matching),
            "b": node("function_matching", 5.0, **{**matching, "temperature": 3.0}),
        }
    )
    other = {"logits": tf.constant([[1.0, 0, 0], [0, 2, 0]])}
    found = made(None, one, other)
    assert list(found) == ["a", "b"]
    ratio = found["a"] / (2 * losses.function_matching(None, one, other, **matching)["soft"])
    np.testing.assert_allclose(ratio, 1, rtol=1e-6)


def test_a_ramp_is_a_straight_line_and_then_stands():
    ramp = {"start": 1.0, "stop": 5.0, "epochs": 2}
    part = of_plan({"ce": node("cross_entropy", ramp)}, steps_per_epoch=4).parts[0]
    steps = [0, 2, 4, 8, 100]
    expected = [1.0, 2.0, 3.0, 5.0, 5.0]
    assert [float(part.factor(tf.constant(step))) for step in steps] == expected
    assert float(part.factor(None)) == 5.0


def test_a_ramp_in_the_engine_follows_the_steps_of_the_whole_training():
    """With SGD of rate 0 the sums of an epoch are sums of weight times loss, step by step."""
    model = network()
    ramp = Ramp(0.0, 6.0, 6)
    part = Part("ce", f"{PACKAGE}.cross_entropy", losses.cross_entropy, {}, ramp)
    learner = Learner(model, keras.optimizers.SGD(0.1), Objective([part]), lambda step: 0.0)
    engine = Engine([learner], SPLIT, 5, 0)  # 2 steps an epoch
    for epoch, factors in ((1, [0, 1]), (2, [2, 3]), (4, [6, 6])):
        engine.start_epoch(epoch)
        order = np.asarray(engine.source.order)
        learner.clear_sums()
        engine.run(2 * (epoch - 1), 0, 2)
        logits = tf.cast(model(IMAGES.astype(np.float32)), tf.float32)
        each = losses.cross_entropy(LABELS, {"logits": logits}, None)["hard"].numpy()[order]
        expected = (factors[0] * each[:5].sum() + factors[1] * each[5:].sum()) / 10
        assert learner.means(10)["loss"] == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_another_weight_traces_no_new_step():
    def made(weight):
        return of_plan({"kd": node("hinton", **HINTON), "ce": node("cross_entropy", weight)})

    def fresh():
        return network(), keras.optimizers.SGD(0.1)

    def train(engine):
        engine.start_epoch(1)
        engine.run(0, 0, 2)

    learner = Learner(*fresh(), made(1.0), lambda step: 0.1)
    engine = Engine([learner], SPLIT, 5, 0, stored={"logits": [TEACHER]})
    train(engine)
    learner.begin_again(*fresh(), made(7.0))
    train(engine)
    assert engine._chunk.experimental_get_tracing_count() == 1
    alone = Learner(*fresh(), made(7.0), lambda step: 0.1)
    train(Engine([alone], SPLIT, 5, 0, stored={"logits": [TEACHER]}))
    for a, b in zip(learner.variables, alone.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


# --- taps and weights of their own ---


def squares(feature):
    return tf.reduce_sum(feature**2, axis=1, keepdims=True)


@requires(head=False, teacher_part=squares)
def energy(labels, student, teacher, *, pairs):
    ((ours, theirs),) = pairs
    own = tf.reduce_sum(student["features"][ours] ** 2, axis=1)
    return {"energy": (own - teacher["features"][theirs][:, 0]) ** 2}


@requires(head=False)
class Linear(keras.layers.Layer):
    """A projection, and a bank with a row for each image."""

    def __init__(self, *, pairs):
        super().__init__()
        ((self.ours, self.theirs),) = pairs

    def build(self, student, teacher, labels):
        self.dense = keras.layers.Dense(teacher[self.theirs][-1], name="project")
        self.dense.build((None, *student[self.ours]))
        shape = (len(labels),)
        self.seen = self.add_weight(shape=shape, initializer="zeros", trainable=False, name="seen")

    def call(self, labels, student, teacher):
        ones = tf.scatter_nd(
            student["index"][:, None], tf.ones_like(student["index"], tf.float32), self.seen.shape
        )
        self.seen.assign_add(ones)
        gap = self.dense(student["features"][self.ours]) - teacher["features"][self.theirs]
        return {"gap": tf.reduce_sum(gap**2, axis=1)}


def trained(loss, wanted, layer=None, live=False):
    """One step of SGD at rate 0.5 on all images; (learner, student's model before, features)."""
    model, teacher = network(), network(6, seed=2)
    features = Features(teacher, [wanted])
    rows = features.rows(wanted)(IMAGES.astype(np.float32)).numpy()
    loss = layer or loss
    part = Part("x", "own.x", loss, {} if layer else {"pairs": [["hidden", "hidden"]]},
                Ramp(2.0, 2.0), ["hidden"], wanted)  # fmt: skip
    objective = Objective([part])
    graph = Graph(model, "student")
    objective.build({"hidden": (4,)}, features.shapes, 3, LABELS)
    before = [w.copy() for w in model.get_weights()]
    learner = Learner(
        model, keras.optimizers.SGD(0.1), objective, lambda step: 0.5,
        network=graph.with_taps(["hidden"]),
    )  # fmt: skip
    asked = (
        {"teacher": features}
        if live
        else {"stored": {"logits": [TEACHER], wanted.key: [rows]}, "shapes": features.shapes}
    )
    engine = Engine([learner], SPLIT, 10, 0, **asked)
    engine.start_epoch(1)
    engine.run(0, 0, 1)
    hidden = np.tanh(IMAGES.reshape(10, 4) / 255 @ before[0] + before[1])
    return (
        learner,
        before,
        hidden,
        np.asarray(features(IMAGES.astype(np.float32))[wanted.key]["hidden"]),
    )


@pytest.mark.parametrize("live", [False, True])
def test_a_step_of_a_loss_with_taps_equals_numpy(live):
    """d/dW of 2 * mean((|h|^2 - |h_t|^2)^2) for h = tanh(x W + b)."""
    wanted = Wanted(("hidden",), squares)
    learner, before, hidden, theirs = trained(energy, wanted, live=live)
    gap = (hidden**2).sum(axis=1) - theirs[:, 0]
    upstream = 2 * 2 * gap[:, None] * 2 * hidden * (1 - hidden**2) / 10
    kernel = before[0] - 0.5 * (IMAGES.reshape(10, 4) / 255).T @ upstream
    np.testing.assert_allclose(learner.model.get_weights()[0], kernel, rtol=1e-5, atol=1e-6)
    assert learner.means(10)["loss"] == pytest.approx(2 * (gap**2).mean(), rel=1e-5)


def test_a_step_of_a_loss_with_weights_equals_numpy():
    layer = Linear(pairs=[["hidden", "hidden"]])
    keras.utils.set_random_seed(5)
    wanted = Wanted(("hidden",), None)
    learner, before, hidden, theirs = trained(None, wanted, layer)
    # The projection's first weights: those of the layer less its one step.
    after = layer.dense.get_weights()
    # gap = h P + c - t; dP = 2 * 2 * h^T gap / 10, so P_after = (1 - ...) is solved for P_before.
    h, rate = np.concatenate([hidden, np.ones((10, 1))], axis=1), 0.5
    matrix = np.eye(5) - rate * 4 / 10 * h.T @ h
    stacked = np.concatenate([after[0], after[1][None]])
    first = np.linalg.solve(matrix, stacked - rate * 4 / 10 * h.T @ theirs)
    gap = h @ first - theirs
    upstream = 4 * gap @ first[:-1].T * (1 - hidden**2) / 10
    kernel = before[0] - rate * (IMAGES.reshape(10, 4) / 255).T @ upstream
    np.testing.assert_allclose(learner.model.get_weights()[0], kernel, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(first[-1], 0, atol=1e-5)  # a bias begins at 0
    np.testing.assert_array_equal(layer.seen.numpy(), 1)  # each image's own row, once
    assert learner.objective.count_params() == 4 * 6 + 6 + 10
    assert len(learner.model.variables) == 4


def test_stored_rows_are_what_a_live_teacher_says():
    images = IMAGES.astype(np.float32)
    teacher = network(6, seed=2)
    wanted = [Wanted(("hidden", "layer-1"), None), Wanted(("hidden",), squares)]
    features = Features(teacher, wanted)
    live = features(images)
    rows = {one.key: features.rows(one)(images) for one in wanted}
    assert [features.width(one) for one in wanted] == [6 + 3, 1]
    stored = unpacked({"logits": live["logits"], **rows}, features.shapes)
    for one in wanted:
        assert list(stored[one.key]) == list(one.taps)
        for tap in one.taps:
            np.testing.assert_allclose(stored[one.key][tap], live[one.key][tap], rtol=1e-5)
    np.testing.assert_allclose(live[wanted[0].key]["layer-1"], live["logits"], rtol=1e-6)
    assert wanted[0].key != Wanted(("hidden",), None).key != wanted[1].key
