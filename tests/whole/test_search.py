"""What only real processes show of `kd tune`: kill -9, Ctrl-C, two at once."""

import csv
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import SMALL

pytestmark = pytest.mark.slow
optuna = pytest.importorskip("optuna")
TRIALS = 6


@pytest.fixture
def words(npz):
    """A search whose trials take seconds."""
    data = ["dataset=npz", f"dataset.path={npz}", *SMALL, "epochs=100"]
    return [*data, "alpha=interval(0,1)", "learning_rate=tag(log,interval(1e-4,1e-1))"]


def start(work, words):
    work.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "kd_cli", "tune", *words, f"trials={TRIALS}"]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=work, **pipe)


def stop_inside(process, work, trial, how):
    """Stops a process when some epochs of a trial are done."""
    for line in process.stdout:
        if line.startswith(f"trial {trial} of "):
            break
    alpha = re.search(r"alpha=(\S+)", line)[1]
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        rows = list((work / "outputs").rglob(f"*alpha{float(alpha):g}_*/history.jsonl"))
        if rows and len(rows[0].read_text().splitlines()) >= 3:
            break
        time.sleep(0.02)
    process.send_signal(how)
    text = process.communicate(timeout=120)[0]
    return process.returncode, text


def trials(work):
    (path,) = (work / "outputs").rglob("trials.csv")
    with open(path) as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["trial"]))
    return path.parent, rows


def states(place):
    """Of Optuna's trials, and their values."""
    backend = optuna.storages.journal.JournalFileBackend(str(place / "journal.log"))
    (name,) = optuna.get_all_study_names(storage := optuna.storages.JournalStorage(backend))
    every = optuna.load_study(study_name=name, storage=storage).trials
    return [one.state.name for one in every], [tuple(one.params.values()) for one in every]


def test_a_search_that_is_killed_ends_as_one_that_is_not(work, words):
    undisturbed = start(work / "a", words)
    undisturbed.communicate(timeout=900)
    assert undisturbed.returncode == 0
    killed = start(work / "b", words)
    code, _ = stop_inside(killed, work / "b", 4, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not list((work / "b" / "outputs").rglob("trials.csv"))
    stopped = start(work / "b", words)
    code, text = stop_inside(stopped, work / "b", 5, signal.SIGINT)
    assert code == 130 and "Traceback" not in text
    line = "kd: interrupted; the same command continues from the last saved state"
    assert text.splitlines()[-1] == line
    last = start(work / "b", words)
    text = last.communicate(timeout=600)[0]
    assert last.returncode == 0, text
    assert "trial 5 was interrupted; it continues" in text and "continuing after epoch" in text

    place, rows = trials(work / "b")
    assert rows == trials(work / "a")[1]
    found, values = states(place)
    assert found == ["COMPLETE"] * TRIALS and len(set(values)) == TRIALS
    assert len(list(place.parent.glob("*/metrics.json"))) == TRIALS


def test_two_processes_share_a_search(work, words):
    both = [start(work, words) for _ in range(2)]
    texts = [process.communicate(timeout=900)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    begun = [re.findall(r"^trial (\d+) of 6: alpha", text, flags=re.M) for text in texts]
    assert sorted(begun[0] + begun[1]) == list("123456") and all(begun)
    assert sum("training it first" in text for text in texts) == 1
    place, rows = trials(work)
    assert [row["outcome"] for row in rows] == ["finished"] * TRIALS
    found, values = states(place)
    assert found == ["COMPLETE"] * TRIALS and len(set(values)) == TRIALS
    # Whoever ends first waits for the other: both show all.
    assert all(f"{TRIALS} trials ({TRIALS} finished)" in text for text in texts)
