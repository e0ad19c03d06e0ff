"""What only real processes show: two at once, kill -9, a disk that is full or read-only."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kd_cli import cli
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


# Mounts a disk in the working directory and goes there; what follows may change its size.
ON_A_DISK = """
import os, subprocess, sys
from kd_cli.cli import main
def mount(*words):
    subprocess.run(["mount", *words], check=True)
mount("-t", "tmpfs", "-o", "size=" + sys.argv[1], "tmpfs", "disk")
os.chdir("disk")
"""


def on_a_disk(work: Path, script: str, size: str) -> subprocess.CompletedProcess:
    """Runs Python in a process of its own, which may mount."""
    (work / "disk").mkdir()
    program = ["unshare", "-rm", sys.executable, "-u", "-c", ON_A_DISK + script, size]
    source = str(Path(__file__).parent.parent.parent)
    environment = {**os.environ, "PYTHONPATH": source}
    return subprocess.run(program, cwd=work, capture_output=True, text=True, env=environment)


def can_unshare() -> bool:
    program = shutil.which("unshare")
    return program is not None and subprocess.run([program, "-rm", "true"]).returncode == 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[str, list]:
    """A command, and the histories it leaves on a disk that is not full."""
    folder = tmp_path_factory.mktemp("undisturbed")
    data = f"dataset=npz dataset.path={npz.__wrapped__(folder)}"
    words = f"distill {data} teacher=mlp epochs=3 teacher.training.epochs=2"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(words.split()) == 0
    return words, [history(path) for path in sorted(folder.rglob("history.jsonl"))]


@pytest.mark.skipif(not can_unshare(), reason="needs user namespaces (unshare -rm)")
@pytest.mark.parametrize("size", ["48k", "300k"])
def test_a_real_full_disk(work, undisturbed, size):
    words, expected = undisturbed
    done = on_a_disk(
        work,
        f"words = {words.split()!r}\n"
        "assert main(words) == 1\n"
        "print('LATER', file=sys.stderr, flush=True)\n"
        "mount('-o', 'remount,size=64m', os.getcwd())\n"
        "assert main(words) == 0\n"
        "subprocess.run(['cp', '-r', 'outputs', '..'], check=True)\n",
        size,
    )
    assert done.returncode == 0, done.stderr
    first = done.stderr.split("LATER")[0]
    assert "No space left on device" in first.splitlines()[-1]
    assert first.splitlines()[-1].startswith("kd: failed: ") and "Traceback" not in first
    assert "Logging error" not in first
    found = [history(path) for path in sorted((work / "outputs").rglob("history.jsonl"))]
    assert found == expected


@pytest.mark.skipif(not can_unshare(), reason="needs user namespaces (unshare -rm)")
def test_finished_runs_answer_on_a_disk_that_can_only_be_read(work, npz):
    done = on_a_disk(
        work,
        f"one = ['train-student', 'dataset=npz', 'dataset.path={npz}', 'epochs=1']\n"
        "sweep = [*one, '-m', 'seed=0,1']\n"
        "assert main(one) == main(sweep) == 0\n"
        "mount('-o', 'remount,ro', os.getcwd())\n"
        "sys.stdout.flush()\n"
        "os.dup2(1, 2)\n"
        "print('LATER', flush=True)\n"
        "assert main([*one, 'tracker=tensorboard']) == main(sweep) == 0\n"
        "assert main([*one, 'seed=7']) == 1\n",
        "64m",
    )
    later = done.stdout.split("LATER")[1]
    assert done.returncode == 0 and "Traceback" not in later, (later, done.stderr)
    assert later.count("is finished") == 3 and "npz: accuracy" in later
    assert "2 points, sorted by validation accuracy" in later and "nothing is written to" in later
    assert later.splitlines()[-1].startswith("kd: failed: Read-only file system: outputs/")


def history(path: Path) -> list[dict]:
    times = ("seconds", "examples_per_second")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in times} for row in rows]
