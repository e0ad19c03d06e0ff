"""The saved state: damaged, of others, and what a later one has replaced."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from kd_cli.errors import ConfigError
from kd_cli.runs.state import State, settle
from tests.conftest import Disk


class Variable(SimpleNamespace):
    """As much of a Keras variable as a state needs."""

    @property
    def shape(self):
        return self.value.shape

    def numpy(self):
        return self.value

    def assign(self, value):
        self.value = value


OWNER = {"run_id": "r", "inputs": {"data": "d"}}


@pytest.fixture
def state(work):
    made = State(work / "state")
    weights = [np.arange(6.0).reshape(2, 3)]
    made.save([Variable(value=weights[0]), Variable(value=np.zeros(()))], OWNER, {"best_epoch": 2},
              weights)  # fmt: skip
    return made


def variables():
    return [Variable(value=np.ones((2, 3))), Variable(value=np.ones(()))]


def test_what_is_saved_is_loaded(state):
    loaded = variables()
    assert state.owner() == OWNER and state.load(loaded) == {"best_epoch": 2}
    np.testing.assert_array_equal(loaded[0].value, np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(state.best_weights(2)[0], loaded[0].value)
    assert State(state.folder / "none").owner() is None


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[150] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [half, flip, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", ["last.npz", "best-2.npz"])
def test_damage_is_one_line_with_the_file_and_what_to_type(state, harm, name):
    harm(state.folder / name)
    with pytest.raises(ConfigError, match="^state/") as caught:
        state.load(variables())
        state.best_weights(2)
    line = str(caught.value)
    assert f"state/{name} can't be read (" in line and "\n" not in line
    assert "remove state and type the command again" in line


@pytest.mark.parametrize(
    "record",
    ["x", "[]", "{}", json.dumps({"owner": {"run_id": 7, "inputs": {}}, "counters": {}}),
     json.dumps({"owner": {"run_id": "r", "inputs": 3}, "counters": {}})],
)  # fmt: skip
def test_a_state_that_does_not_say_whose_it_is(state, record):
    np.savez(state.path, record=np.array(record))
    with pytest.raises(ConfigError, match="state/last.npz can't be read .it does not say whose"):
        state.owner()


def test_weights_that_are_gone_are_named(state):
    (state.folder / "best-2.npz").unlink()
    with pytest.raises(ConfigError, match=r"state/best-2.npz can't be read \(it is gone\)"):
        state.best_weights(2)


def test_a_state_of_other_variables_is_refused(state):
    for others in (variables()[:1], [Variable(value=np.ones((3, 2))), *variables()[1:]]):
        with pytest.raises(ConfigError, match="another version of kd"):
            state.load(others)


def test_what_a_later_state_has_replaced_is_removed(state):
    """Killed after the new state, before the old weights were removed."""
    (state.folder / "best-1.npz").write_bytes(b"old")
    state.load(variables())
    assert sorted(p.name for p in state.folder.iterdir()) == ["best-2.npz", "last.npz"]


def of(value: float) -> list[Variable]:
    return [Variable(value=np.full((2, 3), float(value))), Variable(value=np.int64(value))]


def counters(epoch: int) -> dict:
    return {"epoch": epoch, "step": 3 * epoch, "best_epoch": epoch}


def best(epoch: int) -> list[np.ndarray]:
    return [np.full((2,), epoch, np.float32)]


def read_back(state: State) -> tuple:
    """What a new process reads: values, counters, and the best weights that belong to them."""
    read = of(-1)
    count = state.load(read)
    (weights,) = state.best_weights(count["best_epoch"])
    return float(read[0].value[0, 0]), int(read[1].value), count, weights.tolist()


def test_a_refused_write_leaves_one_whole_state(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    State(tmp_path / "count").save(of(2), OWNER, counters(2), best(2))
    writes = disk.count
    assert writes == 6  # two files, each flushed, renamed, and its folder flushed
    for refused in range(1, writes + 1):
        state = State(tmp_path / f"cut{refused}")
        disk.refused = None
        state.save(of(1), OWNER, counters(1), best(1))
        disk.count, disk.refused = 0, refused
        with pytest.raises(OSError, match="No space left"):
            state.save(of(2), OWNER, counters(2), best(2))
        one, two = (1, 1, counters(1), [1, 1]), (2, 2, counters(2), [2, 2])
        # The last flush comes after the rename.
        assert read_back(state) == (two if refused == writes else one)
        assert not list(state.folder.glob(".tmp-*"))
        disk.refused = None
        state.save(of(2), OWNER, counters(2), best(2))
        assert read_back(state) == two
        assert sorted(path.name for path in state.folder.iterdir()) == ["best-2.npz", "last.npz"]


@pytest.mark.parametrize(
    ("last", "held", "step"),
    [
        ([4, 4], [None, None], 4),
        ([4, 4], [6, None], 4),  # killed before both were written
        ([4, 4], [6, 6], 6),  # both are written, none counts yet
        ([6, 4], [None, 6], 6),  # one counts already
        ([None, None], [2, None], None),
        ([2, None], [None, 2], 2),
        ([None, None], [2, 2], 2),
        ([None, None], [None, None], None),
        ([6, 4], [None, None], "refused"),
        ([6, None], [None, None], "refused"),
    ],
)
def test_states_that_count_together(work, last, held, step):
    states = [State(work / name / "state", held=True) for name in "ab"]
    for state, now, after in zip(states, last, held, strict=True):
        for counters in filter(None, (now, after)):
            weights = [np.full((2, 3), counters)]
            state.save([Variable(value=weights[0])], OWNER,
                       {"step": counters, "best_epoch": counters}, weights)  # fmt: skip
            if counters == now:
                state.release()
    if step == "refused":
        with pytest.raises(ConfigError, match="not of the same step"):
            settle(states)
        return
    settle(states)
    for state in states:
        loaded = [Variable(value=np.ones((2, 3)))]
        counters = state.load(loaded)
        assert (counters and counters["step"]) == step and not state.next.exists()
        if step:
            np.testing.assert_array_equal(loaded[0].value, np.full((2, 3), step))
            np.testing.assert_array_equal(state.best_weights(step)[0], loaded[0].value)
