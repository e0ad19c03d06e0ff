"""Refuses losses that can't work with a run's data, batches or views, before anything trains."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from kd_cli.config.losses import loss_name, teacher_taps
from kd_cli.config.plans import member_plans
from kd_cli.data.dataset import Dataset
from kd_cli.data.views import Views
from kd_cli.distillation.objective import Part, of_plan
from kd_cli.errors import ConfigError


def refuse(plan: DictConfig, dataset: Dataset, views: Views | None) -> None:
    """Compares what the losses need (`interface.Needs`) with what the run has.

    Raises:
        ConfigError: A loss needs a label for every image, images that are not mixed, or more than
            one image in a batch; or no loss teaches the student's last layer.
    """
    members = len(member_plans(plan))
    if members > 1 and teacher_taps(plan.loss):
        raise ConfigError(
            f"loss={loss_name(plan.loss)} compares layers of a teacher, and this run has "
            f"{members}; give one teacher, or choose a loss of logits"
        )
    if plan.teacher.combine == "confidence" and not dataset.train.labelled:
        raise ConfigError(
            "teacher.combine=confidence weights the teachers by the labels, and the training "
            "examples have none; type teacher.combine=mean"
        )
    parts = of_plan(OmegaConf.to_container(plan.loss)).parts
    for part in parts:
        why = _lacking(part, plan, dataset, views)
        if why:
            raise ConfigError(f"loss={loss_name(plan.loss)}: {part.name} {why}")
    if not any(part.needs.head for part in parts):
        name = loss_name(plan.loss).strip("[]")
        raise ConfigError(
            f"loss={loss_name(plan.loss)} compares layers alone, so the student's last layer would "
            f"stay as it is drawn; add a loss of logits: loss=[hinton,{name}]"
        )


def _lacking(part: Part, plan: DictConfig, dataset: Dataset, views: Views | None) -> str:
    """What a loss needs and does not have, and what to type; empty if nothing."""
    train: Any = dataset.train
    bare = len(train) - train.labelled
    if part.needs.labels and bare:
        return (
            f"needs a label for every example, and {bare:,} of {len(train):,} have none; type "
            "dataset.unlabelled=leave_out, or choose another loss"
        )
    if part.needs.unmixed and views is not None and views.mixes:
        return (
            "is not defined for mixed images; choose an augmentation without mixup, as in "
            "augment=flip_crop"
        )
    if part.needs.relations and plan.batch_size == 1:
        many = dataset.inputs.many
        return f"compares the {many} of a batch, and batch_size=1 has one; type batch_size=64"
    return ""
