"""What a run reports: accuracy and NLL from logits, and the schema of `metrics.json`."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from kd_cli.runs.quality import log_softmax

SCHEMA_VERSION = 2
_NUMBER = (int, float)
# Key, type, whether it may be absent, meaning. A dotted key lies in a nested object.
SCHEMA: dict[str, tuple[Any, bool, str]] = {
    "schema_version": (int, False, "version of this table"),
    "command": (str, False, "train-teacher, train-student, distill or self-train"),
    "run_id": (str, False, "hash of the configuration that can change the result"),
    "config": (dict, False, "that configuration, resolved"),
    "inputs": (dict, False, "SHA-256 of data, split, teacher and given files"),
    "seed": (int, False, "seed; init_seed and data_seed are in config"),
    "git_commit": ((str, type(None)), False, "commit of the working directory, or null"),
    "versions": (dict, False, "kd, python, tensorflow, keras, numpy, hydra"),
    "device": (str, False, "what TensorFlow ran on"),
    "precision": (str, False, "Keras dtype policy of the trained network"),
    "dataset.name": (str, False, "dataset"),
    "dataset.image_shape": (list, False, "[height, width, channels]"),
    "dataset.class_names": (list, False, "class names in label order"),
    "dataset.train": (int, False, "training images"),
    "dataset.labelled": (int, False, "training images that have labels of the dataset"),
    "dataset.validation": (int, False, "validation images, 0 without a validation split"),
    "dataset.test": (int, False, "test images"),
    "dataset.fingerprint": (str, False, "SHA-256 of images, labels and class names"),
    "dataset.split_fingerprint": (str, False, "SHA-256 of the rows of each split"),
    "input": (str, False, "what model.keras takes"),
    "network": (str, False, "name of the trained network"),
    "parameters": (int, False, "parameters of model.keras"),
    "loss": (str, False, "the loss as a formula"),
    "alpha": ((*_NUMBER, type(None)), False, "weight of the hard labels, null where unused"),
    "temperature": ((*_NUMBER, type(None)), False, "temperature, null where unused"),
    "epochs_done": (int, False, "epochs trained"),
    "steps_done": (int, False, "optimizer steps"),
    "stopped": (str, False, "finished, or early stopping"),
    "warnings": (list, False, "what there is to warn about at its end"),
    "selection": (str, True, "how the epoch of model.keras was chosen; test has no say in it"),
    "validation.best.epoch": (int, True, "epoch chosen on validation, from 1"),
    "validation.best.accuracy": (_NUMBER, True, "validation accuracy of that epoch"),
    "validation.best.nll": (_NUMBER, True, "validation negative log-likelihood of that epoch"),
    "validation.last.epoch": (int, True, "last epoch"),
    "validation.last.accuracy": (_NUMBER, True, "its validation accuracy"),
    "validation.last.nll": (_NUMBER, True, "its validation negative log-likelihood"),
    "test.accuracy": (_NUMBER, False, "test accuracy of the weights in model.keras"),
    "test.nll": (_NUMBER, False, "their test negative log-likelihood, in nats"),
    "test_last.accuracy": (_NUMBER, False, "test accuracy of the last epoch's weights"),
    "test_last.nll": (_NUMBER, False, "their test negative log-likelihood"),
    "quality.validation": (dict, True, "top-1, NLL, Brier, calibration, classes: quality.quality"),
    "quality.test": (dict, True, "the same of test, temperature fitted on validation"),
    "fidelity.validation": (dict, True, "agreement with the teacher and KL: quality.fidelity"),
    "fidelity.test": (dict, True, "the same of test"),
    "weights_sha256": (str, False, "hash of the weights in model.keras"),
    "teacher.path": (str, True, "directory or file of the teacher"),
    "teacher.name": (str, True, "its network"),
    "teacher.weights_sha256": (str, True, "hash of its weights"),
    "teacher.training": (str, True, "how it was trained, where that is known"),
    "teacher.test_accuracy": (_NUMBER, True, "its test accuracy, evaluated in this run"),
    "teacher.test_nll": (_NUMBER, True, "its test negative log-likelihood"),
    "teacher.quality.validation": (dict, True, "its quality, through the input path of this run"),
    "teacher.quality.test": (dict, True, "the same of test"),
    "teacher.parameters": (int, True, "its parameters"),
    "teacher.outputs": (str, True, "cached as float32 or float16, or live and why"),
    "teacher.precision": (str, True, "Keras dtype policy of its forward pass"),
    "pseudo_labels.round": (int, True, "the round that learned from these pseudo-labels"),
    "pseudo_labels.labels": (str, True, "hard or soft"),
    "pseudo_labels.threshold": (_NUMBER, True, "only more confident ones count"),
    "pseudo_labels.unlabelled": (int, True, "images that the last round's network labelled"),
    "pseudo_labels.above_threshold": (list, True, "how many passed, per pseudo-label"),
    "pseudo_labels.images": (int, True, "how many images were kept"),
    "pseudo_labels.rows": (int, True, "training rows of theirs, repeats included"),
    "pseudo_labels.per_class": (list, True, "these rows per pseudo-label"),
    "pseudo_labels.accuracy": (_NUMBER, True, "share of right images, if labels are only hidden"),
    "rounds": (list, True, "each round's directory, pseudo-labels, validation and test"),
    "best_round": (int, True, "the best on validation; model.keras is the last round's"),
    "timings.total_seconds": (_NUMBER, False, "the run; of a resumed one at least its training"),
    "timings.learners": (int, False, "runs that shared these seconds (1, or a joint sweep)"),
    "timings.train_seconds": (_NUMBER, False, "training steps alone"),
    "timings.seconds_per_epoch": (_NUMBER, False, "training steps per epoch"),
    "timings.examples_per_second": (_NUMBER, False, "training examples per second"),
    "timings.teacher_forward_seconds": (_NUMBER, False, "computing the teacher's outputs"),
}  # fmt: skip


def problems(metrics: Mapping[str, Any]) -> list[str]:
    """What in a metrics record does not follow SCHEMA, in words; empty when all does."""
    found = []
    flat = _flatten(metrics)
    for key, (kind, optional, _) in SCHEMA.items():
        if key not in flat:
            if not optional:
                found.append(f"{key} is missing")
        elif not isinstance(flat[key], kind) or (isinstance(flat[key], bool)):
            found.append(f"{key} is {type(flat[key]).__name__}")
    found += [f"{key} is not in the schema" for key in flat if key not in SCHEMA]
    if metrics.get("command") == "distill" and "teacher.path" not in flat:
        found.append("teacher is missing")
    return found


def _flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Under dotted keys; what the schema calls a dict stays one."""
    flat = {}
    for key, value in record.items():
        whole = SCHEMA.get(prefix + key, (None,))[0] is dict
        if isinstance(value, dict) and not whole:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def score(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Top-1 accuracy and mean negative log-likelihood in nats.

    Args:
        logits: [n, K].
        labels: [n] class numbers.
    """
    log_p = log_softmax(logits)
    return {
        "accuracy": float((logits.argmax(axis=1) == labels).mean()),
        "nll": float(-log_p[np.arange(len(labels)), labels].mean()),
    }


def chance(labels: np.ndarray) -> tuple[float, float]:
    """The accuracy of always naming the most frequent class, and the highest that is no better.

    An accuracy up to two standard errors above it may be luck.

    Args:
        labels: [n] class numbers.
    """
    share = float(np.bincount(labels).max() / len(labels))
    return share, share + 2 * math.sqrt(share * (1 - share) / len(labels))


def environment() -> dict[str, Any]:
    """Git commit of the working directory and the versions of what computes."""
    names = {"kd": "kd-cli", "hydra": "hydra-core"}
    versions = {"python": platform.python_version()}
    for key in ("kd", "tensorflow", "keras", "numpy", "hydra"):
        try:
            versions[key] = metadata.version(names.get(key, key))
        except metadata.PackageNotFoundError:
            versions[key] = "not installed as a package"
    return {"git_commit": _git_commit(), "versions": versions}


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def read_record(directory: Path) -> dict[str, Any] | None:
    """The metrics of a finished run, or None: `metrics.json` is written last, when all else is."""
    path = directory / "metrics.json"
    return json.loads(path.read_text()) if path.is_file() else None
