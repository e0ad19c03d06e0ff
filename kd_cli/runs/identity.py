"""What makes two runs the same run: identifiers and directory names.

The run id hashes the resolved configuration that can change the result. A teacher that kd trains
counts by how it is trained, a given one by its content. Places of data and caches, the device,
trackers and the place in a sweep do not count; 10 and 10.0 agree.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kd_cli.config.keys import PLACES, VARIABLES
from kd_cli.config.overrides import override_key
from kd_cli.config.plans import (
    given_by,
    has_rounds,
    is_mutual,
    is_taught,
    member_plans,
    teacher_plan,
    trains_teacher,
)
from kd_cli.config.quoting import command_line, quoted
from kd_cli.errors import ConfigError
from kd_cli.files import file_hash, files_of
from kd_cli.runs.model_file import checkpoint_file, weights_file
from kd_cli.runs.record import Record
from kd_cli.terminal import shown

# Counted where they are used: seed in init_seed and data_seed, alpha in the loss. (Class weights
# are no part of the loss's node, because the scratch student has them too.)
_ELSEWHERE = {"seed", *VARIABLES, "label_smoothing"} - {"class_weights"}
_FEATURES = ("features", "float32")  # the key came later; so older runs keep their ids
# Keys of sources that came later: where they say what was so before, older runs keep their ids.
_AS_BEFORE = {
    "kd_cli.data.npz": {"offset": 0},
    "kd_cli.data.tfds": {
        "train_split": "train",
        "test_split": "test",
        "image_key": "image",
        "label_key": "label",
        "scale": None,
        "offset": 0,
    },
}


def _normal(value: Any) -> Any:
    """Equal numbers become equal JSON: 10.0 becomes 10."""
    if isinstance(value, dict):
        return {str(key): _normal(item) for key, item in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [_normal(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def digest(value: Any, length: int = 10) -> str:
    """The first hexadecimal digits of the SHA-256 of a plain value's canonical JSON."""
    text = json.dumps(_normal(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def dataset_spec(dataset: DictConfig) -> dict[str, Any]:
    """The part of `dataset` that decides which images and labels come out, as plain data.

    A path below the working directory counts from there, so that a project can be moved.
    """
    spec = OmegaConf.to_container(dataset)
    if spec.get("labelled_fraction") == 1:
        del spec["labelled_fraction"], spec["labelled_seed"], spec["unlabelled"]
    elif spec.get("unlabelled") == "leave_out":
        del spec["unlabelled"]
    if spec.get("labelled_seed") == spec["split_seed"]:
        del spec["labelled_seed"]
    source = spec["source"]
    before = _AS_BEFORE.get(source["_target_"], {})
    spec["source"] = {
        key: value
        for key, value in source.items()
        if key not in ("data_dir", "cache_dir") and not (key in before and value == before[key])
    }
    if spec.get("unlabelled_path") is None:
        for place in (spec, spec["source"]):
            place.pop("unlabelled_path", None)
    here = Path.cwd().resolve()
    for place, key in itertools.product((spec, spec["source"]), ("path", "unlabelled_path")):
        if place.get(key):
            path = Path(place[key]).expanduser().resolve()
            place[key] = str(path.relative_to(here) if path.is_relative_to(here) else path)
    return spec


def network_spec(network: DictConfig) -> dict[str, Any]:
    """What decides a network's shape, first weights and input: its node and its `input` adapter.

    A file of weights counts by its content.
    """
    plain = OmegaConf.to_container(network)
    node, file = plain["network"], weights_file(plain["network"])
    if file is not None:
        node = {**node, "weights": content(file)}
    return {"network": node, "input": plain["input"]}


def content(file: str | Path) -> str:
    """SHA-256 of what a given file, SavedModel or run's `model.keras` holds, wherever it lies.

    Raises:
        ConfigError: When there is nothing that can be read.
    """
    path = checkpoint_file(file).resolve()
    parts = files_of(path)
    if not parts:
        raise ConfigError(f"{file} is not a file")
    marks = tuple((part.stat().st_size, part.stat().st_mtime_ns) for part in parts)
    return _content(path, marks)


@functools.lru_cache(maxsize=64)
def _content(path: Path, marks: tuple[tuple[int, int], ...]) -> str:
    """(Files are read again when their sizes or times change.)"""
    return file_hash(path)


def given_teacher(plan: DictConfig) -> Record:
    """The record of the finished teacher in the `teacher_dir` that a distill run names.

    Raises:
        ConfigError: When there is none.
    """
    folder = Path(plan.teacher_dir).expanduser()
    record = Record.read(folder)
    if record is None:
        raise ConfigError(
            f"no finished teacher in teacher_dir={shown(folder)}; train one there with: "
            f"{command_line('train-teacher', [f'teacher_dir={quoted(shown(folder))}'])} (and its "
            "other settings), or leave teacher_dir out"
        )
    if record.command != "train-teacher":
        raise ConfigError(
            f"teacher_dir={shown(folder)} holds a run of {record.command}; expected one of "
            "train-teacher (any .keras file can be given as teacher.checkpoint)"
        )
    return record


def _teacher_spec(plan: DictConfig) -> dict[str, Any]:
    """What of the teacher counts: how it is trained, or the content of a given one."""
    teacher = plan.teacher
    if is_taught(plan) and len(members := member_plans(plan)) > 1:
        return {"members": [_teacher_spec(one) for one in members], "combine": teacher.combine}
    if trains_teacher(plan):
        start = {} if teacher.weights is None else {"weights": content(teacher.weights)}
        return {**network_spec(teacher), **start}
    given = given_by(plan)
    if given == "teacher.checkpoint":
        spec = {"checkpoint": content(teacher.checkpoint), "input": network_spec(teacher)["input"]}
        spec |= {} if teacher.module is None else {"module": teacher.module}
    elif given == "teacher.logits":
        spec = {"logits": content(teacher.logits)}
    elif given == "teacher.weights":
        spec = {**network_spec(teacher), "weights": content(teacher.weights)}
    elif given == "teacher_dir":
        spec = {"weights_sha256": given_teacher(plan).weights_sha256}
    else:
        spec = run_spec(teacher_plan(plan))
        training = {k: v for k, v in spec.items() if k not in ("command", "dataset", "teacher")}
        if plan.teacher.training.labelled_fraction not in (None, plan.dataset.labelled_fraction):
            training["labelled_fraction"] = plan.teacher.training.labelled_fraction
        spec = {**spec["teacher"], "training": training}
    return spec if teacher.precision is None else {**spec, "precision": teacher.precision}


def _loss_spec(loss: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The entries; one alone with weight 1 is its function, whatever its name.

    A key that came later does not count where it says what was so before, so that older runs keep
    their ids.
    """
    before = {"weight": 1, "standardise": False}
    bare = {
        name: {
            key: value for key, value in node.items() if key not in before or value != before[key]
        }
        for name, node in loss.items()
    }
    (first, *others) = bare.values()
    return bare if others or "weight" in first else first


def run_spec(plan: DictConfig) -> dict[str, Any]:
    """All of a checked configuration that can change the result of the run, as plain data."""
    plain = OmegaConf.to_container(plan)
    skipped = {*PLACES, *_ELSEWHERE}
    spec = {key: value for key, value in plain.items() if key not in skipped and value is not None}
    spec["dataset"] = dataset_spec(plan.dataset)
    if plan.steps is not None:
        del spec["epochs"]
    if not plan.freeze_epochs:  # the keys came later; so older runs keep their ids
        del spec["freeze_epochs"], spec["fine_tune_factor"]
    spec["loss"] = _loss_spec(spec["loss"])
    if "teacher" in spec:
        spec["teacher"] = _teacher_spec(plan)
    if "student" in spec:
        spec["student"] = network_spec(plan.student)
        if plan.student.checkpoint is not None:
            spec["student"]["checkpoint"] = content(plan.student.checkpoint)
    seed = spec.pop("augment_seed", None)
    del spec["augment"]
    if plan.augment.train or plan.augment.evaluate:
        spec["augment"] = {key: plain["augment"][key] for key in ("train", "evaluate", "size")}
        if plan.augment.train:
            spec["augment"]["seed"] = seed
    else:
        spec.pop("view", None)  # all the same
    if spec.get("cache"):
        spec["cache"] = {
            key: value
            for key, value in spec["cache"].items()
            if value is not None and key != "features_gib" and (key, value) != _FEATURES
        }
    if spec.get("cache") == {"logits": "float32"}:
        del spec["cache"]
    return spec


def run_id(plan: DictConfig) -> str:
    return digest(run_spec(plan))


def run_name(plan: DictConfig) -> str:
    """Readable values and the run id: `mlp_hinton_alpha0.1_temperature4_seed0-1a2b3c4d5e`."""
    words = [plan.student.name if "student" in plan else plan.teacher.name]
    if is_taught(plan):
        words.append("+".join(map(str, plan.loss)))
        for key in ("alpha", "temperature"):
            if plan.get(key) is not None:
                words.append(f"{key}{plan[key]:g}")
    if has_rounds(plan):
        words += [plan.pseudo.labels, f"threshold{plan.pseudo.threshold:g}"]
    if is_mutual(plan):
        words.append(f"peer{plan.peers.number}of{len(plan.peers.students)}")
    words.append(f"steps{plan.steps}" if plan.steps else f"epochs{plan.epochs}")
    words.append(f"seed{plan.seed}")
    # A file system takes 255 bytes; the id tells apart what is cut.
    readable = "_".join(words).encode()[:200].decode(errors="ignore")
    return f"{readable}-{run_id(plan)}"


def teacher_dir(plan: DictConfig) -> Path:
    """The directory of a plan's teacher: `teacher_dir`, or one named by how the teacher is made."""
    if plan.teacher_dir is not None:
        return Path(plan.teacher_dir).expanduser()
    made = plan if trains_teacher(plan) else teacher_plan(plan)
    name = f"{plan.dataset.name}-{plan.teacher.name}-{run_id(made)}"
    return Path(plan.outputs) / "teachers" / name


def beside(folder: Path, rerun: bool) -> Path:
    """`folder`; with `rerun`, the first unused of folder, folder-2, folder-3, ..."""
    if not rerun or not folder.exists():
        return folder
    number = 2
    while folder.with_name(f"{folder.name}-{number}").exists():
        number += 1
    return folder.with_name(f"{folder.name}-{number}")


def run_dir(plan: DictConfig) -> Path:
    """Where a single run of this configuration writes."""
    if trains_teacher(plan):
        return beside(teacher_dir(plan), plan.rerun)
    folder = Path(plan.outputs) / plan.command / plan.dataset.name / run_name(plan)
    return beside(folder, plan.rerun)


def point_dir(plan: DictConfig) -> Path:
    """Where a sweep's point writes."""
    return beside(Path(plan.outputs) / "sweeps" / plan.sweep / run_name(plan), plan.rerun)


def sweep_id(command: str, unswept: list[str]) -> str:
    """Names a sweep by its command and the unswept overrides that can change a result."""
    counted = [
        override
        for override in unswept
        if override_key(override).split(".")[0] not in (*PLACES, "hydra")
    ]
    return digest([command, sorted(counted)], 8)
