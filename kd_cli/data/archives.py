"""An `.npz` file of the user's: looked at before it is unpacked; nothing in it is executed."""

from __future__ import annotations

import contextlib
import io
import lzma
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from kd_cli.errors import ConfigError, first_line
from kd_cli.files import open_npz

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
            twice = [name for name in dict.fromkeys(known) if known.count(name) > 1]
            if twice:
                raise ConfigError(f"{path} holds {', '.join(twice)} twice; save it again")
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
        raise ConfigError(f"{path} {what} ({first_line(error)}); np.savez writes one") from error
    free = available_memory()
    if total > free:
        raise ConfigError(
            f"{path}: its arrays take {size(total)} of memory, {size(free)} are available; write a "
            "source of your own that maps the images from the disk (kd guide data)"
        )
    return found


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of an `.npz` file that `npz_headers` has looked at.

    Raises:
        ConfigError: An array is damaged.
    """
    try:
        with open_npz(path) as archive:
            # (Without the ending a member of the bare name would come first.)
            return {name: archive[f"{name}.npy"] for name in names}
    except (*_BROKEN, MemoryError) as error:
        raise ConfigError(f"{path} is damaged ({first_line(error)}); save it again") from error


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
