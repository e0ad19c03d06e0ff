"""`kd evaluate`: what a run or a `.keras` file is worth and costs, on its own data and others."""

import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest

from kd_cli.config.check import check
from kd_cli.config.compose import compose
from kd_cli.networks import cost
from kd_cli.networks.predict import predictor
from kd_cli.runs import quality
from kd_cli.runs.quality import score
from kd_cli.runs.resolvers import register_resolvers
from tests.conftest import TFDS, assert_refused, only_run, read_record

layers = keras.layers


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """Few runs: how long a network takes is not the point here."""
    monkeypatch.setattr(cost, "MOST_RUNS", 40)


def network(*stack, shape=(6, 6, 1)):
    return keras.Sequential([keras.Input(shape), *stack])


# FLOPs, by hand: 2 x output values x multiply-adds of each.
CLOSED_FORM = {
    "dense": (
        [layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(7, "relu"), layers.Dense(4)],
        2 * (36 * 7 + 7 * 4),
    ),
    "convolution, same": (
        [layers.Conv2D(5, 3, padding="same"), layers.ReLU(), layers.Conv2D(2, 3, strides=2)],
        2 * (6 * 6 * 5 * 9 * 1 + 2 * 2 * 2 * 9 * 5),
    ),
    "what is not counted": (
        [layers.BatchNormalization(), layers.MaxPooling2D(2), layers.Flatten(), layers.Softmax()],
        0,
    ),
    "depthwise and pointwise": (
        [layers.Conv2D(4, 1), layers.SeparableConv2D(6, 3, depth_multiplier=2)],
        2 * (6 * 6 * 4 + 4 * 4 * 8 * 9 + 4 * 4 * 6 * 8),
    ),
    "groups": (
        [layers.Conv2D(4, 1), layers.Conv2D(6, 3, groups=2)],
        2 * (6 * 6 * 4 + 4 * 4 * 6 * 9 * 2),
    ),
    "transposed": (
        [layers.Conv2D(4, 1), layers.Conv2DTranspose(3, 3, strides=2)],
        2 * (6 * 6 * 4 + 6 * 6 * 4 * 9 * 3),
    ),
    "resized inside": (
        [layers.Resizing(12, 12), layers.Conv2D(2, 3, padding="same")],
        2 * 12 * 12 * 2 * 9,
    ),
}


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_flops_by_hand(name):
    stack, expected = CLOSED_FORM[name]
    assert cost.flops(network(*stack), (6, 6, 1)) == expected


def test_flops_of_attention_by_hand():
    inputs = keras.Input((9, 5))
    outputs = layers.MultiHeadAttention(2, 4)(inputs, inputs)
    projections = 4 * 9 * 5 * 8  # query, key, value, output
    assert cost.flops(keras.Model(inputs, outputs), (9, 5)) == 2 * (
        projections + 2 * 2 * 9 * 9 * 4  # scores and their sums, two heads
    )


def test_flops_do_not_depend_on_the_batch_and_reach_nested_models():
    inner = network(layers.Flatten(), layers.Dense(3))
    inputs = keras.Input((None, None, 1), batch_size=None)
    outer = keras.Model(inputs, inner(layers.Resizing(6, 6)(inputs)))
    assert cost.flops(outer, (8, 8, 1)) == 2 * 36 * 3


def test_a_loop_that_multiplies_is_not_guessed():
    recurrent = network(layers.Reshape((6, 6)), layers.GRU(3), layers.Dense(4))
    with pytest.raises(cost.UncountedError, match="While"):
        cost.flops(recurrent, (6, 6, 1))


def test_latency_runs_until_the_time_is_up(monkeypatch):
    predict = predictor(network(layers.Flatten(), layers.Dense(4)))
    images = np.zeros((3, 6, 6, 1), np.float32)

    def run():
        return predict(images).numpy()

    taken = cost.timed(run)
    assert taken["p95_ms"] >= taken["median_ms"] > 0
    assert taken["runs"] == 40
    monkeypatch.setattr(cost, "SECONDS", 0.0)
    assert cost.timed(run)["runs"] == 30
    monkeypatch.setattr(cost, "MOST_SECONDS", 0.0)
    assert cost.timed(run)["runs"] == 3


def test_latency_is_in_milliseconds():
    import time

    assert 20 <= cost.timed(lambda: time.sleep(0.02))["median_ms"] < 200


@pytest.fixture
def distilled(once, work, small):
    """A finished distill run and its metrics."""
    once("distill", *small)
    return only_run(work / "outputs" / "distill")


def read(folder):
    return json.loads((folder / "evaluation.json").read_text())


def assert_close(found, expected):
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-6), key


def test_a_run_on_its_own_data(kd, work, distilled):
    run, record = distilled
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    done = kd("evaluate", "outputs/latest")
    assert done.code == 0 and done.err == "", done.err
    found = read(run)
    for split in ("validation", "test"):
        for part in ("quality", "fidelity"):
            assert_close(found[part][split], record[part][split])
        assert found["teacher"]["quality"][split] == record["teacher"]["quality"][split]
    assert found["quality"]["test"]["accuracy"] == record["test"]["accuracy"]
    for key in ("run_id", "weights_sha256", "parameters", "command", "device"):
        assert found[key] == record[key], key
    for key in ("name", "fingerprint", "split_fingerprint", "validation", "test"):
        assert found["dataset"][key] == record["dataset"][key], key
    assert found["own_data"] and found["warnings"] == []
    assert found["flops"] == 2 * (36 * 16 + 16 * 4)  # the student's 16 units: conf/student/mlp.yaml
    assert found["file_bytes"] == (run / "model.keras").stat().st_size
    assert set(found["latency"]) == {"1", "64"}
    for taken in found["latency"].values():
        assert taken["p95_ms"] >= taken["median_ms"] > 0 and taken["runs"] >= 30
    assert found["versions"]["keras"] == keras.__version__
    for word in ("ECE", "agreement with its teacher", "parameters", "FLOPs", "latency, batch 64"):
        assert word in done.out
    (line,) = [line for line in done.out.splitlines() if line.startswith("accuracy, %")]
    shares = [found["quality"][split]["accuracy"] for split in ("validation", "test")]
    assert line.split()[2:] == [f"{100 * share:.2f}" for share in shares]
    # Nothing else was touched, and the run still counts as finished.
    assert all(path.read_bytes() == content for path, content in before.items())
    assert {p.name for p in run.iterdir()} - {p.name for p in before} >= {"evaluation.json"}
    assert not (work / "outputs" / "evaluate").exists()


def test_a_teacher_has_no_fidelity_and_may_be_measured_again(kd, work, distilled):
    (teacher,) = (work / "outputs" / "teachers").iterdir()
    for _ in range(2):
        done = kd("evaluate", str(teacher))
        assert done.code == 0, done.err
    found = read(teacher)
    assert found["quality"]["test"]["accuracy"] == read_record(teacher)["test"]["accuracy"]
    assert "fidelity" not in found and "agreement" not in done.out


def test_accuracy_that_is_not_the_recorded_one_is_said(kd, distilled):
    run, record = distilled
    true = record["test"]["accuracy"]
    record["test"]["accuracy"] = 0.125
    (run / "metrics.json").write_text(json.dumps(record))
    done = kd("evaluate", str(run))
    assert done.code == 0
    (line,) = done.err.splitlines()
    assert line.startswith("kd: warning") and "0.125000" in line and f"{true:.6f}" in line
    assert len(read(run)["warnings"]) == 1


def test_other_data_asks_the_teacher_again(kd, work, npz, distilled):
    run, record = distilled
    with np.load(npz) as arrays:
        other = {key: arrays[key][::-1][: 30 if "test" in key else 99] for key in arrays}
    np.savez(work / "other.npz", **other)
    done = kd("evaluate", str(run), "dataset=npz", f"dataset.path={work}/other.npz")
    assert done.code == 0 and done.err == "", done.err
    assert not (run / "evaluation.json").exists()
    (folder,) = (work / "outputs" / "evaluate" / "npz").iterdir()
    assert folder.name == f"mlp-{record['weights_sha256'][:8]}"
    found = read(folder)
    with np.load(folder / "predictions.npz") as kept:
        arrays = dict(kept)
    (teacher,) = (work / "outputs" / "teachers").glob("*/model.keras")
    for name, file in (("student", run / "model.keras"), ("teacher", teacher)):
        model = keras.saving.load_model(file, compile=False)
        logits = model.predict(other["x_test"].astype(np.float32), verbose=0)
        np.testing.assert_allclose(arrays[f"{name}_logits"], logits, rtol=1e-4, atol=1e-5)
    assert (arrays["labels"] == other["y_test"]).all()
    assert found["dataset"]["test"] == 30 and not found["own_data"]
    assert found["fidelity"] == quality.fidelity_of_splits(arrays, 4.0)
    # Without the teacher the rest is measured all the same, and the line says so.
    shutil.rmtree(teacher.parent)
    done = kd("evaluate", str(run), "dataset=npz", f"dataset.path={work}/other.npz")
    assert done.code == 0 and "no agreement with the teacher" in done.err and "is gone" in done.err
    assert "fidelity" not in read(folder)
    # Its own data do not need it.
    assert kd("evaluate", str(run)).err == "" and "fidelity" in read(run)


def test_another_split_of_the_run_s_data_is_said(kd, npz, distilled):
    run, _ = distilled
    words = ["dataset=npz", f"dataset.path={npz}"]
    assert kd("evaluate", str(run), *words).err == ""  # the run's own, typed
    assert read(run)["own_data"]
    done = kd("evaluate", str(run), *words, "dataset.split_seed=1")
    assert done.code == 0 and "not the run's" in done.err


@pytest.mark.slow
def test_the_run_s_evaluation_crops_count(kd, work, npz):
    """Trained on crops of 4 of 6 pixels: evaluated in the middle, as in training."""
    words = ["dataset=npz", f"dataset.path={npz}", "epochs=1", "augment.size=4"]
    train = "augment.train=[{_target_:kd_cli.data.random_crop,_partial_:true,size:4}]"
    crop = "{_target_:kd_cli.data.central_crop,_partial_:true,fraction:0.67,size:4}"
    done = kd("train-student", *words, train, f"augment.evaluate=[{crop}]")
    assert done.code == 0, done.err
    run, record = only_run(work / "outputs" / "train-student")
    done = kd("evaluate", str(run))
    assert done.code == 0 and done.err == "", done.err
    assert_close(read(run)["quality"]["test"], record["quality"]["test"])
    assert read(run)["flops"] == 2 * (16 * 16 + 16 * 4)


def plain(path, *end, size=6):
    """A `.keras` file of plain Keras, which takes pixels 0..1."""
    keras.utils.set_random_seed(3)
    model = network(layers.Flatten(), *end or (layers.Dense(4),), shape=(size, size, 1))
    model.save(path)
    return model


def test_a_file_of_plain_keras(kd, work, npz):
    model = plain(work / "mine.keras")
    words = ["dataset=npz", f"dataset.path={npz}", "input.scale=0.00392156862745098"]
    done = kd("evaluate", "mine.keras", *words)
    assert done.code == 0 and done.err == "", done.err
    (folder,) = (work / "outputs" / "evaluate" / "npz").iterdir()
    found = read(folder)
    with np.load(npz) as data:
        images, labels = data["x_test"], data["y_test"]
    logits = model.predict(images / np.float32(255), verbose=0)
    assert found["quality"]["test"]["accuracy"] == (logits.argmax(axis=1) == labels).mean()
    assert found["quality"]["test"]["nll"] == pytest.approx(score(logits, labels)["nll"])
    assert found["parameters"] == 36 * 4 + 4 and found["flops"] == 2 * 36 * 4
    assert found["command"] is None and "fidelity" not in found
    assert folder.name == f"mine-{found['weights_sha256'][:8]}"
    with np.load(folder / "predictions.npz") as kept:
        np.testing.assert_allclose(kept["student_logits"], logits, rtol=1e-4, atol=1e-5)
    # Data of the same name that are others go beside it, the same again replace it.
    kd("evaluate", "mine.keras", *words, "dataset.limit=40")
    assert kd("evaluate", "mine.keras", *words, "dataset.limit=40").code == 0
    assert len(list((work / "outputs" / "evaluate" / "npz").iterdir())) == 2
    assert read(folder)["dataset"]["fingerprint"] == found["dataset"]["fingerprint"]


def test_a_file_s_default_dataset_and_its_size(kd, work):
    plain(work / "big.keras", layers.Dense(10), size=16)
    done = kd("evaluate", "./big.keras", "input.size=16")
    assert done.code == 0, done.err
    (folder,) = (work / "outputs" / "evaluate" / "digits").iterdir()
    assert read(folder)["flops"] == 2 * 256 * 10


def test_altered_weights_are_noticed(kd, work, distilled):
    run, _ = distilled
    model = keras.saving.load_model(run / "model.keras", compile=False)
    weights = model.get_weights()
    weights[0][0, 0] += 1e-3
    model.set_weights(weights)
    model.save(run / "model.keras")
    done = kd("evaluate", str(run))
    assert done.code == 2 and "altered after training" in done.error
    assert not (run / "evaluation.json").exists() and done.out == ""


def test_changed_data_are_noticed(kd, npz, distilled):
    run, _ = distilled
    with np.load(npz) as arrays:
        changed = dict(arrays)
    changed["x_test"][0] += 1
    np.savez(npz, **changed)
    done = kd("evaluate", str(run))
    assert done.code == 2 and "have changed since this run" in done.error
    assert not (run / "evaluation.json").exists()


# What is typed, and what the one line must say; nothing exists in the working directory.
MISTAKES = {
    "nothing": ([], ["evaluate needs", "kd evaluate outputs/latest"]),
    "no such path": (["nope"], ["nope does not exist", "a .keras file"]),
    "a directory": (["."], [". is not a finished run"]),
    "two": (["a", "b"], ["'b' is neither key=value nor a flag"]),
    "alpha": (["x.keras", "alpha=0.3"], ["does not use alpha", "trains nothing"]),
    "epochs": (["x.keras", "epochs=3"], ["does not use epochs"]),
    "student": (["x.keras", "student=cnn"], ["does not use student"]),
    "seed": (["x.keras", "seed=1"], ["does not use seed"]),
    "experiment": (["x.keras", "experiment=mnist_cnn"], ["dataset=OPTION"]),
    "rounds": (["x.keras", "rounds=3"], ["does not use rounds"]),
    "unknown key": (["x.keras", "devise=cpu"], ["'devise'", "did you mean 'device'"]),
    "unknown option": (["x.keras", "dataset=minst"], ["did you mean 'mnist'"]),
    "no data": (["x.keras", "dataset=npz"], ["dataset.path is missing"]),
    "missing data": (["x.keras", "dataset=npz", "dataset.path=no.npz"], ["no.npz is not a file"]),
    "limit": (["x.keras", "dataset.limit=0"], ["dataset.limit=0", "at least 1"]),
    "device": (["x.keras", "device=tpu"], ["device=tpu"]),
    "size": (["x.keras", "input.size=0"], ["input.size=0"]),
    "sweep": (["x.keras", "--multirun"], ["does not take --multirun"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(kd, work, name):
    words, expected = MISTAKES[name]
    assert_refused(kd, work, ["evaluate", *words], *expected)


# The same, with a file or what looks like a run in `there`, on digits (8x8, 10 classes).
def _text(there):
    there.write_text("no archive")


def _unfinished(there):
    (there / ".hydra").mkdir(parents=True)


def _no_json(there):
    there.mkdir()
    (there / "metrics.json").write_text("{")


def _foreign(there):
    there.mkdir()
    (there / "metrics.json").write_text('{"accuracy": 1}')


def _points(there):
    (there / "point").mkdir(parents=True)
    (there / "point" / "metrics.json").write_text("{}")


def _lambda(there):
    plain(there, layers.Lambda(lambda x: x * 2), layers.Dense(10), size=8)


def _not_finite(there):
    model = plain(there, layers.Dense(10), size=8)
    model.set_weights([np.full_like(w, np.nan) for w in model.get_weights()])
    model.save(there)


def _vectors(there):
    keras.Sequential([keras.Input((64,)), layers.Dense(10)]).save(there)


LATE_MISTAKES = {
    "no archive": ("a.keras", _text, [], ["a.keras is not a .keras file"]),
    "unfinished": ("run", _unfinished, [], ["run is not a finished run", "continues it"]),
    "broken metrics": (
        "run",
        _no_json,
        [],
        ["run/metrics.json is damaged, or not written by kd ("],
    ),
    "metrics of another program": ("run", _foreign, [], ["not written by kd (no schema_version)"]),
    "a sweep's folder": ("sweep", _points, [], ["holds some, such as sweep/point"]),
    "classes": ("a.keras", lambda p: plain(p, layers.Dense(4), size=8), [], ["4 outputs", "10"]),
    "shape": ("a.keras", plain, [], ["[6, 6, 1]", "[8, 8, 1]", "input.size"]),
    "sigmoid": (
        "a.keras",
        lambda p: plain(p, layers.Dense(10, "sigmoid"), size=8),
        [],
        ["ends in a sigmoid"],
    ),
    "lambda": ("a.keras", _lambda, [], ["Lambda layer"]),
    "not finite": ("a.keras", _not_finite, [], ["not finite"]),
    "vectors": ("a.keras", _vectors, [], ["one input [batch, height, width, channels]"]),
    "size without a node": ("a.keras", plain, ["augment.size=4"], ["no augmentation step"]),
}


@pytest.mark.parametrize("name", LATE_MISTAKES)
def test_a_late_mistake_is_one_line(kd, work, name):
    there, make, words, expected = LATE_MISTAKES[name]
    make(work / there)
    done = kd("evaluate", there, *words)
    assert done.code == 2
    for text in expected:
        assert text in done.error
    assert done.out == "" and len(done.err.splitlines()) == 1
    assert [p.name for p in work.iterdir()] == [there]


def test_mistakes_with_a_run(kd, work, distilled):
    run, _ = distilled
    before = sorted(work.rglob("*"))
    for words, expected in (
        (["dataset=digits"], ["trained for 4 classes", "digits has 10"]),
        (["dataset.limit=20"], ["the run has its own dataset", "dataset=npz dataset.limit="]),
        (["input.scale=2"], ["input.scale", "raw pixels"]),
        (["dataset=digits", "dataset.num_classes=4"], ["[6, 6, 1]", "[8, 8, 1]"]),
    ):
        done = kd("evaluate", "outputs/latest", *words)
        assert done.code == 2 and done.out == ""
        for text in expected:
            assert text in done.error
    done = kd("evaluate", f"{run}/model.keras", "dataset=npz", f"dataset.path={work}/quarters.npz",
              "input.scale=2")  # fmt: skip
    assert done.code == 2 and "scale inside" in done.error
    assert sorted(work.rglob("*")) == before


def test_what_a_run_tells_of_itself_needs_no_tensorflow(work, distilled):
    script = (
        "import sys\n"
        "from kd_cli.cli import main\n"
        "for words in ['outputs/latest dataset=digits', 'outputs', 'outputs/latest alpha=1',\n"
        "              'outputs/latest/model.keras dataset=digits', '--help']:\n"
        "    print(main(['evaluate', *words.split()]))\n"
        "    assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules, words\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    codes = [line for line in done.stdout.splitlines() if line in ("0", "1", "2")]
    assert codes == ["2", "2", "2", "2", "0"], done.stdout + done.stderr


def test_a_path_with_any_name(kd, work, npz):
    folder = work / "it's = [odd], yes"
    folder.mkdir()
    plain(folder / "a b.keras")
    done = kd("evaluate", f"./{folder.name}/a b.keras", "dataset=npz", f"dataset.path={npz}")
    assert done.code == 0, done.err


@pytest.mark.parametrize("group", ["augment", "dataset"])
def test_every_option_of_its_groups_composes(group, work, npz):
    from kd_cli.config.compose import conf_dir

    register_resolvers()
    for name in ("train/a", "train/b", "test/a"):
        (work / "images" / name).mkdir(parents=True)
        (work / "images" / name / "1.png").touch()
    extra = {"npz": [f"dataset.path={npz}"], "image_folder": [f"dataset.path={work}/images"]}
    extra["tfds"] = TFDS
    (work / "texts.csv").write_text("text,label\nt 1,a\nt 2,b\n")
    extra["text"] = ["dataset.path=texts.csv"]
    for option in sorted(p.stem for p in (conf_dir() / group).glob("*.yaml")):
        words = ["what=x", f"{group}={option}", *extra.get(option, [])]
        assert check(compose("evaluate", words), words).what == "x"


def test_help_and_completion(kd, monkeypatch):
    assert "evaluate" in kd("--help").out
    shown = kd("evaluate", "--help").out
    assert "\nusage: kd evaluate WHAT [key=value ...]" in shown and "  tracker " not in shown
    assert "what=???" in shown and "data_dir" in shown and "alpha" not in shown
    assert "what: outputs/latest" in kd("evaluate", "outputs/latest", "--cfg", "job").out

    def complete(line):
        monkeypatch.setenv("COMP_LINE", line)
        return kd("-sc", "query=bash").out.split()

    assert complete("kd ev") == ["evaluate"]
    assert complete("kd evaluate dataset=ci") == ["dataset=cifar10", "dataset=cifar100"]
    assert complete("kd evaluate outputs/latest dataset=ci") == [
        "dataset=cifar10",
        "dataset=cifar100",
    ]
    assert "input." in complete("kd evaluate outputs/latest ")
