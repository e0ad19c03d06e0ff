"""What makes two runs the same run: identifiers, directory names, and the resolvers that use them.

The run id hashes the resolved configuration that can change the result. Paths of data and caches,
the device, trackers and the place in a sweep do not count; 10 and 10.0 agree.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kd_cli.config.overrides import override_key
from kd_cli.config.schema import UNUSED

OUTPUTS = Path("outputs")
# Root keys that say where or how to run, not what comes out.
_PLACES = (
    "device",
    "rerun",
    "data_dir",
    "cache_dir",
    "sweep",
    "tracker",
    "checkpoint",
    "memory_gib",
    "rounds",  # more of them continue where fewer ended
)
# Keys that are counted where they are used: seed in init_seed and data_seed, alpha in the loss.
_ELSEWHERE = (
    "role",
    "recipe",
    "seed",
    "teacher_dir",
    "alpha",
    "temperature",
    "t_squared",
    "label_smoothing",
)


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
    """The part of `dataset` that decides which images and labels come out, as plain data."""
    spec = OmegaConf.to_container(dataset)
    if spec.get("labelled_fraction") == 1:  # as before there was a choice
        del spec["labelled_fraction"]
    spec["source"] = {
        key: value for key, value in spec["source"].items() if key not in ("data_dir", "cache_dir")
    }
    for place in (spec, spec["source"]):
        if place.get("path"):
            place["path"] = str(Path(place["path"]).expanduser().resolve())
    return spec


def network_spec(network: DictConfig) -> dict[str, Any]:
    """What decides a network's shape and input: its node and its `input` adapter."""
    plain = OmegaConf.to_container(network)
    return {"network": plain["network"], "input": plain["input"]}


def teacher_spec(plan: DictConfig) -> dict[str, Any]:
    """What a kept teacher must match: dataset and split, network and input."""
    return {"dataset": dataset_spec(plan.dataset), **network_spec(plan.teacher)}


def default_teacher_dir(plan: DictConfig) -> str:
    name = f"{plan.dataset.name}-{plan.teacher.name}-{digest(teacher_spec(plan), 8)}"
    return str(OUTPUTS / "teachers" / name)


def run_spec(plan: DictConfig) -> dict[str, Any]:
    """All of a checked configuration that can change the result of the run, as plain data."""
    plain = OmegaConf.to_container(plan)
    skipped = _PLACES + _ELSEWHERE
    spec = {key: value for key, value in plain.items() if key not in skipped and value is not None}
    spec["dataset"] = dataset_spec(plan.dataset)
    if plan.steps is not None:
        del spec["epochs"]
    for role in ("teacher", "student"):
        if role not in spec:
            continue
        spec[role] = network_spec(plan[role])
        if role == "teacher" and plan.teacher.get("precision") is not None:
            spec[role]["precision"] = plan.teacher.precision
        for key in ("checkpoint", "weights") if role == "teacher" else ("checkpoint",):
            file = plan[role][key]
            if file is not None:
                spec[role][key] = str(Path(file).expanduser().resolve())
        if role == "teacher" and plan.teacher.checkpoint is not None:
            del spec[role]["network"]  # the file has its own
    del spec["augment"]
    if plan.augment.train or plan.augment.evaluate:
        spec["augment"] = {key: plain["augment"][key] for key in ("train", "evaluate", "size")}
        if plan.augment.train:
            spec["augment"]["seed"] = plan.augment.seed
    else:
        spec.pop("view", None)  # all the same
    if spec.get("cache"):
        spec["cache"] = {key: value for key, value in spec["cache"].items() if value is not None}
    if spec.get("cache") == {"logits": "float32"}:
        del spec["cache"]
    if plan.command == "distill" and plan.teacher_dir != default_teacher_dir(plan):
        spec["teacher_dir"] = str(Path(plan.teacher_dir).resolve())
    return spec


def run_id(plan: DictConfig) -> str:
    return digest(run_spec(plan))


def run_name(plan: DictConfig) -> str:
    """Readable values and the run id: `mlp_hinton_alpha0.1_temperature4_seed0-1a2b3c4d5e`."""
    words = [plan.teacher.name if plan.command == "train-teacher" else plan.student.name]
    if plan.command == "distill":
        words.append(plan.loss["_target_"].rsplit(".", 1)[-1])
        for key in ("alpha", "temperature"):
            if plan.get(key) is not None:
                words.append(f"{key}{plan[key]:g}")
    if plan.command == "self-train":
        words += [plan.pseudo.labels, f"threshold{plan.pseudo.threshold:g}"]
    words.append(f"steps{plan.steps}" if plan.steps else f"epochs{plan.epochs}")
    words.append(f"seed{plan.seed}")
    return "_".join(words) + "-" + run_id(plan)


# rerun=true: the new directory that was chosen for a run, so that asking again gives the same one.
_chosen: dict[str, str] = {}


def _beside(parent: Path, name: str, rerun: bool) -> str:
    """`name`, or with rerun the first of name-2, name-3, ... that does not exist yet."""
    key = str(parent / name)
    if not rerun or not ((parent / name).exists() or key in _chosen):
        return name
    if key not in _chosen:
        number = 2
        while (parent / f"{name}-{number}").exists():
            number += 1
        _chosen[key] = f"{name}-{number}"
    return _chosen[key]


def run_dir(plan: DictConfig) -> Path:
    """Where a single run of this configuration writes."""
    if plan.command == "train-teacher":
        teacher_dir = Path(plan.teacher_dir)
        return teacher_dir.parent / _beside(teacher_dir.parent, teacher_dir.name, plan.rerun)
    parent = OUTPUTS / plan.command / plan.dataset.name
    return parent / _beside(parent, run_name(plan), plan.rerun)


def point_dir(plan: DictConfig) -> Path:
    """Where a sweep's point writes."""
    parent = OUTPUTS / "sweeps" / plan.sweep
    return parent / _beside(parent, run_name(plan), plan.rerun)


def sweep_id(command: str, unswept: list[str]) -> str:
    """Names a sweep by its command and the unswept overrides that can change a result."""
    counted = [
        override
        for override in unswept
        if override_key(override).split(".")[0] not in (*_PLACES, "hydra")
    ]
    return digest([command, sorted(counted)], 8)


def counterpart(plan: DictConfig) -> DictConfig:
    """The scratch student's configuration that belongs to a run: same all, no teacher."""
    plain = OmegaConf.to_container(plan)
    for key in UNUSED["train-student"]:
        plain.pop(key, None)
    plain["command"] = "train-student"
    plain["rerun"] = False
    plain["loss"] = {
        "_target_": "kd_cli.distillation.cross_entropy",
        "_partial_": True,
        "label_smoothing": plan.get("label_smoothing", 0.0),
    }
    return OmegaConf.create(plain)
