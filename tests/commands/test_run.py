"""What the three commands leave: metrics, history, model, predictions; repeats and resumption."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from kd_cli.files import open_npz
from kd_cli.runs import quality
from kd_cli.training import trackers
from tests.conftest import only_run, read_record


def without_timings(record):
    kept = {key: value for key, value in record.items() if key != "timings"}
    return json.loads(json.dumps(kept))


@pytest.mark.parametrize("command", ["train-teacher", "train-student", "distill"])
def test_a_run_leaves_what_the_schema_says(kd, work, small, command):
    teacher = [w for w in small if command != "train-student" or not w.startswith("teacher")]
    teacher = [w for w in teacher if command != "train-teacher" or w != "epochs=2"]
    done = kd(command, *teacher)
    assert done.code == 0, done.err
    kind = "teachers" if command == "train-teacher" else command
    run, record = only_run(work / "outputs" / kind)
    assert {p.name for p in run.iterdir()} == {
        ".hydra", "kd.log", "history.jsonl", "metrics.json", "predictions.npz", "model.keras",
        "state", ".lock",
    }  # fmt: skip
    assert record["dataset"]["train"] + record["dataset"]["validation"] == 160
    assert record["epochs_done"] == 2
    assert record["steps_done"] == 2 * -(-record["dataset"]["train"] // 64)
    assert (work / "outputs" / "latest").resolve() == run

    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[-1]["learning_rate"] == pytest.approx(0.001)
    assert rows[-1]["validation"]["accuracy"] == record["validation"]["last"]["accuracy"]

    role = "teacher" if command == "train-teacher" else "student"
    with open_npz(run / "predictions.npz") as saved:
        names = {"labels", f"{role}_logits"} | (
            {"teacher_logits"} if command == "distill" else set()
        )
        assert set(saved.files) == names | {f"validation_{name}" for name in names}
        held, answers = saved["validation_labels"], saved[f"validation_{role}_logits"]
        best = record["validation"]["best"]["accuracy"]
        assert best == pytest.approx((answers.argmax(axis=1) == held).mean())
        temperature = quality.fit_temperature(answers, held)
        assert record["quality"]["test"]["temperature"] == temperature
        labels, logits = saved["labels"], saved[f"{role}_logits"]
        if command == "distill":
            right = (saved["teacher_logits"].argmax(axis=1) == labels).mean()
            assert record["teacher"]["test_accuracy"] == pytest.approx(right)
            same = (saved["teacher_logits"].argmax(axis=1) == logits.argmax(axis=1)).mean()
            assert record["fidelity"]["test"]["agreement"] == pytest.approx(same)
            assert record["fidelity"]["test"]["temperature"] == record["temperature"]
    assert record["test"]["accuracy"] == pytest.approx((logits.argmax(axis=1) == labels).mean())
    shifted = np.exp(logits.astype(np.float64))
    nll = -np.log(shifted[np.arange(40), labels] / shifted.sum(axis=1)).mean()
    assert record["test"]["nll"] == pytest.approx(nll)


@pytest.mark.slow
@pytest.mark.usefixtures("taught")
def test_the_model_loads_with_plain_keras_alone_and_takes_raw_pixels(kd, work, small, npz):
    assert kd("distill", *small).code == 0
    run, _ = only_run(work / "outputs" / "distill")
    script = (
        "import sys\n"
        "sys.modules['kd_cli'] = None\n"  # importing it now fails
        "import keras, numpy as np\n"
        f"model = keras.saving.load_model({str(run / 'model.keras')!r})\n"
        f"images = np.load({str(npz)!r})['x_test']\n"
        f"saved = np.load({str(run / 'predictions.npz')!r})['student_logits']\n"
        "np.testing.assert_allclose(model.predict(images, verbose=0), saved, atol=1e-5)\n"
        "print('equal', len(model.weights))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "equal 4", done.stderr  # the student's two layers, no teacher


@pytest.mark.slow
def test_the_table_shows_teacher_student_and_scratch(kd, work, small):
    first = kd("distill", *small)
    assert "not trained yet: kd train-student dataset=npz" in first.out
    for word in (
        "teacher",
        "distilled student",
        "outputs/teachers/npz-mlp-",
        "outputs/distill/npz/",
    ):
        assert word in first.out
    hint = first.out.split("not trained yet: kd ")[1].split("\n")[0]
    assert kd(*hint.split()).code == 0
    assert "outputs/train-student/npz/" in kd("distill", *small).out


@pytest.mark.slow
@pytest.mark.usefixtures("taught")
def test_the_same_command_twice_gives_the_same_numbers(kd, work, small):
    words = ("distill", *small, "student.network.dropout=0.3")
    assert kd(*words).code == 0
    assert kd(*words, "rerun=true").code == 0
    first, second = sorted((work / "outputs" / "distill" / "npz").iterdir())
    assert second.name == first.name + "-2"
    one, two = read_record(first), read_record(second)
    assert without_timings(one) == without_timings(two)
    assert kd(*words, "seed=1").code == 0
    (other,) = set((work / "outputs" / "distill" / "npz").iterdir()) - {first, second}
    assert read_record(other)["weights_sha256"] != one["weights_sha256"]


@pytest.mark.slow
def test_training_the_teacher_first_changes_nothing(kd, work, small):
    assert kd("distill", *small).code == 0
    _, one = only_run(work / "outputs" / "distill")
    assert kd("distill", *small, "rerun=true").code == 0
    two = read_record(next((work / "outputs" / "distill" / "npz").glob("*-2")))
    assert one["weights_sha256"] == two["weights_sha256"]


@pytest.mark.slow
def test_init_seed_and_data_seed_are_two_things(kd, work, small):
    for words in (["epochs=1"], ["init_seed=5"], ["data_seed=5"]):
        assert kd("train-student", *small[:2], "epochs=1", *words).code == 0
    hashes = {
        read_record(p.parent)["weights_sha256"]
        for p in (work / "outputs" / "train-student").rglob("metrics.json")
    }
    assert len(hashes) == 3


def test_a_finished_run_answers_at_once(kd, work, small):
    words = ("train-student", *small[:2], "epochs=2")
    assert kd(*words).code == 0
    run, _ = only_run(work / "outputs")
    before = (run / "metrics.json").stat().st_mtime_ns
    again = kd(*words)
    assert again.code == 0 and "is finished" in again.err
    assert (run / "metrics.json").stat().st_mtime_ns == before
    assert "scratch student" in again.out


@pytest.mark.slow
def test_a_finished_run_is_not_taken_for_other_data(kd, work, small, npz):
    words = ("train-student", *small[:2], "epochs=1")
    assert kd(*words).code == 0
    with open_npz(npz) as archive:
        arrays = dict(archive)
    arrays["x_train"][0] += 1
    np.savez(npz, **arrays)
    done = kd(*words)
    assert done.code == 2 and "other data" in done.error and "rerun=true" in done.error


@pytest.mark.parametrize("after", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ctrl_c_loses_no_finished_epoch_and_the_run_continues_bit_for_bit(
    kd, work, small, monkeypatch, after
):
    words = ("distill", *small, "student.network.dropout=0.3", "epochs=3", "optimizer=adamw")
    assert kd(*words).code == 0
    run, undisturbed = only_run(work / "outputs" / "distill")
    history = [json.loads(line)["train"] for line in open(run / "history.jsonl")]
    run.rename(work / "kept")

    def interrupt(self, row, model):
        if row["epoch"] == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(trackers.Trackers, "epoch", interrupt)
    stopped = kd(*words)
    assert stopped.code == 130 and "continues from the last saved state" in stopped.err
    monkeypatch.undo()
    monkeypatch.chdir(work)
    assert not (run / "metrics.json").exists()
    resumed = kd(*words)
    assert resumed.code == 0 and f"continuing after epoch {after}" in resumed.err
    assert without_timings(read_record(run)) == without_timings(undisturbed)
    assert [json.loads(line)["train"] for line in open(run / "history.jsonl")] == history


@pytest.mark.slow
def test_an_unfinished_run_does_not_continue_on_other_data(kd, work, small, npz, monkeypatch):
    def interrupt(self, row, model):
        raise KeyboardInterrupt

    monkeypatch.setattr(trackers.Trackers, "epoch", interrupt)
    words = ("train-student", *small[:2], "epochs=2")
    assert kd(*words).code == 130
    monkeypatch.undo()
    monkeypatch.chdir(work)
    with open_npz(npz) as archive:
        arrays = dict(archive)
    arrays["x_train"][0] += 1
    np.savez(npz, **arrays)
    done = kd(*words)
    assert done.code == 2 and "made from other data" in done.error


@pytest.mark.slow
def test_two_processes_do_not_share_a_directory(kd, work, small, monkeypatch):
    words = ("train-student", *small[:2], "epochs=2")
    second = []

    def start_another(self, row, model):
        if not second:
            command = [sys.executable, "-m", "kd_cli", *words]
            environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
            second.append(subprocess.run(command, capture_output=True, text=True, env=environment))

    monkeypatch.setattr(trackers.Trackers, "epoch", start_another)
    assert kd(*words).code == 0
    assert second[0].returncode == 2
    assert second[0].stderr.startswith("kd: error: another process is at work in outputs/")
    assert len(list((work / "outputs").rglob("metrics.json"))) == 1


def test_steps_replace_epochs_and_end_inside_one(kd, work, small):
    assert kd("train-student", *small[:2], "steps=5", "batch_size=64").code == 0
    run, record = only_run(work / "outputs")
    assert (record["steps_done"], record["epochs_done"]) == (5, 2)
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 5]


def test_without_validation_the_last_epoch_is_reported(kd, work, small):
    done = kd("train-student", *small[:2], "dataset.validation_fraction=0", "epochs=2")
    assert done.code == 0 and "the last epoch: without a validation split" in done.out
    _, record = only_run(work / "outputs")
    assert set(record["quality"]) == {"test"} and "temperature" not in record["quality"]["test"]
    assert "validation" not in record and record["dataset"]["validation"] == 0
    assert record["test"] == record["test_last"]


def test_early_stopping_keeps_the_best_epoch(kd, work, small):
    words = ("train-student", *small[:2], "epochs=40", "learning_rate=0.5", "optimizer=sgd")
    assert kd(*words, "early_stopping.patience=2", "early_stopping.monitor=nll").code == 0
    run, record = only_run(work / "outputs")
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    nlls = [row["validation"]["nll"] for row in rows]
    assert record["selection"] == "the best epoch by validation nll"
    assert record["stopped"] == "early stopping" and record["epochs_done"] == len(rows) < 40
    assert record["validation"]["best"]["epoch"] == int(np.argmin(nlls)) + 1 == len(rows) - 2
    assert record["validation"]["best"]["nll"] == min(nlls)
    assert record["test"] != record["test_last"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "precision",
    ["mixed_bfloat16", "mixed_float16"],
)
@pytest.mark.usefixtures("taught")
def test_mixed_precision_trains(kd, work, small, precision):
    done = kd("distill", *small, f"precision={precision}", "epochs=6", "learning_rate=0.02")
    assert done.code == 0, done.err
    run, record = only_run(work / "outputs" / "distill")
    assert record["precision"] == precision
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert rows[-1]["train"]["loss"] < rows[0]["train"]["loss"]
    network = keras.saving.load_model(run / "model.keras").layers[-1]
    policies = {layer.name: layer.dtype_policy.name for layer in network.layers}
    assert policies["logits"] == "float32" and precision in policies.values()


def test_dead_units_and_chance_are_warned_about_and_recorded(kd, work, small):
    """A step of this length from the zero images' side kills every ReLU."""
    words = ("train-student", *small[:2], "epochs=2", "learning_rate=100", "optimizer=sgd")
    words += ("batch_size=2",)  # 72 steps an epoch: an accuracy at chance counts from 50 on
    done = kd(*words, "student.network.units=[8]", "student.input.scale=1")
    assert done.code == 0, done.err
    _, record = only_run(work / "outputs")
    dead, chance = record["warnings"]
    assert "all 8 hidden units of layer" in dead and "are dead" in dead
    assert "is at chance (0.2500" in chance
    for epoch, text in ((1, dead), (1, chance)):  # said once, when it was first seen
        assert done.err.count(text.replace("after epoch 2", f"after epoch {epoch}")) == 1


def test_an_accuracy_at_chance_after_two_steps_says_nothing(kd, work, small):
    done = kd("train-student", *small[:2], "steps=2", "learning_rate=1e-9")
    _, record = only_run(work / "outputs")
    assert record["validation"]["best"]["accuracy"] < 0.46  # luck among 16 images
    assert record["warnings"] == [] and "at chance" not in done.err


@pytest.mark.slow
def test_warm_start_begins_from_the_file_s_weights(kd, work, small):
    assert kd("train-student", *small[:2], "epochs=3", "learning_rate=0.01").code == 0
    run, first = only_run(work / "outputs")
    file = run / "model.keras"
    words = ("train-student", *small[:2], "steps=1", "learning_rate=1e-12")
    assert kd(*words, f"student.checkpoint={file}").code == 0
    (other,) = set((work / "outputs" / "train-student" / "npz").iterdir()) - {run}
    assert read_record(other)["test"]["nll"] == pytest.approx(first["test"]["nll"], rel=1e-5)
    refused = kd(*words, f"student.checkpoint={file}", "student.network.units=[3]")
    assert refused.code == 2 and "another network" in refused.error


@pytest.mark.slow
def test_two_processes_give_the_same_numbers(work, small):
    records = []
    for name in ("a", "b"):
        folder = work / name
        folder.mkdir()
        command = [sys.executable, "-m", "kd_cli", "distill", *small]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        _, record = only_run(folder / "outputs" / "distill")
        records.append(without_timings(record))
    assert records[0] == records[1]
