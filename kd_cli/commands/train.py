"""`kd train-teacher` and `kd train-student`: a network learns from the labels alone."""

from __future__ import annotations

from kd_cli.data.dataset import Dataset
from kd_cli.runs.asked import Run
from kd_cli.runs.session import Session
from kd_cli.training.train import Results, train


def train_teacher(runs: list[Run], dataset: Dataset, started: float, session: Session) -> Results:
    """Trains teachers with cross-entropy and keeps them in their directories."""
    return train(runs, dataset, started, "teacher", session)


def train_student(runs: list[Run], dataset: Dataset, started: float, session: Session) -> Results:
    """Trains students with cross-entropy, without a teacher: the baseline."""
    return train(runs, dataset, started, "student", session)
