"""A teacher's logits on disk: computed once per teacher and split, then memory-mapped.

An entry is a folder below `cache_dir/logits`, named by a hash of all that decides its content:

    <hash>/logits.npy       [n, K], a row per example of the split, in the split's order
    <hash>/manifest.json    written last: shape, type, checksum, what it was made from
    <hash>/partial.npy      while it is computed, with partial.jsonl: rows and checksum per block
    <hash>.lock             held while it is computed

A killed computation continues after its last whole block. A file that was cut short or altered does
not have the manifest's checksum and is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from kd_cli.files import (
    DamagedError,
    append_row,
    discard,
    file_hash,
    locked,
    read_json,
    read_rows,
    remove_leftovers,
    rewrite_rows,
    sync_folder,
    write_json,
)
from kd_cli.runs.finished import at

log = logging.getLogger("kd")
FORMAT = 2
UNFINISHED = "unfinished"
_ROW = {"first", "stop", "sha256", "error"}  # of partial.jsonl
FLUSH_SECONDS = 2.0  # what a kill costs at most, beside a batch


@dataclass(frozen=True)
class Request:
    """Which logits are wanted, or which features of a teacher's layers.

    Attributes:
        key: All that decides the values: hashes of weights, network and rows, precisions.
        rows: Number of examples n.
        width: Numbers in a row: the K logits.
        dtype: `float32` or `float16`, as kept on disk.
        origin: What `kd cache verify` needs to compute rows again; decides nothing.
    """

    key: dict[str, Any]
    rows: int
    width: int
    dtype: str
    origin: dict[str, Any]

    @property
    def typed(self) -> str:
        """The key of `cache` that chooses the type."""
        return "features" if "features" in self.key else "logits"

    @property
    def name(self) -> str:
        text = json.dumps({**self.key, "dtype": self.dtype, "format": FORMAT}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def entry(root: Path, wanted: Request) -> Path:
    """The folder of these logits below `cache_dir`, whether it is there or not."""
    return root.expanduser() / "logits" / wanted.name


def obtain(
    root: Path,
    wanted: Request,
    compute: Callable[[int], Iterator[np.ndarray]],
    what: str,
    checked: set[tuple[str, int, int]],
) -> np.ndarray:
    """The logits as a read-only memory map [n, K]; computed first where they are missing.

    Args:
        root: `cache_dir`.
        wanted: Which logits.
        compute: Takes the first row to compute; yields float32 batches [b, K] from there on.
        what: How to name them in messages.
        checked: As `fault`.

    Raises:
        FloatingPointError: The teacher gives NaN or infinity, or more than float16 can hold.
        OSError: The disk is full or read-only.
    """
    folder = entry(root, wanted)
    computing = f"computes the logits of {what}"
    if fault(folder, checked):
        # Only who computes locks, so a finished cache can be read where it can't be written.
        with locked(folder, computing):
            found = fault(folder, checked)
            if found:
                if found != UNFINISHED:
                    log.warning(
                        "the logits of %s in %s are %s; computing again", what, folder, found
                    )
                _build(folder, wanted, compute, what)
    journal = folder / "partial.jsonl"
    if journal.exists():  # left by a kill just after the manifest
        with contextlib.suppress(OSError), locked(folder, computing):
            if fault(folder, checked) is None:
                journal.unlink(missing_ok=True)
    return np.load(folder / "logits.npy", mmap_mode="r", allow_pickle=False)


def fault(folder: Path, checked: set[tuple[str, int, int]]) -> str | None:
    """Why an entry can't be used, or None when it is complete and its checksum right.

    Args:
        folder: The entry.
        checked: Files with a right checksum (path, size, time), which are not read again; this one
            is added to them.
    """
    file, record = folder / "logits.npy", read_manifest(folder)
    if record is None:
        return UNFINISHED
    if not file.is_file():
        return "gone"
    stat = file.stat()
    mark = (str(file.resolve()), stat.st_size, stat.st_mtime_ns)
    if mark not in checked:
        if stat.st_size != record["size"] or file_hash(file) != record["sha256"]:
            return "damaged (the checksum is wrong)"
        checked.add(mark)
    return None


# What a manifest has to say: the types of its values, dotted.
_SAYS = {
    "what": str,
    "key": dict,
    "rows": int,
    "classes": int,
    "dtype": str,
    "largest_rounding_error": int | float,
    "size": int,
    "sha256": str,
    "origin": dict,
    "origin.teacher": dict,
    "origin.teacher.file": str,
    "origin.teacher.sha256": str,
    "origin.dataset": dict,
    "origin.dataset.name": str,
    "origin.part": str,
    "written": str,
}


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The entry's manifest; None where it has none, or one that is damaged or of another format."""
    try:
        record = read_json(folder / "manifest.json", "type kd cache prune")
    except DamagedError:
        return None
    if record is None or record.get("format") != FORMAT:
        return None
    said = all(isinstance(at(record, name), kind) for name, kind in _SAYS.items())
    return record if said else None


def _build(
    folder: Path, wanted: Request, compute: Callable[[int], Iterator[np.ndarray]], what: str
) -> None:
    """Appends batches to `partial.npy`; every few seconds a block is closed with its checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    discard(folder / "manifest.json")
    partial, journal = folder / "partial.npy", folder / "partial.jsonl"
    finished = folder / "logits.npy"
    if finished.exists():  # damaged, or killed between the rename and the manifest
        os.replace(finished, partial)
    done = _continue(partial, journal, wanted)
    if done:
        log.info("logits of %s: continuing after %d of %d", what, done, wanted.rows)
    error = 0.0
    with open(partial, "ab") as file:
        block, first, closed = hashlib.sha256(), done, time.monotonic()
        for batch in compute(done):
            if not np.isfinite(batch).all():
                raise FloatingPointError(f"the {wanted.typed} of {what} are not finite")
            with np.errstate(over="ignore"):
                kept = np.ascontiguousarray(batch, dtype=wanted.dtype)
            if not np.isfinite(kept).all():
                raise FloatingPointError(
                    f"the {wanted.typed} of {what} reach {np.abs(batch).max():.3g}, more than "
                    f"float16 can hold; type cache.{wanted.typed}=float32"
                )
            error = max(error, float(np.abs(kept.astype(np.float32) - batch).max()))
            file.write(kept.data)
            block.update(kept.data)
            done += len(kept)
            if done == wanted.rows or time.monotonic() - closed > FLUSH_SECONDS:
                file.flush()
                os.fsync(file.fileno())
                append_row(
                    journal,
                    {"first": first, "stop": done, "sha256": block.hexdigest(), "error": error},
                )
                block, first, closed = hashlib.sha256(), done, time.monotonic()
    error = max(row["error"] for row in read_rows(journal))
    if partial.stat().st_size != len(_header(wanted)) + wanted.rows * _row_bytes(wanted):
        raise RuntimeError(f"{partial} was changed by another process; kd cache prune removes it")
    os.replace(partial, finished)
    sync_folder(folder)
    manifest = {
        "format": FORMAT,
        "what": what,
        "key": wanted.key,
        "rows": wanted.rows,
        "classes": wanted.width,
        "dtype": wanted.dtype,
        "largest_rounding_error": error,
        "size": finished.stat().st_size,
        "sha256": file_hash(finished),
        "origin": wanted.origin,
        "written": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
    write_json(folder / "manifest.json", manifest)
    journal.unlink()
    if wanted.dtype == "float16":
        log.info("logits of %s kept as float16: largest rounding error %.2g", what, error)


def _continue(partial: Path, journal: Path, wanted: Request) -> int:
    """Cuts `partial` back to its whole blocks; returns the number of rows in them."""
    row_bytes, header = _row_bytes(wanted), _header(wanted)
    done, kept, later = 0, [], range(1, wanted.rows + 1)
    if partial.exists():
        with open(partial, "rb") as file:
            if file.read(len(header)) == header:
                for row in read_rows(journal):
                    stop = row.get("stop")
                    if set(row) != _ROW or row["first"] != done or stop not in later:
                        break
                    block = file.read((stop - done) * row_bytes)
                    if hashlib.sha256(block).hexdigest() != row["sha256"]:
                        break
                    done = stop
                    kept.append(row)
    if not done:
        partial.write_bytes(header)
    with open(partial, "rb+") as file:
        file.truncate(len(header) + done * row_bytes)
    rewrite_rows(journal, kept)
    return done


def _row_bytes(wanted: Request) -> int:
    return wanted.width * np.dtype(wanted.dtype).itemsize


def _header(wanted: Request) -> bytes:
    """The header of an `.npy` file, so that anyone can open the cache with `np.load`."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer,
        {
            "descr": np.dtype(wanted.dtype).str,
            "fortran_order": False,
            "shape": (wanted.rows, wanted.width),
        },
    )
    return buffer.getvalue()


def entries(root: Path) -> list[Path]:
    """All entries below a `cache_dir`, finished or not."""
    folder = root.expanduser() / "logits"
    return sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


def remove(folder: Path) -> bool:
    """Removes an entry, unless another process is computing it."""
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        with lock.acquire(timeout=0):
            if not folder.is_symlink():  # what a link leads to is another folder's
                discard(folder / "manifest.json")  # first: a half-removed one is none
            discard(folder)
    except Timeout:
        return False
    return True  # the lock's file stays: another process may be waiting for it
