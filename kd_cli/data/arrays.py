"""Decoded inputs: what a source returns, its fingerprint, and a copy on disk for the next run."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kd_cli.errors import first_line
from kd_cli.files import (
    DamagedError,
    discard,
    locked,
    read_json,
    remove_leftovers,
    temporary_of,
    write_json,
)

log = logging.getLogger("kd")


@dataclass(frozen=True)
class Arrays:
    """Decoded images or token ids, and labels, as a source returns them.

    Attributes:
        train: Images [N, H, W, C] or [N, H, W], and labels [N] in 0..K-1, or all -1: images without
            labels. Pixels are 0..255, or of a range that `pixels.to_bytes` knows. Of texts the ids
            [N, L] of their tokens, int32.
        test: The same of the test split, with labels.
        validation: The official validation split, where there is one.
        class_names: One name per label, in order.
        fingerprint: SHA-256 of all the above but `unlabelled`; computed when absent.
        notice: What to warn about each time, such as images that were left out.
        scale, offset: Pixels become scale * pixel + offset; 1 and 0 take them as they are. None for
            the scale: their type and range decide.
        unlabelled: So many training images, the last ones, lie beside those of the labelled data
            and have the label -1. They are used where dataset.unlabelled_path is not null.
        unlabelled_fingerprint: SHA-256 of these images; computed when absent.
        tokenizer: How texts became token ids, as `words.Words.to_json` gives it; None for images.
    """

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray] | None = None
    class_names: tuple[str, ...] = ()
    fingerprint: str = ""
    notice: str = ""
    scale: float | None = None
    offset: float = 0.0
    unlabelled: int = 0
    unlabelled_fingerprint: str = ""
    tokenizer: dict[str, Any] | None = None

    @property
    def known(self) -> int:
        """How many training images are not `unlabelled`."""
        return len(self.train[1]) - self.unlabelled


def fingerprint(arrays: Arrays) -> str:
    """SHA-256 over the images, labels and class names of all splits, `unlabelled` ones left out.

    So a network that learns from labels alone has the same data with and without them. Of texts it
    is over the tokenizer too, because the same ids may stand for other words.
    """
    sha = hashlib.sha256()
    train = [array[: arrays.known] for array in arrays.train]
    for split in (train, arrays.test, arrays.validation):
        for array in split or ():
            _add(sha, array)
    sha.update(json.dumps(arrays.class_names).encode())
    if arrays.tokenizer is not None:
        sha.update(json.dumps(arrays.tokenizer, sort_keys=True).encode())
    return sha.hexdigest()


def unlabelled_fingerprint(arrays: Arrays) -> str:
    """SHA-256 over the `unlabelled` images; empty where there are none."""
    if not arrays.unlabelled:
        return ""
    sha = hashlib.sha256()
    _add(sha, arrays.train[0][arrays.known :])
    return sha.hexdigest()


def _add(sha: hashlib._Hash, array: np.ndarray) -> None:
    sha.update(f"{array.dtype.str}{array.shape}".encode())
    sha.update(np.ascontiguousarray(array).data)


def stamp(files: list[Path], root: Path) -> str:
    """Names, sizes and times of files: changes when one is replaced, without reading them."""
    sha = hashlib.sha256()
    for file in files:
        stat = file.stat()
        line = f"{file.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        sha.update(line.encode(errors="surrogateescape"))  # names need not be UTF-8
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


class _Unusable(Exception):
    """Why a folder of decoded images can't be used; empty where there is none."""


def decoded(
    cache_dir: Path, key: dict[str, Any], decode: Callable[[], Arrays], what: str = "images"
) -> Arrays:
    """Arrays decoded once and memory-mapped from then on.

    The folder's name is a hash of what was decoded and how; the manifest is written last, so a
    folder with a manifest is whole. The fingerprint in it is the checksum: each process computes it
    once, and decodes again where it differs. One process decodes, others wait for it.

    Args:
        cache_dir: The folder is below its data/.
        key: What was decoded and how.
        decode: Called where the folder is missing or damaged.
        what: For the message of a process that waits.
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_dir.expanduser() / "data" / name
    try:
        arrays = _read(folder)
    except _Unusable:
        made = [p for p in folder.parents if not p.exists()]
        # Only who decodes locks, so finished ones can be read where they can't be written.
        with locked(folder, f"decodes {what}"):
            try:
                arrays = _read(folder)  # the other process was decoding it
            except _Unusable as why:
                if str(why):
                    log.warning(
                        "the decoded data in %s are damaged; decoding them again (%s)",
                        folder,
                        why,
                    )
                try:
                    _write(folder, key, decode())
                except BaseException:
                    # Nothing is left of it. (A process that waits tries again by itself.)
                    folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)
                    with contextlib.suppress(OSError):  # it is not empty
                        for parent in made:
                            parent.rmdir()
                    raise
                arrays = _read(folder)
    return arrays


def _write(folder: Path, key: dict[str, Any], arrays: Arrays) -> None:
    """Replaces a folder whose lock this process holds."""
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
                "unlabelled": [arrays.unlabelled, unlabelled_fingerprint(arrays)],
                **({"tokenizer": arrays.tokenizer} if arrays.tokenizer else {}),
                "sizes": {p.name: p.stat().st_size for p in temporary.glob("*.npy")},
            },
        )
        remove(folder)
        try:
            os.rename(temporary, folder)
        except OSError:  # another process was first: not every disk has locks
            if read_manifest(folder) is None:
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read(folder: Path) -> Arrays:
    """The arrays of a folder, checked once per process.

    Raises:
        _Unusable: There are none, or they are not what was written.
    """
    if not folder.is_dir():
        raise _Unusable
    record = read_manifest(folder)
    if record is None:
        raise _Unusable("no manifest")
    try:
        files = [folder / "manifest.json", *(folder / name for name in record["sizes"])]
        return _checked(folder, stamp(sorted(files), folder))
    except FileNotFoundError as error:
        raise _Unusable("a file is gone") from error


@functools.lru_cache(maxsize=4)  # the points of a sweep share the arrays
def _checked(folder: Path, changed: str) -> Arrays:
    record = read_manifest(folder)
    if record is None:
        raise _Unusable("no manifest")

    def load(split: str) -> tuple[np.ndarray, np.ndarray] | None:
        if f"{split}_x.npy" not in record["sizes"]:
            return None
        images, labels = (
            np.load(folder / f"{split}_{part}.npy", mmap_mode="r", allow_pickle=False)
            for part in "xy"
        )
        return images, np.asarray(labels)

    try:
        splits = [load(split) for split in ("train", "test", "validation")]
        arrays = Arrays(
            *splits, tuple(record["class_names"]), record["fingerprint"], record["notice"]
        )
        count, sha = record.get("unlabelled", (0, ""))
        arrays = replace(
            arrays,
            unlabelled=count,
            unlabelled_fingerprint=sha,
            tokenizer=record.get("tokenizer"),
        )
        right = fingerprint(arrays) == arrays.fingerprint and unlabelled_fingerprint(arrays) == sha
    except OSError:
        raise
    except Exception as error:  # NumPy raises anything on a header that is none
        raise _Unusable(first_line(error)) from error
    if not right:
        raise _Unusable("the checksum is wrong")
    return arrays
