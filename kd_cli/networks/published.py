"""Weights that Keras publishes: out of its cache, else fetched with a limit, else told in one line.

Keras's own download says nothing of where a file could be put by hand, and has no time limit.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras.src.utils import file_utils

from kd_cli.errors import ConfigError, first_line
from kd_cli.files import atomic, file_hash

log = logging.getLogger("kd")
_SECONDS = 20.0  # without an answer


@contextlib.contextmanager
def published_files(network: str) -> Iterator[None]:
    """Inside the block Keras takes its published files as `_published` gives them.

    Args:
        network: Its name, for errors.
    """

    def get_file(name: str, origin: str, *_: Any, file_hash: str | None = None, **__: Any) -> str:
        return str(_published(name, origin, file_hash, network))

    kept = file_utils.get_file
    file_utils.get_file = get_file
    try:
        with warnings.catch_warnings():  # of MobileNets: their weights are those of 224 pixels
            warnings.filterwarnings("ignore", message=".*`input_shape` is undefined or non-square")
            yield
    finally:
        file_utils.get_file = kept


def _published(name: str, origin: str, expected: str | None, network: str) -> Path:
    """The place of a file in Keras's cache, where it is or is put.

    Args:
        name: Of the file.
        origin: Its public address.
        expected: Its MD5 or SHA-256, where Keras knows one.
        network: For errors.

    Raises:
        ConfigError: It can't be fetched, or is another file; with where to put it.
    """
    # (KERAS_HOME: https://keras.io/api/utils/python_utils/#getfile-function)
    path = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "models" / name
    kind = "SHA-256" if expected and len(expected) == 64 else "MD5"
    told = f", {kind} {expected}" if expected else ""
    if not path.is_file():
        log.info("%s: fetching its published weights from %s", network, origin)
        try:
            with (
                urllib.request.urlopen(origin, timeout=_SECONDS) as answer,
                atomic(path) as temporary,
            ):
                with open(temporary, "wb") as file:
                    shutil.copyfileobj(answer, file)
                if not _is(temporary, expected, kind):
                    raise ValueError("what came is another file")
        except (OSError, ValueError) as error:  # of the network, the address, the disk, the file
            raise ConfigError(
                f"network.weights=imagenet: the weights of {network} can't be fetched "
                f"({first_line(error)}); put the file {origin} ({_words(told)}) at {path}, or type "
                "network.weights=FILE behind teacher. or student."
            ) from error
    elif not _is(path, expected, kind):
        raise ConfigError(
            f"network.weights=imagenet: {path} is not the file that Keras publishes{told}; remove "
            f"it, or put the file {origin} there"
        )
    log.info("%s: weights of ImageNet, %s, SHA-256 %s", network, path, file_hash(path)[:12])
    return path


def _is(path: Path, expected: str | None, kind: str) -> bool:
    if expected is None:
        return True
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind.replace("-", "").lower()).hexdigest() == expected


def _words(told: str) -> str:
    return told.removeprefix(", ") or "Keras knows no hash of it"
