"""Steps of students that teach each other, against NumPy and against a loop written by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_cli.data.dataset import Split
from kd_cli.distillation.logit_losses import mutual
from kd_cli.distillation.losses import cross_entropy
from kd_cli.distillation.objective import Objective, Part
from kd_cli.training.step import Engine, Learner

RNG = np.random.default_rng(7)
IMAGES = RNG.integers(0, 256, (24, 3, 3, 1)).astype(np.uint8)
LABELS = RNG.integers(0, 3, 24)
ROWS = np.arange(2, 23)
SPLIT = Split(IMAGES, LABELS, ROWS)


def network(seed, *units, dropout=0.0):
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((3, 3, 1))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(x))
    for width in units:
        x = keras.layers.BatchNormalization()(keras.layers.Dense(width, "relu", use_bias=False)(x))
        x = keras.layers.Dropout(dropout)(x)
    return keras.Model(inputs, keras.layers.Dense(3)(x))


def learner(model, optimizer, rate):
    parts = [Part("ce", "ce", cross_entropy, {}), Part("mutual", "mutual", mutual, {})]
    return Learner(model, optimizer, Objective(parts), lambda step: rate)


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_one_step_of_three_equals_numpy():
    """d loss / dz = q - y + q - mean of the others' p, all with the weights before the step."""
    models = [network(seed) for seed in (1, 2, 3)]
    before = [model.get_weights() for model in models]
    learners = [learner(model, keras.optimizers.SGD(1.0), 0.5) for model in models]
    engine = Engine(learners, SPLIT, len(ROWS), 0, mutual=True)
    engine.start_epoch(1)
    engine.run(0, 0, 1)
    x, y = IMAGES[ROWS].reshape(-1, 9) / 255, np.eye(3)[LABELS[ROWS]]
    shares = [softmax(x @ kernel + bias) for kernel, bias in before]
    for n, (model, (kernel, bias), q) in enumerate(zip(models, before, shares, strict=True)):
        others = [p for m, p in enumerate(shares) if m != n]
        gradient = (q - y + q - np.mean(others, axis=0)) / len(ROWS)
        found = model.get_weights()
        np.testing.assert_allclose(found[0], kernel - 0.5 * x.T @ gradient, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found[1], bias - 0.5 * gradient.sum(0), rtol=1e-4, atol=1e-6)
        means = learners[n].means(len(ROWS))
        assert means["ce"] == pytest.approx(-(y * np.log(q)).sum(1).mean(), rel=1e-5)
        divergence = [(p * np.log(p / q)).sum(1).mean() for p in others]
        assert means["mutual"] == pytest.approx(np.mean(divergence), rel=1e-4)
        assert means["loss"] == pytest.approx(means["ce"] + means["mutual"])


def test_epochs_of_two_equal_a_loop_by_hand():
    """Two networks with statistics and dropout, two optimizers, three epochs of three steps."""

    def made():
        return [network(1, 8, dropout=0.3), network(2)], [
            keras.optimizers.Adam(0.01),
            keras.optimizers.SGD(0.1, momentum=0.9),
        ]

    (models, optimizers), (plain, plain_optimizers) = made(), made()
    learners = [learner(*each) for each in zip(models, optimizers, (0.01, 0.1), strict=True)]
    engine = Engine(learners, SPLIT, 8, 4, mutual=True)
    for epoch in range(1, 4):
        engine.start_epoch(epoch)
        order = engine.source.order.numpy()
        engine.run((epoch - 1) * 3, 0, 1)
        engine.run((epoch - 1) * 3, 1, 3)
        for start in (0, 8, 16):
            rows = order[start : start + 8]
            x, y = tf.constant(IMAGES[rows], tf.float32), LABELS[rows]
            with tf.GradientTape(persistent=True) as tape:
                logits = [model(x, training=True) for model in plain]
                losses = [
                    keras.losses.SparseCategoricalCrossentropy(from_logits=True)(y, mine)
                    + keras.losses.KLDivergence()(
                        tf.nn.softmax(tf.stop_gradient(theirs)), tf.nn.softmax(mine)
                    )
                    for mine, theirs in (logits, logits[::-1])
                ]
            for model, optimizer, loss in zip(plain, plain_optimizers, losses, strict=True):
                weights = model.trainable_variables
                optimizer.apply(tape.gradient(loss, weights), weights)
    assert engine._chunk.experimental_get_tracing_count() == 1
    for model, other in zip(models, plain, strict=True):
        for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)


def test_all_stop_at_the_step_in_which_one_breaks():
    models = [network(1), network(2)]
    learners = [learner(models[0], keras.optimizers.SGD(1.0), 1e38),
                learner(models[1], keras.optimizers.SGD(1.0), 0.1)]  # fmt: skip
    engine = Engine(learners, SPLIT, 3, 0, mutual=True)
    engine.start_epoch(1)
    engine.run(0, 0, 7)
    steps = [one.first_broken() for one in learners]
    assert steps[0] is not None and steps[0][0] >= 1
    examples = 3 * (steps[0][0] + 1)
    assert [float(one.sums[-2]) for one in learners] == [examples, examples]
