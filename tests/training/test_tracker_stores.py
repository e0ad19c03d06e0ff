"""MLflow's SQLite and W&B's offline files, read back: one run each, every epoch once."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kd_cli.commands import execute
from kd_cli.files import read_rows
from kd_cli.runs.finished import find
from tests.conftest import assert_refused, read_record

BOTH = "tracker=[mlflow,wandb]"


class Bomb:
    """Kills the process when it is told of an epoch."""

    def __init__(self, at):
        self.at = at

    def epoch(self, row, model):
        if row["epoch"] == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def words(small) -> list[str]:
    return ["train-student", *small[:2], "epochs=3"]


@pytest.fixture(autouse=True)
def nobody(tmp_path, monkeypatch):
    """No account, and no settings of this machine's user."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def only_run(work: Path) -> Path:
    (run,) = (work / "outputs" / "train-student" / "npz").iterdir()
    return run


def client(outputs: Path):
    return pytest.importorskip("mlflow").MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")


def mlflow_runs(outputs: Path) -> list:
    store = client(outputs)
    (experiment,) = [one for one in store.search_experiments() if one.name == "kd"]
    return store.search_runs([experiment.experiment_id])


def history(outputs: Path, run, metric: str) -> list[tuple[int, float]]:
    values = client(outputs).get_metric_history(run.info.run_id, metric)
    return [(one.step, one.value) for one in values]


def wandb_records(file: Path):
    """The records of W&B's file: a log of LevelDB's format behind seven bytes of its own.

    Source: github.com/google/leveldb/blob/main/doc/log_format.md
    """
    proto = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    data, at, whole = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        left = 2**15 - at % 2**15
        if left < 7:  # a block's end
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            record = proto.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def wandb_run(run: Path) -> dict:
    """The one run of a directory: what it is, its rows, its summary, and how it ended.

    W&B's own process writes the file, and may be a moment behind on a busy machine.
    """
    (file,) = (run / "trackers" / "wandb" / "wandb").glob("offline-run-*/*.wandb")
    for _ in range(60):
        found = wandb_content(file)
        if {"run", "exit"} <= set(found):
            break
        time.sleep(0.5)
    return found


def wandb_content(file: Path) -> dict:
    found: dict = {"rows": [], "summary": {}}
    for record in wandb_records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["run"] = record.run
            found["config"] = {
                one.key: json.loads(one.value_json) for one in record.run.config.update
            }
        elif kind == "history":
            found["rows"].append(values(record.history.item))
        elif kind == "summary":
            found["summary"] |= values(record.summary.update)
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


def values(items) -> dict:
    return {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in items}


def expected(run: Path, part: str, name: str) -> list[tuple[int, float]]:
    return [(row["epoch"], row[part][name]) for row in read_rows(run / "history.jsonl")]


def assert_whole(run: Path, outputs: Path) -> None:
    """Both stores have one run, with every epoch once and the result."""
    record = read_record(run)
    (one,) = mlflow_runs(outputs)
    assert one.info.status == "FINISHED" and one.info.run_name == run.name
    for part, name in (("train", "loss"), ("validation", "accuracy")):
        assert history(outputs, one, f"{part}/{name}") == expected(run, part, name)
    assert one.data.metrics["test/accuracy"] == record["test"]["accuracy"]
    assert one.data.metrics["test/nll"] == record["test"]["nll"]
    assert one.data.metrics["best_epoch"] == record["validation"]["best"]["epoch"]
    assert one.data.params["student.network._target_"] == "kd_cli.networks.mlp"
    assert one.data.params["inputs.data"] == record["inputs"]["data"]
    files = {file.path for file in client(outputs).list_artifacts(one.info.run_id)}
    assert files == {"metrics.json", "history.jsonl"}

    other = wandb_run(run)
    assert other["run"].project == "kd" and other["run"].display_name == run.name
    assert other["config"]["inputs.data"] == record["inputs"]["data"]
    for part, name in (("train", "loss"), ("validation", "accuracy")):
        found = [(row["_step"], row[f"{part}/{name}"]) for row in other["rows"]]
        assert found == expected(run, part, name)
    assert other["summary"]["test/accuracy"] == record["test"]["accuracy"]
    assert other["exit"] == 0


@pytest.mark.slow
def test_both_have_every_epoch_and_the_result(kd, work, words):
    done = kd(*words, BOTH)
    assert done.code == 0, done.err
    assert "warning" not in done.err and "wandb:" not in done.err and "INFO mlflow" not in done.err
    run = only_run(work)
    assert_whole(run, work / "outputs")
    assert not (work / "mlruns").exists() and not (work / "wandb").exists()
    assert len(find([work / "outputs"]).runs) == 1  # not the copies of its metrics.json


@pytest.mark.slow
def test_a_finished_run_is_sent_without_training(kd, work, words):
    assert kd(*words).code == 0
    done = kd(*words, BOTH)
    assert done.code == 0 and "student 1/3" not in done.err
    run = only_run(work)
    assert_whole(run, work / "outputs")


@pytest.mark.slow
def test_a_killed_run_is_one_run(kd, work, words):
    """Killed when neither of them has the second epoch, which is finished."""
    (work / "d" / "tracker").mkdir(parents=True)
    (work / "d" / "tracker" / "bomb.yaml").write_text(
        f"# @package tracker.bomb\n_target_: {__name__}.Bomb\nat: 2\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("WANDB_SERVICE", None)  # W&B's process of these tests, which lives on
    killed = subprocess.run(
        [sys.executable, "-m", "kd_cli", *words, "tracker=[bomb,mlflow,wandb]", "--config-dir=d"],
        env=environment,
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = only_run(work)
    assert len(read_rows(run / "history.jsonl")) == 2
    (one,) = mlflow_runs(work / "outputs")
    assert one.info.status == "RUNNING"
    assert [step for step, _ in history(work / "outputs", one, "train/loss")] == [1]
    assert kd(*words, BOTH).code == 0
    assert_whole(run, work / "outputs")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joint"])
def test_a_sweep_is_one_run_above_its_points(kd, work, small, taught, launcher):
    sweep = ["-m", f"hydra/launcher={launcher}", "alpha=0.1,0.5", "learning_rate=0.003,1e30"]
    done = kd(*sweep, *small, "sweep=s", BOTH)
    assert done.code == 1, done.err
    runs = mlflow_runs(work / "outputs")
    (above,) = [one for one in runs if "mlflow.parentRunId" not in one.data.tags]
    assert above.info.run_name == "s" and above.info.status == "FINISHED"
    points = [one for one in runs if one is not above]
    assert {one.data.tags["mlflow.parentRunId"] for one in points} == {above.info.run_id}
    assert sorted(one.info.status for one in points) == 2 * ["FAILED"] + 2 * ["FINISHED"]
    for one in points:
        folder = Path(one.data.tags["kd.folder"])
        other = wandb_run(folder)
        assert other["run"].run_group == "s"
        failed = one.info.status == "FAILED"
        assert failed == (one.data.params["learning_rate"] == "1e+30") == (other["exit"] == 1)
        if failed:
            reason = one.data.tags["kd.error"]
            assert "is not finite at epoch 1" in reason and reason == other["summary"]["error"]
        else:
            assert history(work / "outputs", one, "train/loss") == expected(folder, "train", "loss")


@pytest.mark.parametrize(
    ("name", "more", "text"),
    [
        ("mlflow", [], "type: pip install 'mlflow>=3.17,<4'"),
        ("wandb", [], "type: pip install 'wandb>=0.31,<1'"),
        ("wandb", ["tracker.wandb.mode=on"], "mode=on must be offline or online"),
        ("wandb", ["tracker.wandb.mode=online"], "mode=online needs an account; type: wandb login"),
        ("mlflow", ["tracker.mlflow.model=1"], "model=1 must be true or false"),
    ],
)
def test_a_mistake_is_one_line(kd, work, monkeypatch, name, more, text):
    def load_dataset(*args):
        pytest.fail("the data were read")

    monkeypatch.setattr(execute, "load_dataset", load_dataset)
    if more:
        pytest.importorskip(name)
    else:
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    assert_refused(kd, work, ["train-student", f"tracker={name}", *more], f"tracker.{name}", text)
