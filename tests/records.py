"""A whole `metrics.json`, for tests of what is read from one."""

from __future__ import annotations

import copy
from typing import Any

SCORE = {"accuracy": 0.9, "nll": 0.3}
QUALITY = {"accuracy": 0.9, "nll": 0.3, "brier": 0.2, "ece": 0.05, "ece_equal_mass": 0.06}
TEACHER = {
    "path": "outputs/teachers/npz-cnn-1a2b3c4d",
    "name": "cnn",
    "weights_sha256": "t" * 64,
    "training": "2 epochs, seed 0",
    "labelled": 90,
    "test_accuracy": 0.95,
    "test_nll": 0.2,
    "quality": {"test": QUALITY | {"accuracy": 0.95, "nll": 0.2}},
    "parameters": 9000,
    "outputs": "cached as float32",
    "on_training": {
        "images": 144,
        "accuracy": 0.98,
        "entropy": 0.1,
        "entropy_at_temperature": 0.6,
    },
    "precision": "float32",
}
PSEUDO_LABELS = {
    "round": 1,
    "labels": "soft",
    "threshold": 0.3,
    "unlabelled": 100,
    "above_threshold": [40, 30],
    "images": 60,
    "rows": 80,
    "per_class": [40, 40],
    "accuracy": 0.75,
}
_RECORD: dict[str, Any] = {
    "schema_version": 3,
    "command": "train-student",
    "run_id": "0123456789",
    "config": {"epochs": 2},
    "inputs": {"data": "d" * 64, "split": "s" * 64},
    "seed": 0,
    "git_commit": None,
    "versions": {"kd": "0.5.0"},
    "device": "CPU",
    "precision": "float32",
    "dataset": {
        "name": "npz",
        "image_shape": [6, 6, 1],
        "class_names": ["a", "b"],
        "train": 90,
        "labelled": 90,
        "validation": 10,
        "test": 30,
        "train_per_class": [45, 45],
        "test_per_class": [15, 15],
        "fingerprint": "d" * 64,
        "split_fingerprint": "s" * 64,
        "held_out_fingerprint": "h" * 64,
    },
    "input": "pixels 0..255, [batch, 6, 6, 1]",
    "network": "mlp",
    "parameters": 1000,
    "loss": "CE(labels, student)",
    "alpha": None,
    "class_weights": [0.5, 1.5],
    "parameters_for_distilling": 40,
    "deployed": {"configured": 900, "body": 600, "projector": 300, "head": 100},
    "temperature": None,
    "epochs_done": 2,
    "steps_done": 4,
    "stopped": "finished",
    "warnings": [],
    "selection": "the best epoch by validation accuracy",
    "test": SCORE,
    "test_last": {"accuracy": 0.85, "nll": 0.4},
    "quality": {"test": QUALITY},
    "weights_sha256": "w" * 64,
    "timings": {
        "learners": 1,
        "total_seconds": 12.5,
        "train_seconds": 10.0,
        "seconds_per_epoch": 5.0,
        "examples_per_second": 18.0,
        "teacher_forward_seconds": 0.0,
    },
}


def content(**changes: Any) -> dict[str, Any]:
    """What a scratch student's metrics.json holds; changes that are mappings are merged into it."""
    return _merged(copy.deepcopy(_RECORD), copy.deepcopy(changes))


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    for key, value in new.items():
        both = isinstance(value, dict) and isinstance(old.get(key), dict)
        old[key] = _merged(old[key], value) if both else value
    return old
