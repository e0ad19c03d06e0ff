"""Finished runs as they lie on the disk: `metrics.json`, and what `kd evaluate` left beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from kd_cli.files import open_npz, read_rows


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        record: Its `metrics.json`, of any schema version.
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
        """What a run shares with its scratch student: both seeds, and the rows of the split."""
        return *self.seeds, str(self.record["inputs"].get("split"))

    def value(self, *keys: str) -> float | None:
        """The first of these dotted keys of the record that holds a number."""
        for key in keys:
            node: Any = self.record
            for part in key.split("."):
                node = node.get(part) if isinstance(node, Mapping) else None
            if isinstance(node, int | float) and not isinstance(node, bool):
                return float(node)
        return None

    def latency(self, batch: int = 1) -> float | None:
        """Median milliseconds of a batch of that size, where `kd evaluate` measured it."""
        node = (self.evaluation or {}).get("latency") or {}
        value = (node.get(str(batch)) or {}).get("median_ms")
        return float(value) if isinstance(value, int | float) else None


Value = Callable[[Run], float | None]


def test_accuracy(run: Run) -> float | None:
    """Share of test images that the weights in model.keras get right."""
    return run.value("test.accuracy")


def validation_accuracy(run: Run) -> float | None:
    """Validation accuracy of the chosen epoch; None without a validation split."""
    return run.value("validation.best.accuracy")


def read(folder: Path) -> Run | None:
    """The finished run in a folder, or None: no metrics.json, or not one that kd wrote."""
    try:
        record = json.loads((folder / "metrics.json").read_text())
    except (OSError, ValueError):
        return None
    try:
        evaluation = json.loads((folder / "evaluation.json").read_text())
    except (OSError, ValueError):
        evaluation = None
    kinds = {"command": str, "config": dict, "inputs": dict, "dataset": dict, "test": dict}
    if not isinstance(record, dict) or not all(
        isinstance(record.get(key), kind) for key, kind in kinds.items()
    ):
        return None
    run = Run(record, folder, evaluation if isinstance(evaluation, dict) else None)
    return run if test_accuracy(run) is not None else None


def history(run: Run) -> list[dict[str, Any]]:
    """Its rows, one per epoch; none where there is no history."""
    return read_rows(run.folder / "history.jsonl") if run.folder else []


def predictions(run: Run) -> dict[str, np.ndarray]:
    """The arrays of its `predictions.npz`: `labels` [n], `student_logits` [n, K], ...

    Empty where the file is missing or can't be read.
    """
    try:
        with open_npz((run.folder or Path("/")) / "predictions.npz") as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, BadZipFile):
        return {}


@dataclass(frozen=True)
class Found:
    """What lies below some folders: runs, and how many folders were left out and why."""

    runs: list[Run]
    unfinished: int
    unreadable: int


def find(folders: Iterable[Path]) -> Found:
    """Every finished run below the folders, in the order of their paths.

    The rounds inside a self-train run belong to it and are no runs of their own.
    """
    runs: dict[Path, Run] = {}
    unfinished = unreadable = 0
    for root in folders:
        for place, names, files in os.walk(root):
            folder, is_run = Path(place), ".hydra" in names
            if "metrics.json" in files:
                run = read(folder)
                unreadable += run is None
                if run is not None:
                    runs.setdefault(folder.resolve(), run)
            elif is_run and "multirun.yaml" not in files:
                unfinished += 1
            if "metrics.json" in files or is_run:
                names.clear()  # whatever lies in a run is its own: rounds, state
            names[:] = sorted(name for name in names if not name.startswith("."))
    return Found(list(runs.values()), unfinished, unreadable)


def unseen_teachers(runs: Iterable[Run]) -> list[Run]:
    """Teachers whose own run is not among the runs, as their distilled students' records know them.

    They have no folder, and their accuracies are those through the students' input path.
    """
    runs = list(runs)
    seen = {run.record.get("weights_sha256") for run in runs if run.record["command"] != "distill"}
    found: dict[str, Run] = {}
    for run in runs:
        teacher = run.record.get("teacher") or {}
        weights = teacher.get("weights_sha256")
        if run.record["command"] != "distill" or not weights or weights in {*seen, *found}:
            continue
        inputs = {key: run.record["inputs"].get(key) for key in ("data", "split")}
        quality = teacher.get("quality") or {}
        validation = (quality.get("validation") or {}).get("accuracy")
        found[weights] = Run(
            {
                "command": "train-teacher",
                "config": {},
                "inputs": {**inputs, "teacher.weights": weights},
                "dataset": run.record["dataset"],
                "network": f"{teacher.get('name', '')} {weights[:8]}",
                "parameters": teacher.get("parameters"),
                "test": {"accuracy": teacher.get("test_accuracy"), "nll": teacher.get("test_nll")},
                "validation": {"best": {"accuracy": validation}},
                "quality": quality,
                "weights_sha256": weights,
            }
        )
    return [run for run in found.values() if test_accuracy(run) is not None]
