"""How long a run takes: the sums by hand, and the measurements against a clock of our own."""

from __future__ import annotations

import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_cli.commands import estimate
from kd_cli.commands.estimate import Distilling, Pace, Training, duration, seconds_each
from kd_cli.data.dataset import Split
from kd_cli.distillation.losses import cross_entropy
from kd_cli.distillation.objective import Objective
from kd_cli.training.step import Engine, Learner

# 4 epochs of 10 steps of 2 s, of which 0.5 s for the batch. 100 images after each of them, 50 at
# the end, twice.
STUDENT = Training(Pace(3.0, 2.0, 0.5, 0.01), 40, 10, 100, 50)
TEACHER = Training(Pace(5.0, 7.0, 0.5, 0.1), 15, 10, 0, 50)


def lines(views, missing, teacher=None, could="", batch=1.5):
    # 320 images of 1.5 / 32 s: 15 s a view.
    made = Distilling(STUDENT, teacher, batch, batch / 32, 320, views, missing, could)
    return made.lines()[1:]


def test_the_sums():
    assert STUDENT.epoch() == 21 and STUDENT.epoch(1.5) == 36
    assert STUDENT.total() == pytest.approx(3 + 80 + 0.01 * (4 * 100 + 2 * 50))
    # 15 steps are two epochs, of which the second ends early.
    assert TEACHER.total() == pytest.approx(5 + 105 + 0.1 * 2 * 50)
    assert Training(Pace(0, 1, 0, 1), 15, 10, 7, 0).total() == 15 + 2 * 7


def test_stored_outputs():
    assert lines(1, 1) == [
        "student: 21 s an epoch, 1.5 min in all",  # 88 s
        # 60 s less for 15 s.
        "live teacher: 36 s an epoch; cached: 15 s once for 320 images, then 21 s an epoch: the "
        "cache saves 45 s in this run",
        "hydra/launcher=joint: sharing the batches saves 20 s (23 %) for each further student",
        "this run: 1.7 min in all",  # 103 s
    ]
    assert "cached: outputs of 320 images are stored, then 21 s" in lines(1, 0)[1]
    assert "saves 1 min in this run" in lines(1, 0)[1] and lines(1, 0)[-1].startswith(
        "this run: 1.5 min"
    )
    some = lines(3, 1)[1]
    assert "15 s once for 3 views of 320 images (2 of the views are stored), then" in some
    assert "the cache costs 1 min in this run" in lines(8, 8)[1]  # 120 s for 60 s


def test_a_live_teacher():
    assert lines(0, 0, could="cache.views=K") == [
        "student: 36 s an epoch, 2.5 min in all",  # 148 s
        "live teacher: 15 s of each epoch; with cache.views=K: 15 s once for each of K, then "
        "21 s an epoch",
        # 40 times 0.5 + 1.5 s.
        "hydra/launcher=joint: sharing the batches and the teacher saves 1.3 min (54 %) for each "
        "further student",
        "this run: 2.5 min in all",
    ]
    stored = lines(0, 0, could="cache.logits=float32")[1]
    assert "; with cache.logits=float32: 15 s once, then 21 s an epoch" in stored
    assert "live teacher: 15 s of each epoch, and no cache serves" in lines(0, 0)


def test_a_teacher_to_be_trained():
    first, *_, last = lines(1, 1, TEACHER)
    assert first == "teacher, trained first: 1.2 min an epoch, 2 min in all"  # 70 and 120 s
    assert last == "this run: 3.7 min in all"  # 223 s


def test_durations():
    told = [0.0004, 0.0432, 1.0, 59, 90, 5400, 47 * 3600, 49 * 3600, 86400 * 1234]
    assert [duration(one) for one in told] == [
        "under 0.001 s", "0.043 s", "1 s", "59 s", "1.5 min", "1.5 h", "47 h", "2 days",
        "1,234 days",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("each", "most", "counts"),
    [
        (0.01, 1000, [1, 2, 4, 8, 8, 8, 8, 8]),  # 0.05 s are reached with 8
        (0.001, 3, [1, 2, 3, 3, 3, 3, 3]),  # an epoch of three steps
        (2.0, 1000, [1, 1]),  # a third sample would go above 5 s
        (60.0, 1000, [1]),
    ],
)
def test_few_samples_of_what_is_slow(monkeypatch, each, most, counts):
    now, asked = [0.0], []
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now[0])

    def do(count):
        asked.append(count)
        now[0] += count * each

    assert seconds_each(do, most) == pytest.approx(each)
    assert asked == counts


def slow(images):
    """Sleeps 10 ms, whatever it gets."""

    def sleep(values):
        time.sleep(0.01)
        return values

    return tf.ensure_shape(tf.numpy_function(sleep, [images], images.dtype), images.shape)


def test_what_is_measured_is_what_runs(monkeypatch):
    """Sleeping stands for computing, so that a busy machine can only be slower than the bounds."""
    monkeypatch.setattr(estimate, "SAMPLES", 2)
    forward = estimate.forward(lambda images: {"logits": slow(images)}, tf.zeros([4, 2]))
    assert 0.01 <= forward < 0.1
    keras.utils.set_random_seed(0)
    inputs = keras.Input((2, 2, 1))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(inputs)))
    calls = []

    def loss(labels, student, teacher):
        known = tf.numpy_function(lambda z: calls.append(1) or z, [labels], tf.int64)
        return cross_entropy(slow(tf.ensure_shape(known, labels.shape)), student, teacher)

    split = Split(np.zeros((10, 2, 2, 1), np.uint8), np.arange(10) % 3, np.arange(10))
    learner = Learner(model, keras.optimizers.SGD(0.1), Objective.of(loss), lambda step: 0.1)
    engine = Engine([learner], split, 4, 0)  # 3 steps an epoch
    calls.clear()
    made = estimate.pace(engine, split)
    assert made.first >= 0.01 and 0.01 <= made.step < 0.1
    assert made.batch < 0.01 and made.image < 0.01
    trained = len(calls)
    assert trained >= 1 + 3  # real steps
    engine.make_batches(0, 0, 3)
    assert len(calls) == trained

    def broken(labels, student, teacher):
        return {"hard": np.inf * tf.reduce_sum(student["logits"] ** 2, -1)}

    learner = Learner(model, keras.optimizers.SGD(0.1), Objective.of(broken), lambda step: 0.1)
    assert estimate.pace(Engine([learner], split, 4, 0), split) is None
