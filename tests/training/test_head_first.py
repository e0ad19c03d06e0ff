"""First the last layer alone, then all weights: steps against NumPy, and what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_cli.data.dataset import Split
from kd_cli.distillation.losses import cross_entropy
from kd_cli.distillation.objective import Objective
from kd_cli.errors import ConfigError
from kd_cli.networks.taps import Graph
from kd_cli.training.head_first import HeadFirst
from kd_cli.training.schedules import smaller_from
from kd_cli.training.step import Engine, Learner
from tests.conftest import only_run, plan_of

layers = keras.layers
RNG = np.random.default_rng(4)
IMAGES = RNG.integers(0, 256, (8, 2, 2, 1)).astype(np.uint8)
LABELS = RNG.integers(0, 3, 8)
SPLIT = Split(IMAGES, LABELS, np.arange(8))
RATE, FACTOR, MOMENTUM, DECAY = 0.5, 0.1, 0.9, 0.01


def small(*between, head=3) -> keras.Model:
    """Pixels / 255 -> Dense 5 -> `between` -> Dense."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((2, 2, 1))
    x = layers.Dense(5)(layers.Flatten()(layers.Rescaling(1 / 255)(inputs)))
    for layer in between:
        x = layer(x)
    return keras.Model(inputs, layers.Dense(head)(x))


def sgd():
    return keras.optimizers.SGD(1.0, momentum=MOMENTUM, weight_decay=DECAY)


def engine_of(model, until, optimizer=sgd):
    graph = Graph(model, "student")
    head = HeadFirst(graph, optimizer(), until, "then all")
    learner = Learner(
        model,
        optimizer(),
        Objective.of(cross_entropy),
        smaller_from(lambda step: RATE, until, FACTOR),
        network=graph.with_taps([], still=head.still),
        head=head,
    )
    return Engine([learner], SPLIT, 8, 0)


def run(engine, *steps):
    for step in steps:
        engine.start_epoch(step + 1)
        engine.run(step, 0, 1)


def in_numpy(weights, steps, until):
    """SGD with decay and momentum: at first of the last layer, then of all, with fresh momentum."""
    weights = [w.astype(np.float64) for w in weights]
    x = IMAGES.reshape(8, 4) / 255
    momentum = [np.zeros_like(w) for w in weights]
    for step in range(steps):
        if step == until:
            momentum = [np.zeros_like(w) for w in weights]
        kernel, bias, last, last_bias = weights
        features = x @ kernel + bias
        logits = features @ last + last_bias
        e = np.exp(logits - logits.max(axis=1, keepdims=True))
        d = (e / e.sum(axis=1, keepdims=True) - np.eye(3)[LABELS]) / 8
        back = d @ last.T
        gradients = [x.T @ back, back.sum(0), features.T @ d, d.sum(0)]
        rate = RATE if step < until else RATE * FACTOR
        for n in (2, 3) if step < until else range(4):
            # Keras takes the decay away before the step: w -= rate * decay * w.
            weights[n] = weights[n] * (1 - rate * DECAY)
            momentum[n] = MOMENTUM * momentum[n] - rate * gradients[n]
            weights[n] = weights[n] + momentum[n]
    return weights


def test_the_steps_equal_numpy():
    model = small()
    begun = model.get_weights()
    engine = engine_of(model, until=2)
    (learner,) = engine.learners
    run(engine, 0, 1)
    assert float(learner.learning_rate) == RATE
    assert int(learner.head.optimizer.iterations) == 2 and int(learner.optimizer.iterations) == 0
    assert not any(np.any(m) for m in learner.optimizer.momentums)
    for number in (0, 1):  # bit for bit, in spite of the decay
        np.testing.assert_array_equal(model.get_weights()[number], begun[number])
    for found, expected in zip(model.get_weights(), in_numpy(begun, 2, 2), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    run(engine, 2, 3)
    assert float(learner.learning_rate) == pytest.approx(RATE * FACTOR)
    for found, expected in zip(model.get_weights(), in_numpy(begun, 4, 2), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert engine._chunk.experimental_get_tracing_count() == 1
    assert not np.allclose(model.get_weights()[0], begun[0])


def test_features_are_computed_as_in_evaluation_and_the_last_dropout_is_not():
    norm, inner, last = layers.BatchNormalization(), layers.Dropout(0.5), layers.Dropout(0.5)
    model = small(norm, inner, layers.ReLU(), last)
    norm.moving_mean.assign(RNG.normal(size=5))
    norm.moving_variance.assign(RNG.uniform(1, 2, 5))
    before = [w.numpy() for w in (norm.moving_mean, norm.moving_variance)]
    seeds = {layer: layer.seed_generator.state.numpy() for layer in (inner, last)}
    gamma = norm.gamma.numpy()
    engine = engine_of(model, until=1)
    run(engine, 0, 1)
    np.testing.assert_array_equal(norm.moving_mean, before[0])
    np.testing.assert_array_equal(norm.moving_variance, before[1])
    assert (norm.gamma.numpy() != gamma).any()  # in the second step
    np.testing.assert_array_equal(inner.seed_generator.state, seeds[inner])
    assert (last.seed_generator.state.numpy() != seeds[last]).any()


def test_a_scaled_loss_gives_the_same_steps():
    """As in mixed_float16, where each optimizer has its own scale."""

    scales = iter((2.0**10, 2.0**4))

    def scaled():
        return keras.optimizers.LossScaleOptimizer(sgd(), initial_scale=next(scales))

    models = [small(), small()]
    for model, optimizer in zip(models, (sgd, scaled), strict=True):
        run(engine_of(model, until=2, optimizer=optimizer), 0, 1, 2, 3)
    for a, b in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_beginning_again_gives_what_a_fresh_learner_gives():
    engine = engine_of(small(), until=1)
    (learner,) = engine.learners
    run(engine, 0, 1)
    expected = learner.model.get_weights()
    run(engine, 2, 3)  # the moments of both optimizers are no longer 0
    model = small()
    head = HeadFirst(Graph(model, "student"), sgd(), 1, "")
    learner.begin_again(model, sgd(), Objective.of(cross_entropy), head)
    run(engine, 0, 1)
    for a, b in zip(learner.model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_has_no_last_layer_to_train_is_refused():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((2, 2, 1))
    x = layers.Flatten()(inputs)
    two = keras.Model(
        inputs, layers.Average()([layers.Dense(3)(x), layers.Dense(3)(layers.Dense(4)(x))])
    )
    with pytest.raises(ConfigError, match="the student has no single last layer"):
        HeadFirst(Graph(two, "student"), sgd(), 1, "")
    frozen = small()
    frozen.layers[-1].trainable = False
    with pytest.raises(ConfigError, match="the last layer of the teacher is frozen"):
        HeadFirst(Graph(frozen, "teacher"), sgd(), 1, "")


@pytest.mark.parametrize("step", [0, 4, 5, 9])
def test_the_rate_becomes_smaller(step):
    rate = smaller_from(lambda at: tf.cast(at, "float32") + 1.0, 5, 0.25)(step)
    assert float(rate) == (step + 1) * (0.25 if step >= 5 else 1)


REFUSED = {
    "random student": (
        ["distill", "freeze_epochs=2"],
        "freeze_epochs=2: the student starts from random weights, and its last layer would learn "
        "from random features; type freeze_epochs=0, or start from others with student.checkpoint",
    ),
    "random teacher": (
        ["train-teacher", "freeze_epochs=2"],
        "teacher.training.freeze_epochs=2: the teacher starts from random weights",
    ),
    "random BiT": (
        ["distill", "teacher=bit_resnet101x3", "teacher.training.freeze_epochs=2"],
        "with teacher.weights=FILE.npz",
    ),
    "random application": (
        [
            "distill", "teacher=application", "teacher.network.architecture=VGG16",
            "teacher.network.weights=null",
        ],
        "teacher.training.freeze_epochs=3: the teacher starts from random weights, and its last "
        "layer would learn from random features; type teacher.training.freeze_epochs=0, or start "
        "from others with teacher.network.weights=...",
    ),
    "frozen": (
        ["distill", "teacher=efficientnet_lite0", "teacher.training.freeze_epochs=1"],
        "teacher.network.frozen=true keeps all but the last layer as it is throughout; type "
        "teacher.network.frozen=false",
    ),
    "factor alone": (
        ["train-student", "fine_tune_factor=0.5"],
        "fine_tune_factor=0.5 changes nothing: freeze_epochs=0; type freeze_epochs=3 with it",
    ),
    "negative": (["train-student", "freeze_epochs=-1"], "freeze_epochs=-1 must be at least 0"),
    "no factor": (["train-student", "fine_tune_factor=0"], "must be above 0 and at most 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    words, expected = REFUSED[name]
    with pytest.raises(ConfigError) as refused:
        plan_of(*words)
    assert expected in str(refused.value)


def test_a_run_says_what_it_trains_and_waits_for_all_of_it(kd, work, small):
    """Early stopping counts from the epoch in which all weights are trained at last."""
    begun = [*small[:2], "student=cnn", "student.network.batch_norm=true"]
    assert kd("train-student", *begun, "epochs=1", "hydra.run.dir=begun").code == 0
    words = [*begun, "student.checkpoint=begun", "freeze_epochs=3", "early_stopping.patience=1"]
    done = kd("train-student", *words, "learning_rate=1e-30", "epochs=9")
    assert done.code == 0, done.err
    assert "student: the last layer alone at first (132 of " in done.err
    assert "from epoch 4 on all of them, at 0.1 times the rate" in done.err
    lines = [line for line in done.err.splitlines() if line.startswith("student")]
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "student, last layer 1/9", "student, last layer 2/9", "student, last layer 3/9",
        "student 4/9",
    ]  # fmt: skip
    _, metrics = only_run(work / "outputs" / "train-student")
    assert metrics["stopped"] == "early stopping" and metrics["epochs_done"] == 4
    assert metrics["config"]["freeze_epochs"] == 3
    whole = kd("train-student", *words, "epochs=2", "seed=1")
    assert "that is the whole training, which has 2 epochs" in whole.err


@pytest.mark.slow
def test_points_train_together_as_they_do_alone(kd, work, small):
    begun = [*small[:2], "student=cnn", "student.network.batch_norm=true"]
    assert kd("train-student", *begun, "epochs=1", "hydra.run.dir=begun").code == 0
    words = [*begun, "student.checkpoint=begun", "freeze_epochs=1", "epochs=3"]
    sweep = ["--multirun", *words, "init_seed=0,1", "learning_rate=0.01,0.001"]
    tests = []
    for launcher in ("joint", "basic"):
        done = kd("train-student", *sweep, f"hydra/launcher={launcher}", f"outputs={launcher}")
        assert done.code == 0, done.err
        assert ("4 points train together" in done.err) == (launcher == "joint")
        tests.append(
            {
                path.parent.name: np.load(path)["student_logits"]
                for path in (work / launcher).rglob("predictions.npz")
            }
        )
    assert len(tests[0]) == 4 and tests[0].keys() == tests[1].keys()
    for name, logits in tests[0].items():
        np.testing.assert_allclose(logits, tests[1][name], rtol=1e-4, atol=1e-5)
