"""Learning rates against the closed form, at the steps where schedules go wrong."""

import math

import keras
import pytest
import tensorflow as tf

from kd_cli.config.check import check
from kd_cli.config.compose import compose
from kd_cli.config.instantiate import build
from kd_cli.data.dataset import load_dataset
from kd_cli.errors import ConfigError
from kd_cli.runs.resolvers import register_resolvers
from kd_cli.training import assembly
from kd_cli.training.schedules import constant, cosine, multistep, warmup_cosine


def near(value: float):
    """float32 at rates of some 0.001: 1 + cos(x) loses digits near the end of a decay."""
    return pytest.approx(value, rel=1e-6, abs=3e-10)


def rates(schedule, steps) -> list[float]:
    return [float(schedule(tf.constant(step, tf.int64))) for step in steps]


def test_constant():
    assert rates(constant(100, 10, learning_rate=0.25), [0, 99, 100, 1000]) == [0.25] * 4


def test_cosine_from_start_to_past_the_end():
    schedule = cosine(100, 10, learning_rate=0.004)
    middle, last = 0.002, 0.002 * (1 + math.cos(0.99 * math.pi))
    assert rates(schedule, [0, 25, 50, 99, 100, 250]) == [
        near(0.004),
        near(0.002 + math.sqrt(2) / 2 * 0.002),
        near(middle),
        near(last),
        near(0),
        near(0),
    ]


def test_cosine_ends_on_its_floor():
    schedule = cosine(100, 10, learning_rate=0.001, floor=0.1)
    # Half way: the mean of 0.001 and 0.0001.
    assert rates(schedule, [0, 50, 100, 5000]) == [
        near(0.001),
        near(0.00055),
        near(0.0001),
        near(0.0001),
    ]


@pytest.mark.parametrize("floor", [0.0, 0.01, 0.1, 1.0])
def test_cosine_is_keras_cosine_decay(floor):
    ours = cosine(9999, 10, learning_rate=0.001, floor=floor, decay_steps=2000)
    keras_ = keras.optimizers.schedules.CosineDecay(0.001, 2000, alpha=floor)
    for step in (0, 1, 499, 1000, 1777, 1999, 2000, 2001, 5000):
        assert float(ours(step)) == near(float(keras_(step)))


def test_decay_epochs_become_steps():
    schedule = cosine(1000, 8, learning_rate=0.001, decay_epochs=2.5)
    assert rates(schedule, [10, 20, 21]) == [near(0.0005), near(0), near(0)]
    assert float(schedule(19)) > 0


def test_decay_steps_win_over_decay_epochs():
    schedule = cosine(1000, 8, learning_rate=0.001, decay_steps=40, decay_epochs=2.5)
    assert float(schedule(20)) == near(0.0005)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.0),
        (480, 0.00096),  # where the published 30 epochs of 16 steps end
        (750, 0.0015),
        (1499, 0.002998),
        (1500, 0.003),
        (1746, 0.0015),  # half way from 1500 to 1992
        (1991, 0.0015 * (1 + math.cos(math.pi * 491 / 492))),
        (1992, 0.0),
        (2000, 0.0),
    ],
)
def test_warmup_cosine_of_the_flowers_recipe(step, rate):
    schedule = warmup_cosine(1992, 16, learning_rate=0.003, warmup_steps=1500)
    assert float(schedule(tf.constant(step, tf.int64))) == near(rate)


def test_the_flowers_recipe_s_steps_on_the_command_line():
    register_resolvers()
    words = ["dataset=digits", "schedule=warmup_cosine", "schedule.warmup_steps=1500"]
    words += ["learning_rate=0.003", "steps=1992", "batch_size=100"]
    plan = check(compose("train-student", words), words)
    total_steps, steps_per_epoch = assembly.length(plan, load_dataset(plan.dataset))
    assert (total_steps, steps_per_epoch) == (1992, 13)  # 1,225 images; 153 epochs and 3 steps
    schedule = build(plan.schedule, "schedule")(total_steps, steps_per_epoch)
    found = rates(schedule, [0, 750, 1500, 1746, 1992, 2000])
    assert found == [near(value) for value in (0, 0.0015, 0.003, 0.0015, 0, 0)]


def test_warmup_starts_at_its_own_rate():
    schedule = warmup_cosine(
        100, 10, learning_rate=0.005, warmup_learning_rate=0.001, warmup_steps=20
    )
    assert rates(schedule, [0, 5, 10, 20]) == [near(0.001), near(0.002), near(0.003), near(0.005)]


def test_warmup_epochs_become_steps():
    schedule = warmup_cosine(100, 8, learning_rate=0.002, warmup_epochs=2.5)
    assert rates(schedule, [10, 20, 60, 100]) == [near(0.001), near(0.002), near(0.001), near(0)]


def test_warmup_steps_win_over_warmup_epochs():
    schedule = warmup_cosine(100, 8, learning_rate=0.002, warmup_steps=40, warmup_epochs=2.5)
    assert rates(schedule, [20, 40]) == [near(0.001), near(0.002)]


def test_without_warmup_it_starts_at_the_peak():
    schedule = warmup_cosine(100, 10, learning_rate=0.002, warmup_steps=0)
    assert rates(schedule, [0, 50, 100]) == [near(0.002), near(0.001), near(0)]


def test_a_warmup_may_stay_level():
    schedule = warmup_cosine(
        100, 10, learning_rate=0.002, warmup_learning_rate=0.002, warmup_steps=50
    )
    assert rates(schedule, [0, 25, 50]) == [near(0.002)] * 3


@pytest.mark.parametrize("warmup", [100, 101])
def test_a_warmup_as_long_as_the_training_is_refused(warmup):
    with pytest.raises(
        ConfigError, match=f"warm-up of {warmup} steps must be .* below the training's 100 steps"
    ):
        warmup_cosine(100, 10, learning_rate=0.001, warmup_steps=warmup)


def test_a_warmup_in_epochs_as_long_as_the_training_is_refused():
    with pytest.raises(ConfigError, match="warm-up of 100 steps"):
        warmup_cosine(100, 10, learning_rate=0.001, warmup_epochs=10)


def test_a_negative_warmup_is_refused():
    with pytest.raises(ConfigError, match="warm-up of -5 steps must be at least 0"):
        warmup_cosine(100, 10, learning_rate=0.001, warmup_steps=-5)


def test_a_peak_below_the_first_rate_is_refused():
    with pytest.raises(ConfigError, match=r"learning_rate=0.001 is below .*=0.002"):
        warmup_cosine(100, 10, learning_rate=0.001, warmup_learning_rate=0.002, warmup_steps=10)


@pytest.mark.parametrize("floor", [-0.1, 1.1])
def test_a_floor_that_is_no_share_is_refused(floor):
    with pytest.raises(ConfigError, match=f"schedule.floor={floor} must be between 0 and 1"):
        cosine(100, 10, learning_rate=0.001, floor=floor)


@pytest.mark.parametrize("length", [{"decay_steps": -1}, {"decay_steps": 0}, {"decay_epochs": 0}])
def test_a_decay_of_no_steps_is_refused(length):
    with pytest.raises(ConfigError, match="must be at least 1"):
        cosine(100, 10, learning_rate=0.001, **length)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.05), (1199, 0.05), (1200, 0.005), (1439, 0.005), (1440, 5e-4), (1680, 5e-5)],
)
def test_multistep_of_the_cifar_tables(step, rate):
    """Epochs 150, 180 and 210, here of eight steps."""
    schedule = multistep(1920, 8, learning_rate=0.05, milestones=[150, 180, 210])
    assert float(schedule(tf.constant(step, tf.int64))) == near(rate)


def test_multistep_in_the_middle_of_an_epoch_and_with_another_factor():
    schedule = multistep(100, 8, learning_rate=1.0, milestones=[0.5, 2], factor=0.5)
    assert rates(schedule, [3, 4, 15, 16, 99]) == [near(x) for x in (1, 0.5, 0.5, 0.25, 0.25)]


@pytest.mark.parametrize("milestones", [[], [0, 3], [3, 2], [2, 2], 3, "12", ["a"]])
def test_multistep_refuses_milestones_that_do_not_rise(milestones):
    with pytest.raises(ConfigError, match="must be rising numbers of epochs above 0"):
        multistep(100, 8, learning_rate=1.0, milestones=milestones)


@pytest.mark.parametrize("factor", [0, 1.5, "a"])
def test_multistep_refuses_a_factor_that_does_not_shrink(factor):
    with pytest.raises(ConfigError, match="above 0 and at most 1"):
        multistep(100, 8, learning_rate=1.0, milestones=[3], factor=factor)
