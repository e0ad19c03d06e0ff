"""Derives the teacher's and the scratch student's configuration from a distill configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kd_cli.config.keys import TRAINING, UNUSED


def cross_entropy(label_smoothing: float) -> dict[str, Any]:
    """The loss of a network that learns from labels alone."""
    node = {
        "_target_": "kd_cli.distillation.cross_entropy",
        "_partial_": True,
        "label_smoothing": label_smoothing,
    }
    return {"ce": node}


def is_taught(plan: DictConfig) -> bool:
    """Whether the student has a teacher: `distill`. (A plan holds only what its command uses.)"""
    return "teacher" in plan and "student" in plan


def trains_teacher(plan: DictConfig) -> bool:
    """Whether the network that is trained is a teacher."""
    return "teacher" in plan and "student" not in plan


def has_rounds(plan: DictConfig) -> bool:
    """Whether the student is trained on pseudo-labels in rounds: `self-train`."""
    return "pseudo" in plan


def is_mutual(plan: DictConfig) -> bool:
    """Whether the student is one of several that teach each other: `mutual`."""
    return "peers" in plan


def peer_name(plan: DictConfig) -> str:
    """Of one of several students that teach each other: its network and number, from 1."""
    return f"{plan.student.name} ({plan.peers.number})"


def given_by(plan: DictConfig) -> str:
    """The key that gives a distill run a finished teacher; empty if kd trains the teacher."""
    if plan.teacher.checkpoint is not None:
        return "teacher.checkpoint"
    if plan.teacher.get("logits") is not None:
        return "teacher.logits"
    if plan.teacher.weights is not None:
        return "teacher.weights"
    return "teacher_dir" if plan.teacher_dir is not None else ""


def member_plans(plan: DictConfig) -> list[DictConfig]:
    """Plans with one teacher each: of several files, or of the seeds of `teacher.members`."""
    given, count = plan.teacher.checkpoint, plan.teacher.get("members", 1)
    several = OmegaConf.is_list(given)
    if not several and count == 1:
        return [plan]
    plain = OmegaConf.to_container(plan)
    if several:
        changes = [{"checkpoint": path} for path in given]
    else:
        training = plain["teacher"]["training"]
        seeds = [key for key in training if key == "seed" or key.endswith("_seed")]
        changes = [
            {"members": 1, "training": {**training, **{key: training[key] + n for key in seeds}}}
            for n in range(count)
        ]
    return [OmegaConf.create({**plain, "teacher": {**plain["teacher"], **c}}) for c in changes]


def teacher_plan(plan: DictConfig) -> DictConfig:
    """The plan of `kd train-teacher` for the teacher that a plan describes.

    Its root keys are those of `teacher.training`; data, device and folders are the plan's.
    """
    plain = OmegaConf.to_container(plan)
    teacher = {key: plain["teacher"][key] for key in ("name", "input", "network", "weights")}
    training = plain["teacher"]["training"]
    dataset = _from_labels(plain["dataset"], training.pop("labelled_fraction"))
    dropped = {*UNUSED["train-teacher"], *TRAINING, "teacher", "rerun"}
    kept = {key: value for key, value in plain.items() if key not in dropped}
    return OmegaConf.create(
        {
            **kept,
            **training,
            "command": "train-teacher",
            "dataset": dataset,
            "teacher": teacher,
            "loss": cross_entropy(training["label_smoothing"]),
            "rerun": False if is_taught(plan) else plain["rerun"],
            "sweep": None if is_taught(plan) else plain["sweep"],  # it is no point of it
            "teacher_dir": plain["teacher_dir"],
        }
    )


def _from_labels(dataset: dict[str, Any], fraction: float | None = None) -> dict[str, Any]:
    """The dataset of a network that learns from labels alone: from this fraction of them."""
    fraction = dataset["labelled_fraction"] if fraction is None else fraction
    draw = "split_seed" if fraction == 1 else "labelled_seed"  # of all labels there is one draw
    return {
        **dataset,
        "labelled_fraction": fraction,
        "labelled_seed": dataset[draw],
        "unlabelled": "leave_out",
        **unlabelled_left_out(dataset),
    }


def unlabelled_left_out(dataset: Mapping[str, Any]) -> dict[str, None]:
    """What of a dataset's node changes so that images of its unlabelled_path are not used.

    Its source still has the path, so that all networks of an experiment share decoded images.
    """
    return dict.fromkeys({"unlabelled_path"} & dataset.keys())


def teacher_augment_follows(plan: DictConfig) -> bool:
    """Whether the teacher is trained with the student's augmentation."""
    return bool(plan.teacher.training.augment == plan.augment)


def scratch_plan(plan: DictConfig) -> DictConfig:
    """The plan of `kd train-student` for the same student: the same settings without a teacher."""
    plain = OmegaConf.to_container(plan)
    for key in (*UNUSED["train-student"], "peers"):
        plain.pop(key, None)
    return OmegaConf.create(
        {
            **plain,
            "command": "train-student",
            "dataset": _from_labels(plain["dataset"]),
            "rerun": False,
            "loss": cross_entropy(plain.get("label_smoothing", 0.0)),
        }
    )
