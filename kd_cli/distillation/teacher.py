"""The teacher: found in its directory or given as a file, checked, asked for its logits once.

A teacher is a function from images to logits, never trained and never saved with the student. This
is the one place that turns a run directory, a `.keras` file, published weights or a SavedModel into
it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
from omegaconf import DictConfig, OmegaConf

from kd_cli.config.inputs import Tokens, inputs_of
from kd_cli.config.plans import member_plans
from kd_cli.data.dataset import Dataset
from kd_cli.distillation import logits_file
from kd_cli.errors import ConfigError
from kd_cli.export.formats import kind_of
from kd_cli.export.network import load_exported
from kd_cli.files import file_hash, files_of
from kd_cli.networks.bit import load_published
from kd_cli.networks.ensemble import together
from kd_cli.networks.inputs import check_input
from kd_cli.networks.keras_file import OwnCodeError, load_keras, load_of_run, weights_hash
from kd_cli.networks.logits import as_logits
from kd_cli.networks.predict import predictor
from kd_cli.networks.saved_model import load_saved_model
from kd_cli.networks.wrap import (
    ADAPTER,
    CantCopyError,
    build_network,
    check_network,
    with_adapter,
    with_precision,
)
from kd_cli.runs import identity, vocabulary
from kd_cli.runs.identity import dataset_spec, digest, network_spec, teacher_dir
from kd_cli.runs.model_file import (
    checkpoint_file,
    is_run,
    model_file,
    recorded_network,
    run_beside,
)
from kd_cli.runs.record import Record
from kd_cli.runs.session import Session
from kd_cli.terminal import shown

log = logging.getLogger("kd")


@dataclass(frozen=True)
class Teacher:
    """A network that is only asked.

    Attributes:
        model: Raw pixels to logits.
        path: Its directory or file, for people.
        origin: How to load it again: `file`, `input` (or None; for a file without one of its own),
            `precision`, `classes` and what `inputs_of` reads; the `network` of a file that holds
            weights alone, the `module` of a file's own layers, or how a run has `recorded` its
            network.
        name: Its network.
        training: How it was trained, in words; empty when unknown.
        weights_sha256: Hash of its weights.
        members: The teachers that it is made of, if these are several.
        table: Its logits, where it is a file of these and `model` can't be asked.
    """

    model: keras.Model
    path: Path
    origin: dict[str, Any]
    name: str
    training: str
    weights_sha256: str
    members: tuple[Teacher, ...] = ()
    table: logits_file.Table | None = None

    @functools.cached_property
    def predict(self) -> Callable[[Any], Any]:
        return predictor(self.model)

    @functools.cached_property
    def file_sha256(self) -> str:
        """Hash of the file that it was loaded from."""
        return file_hash(Path(self.origin["file"]))

    @functools.cached_property
    def network_sha256(self) -> str:
        """Hash of its layers, with their settings, precision and preprocessing."""
        return hashlib.sha256(self.model.to_json().encode()).hexdigest()

    @property
    def key(self) -> str:
        """Equal for teachers that give the same logits."""
        return f"{self.weights_sha256} {self.network_sha256}"

    @property
    def parameters(self) -> int | None:
        """How many it has; None where one of its networks is computed by another runtime."""
        networks = self.members or (self,)
        hidden = self.table or any(_exported(one.origin) for one in networks)
        return None if hidden else self.model.count_params()

    @property
    def precision(self) -> str:
        """The dtype policy of its layers (the last, which gives the logits, is always float32)."""
        network = self.model
        while isinstance(network.layers[-1], keras.Model):
            network = network.layers[-1]
        return next((x for x in network.layers if x.weights), network.layers[-1]).dtype_policy.name


def load(origin: dict[str, Any], path: Path, name: str, training: str, session: Session) -> Teacher:
    """The model of a file, behind the adapter `origin["input"]` and in `origin["precision"]`.

    Raises:
        ConfigError: When it can't be read, or is no network from the run's images to logits.
    """
    marks = [file.stat() for file in files_of(Path(origin["file"]))]
    stamp = [[mark.st_size, mark.st_mtime_ns, mark.st_ino] for mark in marks]
    key = json.dumps([origin, stamp, str(path), name, training])
    teacher = session.teacher.get(key)
    if teacher is None and origin.get("members"):
        members = [load(one, Path(one["file"]), "", "", Session()) for one in origin["members"]]
        teacher = session.teacher.keep(key, _together(members, origin))
    if teacher is None:
        session.drop_teacher()
        model = _with_weights(origin) if origin.get("network") else _read(origin)
        weights = _exported(origin)
        sha = file_hash(weights) if weights else weights_hash(model)
        teacher = Teacher(model, path, origin, name, training, sha)
        session.teacher.keep(key, teacher)
    return teacher


def _read(origin: dict[str, Any]) -> keras.Model:
    """The model of a `.keras` file, a SavedModel or a file for a runtime, ending in logits."""
    file, inputs = Path(origin["file"]), inputs_of(origin)
    if _exported(origin):
        size = (origin["input"] or {}).get("size")
        given = inputs.sized(size).shape
        model = load_exported(Path(shown(file)), given, "teacher.checkpoint")
    elif file.is_dir():
        model = load_saved_model(file, "teacher.checkpoint")
    elif origin.get("recorded"):
        model = load_of_run(Path(shown(file)), "teacher", origin["recorded"])
    else:
        try:
            model = load_keras(Path(shown(file)), "teacher.checkpoint", origin.get("module"))
        except OwnCodeError as error:
            raise ConfigError(f"{error}{run_beside(file)}") from error
    what = f"the teacher {shown(file)}"
    if origin.get("recorded"):  # what kd trains ends in logits
        check_network(model, origin["classes"], what)
    else:
        model, done = as_logits(model, origin["classes"], what)
        if done:
            log.info("%s: %s", what, done)
    bare = isinstance(inputs, Tokens) or any(layer.name == ADAPTER for layer in model.layers)
    if not bare and origin["input"] is not None:
        adapter = OmegaConf.create(origin["input"])
        model = with_adapter(model, adapter, inputs.shape, "teacher")
    else:
        check_input(model, inputs.shape, what)
    if not origin["precision"]:
        return model
    try:
        return with_precision(model, origin["precision"])
    except CantCopyError as error:
        raise ConfigError(
            f"teacher.precision={origin['precision']}: {error}; leave teacher.precision out"
        ) from error


def _exported(origin: dict[str, Any]) -> Path | None:
    """The file of a teacher that a runtime computes, not TensorFlow."""
    file = Path(origin["file"])
    return file if file.is_file() and kind_of(file) else None


def _with_weights(origin: dict[str, Any]) -> keras.Model:
    """The network of `teacher.network` with the weights of a published file."""
    # The same layer names whatever was built before: they count in the network's hash.
    keras.utils.clear_session(free_memory=False)
    node = OmegaConf.create({"network": origin["network"], "input": origin["input"]})
    precision = origin["precision"] or "float32"
    shape = inputs_of(origin).shape
    model = build_network(node, shape, origin["classes"], precision, "teacher")
    load_published(model, Path(origin["file"]), "teacher.weights")
    return model


def _together(members: list[Teacher], origin: dict[str, Any]) -> Teacher:
    """Several teachers as one, whose logits are those of the mean of their probabilities."""
    names = Counter(member.name for member in members)
    trainings = list(dict.fromkeys(member.training for member in members))
    return Teacher(
        model=together([member.model for member in members]),
        path=Path(" + ".join(shown(member.path) for member in members)),
        origin=origin,
        name=" + ".join(name if n == 1 else f"{n} x {name}" for name, n in names.items()),
        training=trainings[0] if len(trainings) == 1 else "; ".join(filter(None, trainings)),
        weights_sha256=digest([member.weights_sha256 for member in members], 64),
        members=tuple(members),
    )


def find(plan: DictConfig, dataset: Dataset, session: Session) -> Teacher | None:
    """The teacher that a distill run asks for, or None when it has to be trained first.

    Several are one, made of all of them.

    Raises:
        ConfigError: As `_find`.
    """
    plans = member_plans(plan)
    if len(plans) == 1:
        return _find(plans[0], dataset, session)
    spec = identity.run_spec(plan)["teacher"]
    key = f"{spec} {plan.outputs} {dataset.fingerprint} {plan.augment.size}"
    found = session.teacher.get(key)
    if found is None:
        session.drop_teacher()
        members = [_find(one, dataset, Session()) for one in plans]
        if any(member is None for member in members):
            return None
        origins = [member.origin for member in members]
        origin = {**origins[0], "members": origins}
        found = session.teacher.keep(key, _together(members, origin))
    return found


def _find(plan: DictConfig, dataset: Dataset, session: Session) -> Teacher | None:
    """The one teacher that a plan names, or None when it has to be trained first.

    Raises:
        ConfigError: A given file is no teacher, or that in `teacher_dir` is of other data.
    """
    if plan.teacher.logits is not None:
        return _of_logits(Path(plan.teacher.logits).expanduser(), plan, dataset, session)
    if plan.teacher.weights is not None:
        path = Path(plan.teacher.weights).expanduser()
        origin = _origin(path, plan, dataset) | network_spec(plan.teacher)
        return load(origin, path, path.stem, "", session)
    if plan.teacher.checkpoint is not None:
        path = Path(plan.teacher.checkpoint).expanduser()
        vocabulary.refuse_other(path, dataset.tokenizer, "teacher.checkpoint")
        origin = _origin(checkpoint_file(path), plan, dataset)
        origin["input"] = network_spec(plan.teacher)["input"]
        if is_run(path):
            record = Record.read(path)
            origin["recorded"] = recorded_network(record)
            return load(origin, path, record.network, describe(record), session)
        if plan.teacher.module is not None:
            origin["module"] = plan.teacher.module
        return load(origin, path, path.name if path.is_dir() else path.stem, "", session)
    directory = teacher_dir(plan)
    record = Record.read(directory)
    if record is None:
        return None
    _refuse_other_data(plan, dataset, directory, record)
    return of_run(directory, record, plan, dataset, session)


def _of_logits(path: Path, plan: DictConfig, dataset: Dataset, session: Session) -> Teacher:
    """A file of logits, read for a dataset."""
    sha = file_hash(path)
    key = f"{sha} {path} {dataset.fingerprint} {dataset.split_fingerprint}"
    found = session.teacher.get(key)
    if found is None:
        session.drop_teacher()
        table = logits_file.read(path, dataset)
        origin = _origin(path, plan, dataset)
        shape = inputs_of(origin).shape
        model = logits_file.no_network(sha, shape, dataset.num_classes)
        found = Teacher(model, path, origin, path.stem, "", sha, table=table)
        session.teacher.keep(key, found)
    return found


def of_run(
    directory: Path, record: Record, plan: DictConfig, dataset: Dataset, session: Session
) -> Teacher:
    """The network that a finished run left, as its `record` says.

    Raises:
        ConfigError: When its file is lost or damaged, or its weights are others now.
    """
    origin = _origin(model_file(directory), plan, dataset) | {"recorded": recorded_network(record)}
    teacher = load(origin, directory, record["network"], describe(record), session)
    sha = teacher.weights_sha256
    if sha != record["weights_sha256"]:
        raise ConfigError(
            f"{shown(directory / 'model.keras')} was altered after training (weights {sha[:12]}, "
            f"recorded {record['weights_sha256'][:12]}); remove {shown(directory)} to train it "
            "again, or give the file as teacher.checkpoint"
        )
    return teacher


def describe(record: Record) -> str:
    """How a teacher was trained, in a few words."""
    labels = f"{record['dataset']['labelled']:,} labels"
    return f"{record['epochs_done']} epochs, {labels}, seed {record['seed']}"


def _origin(file: Path, plan: DictConfig, dataset: Dataset) -> dict[str, Any]:
    """How a file becomes a teacher that brings its own input adapter."""
    return {
        "file": str(file.resolve()),
        "input": None,
        "precision": plan.teacher.precision if "teacher" in plan else None,
        **dataset.inputs.sized(plan.augment.size).description(),
        "classes": dataset.num_classes,
    }


def _refuse_other_data(plan: DictConfig, dataset: Dataset, directory: Path, record: Record) -> None:
    """A teacher must have been trained on the same data and split."""

    def refuse(what: str, theirs: Any, ours: Any) -> None:
        raise ConfigError(
            f"the teacher in {shown(directory)} was trained with another {what} ({theirs}, "
            f"this run has {ours}); choose another teacher_dir, or train one there with: "
            "kd train-teacher teacher_dir=..."
        )

    theirs, ours = record["config"].get("dataset", {}), dataset_spec(plan.dataset)
    if record["dataset"]["name"] != dataset.name:
        refuse("dataset", record["dataset"]["name"], dataset.name)
    if record["dataset"]["fingerprint"] != dataset.fingerprint:
        refuse(
            "version of the data", record["dataset"]["fingerprint"][:12], dataset.fingerprint[:12]
        )
    if record["dataset"]["class_names"] != list(dataset.class_names):
        refuse("order of classes", record["dataset"]["class_names"], list(dataset.class_names))
    if record["dataset"]["held_out_fingerprint"] != dataset.held_out_fingerprint:
        keys = ("validation_fraction", "split_seed", "limit")
        refuse("split", *(", ".join(f"{k} {spec[k]}" for k in keys) for spec in (theirs, ours)))
