"""Decoded images: what a source returns, its fingerprint, and a copy on disk for the next run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kd_cli.files import (
    DamagedError,
    discard,
    read_json,
    remove_leftovers,
    temporary_of,
    write_json,
)

log = logging.getLogger("kd")


@dataclass(frozen=True)
class Arrays:
    """Decoded images and labels, as a source returns them.

    Attributes:
        train: Images [N, H, W, C] with pixels 0..255 (uint8 or float32), labels [N] in 0..K-1, or
            all -1: images without labels.
        test: The same of the test split, with labels.
        validation: The official validation split, where there is one.
        class_names: One name per label, in order.
        fingerprint: SHA-256 of all the above; computed when absent.
        notice: What to warn about each time, such as images that were left out.
    """

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray] | None = None
    class_names: tuple[str, ...] = ()
    fingerprint: str = ""
    notice: str = ""


def fingerprint(arrays: Arrays) -> str:
    """SHA-256 over the images, labels and class names of all splits."""
    sha = hashlib.sha256()
    for split in (arrays.train, arrays.test, arrays.validation):
        for array in split or ():
            sha.update(f"{array.dtype.str}{array.shape}".encode())
            sha.update(np.ascontiguousarray(array).data)
    sha.update(json.dumps(arrays.class_names).encode())
    return sha.hexdigest()


def stamp(files: list[Path], root: Path) -> str:
    """Names, sizes and times of files: changes when one is replaced, without reading them."""
    sha = hashlib.sha256()
    for file in files:
        stat = file.stat()
        sha.update(f"{file.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return sha.hexdigest()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What a folder of decoded images says of itself; None where that is missing or damaged."""
    kinds = {"key": dict, "class_names": list, "fingerprint": str, "notice": str, "sizes": dict}
    try:
        record = read_json(folder / "manifest.json", "type kd cache prune")
    except DamagedError:
        return None
    said = record and all(isinstance(record.get(name), kind) for name, kind in kinds.items())
    return record if said else None


def remove(folder: Path) -> bool:
    """Removes a folder of decoded images."""
    if not folder.is_symlink():  # what a link leads to is another folder's
        discard(folder / "manifest.json")  # first: a half-removed one counts as none
    discard(folder)
    return True


def decoded(cache_dir: Path, key: dict[str, Any], decode: Callable[[], Arrays]) -> Arrays:
    """Arrays decoded once and memory-mapped from then on.

    The folder's name is a hash of what was decoded and how; the manifest is written last, so a
    folder with a manifest is whole. Two processes that decode at once both rename; one wins.
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_dir.expanduser() / "data" / name
    if read_manifest(folder) is None:
        shutil.rmtree(folder, ignore_errors=True)  # a removal that was cut short
        arrays = decode()
        remove_leftovers(folder.parent)
        temporary = temporary_of(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            for split in ("train", "test", "validation"):
                for part, array in zip("xy", getattr(arrays, split) or (), strict=False):
                    np.save(temporary / f"{split}_{part}.npy", array)
            write_json(
                temporary / "manifest.json",
                {
                    "key": key,
                    "class_names": list(arrays.class_names),
                    "fingerprint": fingerprint(arrays),
                    "notice": arrays.notice,
                    "sizes": {p.name: p.stat().st_size for p in temporary.glob("*.npy")},
                },
            )
            # OSError: another process was first, which decoded the same.
            with contextlib.suppress(OSError):
                os.rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    record = read_manifest(folder)
    if record is None or any(
        not (folder / file).exists() or (folder / file).stat().st_size != size
        for file, size in record["sizes"].items()
    ):
        log.warning("the decoded images in %s are damaged; decoding them again", folder)
        with contextlib.suppress(FileNotFoundError):  # another process removes it too
            shutil.rmtree(folder)
        return decoded(cache_dir, key, decode)

    if record["notice"]:
        log.warning("%s", record["notice"])

    def load(split: str) -> tuple[np.ndarray, np.ndarray] | None:
        if not (folder / f"{split}_x.npy").exists():
            return None
        images, labels = (
            np.load(folder / f"{split}_{part}.npy", mmap_mode="r", allow_pickle=False)
            for part in "xy"
        )
        return images, np.asarray(labels)

    return Arrays(
        load("train"),
        load("test"),
        load("validation"),
        tuple(record["class_names"]),
        record["fingerprint"],
        record["notice"],
    )
