"""The teacher: found in its directory or given as a file, checked, asked for its logits once.

A teacher is a function from images to logits, never trained and never saved with the student. This
is the one place that turns a run directory or a `.keras` file into it.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from omegaconf import DictConfig

from kd_cli import metrics
from kd_cli.data import Dataset, Split
from kd_cli.engine import predict_rows, predictor
from kd_cli.errors import ConfigError, first_line
from kd_cli.identity import teacher_spec
from kd_cli.metrics import score
from kd_cli.models import ADAPTER, check_network, with_adapter
from kd_cli.progress import CountProgress, shown

log = logging.getLogger("kd")


@dataclass(frozen=True)
class Teacher:
    """A network that is only asked.

    Attributes:
        model: Raw pixels to logits.
        path: Its directory or file.
        name: Its network.
        training: How it was trained, in words; empty when unknown.
        weights_sha256: Hash of its weights.
    """

    model: keras.Model
    path: Path
    name: str
    training: str
    weights_sha256: str

    @functools.cached_property
    def predict(self) -> Callable[[Any], Any]:
        return predictor(self.model)


def weights_hash(model: keras.Model) -> str:
    """SHA-256 over the type, shape and bytes of each weight, in the model's order."""
    sha = hashlib.sha256()
    for weight in model.get_weights():
        sha.update(f"{weight.dtype.str}{weight.shape}".encode())
        sha.update(np.ascontiguousarray(weight).data)
    return sha.hexdigest()


def load_keras(path: Path, what: str) -> keras.Model:
    """Reads a `.keras` file without executing code in it.

    Raises:
        ConfigError: When there is no such file, or Keras refuses it (a Lambda layer, say).
    """
    if not path.is_file():
        raise ConfigError(f"{what}={path} is not a file; expected a .keras file")
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (ValueError, TypeError, OSError, KeyError) as error:
        reason = first_line(error)
        if "ambda" in str(error):
            reason = "it holds a Lambda layer, whose code kd does not execute"
        raise ConfigError(f"{what}={path} can't be loaded by Keras: {reason}") from error


def find(plan: DictConfig, dataset: Dataset) -> Teacher | None:
    """The teacher that a distill run asks for, or None when it has to be trained first.

    Raises:
        ConfigError: When a given file can't serve, or `teacher_dir` holds a foreign teacher.
    """
    if plan.teacher.checkpoint is not None:
        return _from_file(plan, dataset)
    directory = Path(plan.teacher_dir)
    record = metrics.read(directory)
    if record is None:
        return None
    _refuse_foreign(plan, dataset, directory, record)
    model = load_keras(directory / "model.keras", "teacher")
    sha = weights_hash(model)
    if sha != record["weights_sha256"]:
        raise ConfigError(
            f"{shown(directory / 'model.keras')} was altered after training (weights {sha[:12]}, "
            f"recorded {record['weights_sha256'][:12]}); remove {shown(directory)} to train it "
            "again, or give the file as teacher.checkpoint"
        )
    return Teacher(model, directory, record["network"], describe(record), sha)


def describe(record: dict[str, Any]) -> str:
    """How a teacher was trained, in a few words."""
    return f"{record['epochs_done']} epochs, seed {record['seed']}"


def _from_file(plan: DictConfig, dataset: Dataset) -> Teacher:
    path = Path(plan.teacher.checkpoint).expanduser()
    model = load_keras(path, "teacher.checkpoint")
    check_network(model, dataset.num_classes, "teacher.checkpoint")
    if not any(layer.name == ADAPTER for layer in model.layers):
        model = with_adapter(model, plan.teacher.input, dataset.image_shape, "teacher")
    elif tuple(model.input_shape[1:]) != dataset.image_shape:
        raise ConfigError(
            f"teacher.checkpoint={path} takes images of shape {list(model.input_shape[1:])}, "
            f"the dataset has {list(dataset.image_shape)}"
        )
    return Teacher(model, path, path.stem, "", weights_hash(model))


def _refuse_foreign(
    plan: DictConfig, dataset: Dataset, directory: Path, record: dict[str, Any]
) -> None:
    """A teacher must have been trained on the same data and split, with the same network."""

    def refuse(what: str, theirs: Any, ours: Any) -> None:
        raise ConfigError(
            f"the teacher in {shown(directory)} was trained with another {what} ({theirs}, "
            f"this run has {ours}); choose another teacher_dir, or train one there with: "
            "kd train-teacher teacher_dir=..."
        )

    if record["command"] != "train-teacher":
        raise ConfigError(
            f"teacher_dir={shown(directory)} holds a run of {record['command']}; expected one of "
            "train-teacher (any .keras file can be given as teacher.checkpoint)"
        )
    theirs, ours = record["config"]["dataset"], teacher_spec(plan)["dataset"]
    if record["dataset"]["name"] != dataset.name:
        refuse("dataset", record["dataset"]["name"], dataset.name)
    if record["dataset"]["fingerprint"] != dataset.fingerprint:
        refuse(
            "version of the data", record["dataset"]["fingerprint"][:12], dataset.fingerprint[:12]
        )
    if record["dataset"]["class_names"] != list(dataset.class_names):
        refuse("order of classes", record["dataset"]["class_names"], list(dataset.class_names))
    if record["dataset"]["split_fingerprint"] != dataset.split_fingerprint:
        keys = ("validation_fraction", "split_seed", "limit")
        refuse(
            "split",
            ", ".join(f"{key} {theirs[key]}" for key in keys),
            ", ".join(f"{key} {ours[key]}" for key in keys),
        )
    spec = teacher_spec(plan)
    for key in ("network", "input"):
        if record["config"]["teacher"][key] != spec[key]:
            refuse(key, record["config"]["teacher"][key], spec[key])


# Teacher outputs of this process, so that the points of a sweep share one pass; the oldest go.
_outputs: dict[tuple[str, ...], np.ndarray] = {}


def logits(teacher: Teacher, dataset: Dataset, part: str) -> tuple[np.ndarray, float]:
    """The teacher's logits [n, K] of a split's rows, and the seconds spent on them now.

    Args:
        teacher: Whom to ask.
        dataset: With a fixed image per row: the teacher sees the pixels as they are stored.
        part: `train` or `test`.
    """
    owner = (teacher.weights_sha256, dataset.fingerprint, dataset.split_fingerprint)
    key = (*owner, part)
    while len(_outputs) >= 16:
        _outputs.pop(next(iter(_outputs)))
    started = time.monotonic()
    if key not in _outputs:
        split: Split = getattr(dataset, part)
        with CountProgress(f"teacher on {part}", len(split)) as progress:
            _outputs[key] = predict_rows(teacher.predict, split, progress.done)
    return _outputs[key], time.monotonic() - started


def evaluate(teacher: Teacher, dataset: Dataset) -> dict[str, float]:
    """The teacher's test accuracy and NLL, through the same input path as the distillation."""
    split = dataset.test
    return score(logits(teacher, dataset, "test")[0], split.labels[split.rows])
