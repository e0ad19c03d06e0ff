"""Trainings that learn from each other: their states count together, and they fail together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

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
