"""Learning-rate schedules: `(total_steps, steps_per_epoch, *, hyper) -> (step -> learning rate)`.

Durations are epochs in YAML and steps in code, converted here, once; a warm-up counts inside the
total. The step is a tensor or a number and starts at 0. Mistakes are told before TensorFlow loads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from kd_cli.errors import ConfigError

Schedule = Callable[[Any], Any]


def in_steps(steps: int | None, epochs: float | None, steps_per_epoch: int) -> int | None:
    """A duration given in steps, else in epochs, in steps; None where neither is given."""
    if steps is not None:
        return int(steps)
    return None if epochs is None else round(epochs * steps_per_epoch)


def constant(total_steps: int, steps_per_epoch: int, *, learning_rate: Any) -> Schedule:
    """The same rate at every step."""
    return lambda step: learning_rate


def cosine(
    total_steps: int,
    steps_per_epoch: int,
    *,
    learning_rate: Any,
    floor: float = 0.0,
    decay_steps: int | None = None,
    decay_epochs: float | None = None,
) -> Schedule:
    """Half a cosine from `learning_rate` to `floor * learning_rate`, then constant.

    Args:
        total_steps: Steps of the whole training: the decay's length when none is given.
        steps_per_epoch: To convert `decay_epochs`.
        learning_rate: At step 0.
        floor: Share of it that remains, 0..1.
        decay_steps: Length of the decay in steps.
        decay_epochs: Length of the decay in epochs, when `decay_steps` is null.

    Source: `keras.optimizers.schedules.CosineDecay` (its `alpha` is `floor`).
    """
    length = in_steps(decay_steps, decay_epochs, steps_per_epoch)
    length = total_steps if length is None else length
    if not 0 <= floor <= 1:
        raise ConfigError(f"schedule.floor={floor} must be between 0 and 1")
    if length < 1:
        raise ConfigError(f"schedule.decay_steps={length} must be at least 1")

    def schedule(step: Any) -> Any:
        import tensorflow as tf

        done = tf.minimum(tf.cast(step, tf.float32) / length, 1.0)
        return learning_rate * (floor + (1 - floor) * 0.5 * (1 + tf.cos(math.pi * done)))

    return schedule


def warmup_cosine(
    total_steps: int,
    steps_per_epoch: int,
    *,
    learning_rate: float,
    warmup_learning_rate: float = 0.0,
    warmup_steps: int | None = None,
    warmup_epochs: float | None = None,
) -> Schedule:
    """Linear from `warmup_learning_rate` to `learning_rate`, then half a cosine to 0, then 0.

    Args:
        total_steps: Where the cosine reaches 0; the warm-up counts inside it.
        steps_per_epoch: To convert `warmup_epochs`.
        learning_rate: The peak, at the end of the warm-up.
        warmup_learning_rate: At step 0.
        warmup_steps: Length of the warm-up in steps.
        warmup_epochs: Its length in epochs, when `warmup_steps` is null.

    Raises:
        ConfigError: A warm-up as long as the training, or a peak below the first rate.

    Source: the code beside Beyer et al. 2021 for Flowers-102.
    """
    warmup = in_steps(warmup_steps, warmup_epochs, steps_per_epoch) or 0
    if not 0 <= warmup < total_steps:
        raise ConfigError(
            f"schedule: a warm-up of {warmup} steps must be at least 0 and below the training's "
            f"{total_steps} steps, inside which it counts; set schedule.warmup_steps or epochs"
        )
    if learning_rate < warmup_learning_rate:
        raise ConfigError(
            f"learning_rate={learning_rate} is below "
            f"schedule.warmup_learning_rate={warmup_learning_rate}; the warm-up must rise"
        )

    def schedule(step: Any) -> Any:
        import tensorflow as tf

        step = tf.cast(step, tf.float32)
        rise = (learning_rate - warmup_learning_rate) / max(warmup, 1)
        cosine_part = 0.5 * (1 + tf.cos(math.pi * (step - warmup) / float(total_steps - warmup)))
        rate = tf.where(
            step < warmup, warmup_learning_rate + rise * step, learning_rate * cosine_part
        )
        return tf.where(step > total_steps, 0.0, rate)

    return schedule


def multistep(
    total_steps: int,
    steps_per_epoch: int,
    *,
    learning_rate: Any,
    milestones: Sequence[float],
    factor: float = 0.1,
) -> Schedule:
    """`learning_rate`, multiplied by `factor` once more after each of the `milestones`.

    Args:
        total_steps: Of the whole training; a milestone after it is never reached.
        steps_per_epoch: To convert the milestones.
        learning_rate: Before the first milestone.
        milestones: Rising numbers of epochs; a step from there on has the smaller rate.
        factor: Above 0, at most 1.

    Raises:
        ConfigError: Milestones that do not rise from 0, or another factor.

    Source: `torch.optim.lr_scheduler.MultiStepLR`.
    """
    listed = isinstance(milestones, Sequence) and not isinstance(milestones, str)
    numbers = listed and all(isinstance(one, int | float) for one in milestones)
    places = [round(one * steps_per_epoch) for one in milestones] if numbers else []
    if not places or min(places) < 1 or sorted(set(places)) != places:
        raise ConfigError(
            f"schedule.milestones={milestones} must be rising numbers of epochs above 0, "
            "such as [150,180,210]"
        )
    if not isinstance(factor, int | float) or not 0 < factor <= 1:
        raise ConfigError(f"schedule.factor={factor} must be above 0 and at most 1")

    def schedule(step: Any) -> Any:
        import tensorflow as tf

        passed = tf.reduce_sum(tf.cast(tf.cast(step, tf.int64) >= places, tf.float32))
        return learning_rate * factor**passed

    return schedule


def smaller_from(schedule: Schedule, first: int, factor: float) -> Schedule:
    """A schedule whose rates are multiplied by `factor` from the step `first` on."""

    def smaller(step: Any) -> Any:
        import tensorflow as tf

        return schedule(step) * tf.where(tf.cast(step, tf.int64) >= first, factor, 1.0)

    return smaller
