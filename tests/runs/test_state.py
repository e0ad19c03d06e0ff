"""The state of a run on a list of variables: a refused write leaves the older state whole."""

import errno
import os

import keras
import numpy as np
import pytest

from kd_cli.errors import ConfigError
from kd_cli.runs.state import State

OWNER = {"run_id": "0123456789", "inputs": {"data": "d", "split": "s"}}


class Disk:
    """Counts flushes, renames and removals, and refuses one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.refused = 0, None
        for name in ("fsync", "replace"):
            real = getattr(os, name)
            monkeypatch.setattr(os, name, lambda *args, real=real: self.act(real, *args))

    def act(self, real, *args):
        self.count += 1
        if self.count == self.refused:
            raise OSError(errno.ENOSPC, "No space left on device", str(args[0]))
        return real(*args)


def variables(value: float) -> list[keras.Variable]:
    return [keras.Variable(np.full((2, 3), value)), keras.Variable(np.int64(value))]


def counters(epoch: int) -> dict:
    return {"epoch": epoch, "step": 3 * epoch, "best_epoch": epoch}


def best(epoch: int) -> list[np.ndarray]:
    return [np.full((2,), epoch, np.float32)]


def found(state: State) -> tuple:
    """What a new process reads: values, counters, and the best weights that belong to them."""
    read = variables(-1)
    count = state.load(read)
    (weights,) = state.best_weights(count["best_epoch"])
    return float(read[0].numpy()[0, 0]), int(read[1].numpy()), count, weights.tolist()


def test_what_is_saved_is_loaded(tmp_path):
    state = State(tmp_path / "state")
    assert state.load(variables(0)) is None and state.owner() is None
    state.save(variables(1), OWNER, counters(1), best(1))
    assert found(State(tmp_path / "state")) == (1, 1, counters(1), [1, 1])
    assert state.owner() == OWNER
    # An epoch that is no better keeps the weights of the best.
    state.save(variables(2), OWNER, counters(2) | {"best_epoch": 1}, None)
    assert found(state) == (2, 2, counters(2) | {"best_epoch": 1}, [1, 1])
    state.save(variables(3), OWNER, counters(3), best(3))
    assert sorted(path.name for path in state.folder.iterdir()) == ["best-3.npz", "last.npz"]


def test_a_refused_write_leaves_one_whole_state(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    State(tmp_path / "count").save(variables(2), OWNER, counters(2), best(2))
    writes = disk.count
    assert writes == 6  # two files, each flushed, renamed, and its folder flushed
    for refused in range(1, writes + 1):
        state = State(tmp_path / f"cut{refused}")
        disk.refused = None
        state.save(variables(1), OWNER, counters(1), best(1))
        disk.count, disk.refused = 0, refused
        with pytest.raises(OSError, match="No space left"):
            state.save(variables(2), OWNER, counters(2), best(2))
        one, two = (1, 1, counters(1), [1, 1]), (2, 2, counters(2), [2, 2])
        assert found(state) == (two if refused == writes else one)  # renamed before the last flush
        assert not list(state.folder.glob(".tmp-*"))
        disk.refused = None
        state.save(variables(2), OWNER, counters(2), best(2))
        assert found(state) == two
        assert sorted(path.name for path in state.folder.iterdir()) == ["best-2.npz", "last.npz"]


def test_a_state_of_another_network_is_one_line(tmp_path):
    state = State(tmp_path)
    state.save(variables(1), OWNER, counters(1), best(1))
    with pytest.raises(ConfigError, match="rerun=true"):
        state.load(variables(1)[:1])
