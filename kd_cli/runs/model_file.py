"""`model.keras` of a finished run: where it is, whether it is whole, how its network is built."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_cli.config.plans import view_shape
from kd_cli.errors import ConfigError
from kd_cli.files import DamagedError, file_hash, read_json
from kd_cli.runs.record import FILE, Record
from kd_cli.terminal import shown

NAME = "model.keras"
EXPORTED = (".onnx", ".tflite")  # what a runtime computes


def model_file(folder: Path) -> Path:
    """The file of a finished run's network.

    Raises:
        ConfigError: It is lost, or not as it was written; with what to type.
    """
    path = folder / NAME
    stat = path.stat() if path.is_file() else None
    if stat is None or not _is_whole(path, stat.st_size, stat.st_mtime_ns):
        raise ConfigError(
            f"{shown(path)} is {'lost' if stat is None else 'damaged'}, though its run is "
            f"finished; remove {shown(folder / FILE)} and type the run's command again, which "
            "writes it from the saved state, or train anew with rerun=true"
        )
    return path


@functools.lru_cache(maxsize=64)
def _is_whole(path: Path, size: int, changed: int) -> bool:
    """Whether every part of the archive has its checksum. (Read again when the file changes.)"""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # whatever a damaged archive makes of the reader
        return False


def has_input(path: Path) -> bool:
    """Whether a file takes raw pixels: kd puts scale and offset into what it writes.

    A `.keras` file tells. A file for a runtime has its record beside it, from `kd export`.
    """
    if path.suffix in EXPORTED:
        try:
            recorded = read_json(path.with_suffix(".json"), "")
        except DamagedError:
            return False
        return bool(recorded) and recorded.get("sha256") == file_hash(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return b'"kd_input"' in archive.read("config.json")  # the layer's name
    except (OSError, KeyError, zipfile.BadZipFile):  # told where the file is read
        return False


def checkpoint_file(given: str | Path) -> Path:
    """What a `checkpoint` key means: a file or SavedModel as it is, of a run's folder its network.

    Raises:
        ConfigError: As `model_file`.
    """
    path = Path(given).expanduser()
    return model_file(path) if is_run(path) else path


def is_run(path: Path) -> bool:
    """Whether a path is the folder of a finished run."""
    return (path / FILE).is_file() and not (path / "saved_model.pb").is_file()


def run_beside(file: Path) -> str:
    """What to add to an error about a file that a run has left; empty for any other file."""
    if file.name != NAME or not is_run(file.parent):
        return ""
    return f"; its run has recorded how it is built: give the folder, {shown(file.parent)}"


def weights_file(network: Mapping[str, Any]) -> str | None:
    """The file from which a network of keras.applications starts; None for other weights.

    Args:
        network: Its node; in a record, the file's content stands in its place.
    """
    weights = network.get("weights")
    ours = network.get("_target_") == "kd_cli.networks.application"
    return weights if ours and weights not in (None, "imagenet") else None


def recorded_network(record: Record) -> dict[str, Any]:
    """How the network in a run's `model.keras` is built again: plain data, for `load_of_run`.

    Its weights are in that file, so none are taken from where it started.
    """
    role = "student" if "student" in record.config else "teacher"
    size = record.config.get("augment", {}).get("size")
    network = record.config[role]["network"]
    if weights_file(network) is not None:
        network = {**network, "weights": None}
    return {
        "role": role,
        "network": network,
        "input": record.config[role]["input"],
        "precision": record.precision,
        "image_shape": list(view_shape(size, record.dataset.image_shape)),
        "classes": len(record.dataset.class_names),
        **({"rebuilt": True} if record.deployed else {}),
    }
