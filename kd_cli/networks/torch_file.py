"""Tensors of a PyTorch file in the format of before 2020, read without PyTorch or its code.

Such a file is a row of pickles (a magic number, a version, facts of the system, the tensors by
name, the keys of their storages) and then each storage: how many numbers it has, and the numbers.
Source: `_legacy_save` of PyTorch's torch/serialization.py.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kd_cli.errors import ConfigError

_MAGIC = 0x1950A86A20F9469CFC6C
_WRONG = (pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError)
_TYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class _Unpickler(pickle.Unpickler):
    """Builds dictionaries of plain descriptions; whatever else a pickle asks for is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *arguments: arguments
        if module == "torch" and name in _TYPES:
            return name
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, description: Any) -> Any:
        return description


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors by name, in the file's order, with their shapes; float32 or int64.

    Raises:
        ConfigError: It is no such file, it was cut short, or it holds anything but tensors.
    """
    try:
        with open(path, "rb") as file:
            return _read(file)
    except _WRONG as error:
        raise ConfigError(f"{path} can't be read as a PyTorch file of tensors: {error}") from error


def _read(file: BinaryIO) -> dict[str, np.ndarray]:
    magic, _, _, tensors, keys = (_Unpickler(file).load() for _ in range(5))
    if magic != _MAGIC:
        raise ValueError("it begins in another way")
    types = {storage[2]: _TYPES[storage[1]] for storage, *_ in tensors.values()}
    storages = {}
    for key in keys:
        count = int(np.frombuffer(file.read(8), "<i8")[0])
        size = count * types[key].itemsize
        storages[key] = np.frombuffer(file.read(size), types[key], count)
    return {
        name: _strided(storages[storage[2]], *place) for name, (storage, *place) in tensors.items()
    }


def _strided(
    storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> np.ndarray:
    # The strides count: kernels that came from TensorFlow lie transposed in their storage.
    steps = [stride * (side - 1) for side, stride in zip(shape, strides, strict=True)]
    if not 0 <= offset <= offset + sum(steps) < len(storage) or min(steps, default=0) < 0:
        raise ValueError("a tensor lies outside its storage")
    steps = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)
