"""Checks that a directory belongs to this run before kd resumes, skips or writes it.

The run id knows the settings. What it can't know, the data, the teacher's weights and the given
files, is recorded with the run's state and result, and compared before either is used.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from kd_cli.config.overrides import is_typed, place_of, teacher_overrides
from kd_cli.config.plans import (
    given_by,
    is_taught,
    member_plans,
    teacher_augment_follows,
    teacher_plan,
)
from kd_cli.config.quoting import command_line, quoted
from kd_cli.data.dataset import Dataset
from kd_cli.errors import ConfigError
from kd_cli.files import files_of
from kd_cli.runs import identity
from kd_cli.runs.model_file import EXPORTED, checkpoint_file, has_input, is_run, weights_file
from kd_cli.runs.record import Record, RecordError
from kd_cli.runs.state import State
from kd_cli.terminal import brief, shown

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


def check_before_start(
    plan: DictConfig, out: Path, typed: Sequence[str] = (), config_dir: str | None = None
) -> None:
    """All that can be told from the directories alone, before any is made or changed.

    Args:
        plan: Of the run.
        out: Its directory.
        typed: The overrides that the user typed, to tell a teacher that was named.
        config_dir: The user's `--config-dir`.

    Raises:
        ConfigError: A file in the way, files of others, another run's result or state in `out`, or
            a teacher that must exist and does not.
    """
    _refuse_files_of_others(out)
    record = Record.read(out)
    if record is not None and record.run_id != identity.run_id(plan):
        differing = differences(record.config, identity.run_spec(plan))
        raise ConfigError(
            f"{shown(out)} holds a finished run with other settings ({differing}); rerun=true "
            "trains a new one beside it, or choose another directory"
        )
    owner = State(out / "state").owner() if record is None else None
    if owner is not None and owner["run_id"] != identity.run_id(plan):
        raise ConfigError(
            f"{shown(out)} holds an unfinished run with other settings; finish it with its own "
            "command (.hydra/overrides.yaml), remove the directory, or type rerun=true"
        )
    if not is_taught(plan):
        return
    for one in member_plans(plan):
        _check_teacher(one, typed, config_dir)


def _check_teacher(plan: DictConfig, typed: Sequence[str], config_dir: str | None) -> None:
    given = given_by(plan)
    if given == "teacher_dir":
        _refuse_another_network(plan, identity.given_teacher(plan), typed)
    elif given == "teacher.checkpoint":
        shaped = [o for o in typed if is_typed("teacher.input", [o])]
        if shaped and has_input(checkpoint_file(plan.teacher.checkpoint)):
            raise ConfigError(
                f"{shaped[0]} changes nothing: {plan.teacher.checkpoint} takes raw pixels, its "
                "scale is inside; leave it out"
            )
    elif not given:
        directory = identity.teacher_dir(plan)
        _refuse_files_of_others(directory)
        if not plan.teacher.train_if_missing and Record.read(directory) is None:
            kept = teacher_overrides(list(typed), teacher_augment_follows(plan))
            raise ConfigError(
                f"no finished teacher in {shown(directory)}; train it with: "
                f"{command_line('train-teacher', kept, config_dir)}"
                + "".join(f"; or {line}" for line in similar_teachers(plan)[:1])
            )


def similar_teachers(plan: DictConfig) -> list[str]:
    """Finished teachers of the same data and network that were trained in another way, a line each.

    Each line says how the teacher differs, and what to type to take it.
    """
    wanted = identity.run_spec(teacher_plan(plan))
    own = identity.teacher_dir(plan)
    found = []
    for folder in sorted(own.parent.glob("*/")):
        try:
            record = Record.read(folder)
        except RecordError:  # no teacher to be taken
            continue
        if record is None or record.command != "train-teacher" or folder == own:
            continue
        spec = record.config
        if all(
            identity.digest(spec.get(key)) == identity.digest(wanted[key])
            for key in ("dataset", "teacher")
        ):
            # (None: they are called alike in another way only, as by teacher.name.)
            differing = differences(spec, wanted)
            others = f"other settings ({differing})" if differing else "another name"
            found.append(
                f"take one that was trained with {others}: "
                f"{shlex.quote(f'teacher_dir={quoted(shown(folder))}')}"
            )
    return found


def _refuse_another_network(plan: DictConfig, record: Record, typed: Sequence[str]) -> None:
    """A given teacher is taken as it is; a network that was typed beside it must be its own."""
    named = [o for o in typed if is_typed("teacher", [o]) and "=" in o]
    named = [o for o in named if place_of(o).split(".")[1:2] not in (["precision"], ["training"])]
    wanted = identity.network_spec(plan.teacher)
    differing = differences(
        {key: record.config.get("teacher", {}).get(key) for key in wanted}, wanted, "teacher."
    )
    if named and differing:
        raise ConfigError(
            f"{named[0]}: the teacher in {shown(plan.teacher_dir)} has another network "
            f"({differing}); leave {place_of(named[0])} out, or choose another teacher_dir"
        )


def check_given_files(plan: DictConfig) -> None:
    """Refuses a given file that is not there, or not of its kind."""
    expected = {
        "teacher.checkpoint": "a .keras, .onnx or .tflite file, or the folder of a SavedModel "
        "or finished run",
        "teacher.weights": "a .npz file of BiT weights",
        "teacher.logits": "a .npz or .npy file",
        "student.checkpoint": "a .keras file, or the folder of a finished run",
    }
    if is_taught(plan) and len(members := member_plans(plan)) > 1:
        for one in members:
            check_given_files(one)
        return
    for key, kind in expected.items():
        given = OmegaConf.select(plan, key)
        path = checkpoint_file(given or "")
        if given is not None and not (
            files_of(path) if key == "teacher.checkpoint" else path.is_file()
        ):
            raise ConfigError(f"{key}={given} is not a file; expected {kind}")
    for role in ("teacher", "student"):
        node = OmegaConf.select(plan, f"{role}.network")
        file = weights_file(node) if node is not None else None
        used = role == "student" or not is_taught(plan) or not given_by(plan)
        if used and file is not None and not Path(str(file)).expanduser().is_file():
            raise ConfigError(
                f"{role}.network.weights={file} is not a file; expected imagenet, null, or a "
                ".keras, .weights.h5 or .h5 file"
            )
    checkpoint = OmegaConf.select(plan, "teacher.checkpoint")
    module = OmegaConf.select(plan, "teacher.module")
    if module is not None and is_run(Path(checkpoint).expanduser()):
        raise ConfigError(
            f"teacher.module={module}: the run in {checkpoint} has recorded its network; leave "
            "teacher.module out"
        )
    for key in ("precision", "module"):
        value = OmegaConf.select(plan, f"teacher.{key}")
        if value is None or checkpoint is None:
            continue
        path = checkpoint_file(checkpoint)
        if path.is_dir() or path.suffix in EXPORTED:
            raise ConfigError(
                f"teacher.{key}={value}: {checkpoint} computes as it was exported; leave "
                f"teacher.{key} out"
            )


def _refuse_files_of_others(out: Path) -> None:
    for parent in [out, *out.parents]:
        if parent.exists() and not parent.is_dir():
            raise ConfigError(
                f"{parent} is a file; kd needs a directory there (move it, or work elsewhere)"
            )
    if not out.is_dir() or Record.read(out) is not None:
        return
    names = {p.name for p in out.iterdir()}
    others = sorted(
        name
        for name in names
        if name not in RUN_FILES and name[0] != "." and not _ROUND.fullmatch(name)
    )
    # Names like those of a run, in a folder where no run has begun, are the user's own files.
    begun = ".hydra" in names or "state" in names
    others = others or ([] if begun else sorted(names & set(RUN_FILES)))
    if others:
        raise ConfigError(
            f"{shown(out)} holds files that are not of a run of kd ({', '.join(others[:3])}); "
            "move them away, or choose another directory"
        )


class Busy(ConfigError):
    """Another process is at work in a directory."""

    def __init__(self, out: Path) -> None:
        super().__init__(f"another process is at work in {shown(out)}; wait for it, or stop it")


@contextlib.contextmanager
def lock(out: Path, wait: bool = False) -> Iterator[None]:
    """Holds a directory for this process; the lock of a process that died does not count.

    Args:
        out: The directory; made when missing.
        wait: Whether to wait for another process to be done with it, with a notice.

    Raises:
        Busy: Without `wait`, when another process works there.
    """
    file, told = out / ".lock", False
    while True:
        out.mkdir(parents=True, exist_ok=True)
        held = FileLock(file)
        try:
            held.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise Busy(out) from None
            if not told:
                log.info("waiting for another process that trains %s", shown(out))
            told = True
            held.acquire()
        if file.exists():
            break
        held.release()  # whoever held the directory has removed it
    try:
        yield
    finally:
        held.release()


def inputs(plan: DictConfig, dataset: Dataset) -> dict[str, str]:
    """What a run is made from besides its settings: hashes of data, teacher and given files."""
    found = {"data": dataset.fingerprint, "split": dataset.split_fingerprint}
    # (The first round of self-training, with the same data, does not use them.)
    if dataset.unlabelled_fingerprint and plan.dataset.get("unlabelled_path") is not None:
        found["unlabelled"] = dataset.unlabelled_fingerprint
    if is_taught(plan):
        hashes = [_teacher_hash(one) for one in member_plans(plan)]
        if all(hashes):
            found["teacher"] = hashes[0] if len(hashes) == 1 else identity.digest(hashes, 64)
    elif "teacher" in plan and plan.teacher.weights is not None:
        found["teacher.weights"] = identity.content(plan.teacher.weights)
    if "student" in plan and plan.student.checkpoint is not None:
        found["student.checkpoint"] = identity.content(plan.student.checkpoint)
    return found


def _teacher_hash(plan: DictConfig) -> str:
    """Of a teacher's weights or file; empty where it has to be trained first."""
    if given_by(plan) in ("", "teacher_dir"):
        teacher = Record.read(identity.teacher_dir(plan))
        return teacher.weights_sha256 if teacher is not None else ""
    given = (plan.teacher[key] for key in ("checkpoint", "logits", "weights"))
    return identity.content(next(file for file in given if file is not None))


_MADE_FROM = {
    "data": "was made from other data",
    "split": "was made from another split of the data",
    "unlabelled": "was made from other images of dataset.unlabelled_path",
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


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    """`epochs 10, now 20` for each key that differs."""
    words = []
    for key in sorted({*old, *new}):
        theirs, ours = old.get(key), new.get(key)
        if isinstance(theirs, dict) and isinstance(ours, dict):
            inner = differences(theirs, ours, f"{prefix}{key}.")
            words += [inner] if inner else []
        elif identity.digest(theirs) != identity.digest(ours):
            words.append(f"{prefix}{key} {_in_words(theirs)}, now {_in_words(ours)}")
    return "; ".join(words)


def _in_words(value: Any) -> str:
    """As `brief`; an augmentation by its nodes."""
    if isinstance(value, dict) and "train" in value:
        return brief(value["train"])
    return "none" if value is None else brief(value)
