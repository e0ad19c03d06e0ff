"""The teacher of a run: found, refused if it can't teach, and asked about the held-out images."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import DictConfig

from kd_cli.data.dataset import Dataset
from kd_cli.data.views import Views
from kd_cli.distillation import teacher_checks, teacher_tables
from kd_cli.distillation.teacher import Teacher, find
from kd_cli.distillation.teacher_outputs import why_live
from kd_cli.networks.doubts import scaled_twice
from kd_cli.runs import quality
from kd_cli.runs.session import Session


@dataclass(frozen=True)
class Prepared:
    """A teacher with what it says to the images that are not trained on.

    Attributes:
        teacher: The network.
        dataset: Whose images it was asked about.
        arrays: Labels [n] and its logits [n, K] of the held-out splits, as in `predictions.npz`.
    """

    teacher: Teacher
    dataset: Dataset
    arrays: dict[str, np.ndarray]

    @functools.cached_property
    def quality(self) -> dict[str, dict[str, Any]]:
        """Of these logits by split, from `quality.of_splits`."""
        return quality.of_splits(self.arrays, "teacher")

    def warnings(self, plan: DictConfig) -> list[str]:
        """What speaks against this teacher for a run: its pixels, and `teacher_checks.warnings`."""
        return [
            *scaled_twice(self.teacher.model, "teacher.input"),
            *teacher_checks.warnings(self.teacher, plan, self.dataset, self.quality),
        ]


def prepare(
    plan: DictConfig, dataset: Dataset, views: Views | None, session: Session
) -> Prepared | None:
    """The teacher that a distill run asks for; None where it has to be trained first.

    Raises:
        ConfigError: A teacher that can't be used or can't teach, or a setting of its outputs that
            makes no sense for this run (this comes before a teacher has to be trained).
    """
    why_live(plan, views)
    teacher = find(plan, dataset, session)
    if teacher is None:
        return None
    for one in teacher.members or (teacher,):
        teacher_checks.refuse(one, dataset)
    return ask(teacher, plan, dataset, views, session)


def ask(
    teacher: Teacher, plan: DictConfig, dataset: Dataset, views: Views | None, session: Session
) -> Prepared:
    """Asks a teacher about the held-out images, which take the input path of `plan`."""
    arrays = teacher_tables.held_out(teacher, plan, dataset, views, session)
    return Prepared(teacher, dataset, arrays)
