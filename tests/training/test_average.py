"""The average of the weights: its values, and that it is what is validated and kept."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_cli.distillation.losses import cross_entropy
from kd_cli.distillation.objective import Objective
from kd_cli.files import read_rows
from kd_cli.networks.keras_file import load_keras
from kd_cli.training.average import Average
from kd_cli.training.learner import Learner
from kd_cli.training.step import Engine
from tests.conftest import assert_refused, only_run
from tests.training.test_step import SPLIT


def network() -> keras.Model:
    """With batch normalisation, whose statistics are weights that no gradient moves."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((2, 2, 1))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.BatchNormalization()(x)))


def by_hand(before: list[np.ndarray], momentum: float, first: int = 0) -> list[np.ndarray]:
    """The average after weights [update][weight], of which the first are the initial ones."""
    found = before[0]
    for n, weights in enumerate(before[1:], first + 1):
        m = min(momentum, (1 + n) / (10 + n))
        found = [m * a + (1 - m) * w for a, w in zip(found, weights, strict=True)]
    return found


@pytest.mark.parametrize("momentum", [0.3, 0.999])
def test_it_equals_tensorflow_s_own(momentum):
    random = np.random.default_rng(0)
    model = network()
    average = Average(model, momentum)
    theirs, number = [tf.Variable(w) for w in model.get_weights()], tf.Variable(0.0)
    own = tf.train.ExponentialMovingAverage(momentum, num_updates=number)
    own.apply(theirs)  # it begins at the weights
    history = [model.get_weights()]
    for step in range(30):
        history.append([random.normal(size=w.shape).astype("float32") for w in history[0]])
        model.set_weights(history[-1])
        average.update(tf.constant(step, tf.int64))
        number.assign(step + 1)
        for variable, value in zip(theirs, history[-1], strict=True):
            variable.assign(value)
        own.apply(theirs)
    expected = by_hand(history, momentum)
    for mine, one, value in zip(average.variables, theirs, expected, strict=True):
        np.testing.assert_allclose(mine, value, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(mine, own.average(one), rtol=1e-5, atol=1e-6)


def test_whole_numbers_are_copied_and_a_constant_stays():
    class Counts(keras.layers.Layer):
        def build(self, shape):
            self.seen = self.add_weight(shape=(), dtype="int64", trainable=False, name="seen")

        def call(self, inputs):
            return inputs

    model = keras.Model(inputs := keras.Input((3,)), keras.layers.Dense(3)(Counts()(inputs)))
    average = Average(model, 0.9)
    model.layers[1].seen.assign(7)
    for step in range(5):
        average.update(tf.constant(step))
    assert int(average.variables[0]) == 7
    for mine, weight in zip(average.variables, model.weights, strict=True):
        np.testing.assert_array_equal(mine, weight)


def trained(ema: float | None, cuts: list[int]) -> tuple[Learner, list[list[np.ndarray]]]:
    """A learner after two epochs of three steps, and its weights at each cut."""
    model = network()
    one = Learner(
        model, keras.optimizers.Adam(), Objective.of(cross_entropy), lambda step: 0.1, ema=ema
    )
    engine = Engine([one], SPLIT, 3, 0)
    history = [model.get_weights()]
    for epoch in (1, 2):
        engine.start_epoch(epoch)
        for start, stop in zip([0, *cuts], [*cuts, 3], strict=True):
            engine.run((epoch - 1) * 3, start, stop)
            history.append(model.get_weights())
    return one, history


def test_training_is_the_same_and_the_average_is_that_of_every_step():
    plain, history = trained(None, [1, 2])
    one, _ = trained(0.8, [])
    for a, b in zip(plain.model.get_weights(), one.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    expected = by_hand(history, 0.8)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(expected, history[-1], strict=True))
    before = one.model.get_weights()
    with pytest.raises(KeyError), one.averaged():
        for a, b in zip(one.model.get_weights(), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        raise KeyError
    for a, b in zip(before, one.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_is_a_part_of_the_state_and_begins_again():
    one, _ = trained(0.8, [])
    averages = one.average.variables
    assert all(any(v is a for v in one.variables) for a in averages)
    fresh = network()
    one.begin_again(fresh, keras.optimizers.Adam(), Objective.of(cross_entropy), 0.5)
    for a, b in zip(averages, fresh.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(one.average.momentum) == 0.5


MISTAKES = {
    "ema=1": "ema=1.0 must be above 0 and below 1",
    "ema=0": "ema=0.0 must be above 0",
    "ema=high": "ema",
    "accumulate=0": "accumulate=0 must be at least 1",
    "accumulate=1.5": "accumulate",
    "teacher.training.ema=2": "teacher.training.ema=2.0 must be above 0 and below 1",
    "checkpoint.every=0": "checkpoint.every=0 must be at least 1",
    "+optimizer.gradient_accumulation_steps=4": "type accumulate=4",
    "+optimizer.use_ema=true": "type ema=0.999",
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_is_one_line(kd, work, typed):
    assert_refused(kd, work, ["distill", "dataset=digits", typed], MISTAKES[typed])


@pytest.mark.slow
def test_parts_of_all_images_are_one_line(kd, work, small, npz):
    done = kd("train-student", *small[:2], "batch_size=160", "accumulate=2")
    assert done.code == 2 and done.error.startswith("accumulate=2 changes nothing: batch_size=160")
    assert not (work / "outputs").exists()


@pytest.mark.slow
def test_the_average_is_what_is_kept_and_read(kd, work, small):
    """After one step the momentum is 2 / 11."""
    step = [*small[:2], "dataset.validation_fraction=0", "epochs=1", "batch_size=160"]
    weights = {}
    for name, more in {
        "first": ["learning_rate=1e-30"],
        "plain": ["learning_rate=0.1"],
        "average": ["learning_rate=0.1", "ema=0.999", "checkpoint.every=1"],
    }.items():
        done = kd("train-student", *step, *more, f"outputs={name}")
        assert done.code == 0, done.err
        run, record = only_run(work / name)
        weights[name] = load_keras(run / "model.keras", "it").get_weights()
    assert "average of the weights (ema=0.999)" in record["selection"]
    assert record["config"]["ema"] == 0.999 and record["test"] == record["test_last"]
    kept = load_keras(run / "checkpoints" / "epoch-1.keras", "it").get_weights()
    for first, plain, average, same in zip(
        weights["first"], weights["plain"], weights["average"], kept, strict=True
    ):
        np.testing.assert_allclose(average, (2 * first + 9 * plain) / 11, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(average, same)


@pytest.mark.slow
def test_the_average_is_what_is_validated(kd, work, small):
    rows = []
    for more in ([], ["ema=0.9"], ["ema=0.99"]):
        done = kd("train-student", *small[:2], "epochs=4", *more, f"outputs=o{len(rows)}")
        assert done.code == 0, done.err
        rows.append(read_rows(only_run(work / f"o{len(rows)}")[0] / "history.jsonl"))
    plain, short, long = ([[row[part] for row in one] for part in ("train", "validation")]
                          for one in rows)  # fmt: skip
    assert plain[0] == short[0] == long[0]
    assert plain[1] != short[1]
