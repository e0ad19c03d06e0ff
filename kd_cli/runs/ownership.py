"""Whose a directory is: no run is skipped, continued or overwritten that is not this very run.

The run id knows the settings. What it can't know, the data, the teacher's weights and the given
files, is recorded with the run's state and result, and compared before either is used.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from kd_cli.data.dataset import Dataset
from kd_cli.errors import ConfigError
from kd_cli.files import file_hash, files_of
from kd_cli.runs import identity
from kd_cli.runs.record import read_record
from kd_cli.runs.state import State
from kd_cli.terminal import shown

log = logging.getLogger("kd")
RUN_FILES = (
    "kd.log",
    "history.jsonl",
    "metrics.json",
    "predictions.npz",
    "model.keras",
    "state",
    "error.json",
    "trackers",
    "augment.png",
    "evaluation.json",
)
_ROUND = re.compile(r"round-\d+")


def check_before_start(plan: DictConfig, out: Path) -> None:
    """All that can be told from the directories alone, before any is made or changed.

    Raises:
        ConfigError: A file in the way, foreign files, another run's result or state in `out`, or a
            file or teacher that must exist and does not.
    """
    _refuse_foreign_files(out)
    record = read_record(out)
    if record is not None and record["run_id"] != identity.run_id(plan):
        differing = _differences(record["config"], identity.run_spec(plan))
        raise ConfigError(
            f"{shown(out)} holds a finished run with other settings ({differing}); rerun=true "
            "trains a new one beside it, or choose another teacher_dir"
        )
    owner = State(out / "state").owner() if record is None else None
    if owner is not None and owner["run_id"] != identity.run_id(plan):
        raise ConfigError(
            f"{shown(out)} holds an unfinished run with other settings; finish it with its own "
            "command (.hydra/overrides.yaml), remove the directory, or type rerun=true"
        )
    _check_given_files(plan)
    if plan.command == "distill" and not is_given(plan.teacher):
        directory = Path(plan.teacher_dir)
        _refuse_foreign_files(directory)
        if not plan.teacher.train_if_missing and read_record(directory) is None:
            raise ConfigError(
                f"no finished teacher in {shown(directory)}; train it with: kd train-teacher "
                f"dataset={plan.dataset.name} teacher={plan.teacher.name} (and the same overrides)"
            )


def is_given(teacher: DictConfig) -> bool:
    """Whether a distill run takes its teacher from a file, not from its directory."""
    return teacher.checkpoint is not None or teacher.weights is not None


def _check_given_files(plan: DictConfig) -> None:
    expected = {
        "teacher.checkpoint": "a .keras file or the directory of a SavedModel",
        "teacher.weights": "a .npz file of BiT weights",
        "student.checkpoint": "a .keras file",
    }
    for key, kind in expected.items():
        given = OmegaConf.select(plan, key)
        path = Path(given or "").expanduser()
        if given is not None and not (
            files_of(path) if key == "teacher.checkpoint" else path.is_file()
        ):
            raise ConfigError(f"{key}={given} is not a file; expected {kind}")
    teacher = plan.get("teacher")
    if teacher is not None and teacher.checkpoint is not None and teacher.precision is not None:
        if Path(teacher.checkpoint).expanduser().is_dir():
            raise ConfigError(
                f"teacher.precision={teacher.precision}: the SavedModel {teacher.checkpoint} "
                "computes as it was exported; leave teacher.precision out"
            )


def _refuse_foreign_files(out: Path) -> None:
    for parent in [out, *out.parents]:
        if parent.exists() and not parent.is_dir():
            raise ConfigError(
                f"{parent} is a file; kd needs a directory there (move it, or work elsewhere)"
            )
    if not out.is_dir() or (out / "metrics.json").exists():
        return
    foreign = sorted(
        p.name
        for p in out.iterdir()
        if p.name not in RUN_FILES and p.name[0] != "." and not _ROUND.fullmatch(p.name)
    )
    if foreign:
        raise ConfigError(
            f"{out} holds files that are not of a run of kd ({', '.join(foreign[:3])}); "
            "move them away, or type rerun=true"
        )


@contextlib.contextmanager
def lock(out: Path, wait: bool = False) -> Iterator[None]:
    """Holds a directory for this process; the lock of a process that died does not count.

    Args:
        out: The directory; made when missing.
        wait: Whether to wait for another process to be done with it, with a notice.

    Raises:
        ConfigError: Without `wait`, when another process works there.
    """
    out.mkdir(parents=True, exist_ok=True)
    held = FileLock(out / ".lock")
    try:
        held.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise ConfigError(
                f"another process is at work in {shown(out)}; wait for it, or stop it"
            ) from None
        log.info("waiting for another process that trains %s", shown(out))
        held.acquire()
    try:
        yield
    finally:
        held.release()


def inputs(plan: DictConfig, dataset: Dataset) -> dict[str, str]:
    """What a run is made from besides its settings: hashes of data, teacher and given files."""
    found = {"data": dataset.fingerprint, "split": dataset.split_fingerprint}
    if plan.command == "distill":
        if is_given(plan.teacher):
            given = plan.teacher.checkpoint or plan.teacher.weights
            found["teacher"] = file_hash(Path(given).expanduser())
        else:
            teacher = read_record(Path(plan.teacher_dir))
            if teacher is not None:
                found["teacher"] = teacher["weights_sha256"]
    elif "teacher" in plan and plan.teacher.weights is not None:
        found["teacher.weights"] = file_hash(Path(plan.teacher.weights).expanduser())
    if "student" in plan and plan.student.checkpoint is not None:
        found["student.checkpoint"] = file_hash(Path(plan.student.checkpoint).expanduser())
    return found


_MADE_FROM = {
    "data": "was made from other data",
    "split": "was made from another split of the data",
    "teacher": "was distilled from another teacher",
    "teacher.weights": "was started from other teacher.weights",
    "student.checkpoint": "was started from another student.checkpoint",
}


def refuse_other_inputs(kept: dict[str, str], now: dict[str, str], out: Path) -> None:
    """Raises ConfigError when a run's recorded inputs are not those of now."""
    for key, made in _MADE_FROM.items():
        if key in kept and key in now and kept[key] != now[key]:
            raise ConfigError(
                f"{shown(out)} {made} (SHA-256 {kept[key][:12]}, now {now[key][:12]}); "
                "rerun=true makes a new run beside it"
            )


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str:
    """`epochs 10, now 20` for each key that differs."""
    words = []
    for key in sorted({*old, *new}):
        theirs, ours = old.get(key), new.get(key)
        if isinstance(theirs, dict) and isinstance(ours, dict):
            inner = _differences(theirs, ours, f"{prefix}{key}.")
            words += [inner] if inner else []
        elif theirs != ours:
            words.append(f"{prefix}{key} {theirs}, now {ours}")
    return "; ".join(words)
