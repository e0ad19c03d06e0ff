"""Finished runs as they lie on the disk: `metrics.json`, and what `kd evaluate` left beside it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kd_cli.config.keys import VARIABLES
from kd_cli.config.row import flat
from kd_cli.files import DamagedError, read_json, read_npz, read_rows
from kd_cli.runs.record import FILE, PRUNED, Record, RecordError
from kd_cli.terminal import shown

log = logging.getLogger("kd")


def at(node: Any, path: str) -> Any:
    """What stands under a dotted key: `rounds.0.test.accuracy`; None where nothing does."""
    for key in path.split("."):
        if isinstance(node, Mapping):
            node = node.get(key)
        elif isinstance(node, list) and key.isdigit() and int(key) < len(node):
            node = node[int(key)]
        else:
            return None
    return node


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        record: Its `Record`, or as much of one as is known.
        folder: Its directory; None where only the record is known.
        evaluation: What `kd evaluate` left: parameters, flops, latency; None without it.
    """

    record: Mapping[str, Any]
    folder: Path | None = None
    evaluation: Mapping[str, Any] | None = None

    @property
    def seeds(self) -> tuple[int, int]:
        """init_seed and data_seed."""
        config = self.record["config"]
        seed = self.record.get("seed", 0)
        return config.get("init_seed", seed), config.get("data_seed", seed)

    @property
    def pair(self) -> tuple[int, int, str]:
        """What a student and its scratch student must share: both seeds, and the split."""
        return *self.seeds, str(self.record["inputs"].get("split"))

    def at(self, path: str) -> Any:
        """What the record says under a dotted key, and its evaluation under `evaluation.`"""
        if path.startswith("evaluation."):
            return at(self.evaluation, path.removeprefix("evaluation."))
        return at(self.record, path)

    @property
    def teacher(self) -> FinishedRun | None:
        """Its teacher as this run's record knows it: without a folder, measured by this run."""
        known = self.record.get("teacher")
        if known is None:
            return None
        weights = known["weights_sha256"]
        inputs = {key: self.record["inputs"].get(key) for key in ("data", "split")}
        validation = at(known, "quality.validation.accuracy")
        labelled = known.get("labelled")
        return FinishedRun(
            {
                "command": "train-teacher",
                "config": {},
                "inputs": {**inputs, "teacher.weights": weights},
                "dataset": {**self.record["dataset"], "train": labelled, "labelled": labelled},
                "network": known["name"],
                "parameters": known.get("parameters"),
                "test": {"accuracy": known["test_accuracy"], "nll": known["test_nll"]},
                "validation": {"best": {"accuracy": validation}},
                "quality": known["quality"],
                "weights_sha256": weights,
            }
        )


Value = Callable[[FinishedRun], float | None]


def test_accuracy(run: FinishedRun) -> float:
    """Share of test images that the weights in model.keras get right."""
    return run.at("test.accuracy")


def validation_accuracy(run: FinishedRun) -> float | None:
    """Validation accuracy of the chosen epoch; None without a validation split."""
    return run.at("validation.best.accuracy")


def read(folder: Path) -> FinishedRun | None:
    """The finished run in a folder; None where no run has finished there.

    Raises:
        RecordError: Its record can't be read.
    """
    record = Record.read(folder)
    if record is None:
        return None
    return FinishedRun(record, folder, evaluation(folder))


def evaluation(folder: Path) -> dict[str, Any] | None:
    """What `kd evaluate` left in a folder; None without it. A damaged file is warned about."""
    path = folder / "evaluation.json"
    try:
        return read_json(path, f"type kd evaluate {shown(folder)} again")
    except DamagedError as error:
        log.warning("%s", error)
        return None


def history(run: FinishedRun) -> list[dict[str, Any]]:
    """Its rows, one per epoch, as far as they are whole; none where there is no history."""
    rows = read_rows(run.folder / "history.jsonl") if run.folder else []
    parts = ("train", "validation")
    return [row for row in rows if all(isinstance(row.get(p), dict | None) for p in parts)]


def predictions(run: FinishedRun) -> dict[str, np.ndarray]:
    """The arrays of its `predictions.npz`: `labels` [n], `student_logits` [n, K], ...

    Empty where the file is missing; a damaged one is warned about.
    """
    if run.folder is None:
        return {}
    again = "its figures are left out; rerun=true with the run's command makes a new run"
    path = run.folder / "predictions.npz"
    try:
        arrays = read_npz(path, again) or {}
        for name, array in arrays.items():
            prefix = "validation_" if name.startswith("validation_") else ""
            rows, logits = arrays.get(f"{prefix}labels"), name.endswith("logits")
            if array.ndim != 1 + logits or rows is None or len(array) != len(rows):
                raise DamagedError(path, f"{name} has shape {array.shape}", again)
            if array.dtype.kind not in ("f" if logits else "iu"):
                raise DamagedError(path, f"{name} is of type {array.dtype}", again)
        return arrays
    except DamagedError as error:
        log.warning("%s", error)
        return {}


@dataclass(frozen=True)
class Found:
    """What lies below some folders: runs, and how many folders were left out and why."""

    runs: list[FinishedRun]
    unfinished: int
    unreadable: int


def find(folders: Iterable[Path]) -> Found:
    """Every finished run below the folders, in the order of their paths.

    The rounds inside a self-train run belong to it and are no runs of their own.
    """
    runs: dict[Path, FinishedRun] = {}
    unfinished = unreadable = 0
    for root in folders:
        for place, names, files in os.walk(root):
            folder, is_run = Path(place), ".hydra" in names
            if FILE in files:
                try:
                    run = read(folder)
                except RecordError:
                    unreadable += 1
                    run = None
                if run is not None:
                    runs.setdefault(folder.resolve(), run)
            elif is_run and not {"multirun.yaml", PRUNED} & set(files):
                unfinished += 1
            if FILE in files or is_run:
                names.clear()  # whatever lies in a run is its own: rounds, state
            names[:] = sorted(name for name in names if not name.startswith("."))
    return Found(list(runs.values()), unfinished, unreadable)


def unseen_teachers(runs: Iterable[FinishedRun]) -> list[FinishedRun]:
    """Teachers whose own run is not among the runs, as their distilled students' records know them.

    They have no folder, their accuracies are those through the students' input path, and their
    weights are in their names.
    """
    runs = list(runs)
    seen = {run.record["weights_sha256"] for run in runs if run.record["command"] != "distill"}
    found: dict[str, FinishedRun] = {}
    for teacher in (run.teacher for run in runs):
        if teacher is not None and teacher.record["weights_sha256"] not in seen:
            weights = teacher.record["weights_sha256"]
            name = f"{teacher.record['network']} {weights[:8]}"
            found.setdefault(weights, FinishedRun({**teacher.record, "network": name}))
    return list(found.values())


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A record's configuration by dotted keys; of the losses, their names as `loss`.

    What losses take from the root (`alpha`) is told once.
    """
    loss = config.get("loss") or {}
    if "_target_" in loss:  # one loss of weight 1
        loss = {str(loss["_target_"]).rsplit(".", 1)[-1]: loss}
    found = flat({key: value for key, value in config.items() if key != "loss"})
    if loss:
        found["loss"] = "+".join(loss)
    for name, node in loss.items():
        for key, value in flat(node).items():
            if key in VARIABLES or key == "label_smoothing":
                found[f"loss.{key}"] = value
            elif key != "_partial_":
                found[f"loss.{name}.{key}"] = value
    return found
