"""Atomic writes, and the state from which a killed run continues.

Every file appears whole or not at all: it is written beside its place, flushed to the disk and
renamed. (`.keras` files and `save_weights` leave out the state of dropout's seed generators, so the
state here is `model.variables`, not `model.weights`.)
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import lzma
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from kd_cli.errors import ConfigError


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


# What zipfile, zlib and NumPy raise for archives that are cut short, damaged or of another kind.
_BROKEN = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error),
    *(ValueError, KeyError, SyntaxError, TypeError, RuntimeError, NotImplementedError),
)
_HEADER = 2**16  # more than NumPy reads of a header by itself
# Deflate packs what is all the same about 1000 times; the sparsest data sets are below 150.
_PACKED, _SMALL = 500, 2**28


def npz_headers(
    path: Path, names: Sequence[str] = (), more: Sequence[str] | None = ()
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and type of arrays of an `.npz` file that are to be read, without unpacking them.

    Args:
        path: The file.
        names: Arrays that it must have.
        more: Arrays that it may have; None for all others.

    Raises:
        ConfigError: It is no `.npz` file, or damaged; an array is missing, holds Python objects,
            is not as long as its header says, or is too large for this machine.
    """
    found, total = {}, 0
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.namelist()
            known = [entry.removesuffix(".npy") for entry in entries if entry.endswith(".npy")]
            missing = [name for name in names if name not in known]
            if missing:
                raise ConfigError(
                    f"{path} lacks {', '.join(missing)}; expected the arrays {', '.join(names)}"
                )
            others = known if more is None else [name for name in more if name in known]
            for name in dict.fromkeys([*names, *others]):
                entry = archive.getinfo(f"{name}.npy")
                with archive.open(entry) as file:
                    start = io.BytesIO(file.read(_HEADER))
                found[name] = shape, dtype = _npy_header(start)
                if dtype.hasobject:
                    raise ConfigError(
                        f"{path}: {name} holds Python objects, which are not read because reading "
                        "them could run a program; save numbers"
                    )
                declared = start.tell() + math.prod(shape) * dtype.itemsize
                if entry.file_size != declared:
                    raise ConfigError(
                        f"{path} is damaged: {name} says that it has {declared:,} bytes, the "
                        f"archive says {entry.file_size:,}"
                    )
                if declared > max(_SMALL, _PACKED * entry.compress_size):
                    raise ConfigError(
                        f"{path}: {name} would unpack from {size(entry.compress_size)} to "
                        f"{size(declared)}, which is out of proportion; if it is right, save it "
                        "with np.savez, unpacked"
                    )
                total += declared
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror or error}") from error
    except _BROKEN as error:
        with open(path, "rb") as file:
            begins = file.read(2)
        what = "is damaged or cut short" if begins == b"PK" else "is not an .npz file"
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"{path} {what} ({reason[0]}); np.savez writes one") from error
    free = available_memory()
    if total > free:
        raise ConfigError(
            f"{path}: its arrays take {size(total)} of memory, {size(free)} are available; write a "
            "source of your own that maps the images from the disk (kd guide data)"
        )
    return found


def read_npz(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of an `.npz` file that `npz_headers` has looked at.

    Raises:
        ConfigError: An array is damaged.
    """
    try:
        with open_npz(path) as archive:
            return {name: archive[name] for name in names}
    except (*_BROKEN, MemoryError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"{path} is damaged ({reason[0]}); save it again") from error


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    if any(not isinstance(side, int) or side < 0 for side in shape):
        raise ValueError(f"a shape of {shape}")
    return tuple(shape), dtype


def available_memory() -> int:
    """Bytes that programs may take now, as the system says; else all that the machine has."""
    known = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        known += [int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):  # of a container; "max" is no number
        known.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(known)


def size(count: float) -> str:
    """A number of bytes for people: 3.0 MiB."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
