"""What only real processes show: two at once, kill -9, a disk that is full or read-only."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import kills
from tests.conftest import npz

pytestmark = pytest.mark.slow
KD = [sys.executable, "-m", "kd_cli"]


def start(work: Path, *words: str) -> subprocess.Popen:
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*KD, *words], cwd=work, **pipe)


def test_of_two_that_need_a_teacher_one_trains_it_and_the_other_waits(work, npz):
    data = ["dataset=npz", f"dataset.path={npz}", "teacher=mlp", "teacher.training.epochs=200"]
    processes = [start(work, "distill", *data, "epochs=2", f"alpha=0.{n}") for n in (2, 8)]
    texts = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts
    assert sum("training it first" in text for text in texts) == 1
    (waited,) = [text for text in texts if "training it first" not in text]
    assert "waiting for another process that trains outputs/teachers/npz-mlp-" in waited
    records = [json.loads(p.read_text()) for p in (work / "outputs/distill").rglob("metrics.json")]
    assert len(records) == 2
    assert len({record["teacher"]["weights_sha256"] for record in records}) == 1


@pytest.fixture(scope="module")
def turn():
    """Processes that have imported TensorFlow, to be forked."""
    with kills.zygotes() as pair:
        yield pair


@pytest.mark.parametrize("kind", ["run", "joint", "cache"])
def test_kill_9_and_the_same_command_again(kind, tmp_path, turn):
    """One real kill of each kind here; `tests/benchmarks/kills.py` has hundreds."""
    report = kills.measure(kind, 1, random.Random(kind).randrange(100), tmp_path, turn)
    assert report.kills >= 1
    assert report.mismatches == []


SMALL_DISK = """
set -e
mount -t tmpfs -o size=$1 tmpfs disk
cd disk
export PYTHONPATH=$3
if "$2" -m kd_cli $4 2> ../first; then exit 9; fi
mount -o remount,size=64m "$PWD"
"$2" -m kd_cli $4 2> ../second
cp -r outputs ..
"""


def can_unshare() -> bool:
    program = shutil.which("unshare")
    return program is not None and subprocess.run([program, "-rm", "true"]).returncode == 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[str, list]:
    """A command, and the histories it leaves on a disk that is not full."""
    folder = tmp_path_factory.mktemp("undisturbed")
    data = f"dataset=npz dataset.path={npz.__wrapped__(folder)}"
    words = f"distill {data} teacher=mlp epochs=3 teacher.training.epochs=2"
    assert subprocess.run([*KD, *words.split()], cwd=folder, capture_output=True).returncode == 0
    return words, [history(path) for path in sorted(folder.rglob("history.jsonl"))]


@pytest.mark.skipif(not can_unshare(), reason="needs user namespaces (unshare -rm)")
@pytest.mark.parametrize("size", ["48k", "300k"])
def test_a_real_full_disk(work, undisturbed, size):
    words, expected = undisturbed
    (work / "disk").mkdir()
    source = str(Path(__file__).parent.parent.parent)
    script = ["bash", "-c", SMALL_DISK, "bash", size, sys.executable, source, words]
    done = subprocess.run(["unshare", "-rm", *script], cwd=work, capture_output=True, text=True)
    first = (work / "first").read_text()
    assert done.returncode == 0, (first, done.stderr)
    assert "No space left on device" in first.splitlines()[-1]
    assert first.splitlines()[-1].startswith("kd: failed: ") and "Traceback" not in first
    assert "Logging error" not in first
    found = [history(path) for path in sorted((work / "outputs").rglob("history.jsonl"))]
    assert found == expected


READ_ONLY = """
set -e
mount -t tmpfs -o size=64m tmpfs disk
cd disk
export PYTHONPATH=$2
"$1" -m kd_cli $3
"$1" -m kd_cli $4
mount -o remount,ro "$PWD"
exec 2>&1
echo LATER
"$1" -m kd_cli $3 tracker=tensorboard
"$1" -m kd_cli $4
"$1" -m kd_cli $3 seed=7 && exit 9
true
"""


@pytest.mark.skipif(not can_unshare(), reason="needs user namespaces (unshare -rm)")
def test_finished_runs_answer_on_a_disk_that_can_only_be_read(work, npz):
    (work / "disk").mkdir()
    source = str(Path(__file__).parent.parent.parent)
    one = f"train-student dataset=npz dataset.path={npz} epochs=1"
    script = ["bash", "-c", READ_ONLY, "bash", sys.executable, source, one, f"{one} -m seed=0,1"]
    done = subprocess.run(["unshare", "-rm", *script], cwd=work, capture_output=True, text=True)
    later = done.stdout.split("LATER")[1]
    assert done.returncode == 0 and "Traceback" not in later, (later, done.stderr)
    assert later.count("is finished") == 3 and "npz: accuracy" in later
    assert "was trained without tracker=tensorboard" in later
    assert "2 points, sorted by validation accuracy" in later and "nothing is written to" in later
    assert later.splitlines()[-1].startswith("kd: failed: Read-only file system: outputs/")


def history(path: Path) -> list[dict]:
    times = ("seconds", "examples_per_second")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in times} for row in rows]
