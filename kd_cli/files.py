"""Atomic writes, and the state from which a killed run continues.

Every file appears whole or not at all: it is written beside its place, flushed to the disk and
renamed. (`.keras` files and `save_weights` leave out the state of dropout's seed generators, so the
state here is `model.variables`, not `model.weights`.)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

log = logging.getLogger("kd")


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Gives a temporary path with the same suffix; renames it to `path` when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """A rename is safe from a power cut only when the folder is on the disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def files_of(path: Path) -> list[Path]:
    """The file itself, or all that counts of a SavedModel's directory; empty for anything else."""
    if path.is_file():
        return [path]
    graph = path / "saved_model.pb"
    if not graph.is_file():
        return []
    parts = [*path.glob("variables/*"), *path.glob("assets/*")]
    return [graph, *sorted(part for part in parts if part.is_file())]


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, or over the names and bytes of a SavedModel's files."""
    if path.is_dir():
        lines = [f"{file.relative_to(path)} {file_hash(file)}" for file in files_of(path)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Writes JSON at full precision; NaN and infinity, which JSON has not, are a ValueError."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with atomic(path) as temporary:
        temporary.write_text(text)


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with atomic(path) as temporary:
        np.savez(temporary, **arrays)


def save_model(path: Path, model: Any) -> None:
    """Saves a Keras model as `.keras`, atomically."""
    with atomic(path) as temporary:
        model.save(temporary)


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Appends one JSON line, on the disk when this returns."""
    try:
        with open(path, "a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The complete rows of a `.jsonl` file; a last line cut short by a kill is left out."""
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def rewrite_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    with atomic(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))


@contextlib.contextmanager
def open_npz(path: Path) -> Iterator[Any]:
    """Opens an `.npz` without executing anything in it (`allow_pickle=False`)."""
    with np.load(path, allow_pickle=False) as archive:
        yield archive


@contextlib.contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Holds `folder.lock`, beside a folder that two processes may want to write.

    Args:
        folder: It need not exist; the folder above it is made.
        doing: What another process that holds the lock does, for the message while this one waits.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that %s", doing)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
