"""How a file of kd's own is written, read, and cleared away.

Every file appears whole or not at all: it is written beside its place, flushed to the disk and
renamed. What a kill leaves of a write is named by its process, and removed by a later one. What was
damaged since, whatever by, is a `DamagedError` with the file and what to type.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from kd_cli.errors import ConfigError, first_line
from kd_cli.terminal import shown

log = logging.getLogger("kd")
# Other machines may write to the same disk: only of this one it is known which processes live.
_MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_TEMPORARY = re.compile(r"\.tmp-(\d+)@([0-9a-f]{8})-")
_DAY = 86400.0  # no write takes so long


class DamagedError(ConfigError):
    """A file of kd's own that can't be read, and what to type."""

    def __init__(self, path: Path, why: str, remedy: str) -> None:
        super().__init__(f"{shown(path)} can't be read ({why}); {remedy}")
        self.why = why


def temporary_of(path: Path) -> Path:
    """Where this process writes what becomes `path`: beside it, with the same suffix."""
    return path.with_name(f".tmp-{os.getpid()}@{_MACHINE}-{path.name}")


def remove_leftovers(folder: Path) -> int:
    """Removes what processes that are gone were writing in a folder; returns how many files.

    Of another machine's, and of an earlier kd's, only what is a day old. What can't be removed
    stays.
    """
    removed = 0
    for path in sorted(folder.glob(".tmp-*")):
        with contextlib.suppress(OSError):
            if not _is_left(path):
                continue
            discard(path)
            removed += 1
    return removed


def discard(path: Path) -> None:
    """Removes a file, a link, or a folder with all in it; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_left(path: Path) -> bool:
    made = _TEMPORARY.match(path.name)
    if made and made[2] == _MACHINE:
        try:
            os.kill(int(made[1]), 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:  # another user's process lives
            return False
    inside = path.glob("*") if path.is_dir() else ()
    return time.time() - max(p.lstat().st_mtime for p in (path, *inside)) > _DAY


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Gives a temporary path with the same suffix; renames it to `path` when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
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


@contextlib.contextmanager
def where_possible(folder: Path) -> Iterator[None]:
    """Writes what can be made again from finished runs; on a disk that takes nothing, says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        log.warning("nothing is written to %s: %s", shown(folder), error.strerror)


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


def bytes_of(path: Path) -> int:
    """The size of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files)


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


def read_json(path: Path, remedy: str) -> dict[str, Any] | None:
    """The object in a JSON file of kd's own; None where there is no such file.

    Raises:
        DamagedError: It can't be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DamagedError(path, error.strerror or first_line(error), remedy) from error
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8
        raise DamagedError(path, first_line(error), remedy) from error
    if not isinstance(content, dict):
        raise DamagedError(path, "no object of keys and values", remedy)
    return content


def read_npz(
    path: Path, remedy: str, names: Collection[str] | None = None
) -> dict[str, np.ndarray] | None:
    """The arrays of an `.npz` of kd's own; None where there is no such file.

    Args:
        path: The file. Each array that is read is compared with its checksum in the file.
        remedy: What to type when it is damaged.
        names: Which arrays; None reads all.

    Raises:
        DamagedError: It can't be read, or lacks one of `names`.
    """
    if not path.exists():
        return None
    try:
        with open_npz(path) as archive:
            wanted = archive.files if names is None else names
            return {name: archive[name] for name in wanted}
    except Exception as error:  # NumPy meets damaged bytes with errors of almost any type
        raise DamagedError(path, first_line(error), remedy) from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `.jsonl` file; lines that are cut short or damaged are left out."""
    rows = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict):
                    rows.append(row)
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
