"""The teacher's logits on disk: computed once, continued after a kill, damaged ones replaced."""

import json
import logging
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from kd_cli.distillation import logits_cache
from kd_cli.distillation.logits_cache import Request, obtain

TABLE = np.random.default_rng(3).normal(0, 5, (10, 4)).astype(np.float32)


ORIGIN = {
    "teacher": {"file": "t.keras", "sha256": "0"},
    "dataset": {"name": "t"},
    "part": "train",
}


def request(dtype="float32", **key):
    return Request({"weights": "a", **key}, 10, 4, dtype, ORIGIN)


class Teacher:
    """Gives batches of 3; `stop` interrupts before that row, as a kill would."""

    def __init__(self, table=TABLE, stop=None):
        self.table, self.stop, self.asked = table, stop, []

    def __call__(self, first):
        for start in range(first, len(self.table), 3):
            if self.stop is not None and start >= self.stop:
                raise KeyboardInterrupt
            self.asked.append(start)
            yield self.table[start : start + 3]


@pytest.fixture(autouse=True)
def blocks(monkeypatch):
    """A block is closed after every batch."""
    monkeypatch.setattr(logits_cache, "FLUSH_SECONDS", -1)


def entry(root):
    (folder,) = logits_cache.entries(root)
    return folder


def test_logits_are_computed_once_and_memory_mapped(tmp_path):
    first, second = Teacher(), Teacher()
    made = obtain(tmp_path, request(), first, "t", set())
    again = obtain(tmp_path, request(), second, "t", set())
    assert isinstance(again, np.memmap) and not again.flags.writeable
    np.testing.assert_array_equal(made, TABLE)
    np.testing.assert_array_equal(again, TABLE)
    assert first.asked == [0, 3, 6, 9] and second.asked == []
    assert {p.name for p in entry(tmp_path).iterdir()} == {"logits.npy", "manifest.json"}


def test_anything_in_the_key_and_the_type_makes_another_entry(tmp_path):
    obtain(tmp_path, request(), Teacher(), "t", set())
    for other in (request(weights="b"), request(split="x"), request("float16")):
        teacher = Teacher()
        obtain(tmp_path, other, teacher, "t", set())
        assert teacher.asked
    assert len(logits_cache.entries(tmp_path)) == 4


@pytest.mark.parametrize("stop", [0, 3, 9])
def test_a_killed_computation_continues_and_ends_with_the_same_bytes(tmp_path, stop, caplog):
    whole = tmp_path / "whole"
    obtain(whole, request(), Teacher(), "t", set())
    with pytest.raises(KeyboardInterrupt):
        obtain(tmp_path / "cut", request(), Teacher(stop=stop), "t", set())
    assert not (entry(tmp_path / "cut") / "manifest.json").exists()
    teacher = Teacher()
    with caplog.at_level(logging.INFO):
        obtain(tmp_path / "cut", request(), teacher, "t", set())
    assert teacher.asked == list(range(stop, 10, 3))
    assert (f"continuing after {stop} of 10" in caplog.text) == (stop > 0)
    files = [(entry(tmp_path / name) / "logits.npy").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]


def test_a_block_that_a_kill_left_half_written_is_computed_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        obtain(tmp_path, request(), Teacher(stop=6), "t", set())
    partial = entry(tmp_path) / "partial.npy"
    content = bytearray(partial.read_bytes())
    content[-1] ^= 1  # in the second block
    partial.write_bytes(content + b"half a row")
    teacher = Teacher()
    np.testing.assert_array_equal(obtain(tmp_path, request(), teacher, "t", set()), TABLE)
    assert teacher.asked == [3, 6, 9]


def test_a_kill_between_the_last_rename_and_the_manifest_costs_no_row(tmp_path, monkeypatch):
    def killed(path, value):
        raise KeyboardInterrupt

    monkeypatch.setattr(logits_cache, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        obtain(tmp_path, request(), Teacher(), "t", set())
    monkeypatch.undo()
    teacher = Teacher()
    np.testing.assert_array_equal(obtain(tmp_path, request(), teacher, "t", set()), TABLE)
    assert teacher.asked == []


def test_a_kill_after_the_manifest_leaves_nothing_behind(tmp_path):
    obtain(tmp_path, request(), Teacher(), "t", set())
    (entry(tmp_path) / "partial.jsonl").write_text("{}")
    obtain(tmp_path, request(), Teacher(), "t", set())
    assert {p.name for p in entry(tmp_path).iterdir()} == {"logits.npy", "manifest.json"}


def truncate(folder):
    content = (folder / "logits.npy").read_bytes()
    (folder / "logits.npy").write_bytes(content[:-8])


def alter(folder):
    content = bytearray((folder / "logits.npy").read_bytes())
    content[-5] ^= 1
    (folder / "logits.npy").write_bytes(content)


def lose(folder):
    (folder / "logits.npy").unlink()


def garble(folder):
    (folder / "manifest.json").write_text("{")


@pytest.mark.parametrize("harm", [truncate, alter, lose, garble])
def test_a_damaged_entry_is_computed_again_with_a_notice(tmp_path, harm, caplog):
    obtain(tmp_path, request(), Teacher(), "cnn on train", set())
    harm(entry(tmp_path))
    teacher = Teacher()
    np.testing.assert_array_equal(
        obtain(tmp_path, request(), teacher, "cnn on train", set()), TABLE
    )
    assert teacher.asked
    if harm is not garble:  # (without a manifest it is as good as unfinished)
        assert "logits of cnn on train" in caplog.text and "computing again" in caplog.text
    assert logits_cache.fault(entry(tmp_path), set()) is None


def test_float16_states_its_error_and_refuses_what_it_cannot_hold(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        half = obtain(tmp_path, request("float16"), Teacher(), "t", set())
    np.testing.assert_array_equal(half, TABLE.astype(np.float16))
    error = np.abs(TABLE.astype(np.float16).astype(np.float32) - TABLE).max()
    record = json.loads((entry(tmp_path) / "manifest.json").read_text())
    assert record["largest_rounding_error"] == pytest.approx(float(error), abs=0)
    assert f"largest rounding error {error:.2g}" in caplog.text
    # Half a unit in the last of 11 bits.
    assert error <= np.abs(TABLE).max() * 2.0**-11
    with pytest.raises(FloatingPointError, match=r"reach 7e\+04.*cache.logits=float32"):
        obtain(tmp_path / "big", request("float16"), Teacher(TABLE * 0 + 7e4), "t", set())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_not_kept(tmp_path, value):
    sick = TABLE.copy()
    sick[4, 1] = value
    with pytest.raises(FloatingPointError, match="not finite"):
        obtain(tmp_path, request(), Teacher(sick), "t", set())
    assert logits_cache.fault(entry(tmp_path), set()) == logits_cache.UNFINISHED


SLOW = """
    import logging, sys, time
    import numpy as np
    from pathlib import Path
    from kd_cli.distillation.logits_cache import Request
    from kd_cli.distillation.logits_cache import obtain
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    def compute(first):
        for row in range(first, 10):
            print("computing", row, flush=True)
            time.sleep(0.2)
            yield np.full((1, 4), row, np.float32)
    origin = {"teacher": {"file": "t", "sha256": "0"}, "dataset": {"name": "t"}, "part": "train"}
    wanted = Request({"weights": "a"}, 10, 4, "float32", origin)
    table = obtain(Path(sys.argv[1]), wanted, compute, "t", set())
    print("sum", table.sum())
"""


def start(root):
    command = [sys.executable, "-c", textwrap.dedent(SLOW), str(root)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_of_two_processes_one_computes_and_the_other_waits(tmp_path):
    first = start(tmp_path)
    assert first.stdout.readline() == "computing 0\n"
    second = start(tmp_path)
    outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert outputs[1].splitlines() == [
        "waiting for another process that computes the logits of t",
        "sum 180.0",
    ]
    assert outputs[0].splitlines()[-1] == "sum 180.0"


def test_a_dead_owner_s_lock_does_not_block(tmp_path):
    first = start(tmp_path)
    assert first.stdout.readline() == "computing 0\n"
    first.kill()
    first.wait()
    output = start(tmp_path).communicate(timeout=60)[0]
    assert "waiting" not in output and output.splitlines()[-1] == "sum 180.0"


def test_an_entry_that_is_being_computed_is_not_removed(tmp_path):
    process = start(tmp_path)
    assert process.stdout.readline() == "computing 0\n"
    assert not logits_cache.remove(entry(tmp_path))
    process.communicate(timeout=60)
    assert logits_cache.remove(entry(tmp_path)) and logits_cache.entries(tmp_path) == []


def test_a_finished_entry_needs_no_lock(tmp_path, monkeypatch):
    """So a cache on a read-only disk can be used."""
    obtain(tmp_path, request(), Teacher(), "t", set())

    def refuse(*args):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(logits_cache, "FileLock", refuse)
    np.testing.assert_array_equal(obtain(tmp_path, request(), Teacher(), "t", set()), TABLE)
