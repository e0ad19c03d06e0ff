"""Files of kd's own: read in one place, whatever became of them; leftovers of dead processes."""

import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from kd_cli import files
from kd_cli.errors import ConfigError
from kd_cli.files import read_json, read_npz, read_rows, remove_leftovers, temporary_of

DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "Expecting value"),
        (b'{"a": 1', "Expecting"),
        (b"[1]", "no object"),
        (b"\xff", "codec can't decode"),
        (DEEP.encode(), "recursion"),
        (b"\x00" * 50, "Expecting value"),
        (None, "Is a directory"),
    ],
)
def test_a_damaged_json_is_one_line_with_the_file_and_what_to_type(work, content, why):
    path = work / "x.json"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_json(path, "type this")
    line = str(caught.value)
    assert line.startswith("x.json can't be read (") and line.endswith("; type this")
    assert why in line and "\n" not in line
    assert read_json(work / "none.json", "") is None


def damaged(path, how):
    data = bytearray(path.read_bytes())
    if how == "text":
        return path.write_text("no archive")
    if how == "pickle":
        return np.savez(path, a=np.array([{}], dtype=object))
    if how == "no array":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", b"\x93NUMPY\x01\x00\xff\xff{")
        return None
    if how == "flip":
        data[200] ^= 0x40  # in the array: the archive has its checksum
    path.write_bytes(data if how == "flip" else data[: {"half": len(data) // 2, "empty": 0}[how]])


@pytest.mark.parametrize("how", ["half", "empty", "flip", "text", "pickle", "no array"])
def test_a_damaged_npz_is_one_line(work, how):
    path = work / "x.npz"
    np.savez(path, a=np.arange(100.0))
    np.testing.assert_array_equal(read_npz(path, "")["a"], np.arange(100.0))
    damaged(path, how)
    with pytest.raises(ConfigError, match=r"^x.npz can't be read \(.*\); type this$"):
        read_npz(path, "type this")


def test_an_array_that_is_missing_is_damage_and_a_missing_file_is_none(work):
    np.savez(work / "x.npz", a=np.zeros(3))
    with pytest.raises(ConfigError, match="b is not a file"):
        read_npz(work / "x.npz", "", ("b",))
    assert read_npz(work / "none.npz", "") is None


def test_rows_that_are_damaged_are_left_out_and_those_after_them_kept(work):
    path = work / "x.jsonl"
    path.write_bytes(b'{"n": 1}\n\xff{"n": 2}\n3\n{"n": 4}\n{"n": 5')
    assert read_rows(path) == [{"n": 1}, {"n": 4}]
    assert read_rows(work / "none") == []


def test_leftovers_of_dead_processes_are_removed_and_no_others(work):
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()  # its number belongs to nobody now
    dead = work / temporary_of(work / "a.npz").name.replace(f"-{os.getpid()}@", f"-{done.pid}@")
    own, old = temporary_of(work / "a.npz"), work / ".tmp-7-of-an-earlier-kd"
    elsewhere = work / f".tmp-{done.pid}@00000000-a.npz"  # of another machine
    for path in (own, old, elsewhere):
        path.write_text("half")
    dead.mkdir()
    (dead / "x.npy").write_text("half")
    assert remove_leftovers(work) == 1 and not dead.exists()
    assert own.exists() and old.exists() and elsewhere.exists()
    for path in (own, old, elsewhere):
        os.utime(path, (0, 0))
    assert remove_leftovers(work) == 3  # after a day nobody writes there


def test_a_write_that_is_killed_leaves_what_the_next_one_removes(work):
    code = (
        "import os, sys; from pathlib import Path; from kd_cli.files import atomic\n"
        "with atomic(Path('a.json')) as file:\n"
        "    file.write_text('half'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=work).returncode == 9
    assert len(list(work.glob(".tmp-*"))) == 1 and not (work / "a.json").exists()
    assert remove_leftovers(work) == 1 and list(work.iterdir()) == []


def test_on_a_disk_that_takes_nothing_a_notice(work, caplog):
    with files.where_possible(work):
        raise PermissionError(13, "Permission denied")
    assert "nothing is written to" in caplog.text
    with pytest.raises(FileNotFoundError), files.where_possible(work):
        raise FileNotFoundError(2, "gone")
