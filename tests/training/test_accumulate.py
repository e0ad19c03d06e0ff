"""Gradients that are summed up: `accumulate=k` is a batch of k times as many images."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_cli.distillation import mutual
from kd_cli.distillation.losses import cross_entropy, hinton
from kd_cli.distillation.objective import Objective
from kd_cli.files import read_rows
from kd_cli.training.learner import Learner
from kd_cli.training.step import Engine
from tests.conftest import only_run
from tests.training.test_step import SPLIT, TEACHER, linear

# Of the seven examples: steps of 4 and 3, the last of which has a part of 1.
PARTS = {"batch_size": 2, "accumulate": 2}
WHOLE = {"batch_size": 4}
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(1.0, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(clipnorm=0.05),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
}


def rate(step):
    return 0.05 + 0.02 * tf.cast(step, "float32")


def learner(parts, optimizer="adam", loss=hinton, model=None, **hyper):
    hyper = hyper or (
        {"alpha": 0.3, "temperature": 4.0, "t_squared": True} if loss is hinton else {}
    )
    return Learner(
        model or linear(), OPTIMIZERS[optimizer](), Objective.of(loss, **hyper), rate,
        accumulates="accumulate" in parts, ema=0.7,
    )  # fmt: skip


def trained(learners, parts, epochs=2, **options):
    engine = Engine(learners, SPLIT, parts["batch_size"], 3,
                    accumulate=parts.get("accumulate", 1), **options)  # fmt: skip
    assert engine.steps_per_epoch == 2
    for epoch in range(1, epochs + 1):
        for one in learners:
            one.clear_sums()
        engine.start_epoch(epoch)
        engine.run((epoch - 1) * 2, 0, 1)
        engine.run((epoch - 1) * 2, 1, 2)
    assert engine._chunk.experimental_get_tracing_count() == 1
    return engine


def assert_same(one, other):
    assert int(one.optimizer.iterations) == int(other.optimizer.iterations)
    assert float(one.learning_rate) == float(other.learning_rate)
    for a, b in zip(one.variables, other.variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert one.means(7) == pytest.approx(other.means(7), rel=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_parts_are_one_batch(optimizer):
    found = []
    for parts in (WHOLE, PARTS):
        one = learner(parts, optimizer)
        trained([one], parts, stored={"logits": [TEACHER]})
        found.append(one)
    assert_same(*found)
    assert int(found[0].optimizer.iterations) == 4


@pytest.mark.parametrize("options", [{"budget": 100}, {"live": True}])
def test_wherever_the_data_and_the_teacher_are(options):
    """Streamed, or with a teacher that sees each part."""
    seen, teacher = [], linear(1 / 100)

    def live(images):
        seen.append(images.shape[0])
        return {"logits": teacher(images, training=False)}

    found = []
    for parts in (WHOLE, PARTS):
        one = learner(parts)
        if options.get("live"):
            trained([one], parts, teacher=live)
        else:
            trained([one], parts, stored={"logits": [TEACHER]}, **options)
        found.append(one)
    assert_same(*found)


def test_learners_that_teach_each_other():
    found = []
    for parts in (WHOLE, PARTS):
        both = []
        for seed in (1, 2):
            model = linear()
            keras.utils.set_random_seed(seed)
            model.set_weights([np.random.normal(size=w.shape) for w in model.get_weights()])
            both.append(learner(parts, loss=mutual, model=model))
        trained(both, parts, mutual=True)
        found.append(both)
    for one, other in zip(*found, strict=True):
        assert_same(one, other)


def test_learners_side_by_side_are_as_if_alone():
    settings = [{"alpha": a, "temperature": 2.0, "t_squared": True} for a in (0.1, 0.9)]
    alone = [learner(PARTS, **one) for one in settings]
    for one in alone:
        trained([one], PARTS, stored={"logits": [TEACHER]})
    both = [learner(PARTS, **one) for one in settings]
    trained(both, PARTS, stored={"logits": [TEACHER]})
    for one, other in zip(alone, both, strict=True):
        assert_same(one, other)


def test_a_weight_without_a_gradient_stays():
    found = []
    for parts in (WHOLE, PARTS):
        inputs = keras.Input((2, 2, 1))
        keras.utils.set_random_seed(3)
        hidden = keras.layers.Dense(3, name="kept")(keras.layers.Flatten()(inputs))
        model = keras.Model(inputs, keras.layers.Lambda(lambda x: tf.stop_gradient(x))(hidden))
        inner = keras.layers.Dense(3)(model.output)
        one = learner(parts, loss=cross_entropy, model=keras.Model(inputs, inner))
        trained([one], parts)
        found.append(one)
    assert_same(*found)


def test_a_part_that_is_not_finite_makes_no_update_and_leaves_nothing():
    def loss(labels, student, teacher, *, alpha):
        value = tf.reduce_sum(student["logits"] ** 2, axis=-1)
        return {"square": tf.where(student["index"] == 4, alpha * value, value)}

    one = learner(PARTS, loss=loss, alpha=float("nan"))
    before = one.model.get_weights()
    engine = Engine([one], SPLIT, 2, 3, accumulate=4)  # one step an epoch
    engine.start_epoch(1)
    engine.run(5, 0, 1)
    assert one.first_broken() == (5, "square") and int(one.optimizer.iterations) == 0
    for a, b in zip(before, one.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    fresh = learner(PARTS, loss=loss, alpha=1.0)
    one.begin_again(fresh.model, fresh.optimizer, fresh.objective, 0.7)
    for each, where in ((one, engine), (fresh, Engine([fresh], SPLIT, 2, 3, accumulate=4))):
        where.start_epoch(1)
        where.run(0, 0, 1)
        assert each.first_broken() is None
    assert_same(one, fresh)


def test_the_first_batch_is_a_part():
    engine = Engine([learner(PARTS)], SPLIT, 2, 3, accumulate=2, stored={"logits": [TEACHER]})
    images, labels, teacher, index = engine.first_batch()
    assert len(images) == len(labels) == len(index) == len(teacher["logits"]) == 2


@pytest.mark.slow
def test_a_run_counts_updates(kd, work, small):
    found = []
    for more in (["batch_size=48"], ["batch_size=16", "accumulate=3"]):
        words = [*small[:2], "steps=5", "schedule=cosine", *more, f"outputs=o{len(found)}"]
        done = kd("train-student", *words)
        assert done.code == 0, done.err
        run, record = only_run(work / f"o{len(found)}")
        found.append((read_rows(run / "history.jsonl"), record))
    (whole, one), (parts, other) = found
    assert (other["epochs_done"], other["steps_done"]) == (2, 5)
    assert "accumulate" not in one["config"] and other["config"]["accumulate"] == 3
    for a, b in zip(whole, parts, strict=True):
        assert (a["step"], a["learning_rate"]) == (b["step"], b["learning_rate"])
        assert a["train"] == pytest.approx(b["train"], rel=1e-5)
        assert a["validation"] == pytest.approx(b["validation"], rel=1e-5)
    assert one["test"] == pytest.approx(other["test"], rel=1e-5)
