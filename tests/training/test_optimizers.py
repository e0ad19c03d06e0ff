"""AdamW and PyTorch's SGD against NumPy, at rates that change."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from omegaconf import OmegaConf

from kd_cli.config.check import check
from kd_cli.config.compose import compose
from kd_cli.config.instantiate import build
from kd_cli.distillation.losses import cross_entropy
from kd_cli.distillation.objective import Objective
from kd_cli.runs.resolvers import register_resolvers
from kd_cli.training.optimizers import AdamW, TorchSGD
from kd_cli.training.step import Engine, Learner
from tests.training.test_step import SPLIT, linear

RNG = np.random.default_rng(3)
START = [RNG.normal(0, 1, shape) for shape in ((4, 3), (3,))]
RATES = [0.1, 0.0, 0.02, 0.3, 0.05]
# The first of each step is longer than clipnorm, the second shorter.
GRADIENTS = [[RNG.normal(0, 2, (4, 3)), RNG.normal(0, 0.1, 3)] for _ in RATES]


def weights_after(optimizer, rates=RATES, graph=True):
    variables = [keras.Variable(value, dtype="float32") for value in START]
    optimizer.build(variables)

    def step(rate, *gradients):
        optimizer.learning_rate.assign(rate)
        optimizer.apply(list(gradients), variables)

    run = tf.function(step) if graph else step
    for rate, gradients in zip(rates, GRADIENTS, strict=True):
        tensors = [tf.constant(gradient, tf.float32) for gradient in gradients]
        run(tf.constant(rate, tf.float32), *tensors)
    return [variable.numpy() for variable in variables]


def by_hand(weight_decay, decoupled, clipnorm, rates=RATES):
    """Algorithm 2 of Loshchilov and Hutter, with the clipping of each gradient before it."""
    weights = [value.copy() for value in START]
    first, second = ([np.zeros_like(value) for value in START] for _ in range(2))
    for t, (rate, gradients) in enumerate(zip(rates, GRADIENTS, strict=True), 1):
        for n, g in enumerate(gradients):
            if clipnorm is not None:
                g = g * min(1, clipnorm / np.sqrt((g**2).sum()))
            first[n] = 0.9 * first[n] + 0.1 * g
            second[n] = 0.999 * second[n] + 0.001 * g**2
            weights[n] = weights[n] * (1 - weight_decay * (1 if decoupled else rate))
            corrected = rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            weights[n] = weights[n] - corrected * first[n] / (np.sqrt(second[n]) + 1e-7)
    return weights


@pytest.mark.parametrize("clipnorm", [None, 1.0])
@pytest.mark.parametrize(("weight_decay", "decoupled"), [(0.3, False), (0.02, True), (0.0, True)])
def test_steps_at_changing_rates_equal_numpy(weight_decay, decoupled, clipnorm):
    found = weights_after(AdamW(0.5, weight_decay, decoupled, clipnorm=clipnorm))
    for ours, theirs in zip(found, by_hand(weight_decay, decoupled, clipnorm), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def torch_by_hand(weight_decay, momentum, nesterov, clipnorm):
    """The algorithm in the documentation of `torch.optim.SGD`; gradients are clipped before it."""
    weights = [value.copy() for value in START]
    buffers = [np.zeros_like(value) for value in START]
    for rate, gradients in zip(RATES, GRADIENTS, strict=True):
        for n, g in enumerate(gradients):
            if clipnorm is not None:
                g = g * min(1, clipnorm / np.sqrt((g**2).sum()))
            g = g + weight_decay * weights[n]
            buffers[n] = momentum * buffers[n] + g
            g = g + momentum * buffers[n] if nesterov else buffers[n]
            weights[n] = weights[n] - rate * g
    return weights


@pytest.mark.parametrize("clipnorm", [None, 1.0])
@pytest.mark.parametrize(
    ("weight_decay", "momentum", "nesterov"),
    [(0.3, 0.9, False), (0.3, 0.9, True), (0.3, 0.0, False), (0.0, 0.9, False)],
)
def test_torch_s_sgd_at_changing_rates_equals_numpy(weight_decay, momentum, nesterov, clipnorm):
    optimizer = TorchSGD(
        0.5, momentum, nesterov, weight_decay=weight_decay or None, clipnorm=clipnorm
    )
    expected = torch_by_hand(weight_decay, momentum, nesterov, clipnorm)
    for ours, theirs in zip(weights_after(optimizer), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("graph", [False, True])
def test_coupled_is_keras_s_bit_for_bit(graph):
    ours = weights_after(AdamW(0.5, 0.3, clipnorm=1.0), graph=graph)
    keras_ = keras.optimizers.AdamW(0.5, 0.3, clipnorm=1.0)
    for a, b in zip(ours, weights_after(keras_, graph=graph), strict=True):
        np.testing.assert_array_equal(a, b)


def test_only_the_decoupled_decay_shrinks_weights_at_rate_zero():
    still = weights_after(AdamW(0.5, 0.1), rates=[0.0] * 5)
    shrunk = weights_after(AdamW(0.5, 0.1, decoupled=True), rates=[0.0] * 5)
    for start, a, b in zip(START, still, shrunk, strict=True):
        np.testing.assert_array_equal(a, start.astype(np.float32))
        np.testing.assert_allclose(b, start * 0.9**5, rtol=1e-6)


def test_a_step_whose_gradients_overflowed_decays_nothing():
    optimizer = keras.optimizers.LossScaleOptimizer(AdamW(0.5, 0.1, decoupled=True))
    variable = keras.Variable([1.0, 2.0])
    optimizer.build([variable])
    step = tf.function(lambda gradient: optimizer.apply([gradient], [variable]))
    optimizer.learning_rate.assign(0.0)
    step(tf.constant([np.inf, 0.0]))
    np.testing.assert_array_equal(variable.numpy(), [1.0, 2.0])
    step(tf.constant([1.0, 0.0]))
    np.testing.assert_allclose(variable.numpy(), [0.9, 1.8], rtol=1e-6)


def test_the_engine_decays_at_every_step_of_a_chunk():
    model = linear()
    before = model.get_weights()
    optimizer = AdamW(1.0, 0.1, decoupled=True)
    learner = Learner(model, optimizer, Objective.of(cross_entropy), lambda step: 0.0)
    engine = Engine([learner], SPLIT, 3, 0)
    engine.start_epoch(1)
    engine.run(0, 0, 3)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_allclose(new, old * 0.9**3, rtol=1e-6)


def test_the_configuration_of_the_flowers_recipe_s_optimizer():
    register_resolvers()
    words = ["optimizer=adamw", "optimizer.decoupled=true", "optimizer.weight_decay=0.001"]
    words.append("optimizer.clipnorm=1.0")
    node = check(compose("train-student", words), words).optimizer
    optimizer = build(OmegaConf.create(node), "optimizer", learning_rate=0.003)
    assert (optimizer.decoupled, optimizer.weight_decay, optimizer.clipnorm) == (True, 0.001, 1.0)
    assert AdamW.from_config(optimizer.get_config()).decoupled is True


@pytest.mark.parametrize("option", ["adam", "adamw", "sgd", "torch_sgd"])
def test_every_optimizer_takes_a_decay_and_a_clip_and_none_of_them(option):
    register_resolvers()

    def built(*words):
        words = [f"optimizer={option}", *words]
        node = check(compose("train-student", words), words).optimizer
        return build(node, "optimizer", learning_rate=0.5)

    given = built("optimizer.weight_decay=0.1", "optimizer.clipnorm=2")
    assert (given.weight_decay, given.clipnorm) == (0.1, 2)
    default = built()
    assert default.clipnorm is None
    assert default.weight_decay == (0.004 if option == "adamw" else None)  # as before 0.5
    off = built("optimizer.weight_decay=null")
    weight = keras.Variable([1.0, -2.0])
    off.apply([keras.ops.zeros(2)], [weight])
    np.testing.assert_array_equal(weight, [1.0, -2.0])
    given.apply([keras.ops.zeros(2)], [weight])  # Keras: the rate 0.5 times 0.1 of every weight
    np.testing.assert_allclose(weight, [0.95, -1.9], rtol=1e-6)
