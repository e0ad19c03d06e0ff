"""One step against NumPy, the order of the examples, and chunks."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_cli.data.batches import InMemory, Streamed
from kd_cli.data.dataset import Split
from kd_cli.distillation.losses import cross_entropy, hinton
from kd_cli.distillation.objective import Objective
from kd_cli.networks.predict import predict_rows, predictor
from kd_cli.training.step import Engine, Learner

RNG = np.random.default_rng(2)
IMAGES = RNG.integers(0, 256, (12, 2, 2, 1)).astype(np.uint8)
LABELS = RNG.integers(0, 3, 12)
ROWS = np.array([1, 3, 4, 6, 7, 9, 11])
SPLIT = Split(IMAGES, LABELS, ROWS)
TEACHER = RNG.normal(0, 2, (len(ROWS), 3)).astype(np.float32)


def linear(scale: float = 1 / 255) -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((2, 2, 1))
    x = keras.layers.Flatten()(keras.layers.Rescaling(scale)(inputs))
    return keras.Model(inputs, keras.layers.Dense(3)(x))


def learner(model, loss=hinton, rate=0.5, **hyper):
    optimizer = keras.optimizers.SGD(1.0)  # its rate is replaced by the schedule's
    return Learner(model, optimizer, Objective.of(loss, **hyper), lambda step: rate)


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("t_squared", "hidden"), [(True, []), (False, []), (True, [0, 4])])
def test_one_step_equals_numpy(t_squared, hidden):
    """`hidden`: examples without a label, which have the teacher's term alone."""
    known = ~np.isin(np.arange(7), hidden)
    labels = LABELS.copy()
    labels[ROWS[~known]] = -1
    model = linear()
    kernel, bias = model.get_weights()
    one = learner(model, alpha=0.3, temperature=4.0, t_squared=t_squared)
    engine = Engine([one], Split(IMAGES, labels, ROWS), 7, 0, stored={"logits": [TEACHER]})
    engine.start_epoch(1)
    engine.run(0, 0, 1)

    x = IMAGES[ROWS].reshape(7, 4) / 255
    logits = x @ kernel + bias
    onehot = np.eye(3)[LABELS[ROWS]]
    q, q_soft, p_soft = softmax(logits), softmax(logits / 4), softmax(TEACHER / 4)
    factor = 16 if t_squared else 1
    gradient = (0.3 * (q - onehot) * known[:, None] + 0.7 * factor / 4 * (q_soft - p_soft)) / 7
    new_kernel, new_bias = model.get_weights()
    np.testing.assert_allclose(new_kernel, kernel - 0.5 * x.T @ gradient, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(new_bias, bias - 0.5 * gradient.sum(axis=0), rtol=1e-5, atol=1e-6)

    hard = -0.3 * (np.log((q * onehot).sum(axis=1)) * known).mean()
    soft = 0.7 * factor * (p_soft * np.log(p_soft / q_soft)).sum(axis=1).mean()
    means = one.means(7)
    assert means["hard"] == pytest.approx(hard, rel=1e-5)
    assert means["soft"] == pytest.approx(soft, rel=1e-5)
    assert means["loss"] == pytest.approx(hard + soft, rel=1e-5)
    assert means["accuracy"] == pytest.approx((logits.argmax(1) == LABELS[ROWS])[known].mean())


def orders(seed, epochs):
    engine = Engine([learner(linear(), cross_entropy)], SPLIT, 3, seed)
    found = []
    for epoch in epochs:
        engine.start_epoch(epoch)
        found.append(engine.source.order.numpy().tolist())
    return found


def test_an_epoch_covers_each_example_once_in_an_order_of_seed_and_epoch():
    first, second = orders(5, [1, 2])
    assert sorted(first) == sorted(second) == ROWS.tolist()
    assert first != second
    assert orders(5, [2]) == [second]  # a resumed run draws the same
    assert orders(6, [1]) != [first]


def test_chunks_do_not_change_the_result_and_are_traced_once():
    whole, parts = linear(), linear()
    for model, cuts in ((whole, [(0, 3)]), (parts, [(0, 1), (1, 3)])):
        engine = Engine([learner(model, cross_entropy)], SPLIT, 3, 0)
        for epoch in (1, 2):
            engine.start_epoch(epoch)
            for start, stop in cuts:
                engine.run((epoch - 1) * 3, start, stop)
        assert engine._chunk.experimental_get_tracing_count() == 1
    for a, b in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_cached_and_live_teacher_train_the_same_student():
    keras.utils.set_random_seed(9)
    teacher = linear(1 / 100)
    logits = predict_rows(predictor(teacher), SPLIT)
    results = []

    def live(images):
        return {"logits": teacher(images, training=False)}

    for asked in ({"teacher": live}, {"stored": {"logits": [logits]}}):
        model = linear()
        one = learner(model, alpha=0.1, temperature=2.0, t_squared=True)
        engine = Engine([one], SPLIT, 3, 0, **asked)
        engine.start_epoch(1)
        engine.run(0, 0, engine.steps_per_epoch)
        results.append(model.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_learners_train_side_by_side_as_if_alone():
    alone = []
    for alpha in (0.1, 0.9):
        model = linear()
        one = learner(model, alpha=alpha, temperature=2.0, t_squared=True)
        engine = Engine([one], SPLIT, 3, 0, stored={"logits": [TEACHER]})
        engine.start_epoch(1)
        engine.run(0, 0, 3)
        alone.append((model.get_weights(), one.means(7)))
    models = [linear(), linear()]
    both = [
        learner(model, alpha=alpha, temperature=2.0, t_squared=True)
        for model, alpha in zip(models, (0.1, 0.9), strict=True)
    ]
    engine = Engine(both, SPLIT, 3, 0, stored={"logits": [TEACHER]})
    engine.start_epoch(1)
    engine.run(0, 0, 3)
    for number, (weights, means) in enumerate(alone):
        for a, b in zip(models[number].get_weights(), weights, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
        assert both[number].means(7) == pytest.approx(means, rel=1e-6)


def test_the_first_value_that_is_not_finite_is_recorded_with_its_term_and_stops_the_chunk():
    steps = tf.Variable(0.0)

    def loss(labels, student, teacher, *, alpha):
        fine = alpha * tf.reduce_sum(student["logits"], axis=-1)
        sick = tf.where(steps.assign_add(1.0) > 2.0, float("nan"), 0.0)
        return {"fine": fine, "sick": fine * sick}

    broken = learner(linear(), loss, rate=0.1, alpha=1.0)
    engine = Engine([broken], SPLIT, 1, 0)
    engine.start_epoch(1)
    engine.run(10, 0, 7)
    assert broken.first_broken() == (12, "sick")
    assert int(broken.optimizer.iterations) == 3


def test_the_schedule_sets_the_rate_of_every_step():
    model = linear()
    one = Learner(
        model,
        keras.optimizers.SGD(1.0),
        Objective.of(cross_entropy),
        lambda step: 0.25 * tf.cast(step, "float32"),
    )
    engine = Engine([one], SPLIT, 7, 0)
    engine.start_epoch(1)
    before = model.get_weights()
    engine.run(0, 0, 1)  # step 0: rate 0
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    engine.run(4, 0, 1)
    assert float(one.learning_rate) == 1.0


@pytest.mark.parametrize("kind", ["kernel", "activity"])
def test_a_network_s_own_losses_count(kind):
    inputs = keras.Input((2, 2, 1))
    x = keras.layers.Flatten()(inputs)
    outputs = keras.layers.Dense(3, **{f"{kind}_regularizer": keras.regularizers.L2(0.5)})(x)
    model = keras.Model(inputs, outputs)
    expected = 0.5 * (model.get_weights()[0] ** 2).sum()
    if kind == "activity":  # Keras divides it by the batch
        logits = IMAGES[ROWS].reshape(7, 4).astype(np.float64) @ model.get_weights()[0]
        expected = 0.5 * (logits**2).sum() / 7
    one = learner(model, cross_entropy, rate=0.0)
    engine = Engine([one], SPLIT, 7, 0)
    engine.start_epoch(1)
    engine.run(0, 0, 1)
    assert one.means(7)["regularisation"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_streamed_batches_are_those_in_memory(dtype):
    split = Split(IMAGES.astype(dtype), LABELS, ROWS)
    found = []
    for budget, kind in ((split.images.nbytes + TEACHER.nbytes, InMemory), (100, Streamed)):
        model = linear()
        one = learner(model, alpha=0.3, temperature=2.0, t_squared=True)
        engine = Engine([one], split, 3, 4, stored={"logits": [TEACHER]}, budget=budget)
        assert type(engine.source) is kind
        for epoch in (1, 2):
            engine.start_epoch(epoch)
            engine.run((epoch - 1) * 3, 0, 2)
            engine.run((epoch - 1) * 3, 2, 3)
        assert engine._chunk.experimental_get_tracing_count() == 1
        # A run that continues inside an epoch draws the rest of it.
        engine.start_epoch(3, first=1)
        engine.run(6, 1, 3)
        found.append((model.get_weights(), one.means(7)))
    for a, b in zip(found[0][0], found[1][0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert found[0][1] == found[1][1]


def test_a_learner_takes_part_from_its_own_step_on():
    weights = []
    for start, cuts in ((0, [(0, 3)]), (2, [(0, 1), (1, 3)])):
        model = linear()
        one = learner(model, cross_entropy)
        engine = Engine([one], SPLIT, 3, 0)
        engine.start_epoch(1)
        if start:
            engine.run(0, 0, start)
            one.from_step.assign(start)
        for cut in cuts:
            engine.run(0, *cut)  # steps before from_step pass without a trace
        assert int(one.optimizer.iterations) == 3
        weights.append(model.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_broken_learner_ends_alone():
    def loss(labels, student, teacher, *, limit):
        value = tf.reduce_sum(student["logits"] ** 2, axis=-1)
        return {"square": tf.where(value > limit, float("nan"), value)}

    sick, well = learner(linear(), loss, limit=-1.0), learner(linear(), loss, limit=1e9)
    engine = Engine([sick, well], SPLIT, 3, 0)
    engine.start_epoch(1)
    engine.run(0, 0, 3)
    assert sick.first_broken() == (0, "square") and well.first_broken() is None
    assert (int(sick.optimizer.iterations), int(well.optimizer.iterations)) == (1, 3)


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
def test_beginning_again_is_a_fresh_learner_without_a_new_trace(weighted):
    def fresh(seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((2, 2, 1))
        x = keras.layers.Dropout(0.5)(keras.layers.Flatten()(inputs))
        return keras.Model(inputs, keras.layers.Dense(3)(x)), keras.optimizers.Adam(1.0)

    def train(engine):
        engine.start_epoch(1)
        engine.run(0, 0, 3)

    hypers = [dict(alpha=0.2, temperature=1.0, t_squared=True)]
    hypers.append(dict(alpha=0.8, temperature=5.0, t_squared=False))
    if weighted:
        hypers[0]["class_weights"], hypers[1]["class_weights"] = [1.0, 2.0, 0.5], [3.0, 0.0, 1.0]
    alone = []
    for seed, hyper in enumerate(hypers):
        one = Learner(*fresh(seed), Objective.of(hinton, **hyper), lambda step: 0.1)
        train(Engine([one], SPLIT, 3, seed, stored={"logits": [TEACHER]}))
        alone.append(one)
    reused = Learner(*fresh(0), Objective.of(hinton, **hypers[0]), lambda step: 0.1)
    engine = Engine([reused], SPLIT, 3, 0, stored={"logits": [TEACHER]})
    train(engine)
    reused.begin_again(*fresh(1), Objective.of(hinton, **hypers[1]))
    engine.data_seed = 1
    train(engine)
    assert engine._chunk.experimental_get_tracing_count() == 1
    for a, b in zip(reused.variables, alone[1].variables, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
