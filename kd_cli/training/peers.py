"""Trainings that learn from each other: their step, their states, which count together, and their
failures, which they share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import tensorflow as tf

from kd_cli.runs.state import State


class Training(Protocol):
    """What is needed of a `loop.Training`."""

    peers: list[Any]
    error: Exception | None
    state: State
    run: Any

    def attempt(self, act: Callable[..., Any], *args: Any) -> Any: ...


class PeerError(RuntimeError):
    """A student ended because another one, from which it learns, has failed."""


def join(trainings: list[Training]) -> None:
    """Makes trainings each other's peers."""
    for training in trainings:
        training.peers = trainings
    fail_together(trainings)


def release(trainings: Sequence[Training]) -> None:
    """Makes the held states of peers count, if all have written theirs."""
    fail_together(trainings)
    for training in trainings:
        if training.state.held and training.error is None:
            training.attempt(training.state.release)
    fail_together(trainings)


def fail_together(trainings: Sequence[Training]) -> None:
    """Ends those whose peer has failed."""
    for training in trainings:
        broken = [one for one in training.peers if one.error is not None]
        if broken and training.error is None:
            training.error = PeerError(
                f"{training.run.label} ended, because it learns from {broken[0].run.label}, which "
                "has failed"
            )


def step_together(
    learners: Sequence[Any],
    step: tf.Tensor,
    images: tf.Tensor,
    labels: tf.Tensor,
    index: tf.Tensor,
) -> None:
    """One step of learners (`step.Learner`) that teach each other.

    All look at the batch with the weights of the last step. Then each learns from its labels and
    from what the others said, as its losses' teacher: logits [B, k - 1, K] without a gradient.
    (Algorithm 1 of Zhang et al. 2018 asks the others again after each update: more passes.)
    """
    tapes = [tf.GradientTape(persistent=one.head is not None) for one in learners]
    seen = []
    for learner, tape in zip(learners, tapes, strict=True):
        with tape:
            seen.append(learner._outputs(images, index))
    said = [tf.stop_gradient(one["logits"]) for one in seen]
    for number, (learner, tape) in enumerate(zip(learners, tapes, strict=True)):
        others = tf.stack([one for n, one in enumerate(said) if n != number], axis=1)
        with tape:  # it goes on
            means = learner._means(labels, seen[number], {"logits": others}, step)
            loss = learner._scaled(means, step)
        learner._update(step, tape, loss, labels, seen[number]["logits"], means)
