"""The teacher: found in its directory or given as a file, checked, asked for its logits once.

A teacher is a function from images to logits, never trained and never saved with the student. This
is the one place that turns a run directory, a `.keras` file, published weights or a SavedModel into
it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from omegaconf import DictConfig, OmegaConf

from kd_cli import metrics
from kd_cli.bit import load_published
from kd_cli.checkpoint import file_hash, files_of
from kd_cli.data import Dataset, Split
from kd_cli.device import set_up
from kd_cli.engine import LiveTeacher, predict_batches, predictor
from kd_cli.errors import ConfigError, first_line
from kd_cli.identity import network_spec, teacher_spec
from kd_cli.logits import Request, obtain
from kd_cli.metrics import score
from kd_cli.models import ADAPTER, build_network, check_network, with_adapter, with_precision
from kd_cli.progress import CountProgress, shown
from kd_cli.saved_model import load_saved_model


@dataclass(frozen=True)
class Teacher:
    """A network that is only asked.

    Attributes:
        model: Raw pixels to logits.
        path: Its directory or file, for people.
        origin: How to load it again: `file`, `input` (or None), `precision`, and the `network` of a
            file that holds weights alone.
        name: Its network.
        training: How it was trained, in words; empty when unknown.
        weights_sha256: Hash of its weights.
    """

    model: keras.Model
    path: Path
    origin: dict[str, Any]
    name: str
    training: str
    weights_sha256: str

    @functools.cached_property
    def predict(self) -> Callable[[Any], Any]:
        return predictor(self.model)

    @functools.cached_property
    def network_sha256(self) -> str:
        """Hash of its layers, with their settings, precision and preprocessing."""
        return hashlib.sha256(self.model.to_json().encode()).hexdigest()

    @property
    def precision(self) -> str:
        """The dtype policy of its layers (the last, which gives the logits, is always float32)."""
        network = self.model
        while isinstance(network.layers[-1], keras.Model):
            network = network.layers[-1]
        return next((x for x in network.layers if x.weights), network.layers[-1]).dtype_policy.name

    @functools.cached_property
    def kept(self) -> dict[str, np.ndarray]:
        """Logits by data and split, for runs that keep none on disk."""
        return {}


@dataclass(frozen=True)
class Outputs:
    """What a training gets of its teacher.

    Attributes:
        key: All that decides the values; equal keys give equal training steps.
        how: In words: `cached as float32`, or `live` and why.
        logits: [n, K] of the training rows, memory-mapped; None for a live teacher.
        live: images -> logits; None for a cached teacher.
        seconds: Spent on computing or reading them now.
    """

    key: str
    how: str
    logits: np.ndarray | None
    live: LiveTeacher | None
    seconds: float


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


# The last teacher that was loaded: the points of a sweep share it.
_loaded: dict[str, Teacher] = {}


def _load(
    origin: dict[str, Any], dataset: Dataset, path: Path, name: str, training: str
) -> Teacher:
    """The model of a file, behind the adapter `origin["input"]` and in `origin["precision"]`."""
    shape = dataset.image_shape, dataset.num_classes
    marks = [file.stat() for file in files_of(Path(origin["file"]))]
    stamp = [[mark.st_size, mark.st_mtime_ns, mark.st_ino] for mark in marks]
    key = json.dumps([origin, *shape, stamp, str(path), name, training])
    if key not in _loaded:
        _loaded.clear()  # first: a large teacher may not fit in memory twice
        model = _with_weights(origin, dataset) if origin.get("network") else _read(origin, dataset)
        _loaded[key] = Teacher(model, path, origin, name, training, weights_hash(model))
    return _loaded[key]


def _read(origin: dict[str, Any], dataset: Dataset) -> keras.Model:
    """The model of a `.keras` file or a SavedModel."""
    file = Path(origin["file"])
    if file.is_dir():
        model = load_saved_model(file, "teacher.checkpoint")
        check_network(model, dataset.num_classes, "teacher.checkpoint")
    else:
        model = load_keras(file, "teacher")
    if origin["input"] is not None:
        adapter = OmegaConf.create(origin["input"])
        model = with_adapter(model, adapter, dataset.image_shape, "teacher")
    return with_precision(model, origin["precision"]) if origin["precision"] else model


def _with_weights(origin: dict[str, Any], dataset: Dataset) -> keras.Model:
    """The network of `teacher.network` with the weights of a published file."""
    # The same layer names whatever was built before: they count in the network's hash.
    keras.utils.clear_session(free_memory=False)
    node = OmegaConf.create({"network": origin["network"], "input": origin["input"]})
    precision = origin["precision"] or "float32"
    classes = dataset.num_classes
    model = build_network(node, dataset.image_shape, classes, precision, "teacher")
    load_published(model, Path(origin["file"]), "teacher.weights")
    return model


def find(plan: DictConfig, dataset: Dataset) -> Teacher | None:
    """The teacher that a distill run asks for, or None when it has to be trained first.

    Raises:
        ConfigError: When a given file can't serve, or `teacher_dir` holds a foreign teacher.
    """
    if plan.teacher.weights is not None:
        path = Path(plan.teacher.weights).expanduser()
        origin = {"file": str(path.resolve()), "precision": plan.teacher.precision}
        return _load({**origin, **network_spec(plan.teacher)}, dataset, path, path.stem, "")
    if plan.teacher.checkpoint is not None:
        return _from_file(plan, dataset)
    directory = Path(plan.teacher_dir)
    record = metrics.read(directory)
    if record is None:
        return None
    _refuse_foreign(plan, dataset, directory, record)
    file = str((directory / "model.keras").resolve())
    origin = {"file": file, "input": None, "precision": plan.teacher.precision}
    name, training = record["network"], describe(record)
    teacher = _load(origin, dataset, directory, name, training)
    sha = teacher.weights_sha256
    if sha != record["weights_sha256"]:
        raise ConfigError(
            f"{shown(directory / 'model.keras')} was altered after training (weights {sha[:12]}, "
            f"recorded {record['weights_sha256'][:12]}); remove {shown(directory)} to train it "
            "again, or give the file as teacher.checkpoint"
        )
    return teacher


def describe(record: dict[str, Any]) -> str:
    """How a teacher was trained, in a few words."""
    return f"{record['epochs_done']} epochs, seed {record['seed']}"


def _from_file(plan: DictConfig, dataset: Dataset) -> Teacher:
    path = Path(plan.teacher.checkpoint).expanduser()
    adapter = OmegaConf.to_container(plan.teacher.input)
    origin = {"file": str(path.resolve()), "input": adapter, "precision": plan.teacher.precision}
    if path.is_dir():
        return _load(origin, dataset, path, path.name, "")
    bare = load_keras(path, "teacher.checkpoint")
    check_network(bare, dataset.num_classes, "teacher.checkpoint")
    if not any(layer.name == ADAPTER for layer in bare.layers):
        return _load(origin, dataset, path, path.stem, "")
    if tuple(bare.input_shape[1:]) != dataset.image_shape:
        raise ConfigError(
            f"teacher.checkpoint={path} takes images of shape {list(bare.input_shape[1:])}, "
            f"the dataset has {list(dataset.image_shape)}"
        )
    return _load({**origin, "input": None}, dataset, path, path.stem, "")


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


def outputs(teacher: Teacher, plan: DictConfig, dataset: Dataset) -> Outputs:
    """The teacher's answers to the training rows, by the cheapest way that gives the right ones."""
    started = time.monotonic()
    key = f"{teacher.weights_sha256} {teacher.network_sha256}"
    if plan.cache.logits == "none":

        def live(images: Any) -> Any:
            return keras.ops.cast(teacher.model(images, training=False), "float32")

        how = "live (cache.logits=none)"
        return Outputs(f"{key} live", how, None, live, time.monotonic() - started)
    table = logits(teacher, plan, dataset, "train")
    how = f"cached as {plan.cache.logits}"
    return Outputs(f"{key} {how}", how, table, None, time.monotonic() - started)


def logits(teacher: Teacher, plan: DictConfig, dataset: Dataset, part: str) -> np.ndarray:
    """The teacher's logits [n, K] of a split's rows, from the cache on disk where there is one.

    Args:
        teacher: Whom to ask.
        plan: Names the cache, and whether and how it is kept.
        dataset: With a fixed image per row: the teacher sees the pixels as they are stored.
        part: `train` or `test`.
    """
    split: Split = getattr(dataset, part)
    what = f"teacher on {part}"

    def compute(first: int = 0) -> Iterator[np.ndarray]:
        with CountProgress(what, len(split)) as progress:
            done = first
            for batch in predict_batches(teacher.predict, split, first):
                yield batch
                done += len(batch)
                progress.done(done)

    if plan.cache.logits == "none":
        key = f"{dataset.fingerprint} {dataset.split_fingerprint} {part}"
        if key not in teacher.kept:
            teacher.kept[key] = np.concatenate(list(compute()))
        return teacher.kept[key]
    wanted = Request(
        key={
            "weights": teacher.weights_sha256,
            "network": teacher.network_sha256,
            "data": dataset.fingerprint,
            "split": dataset.split_fingerprint,
            "part": part,
            # Another device or version rounds differently.
            "device": set_up(plan.device),
            "tensorflow": tf.__version__,
        },
        rows=len(split),
        classes=dataset.num_classes,
        dtype=plan.cache.logits,
        origin={
            "teacher": {**teacher.origin, "sha256": file_hash(Path(teacher.origin["file"]))},
            "dataset": OmegaConf.to_container(plan.dataset),
            "part": part,
        },
    )
    return obtain(Path(plan.cache_dir), wanted, compute, f"{teacher.name} on {part}")


def evaluate(teacher: Teacher, plan: DictConfig, dataset: Dataset) -> dict[str, float]:
    """The teacher's test accuracy and NLL, through the same input path as the distillation."""
    split = dataset.test
    return score(logits(teacher, plan, dataset, "test"), split.labels[split.rows])


def of_origin(origin: dict[str, Any], dataset: Dataset) -> tuple[Teacher, dict[str, str]]:
    """The teacher of a cache's manifest, and the hashes that its key must have."""
    file = Path(origin["teacher"]["file"])
    teacher = _load(origin["teacher"], dataset, file, file.stem, "")
    return teacher, {
        "weights": teacher.weights_sha256,
        "network": teacher.network_sha256,
        "data": dataset.fingerprint,
        "split": dataset.split_fingerprint,
    }
