"""Files of tensors in PyTorch's old format, written here without PyTorch."""

import io
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_cli.errors import ConfigError
from kd_cli.networks.torch_file import read_tensors

_PLACES = {"weight": ("a", (2, 3), (1, 2), 1), "steps": ("b", (), (), 0)}
_STORAGES = {"a": np.arange(8, dtype="<f4"), "b": np.array([7], "<i8")}


class _Tensor:
    def __init__(self, name: str) -> None:
        self.name = name


class _Storage:
    def __init__(self, key: str) -> None:
        self.key = key


def _legacy(monkeypatch: pytest.MonkeyPatch, **places: Any) -> bytes:
    """A file as `torch.save(..., _use_new_zipfile_serialization=False)` writes it."""
    torch, inner = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2(*arguments: Any) -> None: ...

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = (
        "torch._utils",
        "_rebuild_tensor_v2",
    )
    inner._rebuild_tensor_v2 = _rebuild_tensor_v2
    for name in ("FloatStorage", "LongStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch", "__qualname__": name}))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", inner)
    every = {**_PLACES, **places}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if not isinstance(value, _Storage):
                return None
            numbers = _STORAGES[value.key]
            kind = torch.FloatStorage if numbers.dtype == "<f4" else torch.LongStorage
            return ("storage", kind, value.key, "cpu", len(numbers), None)

        def reducer_override(self, value: Any) -> Any:
            if not isinstance(value, _Tensor):
                return NotImplemented
            key, shape, strides, offset = every[value.name]
            arguments = (_Storage(key), offset, shape, strides, False, OrderedDict())
            return _rebuild_tensor_v2, arguments

    file = io.BytesIO()
    tensors = OrderedDict((name, _Tensor(name)) for name in every)
    for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, tensors, list(_STORAGES)):
        Pickler(file, 2).dump(part)
    for numbers in _STORAGES.values():
        file.write(np.int64(len(numbers)).tobytes() + numbers.tobytes())
    return file.getvalue()


def test_a_transposed_tensor_keeps_its_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(_legacy(monkeypatch))
    found = read_tensors(path)
    assert list(found) == ["weight", "steps"]
    assert found["weight"].tolist() == [[1, 3, 5], [2, 4, 6]]  # down by 1, along by 2, from 1 on
    assert found["weight"].dtype == np.float32
    assert found["steps"] == 7 and found["steps"].shape == ()


@pytest.mark.parametrize("place", [("a", (2, 3), (1, 3), 1), ("a", (9,), (1,), 0)])
def test_a_tensor_outside_its_storage_is_refused(
    place: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(_legacy(monkeypatch, weight=place))
    with pytest.raises(ConfigError, match="outside its storage"):
        read_tensors(path)


class _Command:
    def __reduce__(self) -> Any:
        return print, ("executed",)


def test_nothing_in_a_file_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(_Command()))
    with pytest.raises(ConfigError, match="it asks for builtins.print"):
        read_tensors(path)
    assert capsys.readouterr().out == ""


def test_damage_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _legacy(monkeypatch)
    path = tmp_path / "weights.pth"
    for damaged in (b"", b"PK\x03\x04", whole[:40], whole[:-3], pickle.dumps(3) * 5):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match="can't be read as a PyTorch file"):
            read_tensors(path)
