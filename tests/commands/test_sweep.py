"""A sweep: checked before it starts, equal starts, failing points, repeats, its table and files."""

import contextlib
import csv
import dataclasses
import gc
import json
import os
import weakref

import keras
import numpy as np
import pytest

from kd_cli.commands import distill, job
from kd_cli.commands.arguments import arrange
from kd_cli.commands.job import prepare
from kd_cli.commands.sweep import expand, finish, without_helpers
from kd_cli.commands.table import COMMANDS, Request
from kd_cli.errors import ConfigError, RunFailed
from kd_cli.files import open_npz
from kd_cli.runs.session import Session
from kd_cli.training import step
from tests.conftest import read_record
from tests.records import content


def points(work):
    return sorted(p.parent for p in (work / "outputs" / "sweeps").rglob("metrics.json"))


def test_expand_gives_every_point_and_the_swept_keys():
    expanded, swept = expand(["alpha=0.1,0.2", "seed=0,1", "epochs=3"])
    assert expanded == [
        ["alpha=0.1", "seed=0", "epochs=3"], ["alpha=0.1", "seed=1", "epochs=3"],
        ["alpha=0.2", "seed=0", "epochs=3"], ["alpha=0.2", "seed=1", "epochs=3"],
    ]  # fmt: skip
    assert swept == {"alpha", "seed"}


def test_of_a_key_that_is_typed_twice_the_last_counts():
    assert expand(["seed=0,1", "seed=7"]) == ([["seed=7"]], set())


def test_glob_leaves_out_helpers(work):
    (work / "mine" / "student").mkdir(parents=True)
    for name in ("_helper", "_other", "xa", "xb"):
        (work / "mine" / "student" / f"{name}.yaml").touch()
    assert without_helpers(["student=glob(x*)", "seed=1"], "mine") == ["student=xa,xb", "seed=1"]
    (kept, _) = without_helpers(["student=glob([_*,x*])", "seed=1"], "mine")
    assert kept == "student=xa,xb"


def test_parameters_of_the_sweeper_in_yaml(work):
    (work / "mine" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nepochs: 1\nhydra: {sweeper: {params: {seed: '3,4'}}}\n"
    (work / "mine" / "experiment" / "own.yaml").write_text(text)
    words = ["--config-dir", "mine", "train-student", "-m", "experiment=own"]
    assert [p.name.split("_")[2][:5] for p in prepare(arrange(words)).points] == ["seed3", "seed4"]
    (point,) = prepare(arrange([*words, "seed=7"])).points
    assert "seed7" in point.name
    assert prepare(arrange([*words, "seed=7", "sweep=null"])).points == [point]


def leave(folder, name, **changes):
    (folder / name / ".hydra").mkdir(parents=True)
    (folder / name / "metrics.json").write_text(json.dumps(content(**changes)))


def test_the_table_of_a_sweep_and_its_files(work, capsys, caplog):
    """Percent in the table, recorded values in the files; best on validation first."""
    folder = work / "outputs" / "sweeps" / "mine"
    for name, accuracy, units in (("a", 1 / 3, "[8]"), ("b", 2 / 3, "[b]")):
        best = {"epoch": 2, "accuracy": accuracy, "nll": 0.25}
        leave(
            folder,
            name,
            validation={"best": best, "last": best},
            config={"alpha": accuracy, "student": {"network": {"units": units}}},
        )
    leave(folder, "c", config={"alpha": 0.125, "student": {"network": {"units": "[8]"}}})
    leave(folder, "old", schema_version=2)
    leave(folder, "damaged", test=7)
    (folder / "failed" / ".hydra").mkdir(parents=True)
    (folder / "failed" / "error.json").write_text('{"message": "not finite\\nat all"}')
    for name, text in (("notes", '{"a": 1}'), ("empty", "")):  # another program's
        (folder / name).mkdir()
        (folder / name / "error.json").write_text(text)
    assert finish(folder, {"a", "b", "old"}) == 1  # of this command's points
    out, err = capsys.readouterr()
    title, head, *lines = out.splitlines()
    assert title.strip() == "outputs/sweeps/mine: 3 points, sorted by validation accuracy"
    assert [cell.strip() for cell in head.split("   ") if cell] == [
        "alpha", "student.network.units", "validation, %", "validation NLL, nats", "best epoch",
        "test, %", "test NLL, nats", "time, s",
    ]  # fmt: skip
    assert [line.split() for line in lines] == [
        ["0.6667", "[b]", "66.67", "0.2500", "2", "90.00", "0.3000", "12.5"],
        ["0.3333", "[8]", "33.33", "0.2500", "2", "90.00", "0.3000", "12.5"],
        ["0.125", "[8]", "–", "–", "–", "90.00", "0.3000", "12.5"],
    ]
    said = [line for line in err.splitlines() if line.startswith("kd: failed: ")]
    assert [line.split(": ")[2] for line in said] == ["damaged", "failed", "old"]
    assert "test is int" in said[0] and said[1].endswith("not finite") and "version 2" in said[2]
    assert "left out of the table, because no run of kd wrote them: empty, notes" in caplog.text
    saved = json.loads((folder / "sweep.json").read_text())
    assert [row["validation_accuracy"] for row in saved["points"]] == [2 / 3, 1 / 3, None]
    assert saved["points"][1]["best_epoch"] == 2 and saved["points"][1]["directory"] == "a"
    assert [one["directory"] for one in saved["failures"]] == ["damaged", "failed", "old"]
    first, _, last = csv.DictReader(open(folder / "sweep.csv"))
    assert float(first["validation_accuracy"]) == 2 / 3 and last["validation_accuracy"] == ""
    assert list(first)[2:] == [
        "validation_accuracy", "validation_nll", "best_epoch", "test_accuracy", "test_nll",
        "seconds", "directory",
    ]  # fmt: skip


def test_augmentations_in_the_table_are_named_by_their_functions(work, capsys):
    crop = {"_target_": "kd_cli.data.random_crop", "size": 8}
    mixup = {"_target_": "kd_cli.data.mixup"}
    for name, nodes in (("a", [crop]), ("b", [crop, mixup]), ("c", [])):
        leave(work / "first", name, config={"augment": {"train": nodes}})
    finish(work / "first", {"a", "b", "c"})
    rows = [line.split("   ")[0].strip() for line in capsys.readouterr().out.splitlines()[1:]]
    assert sorted(rows) == ["[]", "augment.train", "random_crop", "random_crop, mixup"]
    for name, size in (("a", 8), ("b", 16)):  # the names alone would be the same
        leave(work / "second", name, config={"augment": {"train": [{**crop, "size": size}]}})
    finish(work / "second", {"a", "b"})
    out = capsys.readouterr().out
    assert "'size': 8" in out and "'size': 16" in out


def test_the_table_has_no_columns_for_what_only_one_loss_has(work, capsys):
    hinton = {"_target_": "kd_cli.losses.hinton", "temperature": 4.0, "t_squared": True}
    dist = {"_target_": "kd_cli.losses.dist", "temperature": 1.0, "gamma": 2.0}
    leave(work / "mine", "a", config={"loss": hinton})
    leave(work / "mine", "b", config={"loss": dist})
    finish(work / "mine", {"a", "b"})
    head = capsys.readouterr().out.splitlines()[1]
    assert [cell.strip() for cell in head.split("   ") if cell][:3] == [
        "loss", "temperature", "validation, %",
    ]  # fmt: skip


def test_a_sweep_without_validation_is_not_sorted(work, capsys):
    for name, accuracy in (("a", 0.25), ("b", 0.75)):
        leave(work / "mine", name, test={"accuracy": accuracy}, config={"alpha": accuracy})
    assert finish(work / "mine", set()) == 0
    title, _, *lines = capsys.readouterr().out.splitlines()
    assert "not sorted: there is no validation split" in title
    assert [line.split()[0] for line in lines] == ["0.25", "0.75"]


@pytest.mark.slow
def test_a_sweep_trains_its_teacher_once_and_writes_its_table(kd, work, small):
    done = kd("--multirun", *small, "alpha=0.1,0.9", "temperature=1,4")
    assert done.code == 0, done.err
    assert done.err.count("training it first") == 1
    assert len(points(work)) == 4
    (folder,) = (work / "outputs" / "sweeps").iterdir()
    rows = list(csv.DictReader(open(folder / "sweep.csv")))
    accuracies = [float(row["validation_accuracy"]) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    assert {(row["alpha"], row["temperature"]) for row in rows} == {
        ("0.1", "1.0"), ("0.1", "4.0"), ("0.9", "1.0"), ("0.9", "4.0"),
    }  # fmt: skip
    assert "seed" not in rows[0] and "epochs" not in rows[0]  # they do not vary
    saved = json.loads((folder / "sweep.json").read_text())
    assert len(saved["points"]) == 4 and saved["failures"] == []
    for row in saved["points"]:
        record = read_record(folder / row["directory"])
        assert row["test_accuracy"] == record["test"]["accuracy"]
        assert record["alpha"] == row["alpha"]
    assert "4 points, sorted by validation accuracy" in done.out


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joint"])
def test_the_points_of_a_command_share_a_step_and_those_of_two_do_not(
    kd, work, small, monkeypatch, launcher
):
    engines = []
    genuine = step.Engine.__init__

    def count(self, *args, **options):
        engines.append(weakref.ref(self))
        genuine(self, *args, **options)

    monkeypatch.setattr(step.Engine, "__init__", count)
    words = ["train-student", "--multirun", *small[:2], "epochs=1", f"hydra/launcher={launcher}"]
    words += ["hydra.launcher.max_points=1"] if launcher == "joint" else []
    assert kd(*words, "seed=0,1,2").code == 0
    assert len(engines) == 1 and len(points(work)) == 3
    assert kd(*words, "seed=3,4").code == 0
    gc.collect()
    assert len(engines) == 2 and [one() for one in engines] == [None, None]


@pytest.mark.slow
@pytest.mark.usefixtures("taught")
def test_points_of_one_seed_start_from_the_same_weights(kd, work, small):
    """After one step of no length each student is where it began."""
    words = ["steps=1", "learning_rate=1e-30", "optimizer=sgd"]
    small = [word for word in small if word != "epochs=2"]
    done = kd("--multirun", *small, *words, "alpha=0.1,0.9", "seed=0,1")
    assert done.code == 0, done.err
    weights = {0: [], 1: []}
    for point in points(work):
        model = keras.saving.load_model(point / "model.keras")
        weights[read_record(point)["seed"]].append(
            np.concatenate([w.ravel() for w in model.get_weights()])
        )
    for seed in (0, 1):
        assert len(weights[seed]) == 2
        for other in weights[seed][1:]:
            np.testing.assert_allclose(other, weights[seed][0], rtol=0, atol=1e-20)
    assert np.abs(weights[0][0] - weights[1][0]).max() > 0.1


@pytest.mark.slow
@pytest.mark.usefixtures("taught")
def test_a_point_equals_the_single_run(kd, work, small):
    assert kd("--multirun", *small, "alpha=0.9,0.1").code == 0
    assert kd("distill", *small, "alpha=0.1").code == 0
    single = next((work / "outputs" / "distill").rglob("metrics.json")).parent
    twin = next(point for point in points(work) if "alpha0.1" in point.name)
    assert read_record(single)["weights_sha256"] == read_record(twin)["weights_sha256"]
    with open_npz(single / "predictions.npz") as a, open_npz(twin / "predictions.npz") as b:
        np.testing.assert_array_equal(a["student_logits"], b["student_logits"])


@pytest.mark.slow
@pytest.mark.usefixtures("taught")
def test_a_failing_point_does_not_stop_the_others_and_a_repeat_only_runs_it(kd, work, small):
    words = ("--multirun", *small, "optimizer=sgd", "learning_rate=1e30,0.2")
    done = kd(*words)
    assert done.code == 1
    (failed,) = [line for line in done.err.splitlines() if line.startswith("kd: failed: ")]
    assert "not finite" in failed
    finished = points(work)
    assert len(finished) == 1
    (folder,) = (work / "outputs" / "sweeps").iterdir()
    (failure,) = json.loads((folder / "sweep.json").read_text())["failures"]
    assert (folder / failure["directory"] / "error.json").exists()
    before = [(point / "metrics.json").stat().st_mtime_ns for point in finished]
    again = kd(*words)
    assert again.code == 1 and again.err.count("is finished") == 1
    good = kd("--multirun", *small, "optimizer=sgd", f"sweep={folder.name}", "learning_rate=0.3")
    assert good.code == 0  # the old failure is not this command's
    assert [(point / "metrics.json").stat().st_mtime_ns for point in finished] == before


@pytest.mark.slow
@pytest.mark.usefixtures("taught")
def test_a_mistake_at_a_point_fails_that_point_alone(kd, work, small):
    done = kd("--multirun", *small, "student.network.units=[8],3", "epochs=1")
    assert done.code == 1
    assert len(points(work)) == 1 and "not iterable" in done.err


@pytest.mark.slow
@pytest.mark.usefixtures("taught")
def test_ctrl_c_stops_the_sweep_and_the_repeat_continues(kd, work, small, monkeypatch):
    genuine, calls = distill.distill, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return genuine(*arguments)

    monkeypatch.setattr(distill, "distill", interrupted)
    words = ("--multirun", *small, "alpha=0.1,0.5,0.9")
    assert kd(*words).code == 130
    assert len(points(work)) == 1
    assert kd(*words).code == 0
    assert len(points(work)) == 3 and len(calls) == 4


@pytest.mark.slow
def test_a_sweep_of_scratch_students(kd, work, small):
    done = kd("train-student", "--multirun", *small[:2], "epochs=1", "label_smoothing=0,0.1")
    assert done.code == 0, done.err
    assert {read_record(point)["loss"] for point in points(work)} == {
        "CE(labels, student)", "CE(labels, student), label smoothing 0.1",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("taught")
def test_the_sweep_may_be_named_and_extended(kd, work, small):
    assert kd("--multirun", *small, "sweep=mine", "alpha=0.1,0.2").code == 0
    done = kd("--multirun", *small, "sweep=mine", "alpha=0.2,0.3")
    assert done.code == 0 and done.err.count("is finished") == 1
    assert sorted(os.listdir(work / "outputs" / "sweeps")) == ["mine"]
    assert "3 points" in done.out


@pytest.mark.slow
@pytest.mark.usefixtures("taught")
def test_groups_can_be_swept(kd, work, small):
    words = [word for word in small if not word.startswith("student")]
    done = kd("--multirun", *words, "loss=glob(h*,exclude=hint)")
    assert done.code == 0, done.err
    found = {read_record(point)["loss"].split("(")[0] for point in points(work)}
    assert found == {"0.1 * CE", "0.5 * CE"}


@pytest.mark.parametrize("bad", ["alpha=0.1,2", "student=mlp,resnet", "epochs=1,two"])
def test_all_points_are_checked_before_the_first_starts(kd, work, small, bad):
    done = kd("--multirun", *small, bad)
    assert done.code == 2 and done.error
    assert not (work / "outputs").exists()


def test_a_finished_point_that_fails_is_named_at_the_end(work, npz, monkeypatch, capsys):
    """Its data changed: nothing is recorded in its directory, and it is told all the same."""
    words = ["dataset=npz", f"dataset.path={npz}", "sweep=s", "seed=0,1"]
    sweep = job.prepare(Request(COMMANDS["train-student"], words, ["--multirun"]))
    for out in sweep.points:
        leave(out.parent, out.name)

    def multirun(request, one):
        def refused():
            raise ConfigError("made from other data")

        out = sweep.points[1].resolve()  # as Hydra says it
        with contextlib.suppress(RunFailed):
            one.conclude(refused, dataclasses.replace(sweep.found[1], out=out))

    monkeypatch.setattr(job, "multirun", multirun)
    assert job.train(sweep, Session()) == 1
    done = capsys.readouterr()
    assert "1 point, " in done.out
    assert f"kd: failed: {sweep.points[1].name}: made from other data" in done.err
