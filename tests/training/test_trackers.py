"""Trackers: who is told what and when, whose mistakes end a run at once, and whose never do."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from omegaconf import OmegaConf

from kd_cli.commands import execute
from kd_cli.errors import ConfigError
from kd_cli.files import read_rows
from kd_cli.training.trackers import Trackers
from tests.conftest import assert_refused, only_run, plan_of, read_record

MINE = "+tracker.{name}._target_=" + f"{__name__}.{{kind}}"


class Mine:
    """Writes down what it is told, a line a call."""

    def __init__(self, run, fails=()):
        self.run, self.fails = run, fails

    def note(self, call, told):
        if call in self.fails:
            raise RuntimeError(f"no {call}\nand more")
        with open(self.run.own / "told.jsonl", "a") as file:
            file.write(json.dumps([call, told]) + "\n")

    def begin(self, run_id, config, resumed_after):
        self.note("begin", {"run_id": run_id, "config": config, "epoch": resumed_after})

    def epoch(self, row, model):
        weights = model and float(sum(np.abs(weight).sum() for weight in model.get_weights()))
        self.note("epoch", {"row": row, "weights": weights})

    def end(self, record, error):
        self.note("end", {"record": record, "error": error})


class EpochsAlone:
    def __init__(self):
        self.rows = []

    def epoch(self, row, model):
        self.rows.append(row)
        row["epoch"] = -1  # its own copy


class Exits(EpochsAlone):
    def epoch(self, row, model):
        raise SystemExit(3)


class Refuses:
    def __init__(self, key):
        raise PermissionError(f"the key {key} is not valid")


def without_epoch():
    return {}


def mine(name="mine", kind="Mine", **options) -> list[str]:
    words = [MINE.format(name=name, kind=kind)]
    return words + [f"+tracker.{name}.{key}={value}" for key, value in options.items()]


def told(run: Path, name="mine") -> list[tuple[str, dict]]:
    file = run / "trackers" / name / "told.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [tuple(json.loads(line)) for line in lines]


def epochs(calls: list[tuple[str, dict]]) -> list[dict]:
    return [what["row"] for call, what in calls if call == "epoch"]


@pytest.fixture
def words(small) -> list[str]:
    return ["train-student", *small[:2], "epochs=3"]


@pytest.fixture
def plan(words, work):
    return plan_of(*words)


def made(plan, work, **nodes) -> Trackers:
    nodes = {
        name: {"_target_": f"{__name__}.{kind}", **options}
        for name, (kind, options) in nodes.items()
    }
    return Trackers(OmegaConf.merge(plan, {"tracker": nodes}), work / "run")


# By themselves.


def test_without_trackers_nothing_is_done(plan, work):
    nobody = Trackers(plan, work / "run")
    nobody.begin("id", {}, 0)
    nobody.epoch({"epoch": 1}, None)
    nobody.end({}, None)
    assert not (work / "run").exists()


def test_only_epoch_is_needed(plan, work):
    both = made(plan, work, a=("EpochsAlone", {}), b=("EpochsAlone", {}))
    assert not (work / "run").exists()  # until it begins
    both.begin("id", {}, 0)
    row = {"epoch": 1, "train": {"loss": 2.0}}
    both.epoch(row, None)
    both.end({}, None)
    assert row["epoch"] == 1  # what a tracker changes is its own
    assert all(one.rows == [{**row, "epoch": -1}] for one in both._active.values())
    assert {path.name for path in (work / "run" / "trackers").iterdir()} == {"a", "b"}


CALLS = ["begin", "epoch", "end"]


@pytest.mark.parametrize("fails", CALLS)
def test_one_that_fails_is_left_out_with_one_line(plan, work, caplog, fails):
    caplog.set_level(logging.WARNING)
    both = made(plan, work, bad=("Mine", {"fails": [fails]}), good=("EpochsAlone", {}))
    good = both._active["good"]
    network = tf.keras.Sequential([tf.keras.Input((1,)), tf.keras.layers.Dense(1)])
    both.begin("id", {}, 0)
    for epoch in (1, 2):
        both.epoch({"epoch": epoch}, network)
    both.end({}, None)
    assert len(good.rows) == 2
    (line,) = caplog.messages
    assert line == f"tracker.bad failed (RuntimeError: no {fails}), run goes on without it"
    before = {"begin": [], "epoch": ["begin"], "end": ["begin", "epoch", "epoch"]}
    assert [call for call, _ in told(work / "run", "bad")] == before[fails]
    marks = {path.parent.name for path in (work / "run" / "trackers").glob("*/.ended")}
    assert marks == {"good"}


def test_one_that_would_end_the_program_does_not(plan, work, caplog):
    both = made(plan, work, a=("Exits", {}), b=("EpochsAlone", {}))
    both.epoch({"epoch": 1}, None)
    assert list(both._active) == ["b"]
    assert "tracker.a failed (SystemExit: 3)" in caplog.text


def test_ctrl_c_in_a_tracker_is_ctrl_c(plan, work, monkeypatch):
    def interrupt(self, row, model):
        raise KeyboardInterrupt

    monkeypatch.setattr(EpochsAlone, "epoch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        made(plan, work, a=("EpochsAlone", {})).epoch({}, None)


def test_a_tracker_that_can_t_be_made(plan, work):
    with pytest.raises(ConfigError, match="tracker.a: .*Refuses failed: the key 7 is not valid"):
        made(plan, work, a=("Refuses", {"key": 7}))
    with pytest.raises(ConfigError, match=r"tracker.a: .* made a dict without .* epoch\(row, mod"):
        made(plan, work, a=("without_epoch", {}))


# Mistakes: one line, at once.


@pytest.fixture
def unread(monkeypatch):
    """No data are read."""

    def load_dataset(*args):
        pytest.fail("the data were read")

    monkeypatch.setattr(execute, "load_dataset", load_dataset)


MISTAKES = {
    "no such option": (["tracker=tensorbord"], ["'tensorbord'", "did you mean 'tensorboard'"]),
    "one of two": (
        ["tracker=[tensorboard,mein]"],
        ["no option 'mein' in group 'tracker'", "available: mlflow, none, tensorboard, wandb"],
    ),
    "no such module": (["+tracker.mine._target_=no.such.Thing"], ["tracker.mine", "no.such.Thing"]),
    "no such name": (
        ["+tracker.mine._target_=kd_cli.training.TensorBord"],
        ["tracker.mine", "TensorBord"],
    ),
    "no target": (["+tracker.mine.folder=x"], ["tracker.mine has no _target_"]),
    "without a name": (
        ["+tracker._target_=kd_cli.training.TensorBoard"],
        ["tracker._target_=", "# @package tracker.NAME"],
    ),
    "no such keyword": (
        ["tracker=tensorboard", "+tracker.tensorboard.histogram=true"],
        ["tracker.tensorboard", "no 'histogram'", "histograms"],
    ),
    "wrong value": (
        ["tracker=tensorboard", "tracker.tensorboard.histograms=3"],
        ["tracker.tensorboard", "histograms=3 must be true or false"],
    ),
    "missing keyword": (mine(kind="Refuses"), ["tracker.mine", "'key'"]),
    "refused by itself": (
        mine(kind="Refuses", key="abc"),
        ["tracker.mine", "the key abc is not valid"],
    ),
    "no method": (mine(kind="without_epoch"), ["tracker.mine", "epoch(row, model)"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_before_the_data_are_read(kd, work, unread, name):
    typed, texts = MISTAKES[name]
    assert_refused(kd, work, ["train-student", *typed], *texts)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joint"])
@pytest.mark.parametrize(
    "name",
    ["no such module", "no such keyword", "without a name", "refused by itself", "no method"],
)
def test_a_mistake_is_told_before_a_sweep(kd, work, unread, name, launcher):
    typed, texts = MISTAKES[name]
    command = ["--multirun", f"hydra/launcher={launcher}", "alpha=0.1,0.2"]
    assert_refused(kd, work, [*command, *typed], *texts)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train-teacher", "distill", "self-train"])
def test_the_other_commands_with_a_tracker_that_can_t_be_made(kd, work, unread, command):
    assert_refused(kd, work, [command, *mine(kind="Refuses", key=1)], "the key 1 is")


# In runs.


@pytest.mark.slow
def test_a_class_of_a_user_with_epoch_alone(kd, work, words):
    (work / "d" / "tracker").mkdir(parents=True)
    (work / "d" / "tracker" / "mine.yaml").write_text(
        "# @package tracker.mine\n_target_: recorder_of_mine.Recorder\n"
    )
    (work / "d" / "recorder_of_mine.py").write_text(
        "class Recorder:\n"
        "    def epoch(self, row, model):\n"
        "        print('told of', row['epoch'], model.count_params())\n"
    )
    done = kd(*words, "tracker=mine", "--config-dir", "d")
    assert done.code == 0, done.err
    size = only_run(work / "outputs")[1]["parameters"]
    assert [line for line in done.out.splitlines() if line.startswith("told")] == [
        f"told of {epoch} {size}" for epoch in (1, 2, 3)
    ]


@pytest.mark.slow
def test_one_beside_the_yaml_of_a_user(kd, work, words):
    """Two at once: ours, and a module in the folder of `--config-dir`."""
    (work / "my_conf" / "tracker").mkdir(parents=True)
    (work / "my_conf" / "tracker" / "diary.yaml").write_text(
        "# @package tracker.diary\n_target_: my_tracker.Diary\nname: ${student.name}\n"
    )
    (work / "my_conf" / "my_tracker.py").write_text(
        f"from {__name__} import Mine\n\n\n"
        "class Diary(Mine):\n"
        "    def __init__(self, run, name):\n"
        "        super().__init__(run)\n"
        "        self.name = name\n\n"
        "    def begin(self, run_id, config, resumed_after):\n"
        "        super().begin(run_id, {**config, 'name': self.name}, resumed_after)\n"
    )
    done = kd(*words, "--config-dir", "my_conf", "tracker=[tensorboard,diary]")
    assert done.code == 0, done.err
    run, record = only_run(work / "outputs")
    assert (run / "trackers" / "tensorboard").is_dir()
    first, *middle, last = told(run, "diary")
    assert first[0] == "begin" and (first[1]["epoch"], first[1]["run_id"]) == (0, record["run_id"])
    also = {key: record[key] for key in ("seed", "inputs", "versions")}
    assert first[1]["config"] == {**record["config"], **also, "name": "mlp"}
    assert epochs(middle) == read_rows(run / "history.jsonl") and len(middle) == 3
    assert len({what["weights"] for _, what in middle}) == 3
    assert last == ("end", {"record": read_record(run), "error": None})


@pytest.mark.slow
def test_a_finished_run_is_told_of_once(kd, work, words):
    assert kd(*words).code == 0
    run, record = only_run(work / "outputs")
    assert kd(*words, *mine(kind="Refuses", key=1)).code == 2
    assert not (run / "trackers").exists()
    # It fails at the end, so it does not know it.
    done = kd(*words, *mine(fails="[end]"))
    assert done.code == 0 and "is finished" in done.err and "student 1/3" not in done.err
    assert f"{run.relative_to(work)} stays without it" in done.err
    assert kd(*words, *mine()).code == 0
    assert kd(*words, *mine()).code == 0  # it is told already
    (begun, *middle, again, last) = told(run)
    also = {key: record[key] for key in ("seed", "inputs", "versions")}
    assert begun[1]["config"] == {**record["config"], **also}
    assert epochs(middle) == read_rows(run / "history.jsonl")
    assert all(what["weights"] is None for _, what in middle)
    assert again == ("begin", {**begun[1], "epoch": 3})
    assert last == ("end", {"record": read_record(run), "error": None})


@pytest.mark.slow
def test_a_failure_is_told_in_one_line(kd, work, words):
    done = kd(*words, *mine(), "learning_rate=1e30")
    assert done.code == 1
    (run,) = (path.parent for path in work.rglob("error.json"))
    begun, ended = told(run)
    assert begun[0] == "begin"
    assert ended[0] == "end" and ended[1]["record"] is None
    assert "is not finite at epoch 1, step 2; lower learning_rate" in ended[1]["error"]


@pytest.mark.slow
def test_the_weights_are_those_without_a_tracker(kd, work, words):
    hashes = []
    for more in ([], ["tracker=tensorboard", *mine(fails="[epoch]")]):
        assert kd(*words, *more, f"outputs=o{len(hashes)}").code == 0
        hashes.append(only_run(work / f"o{len(hashes)}")[1]["weights_sha256"])
    assert hashes[0] == hashes[1]


@pytest.mark.slow
@pytest.mark.parametrize("fails", CALLS)
def test_a_tracker_that_fails_loses_nothing(kd, work, words, fails):
    done = kd(*words, *mine(fails=f"[{fails}]"), *mine("other"))
    assert done.code == 0, done.err
    run, _ = only_run(work / "outputs")
    warnings = [line for line in done.err.splitlines() if line.startswith("kd: warning: track")]
    where = run.relative_to(work)
    text = f"tracker.mine failed (RuntimeError: no {fails}), {where} goes on without it"
    assert warnings == [f"kd: warning: {text}"]
    assert (run / "kd.log").read_text().count(text) == 1
    assert len(epochs(told(run, "other"))) == 3
    assert len(epochs(told(run))) == (3 if fails == "end" else 0)


@pytest.mark.parametrize(
    "after",
    [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)],
)
def test_a_stopped_run_continues_without_writing_an_epoch_twice(
    kd, work, words, monkeypatch, after
):
    """Stopped when the tracker has the epoch, and when it is about to get it."""
    genuine = Mine.epoch

    def interrupt(self, row, model):
        genuine(self, row, model)
        if row["epoch"] == after:
            raise KeyboardInterrupt

    words = [*words, *mine(), "tracker=tensorboard"]
    with monkeypatch.context() as patch:
        patch.setattr(Mine, "epoch", interrupt)
        assert kd(*words).code == 130
    assert kd(*words).code == 0
    run, record = only_run(work / "outputs")
    calls = told(run)
    assert [row["epoch"] for row in epochs(calls)] == [1, 2, 3]
    assert [what["epoch"] for call, what in calls if call == "begin"] == [0, after]
    ends = [what for call, what in calls if call == "end"]
    assert [what["error"] for what in ends] == ["interrupted", None]
    assert [what["record"] for what in ends] == [None, read_record(run)]
    seen = scalars(run, "validation/nll")
    assert [step for step, _ in seen] == [1, 2, 3]
    assert seen[-1][1] == pytest.approx(record["validation"]["last"]["nll"], rel=1e-5)


def scalars(run: Path, tag: str) -> list[tuple[int, float]]:
    return [(e.step, float(tf.make_ndarray(e.tensor_proto))) for e in events(run).Tensors(tag)]


def events(run: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run / "trackers" / "tensorboard"
    found = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    return found.Reload()


def test_tensorboard_gets_scalars_histograms_and_settings(kd, work, words):
    assert kd(*words, "tracker=tensorboard", "tracker.tensorboard.histograms=true").code == 0
    run, record = only_run(work / "outputs")
    tags = set(events(run).Tags()["tensors"])
    assert {"train/loss", "validation/accuracy", "learning_rate", "settings"} <= tags
    assert any(tag.endswith("kernel") for tag in tags)
    rows = read_rows(run / "history.jsonl")
    for part, name in (("train", "loss"), ("validation", "accuracy")):
        expected = [row[part][name] for row in rows]
        assert [v for _, v in scalars(run, f"{part}/{name}")] == pytest.approx(expected, rel=1e-6)
    ((text,),) = [
        tf.make_ndarray(e.tensor_proto).reshape(-1) for e in events(run).Tensors("settings")
    ]
    shown = json.loads(text.decode())
    assert shown["seed"] == record["seed"] and shown["inputs"] == record["inputs"]
    assert record["config"].items() <= shown.items()


@pytest.mark.slow
def test_the_points_of_a_joint_sweep_have_their_own(kd, work, small):
    words = ["--multirun", "hydra/launcher=joint", *small, "sweep=s", "alpha=0.1,0.9"]
    done = kd(*words, *mine(), *mine("bad", fails="[epoch]"))
    assert done.code == 0, done.err
    assert "2 points train together" in done.err
    points = sorted(path.parent for path in (work / "outputs" / "sweeps").rglob("metrics.json"))
    assert len(points) == 2
    for point in points:
        calls = told(point)
        assert calls[0][1]["config"]["loss"]["alpha"] == read_record(point)["alpha"]
        assert epochs(calls) == read_rows(point / "history.jsonl")
        assert calls[-1] == ("end", {"record": read_record(point), "error": None})
        where = point.relative_to(work)
        assert done.err.count(f"tracker.bad failed (RuntimeError: no epoch), {where} goes on") == 1
    weights = [[what["weights"] for call, what in told(p) if call == "epoch"] for p in points]
    assert weights[0] != weights[1]


@pytest.mark.slow
def test_each_round_of_self_training_has_its_own(kd, work, small):
    words = ["self-train", *small[:2], "dataset.labelled_fraction=0.3", "epochs=2", "rounds=1"]
    done = kd(*words, "pseudo.threshold=0", *mine())
    assert done.code == 0, done.err
    (top,) = (work / "outputs" / "self-train" / "npz").iterdir()
    for number in (0, 1):
        calls = told(top / f"round-{number}")
        assert epochs(calls) == read_rows(top / f"round-{number}" / "history.jsonl")
    assert not (top / "trackers").exists()
    assert kd(*words, "pseudo.threshold=0", *mine(), *mine("later")).code == 0
    assert [epochs(told(top / f"round-{n}", "later")) for n in (0, 1)] == [
        epochs(told(top / f"round-{n}")) for n in (0, 1)
    ]


@pytest.mark.slow
def test_a_teacher_that_is_missing_is_told_of_too(kd, work, small):
    done = kd("distill", *small, *mine())
    assert done.code == 0, done.err
    folders = [path.parent for path in (work / "outputs").rglob("told.jsonl")]
    assert {folder.relative_to(work).parts[1] for folder in folders} == {"teachers", "distill"}


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["none", "[]", "[none]"])
def test_no_tracker(kd, work, words, choice):
    done = kd(*words, "epochs=1", f"tracker={choice}")
    assert done.code == 0, done.err
    run, _ = only_run(work / "outputs")
    assert not (run / "trackers").exists()
