"""Weights of the classes in the term of a loss that looks at the labels."""

from __future__ import annotations

import numpy as np
from omegaconf import DictConfig

from kd_cli.data.dataset import Dataset


def balanced(labels: np.ndarray, classes: int) -> np.ndarray:
    """n / (k * n_c) of each class c, so that all classes weigh alike and the mean example 1.

    As scikit-learn's `compute_class_weight("balanced")`, which is from King and Zeng 2001,
    "Logistic regression in rare events data".

    Args:
        labels: [n] class numbers; -1 of an image without a label counts for nothing.
        classes: Number of classes. k counts those that have labels; the others weigh 0.

    Returns:
        [classes] float64.
    """
    labels = labels[labels >= 0]
    counts = np.bincount(labels, minlength=classes)
    weights = np.zeros(classes)
    present = counts > 0
    weights[present] = len(labels) / (present.sum() * counts[present])
    return weights


def of_plan(plan: DictConfig, dataset: Dataset) -> list[float] | None:
    """The weight of each class that `class_weights` says, on the images that are trained on."""
    wanted = plan.get("class_weights")
    if wanted is None:
        return None
    if wanted != "balanced":
        return [float(weight) for weight in wanted]
    train = dataset.train
    return balanced(train.labels[train.rows], dataset.num_classes).tolist()
