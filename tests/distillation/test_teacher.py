"""The teacher is kept, found, trained when missing, and refused when it is another's."""

import shlex
import sys
import weakref

import keras
import numpy as np
import pytest

from kd_cli.distillation import teacher as teachers
from kd_cli.files import open_npz
from kd_cli.runs.session import Session
from tests.conftest import only_run, read_record


@pytest.fixture
def trained(once, work, small):
    """A kept teacher, and its directory."""
    once("train-teacher", *small[:4], "epochs=2")
    directory, _ = only_run(work / "outputs" / "teachers")
    return directory


@pytest.mark.slow
def test_a_kept_teacher_is_found_and_described(kd, work, small, trained):
    done = kd("distill", *small)
    assert done.code == 0
    record = read_record(trained)
    assert (
        f"teacher: mlp, 2 epochs, 144 labels, seed 0, test {record['test']['accuracy']:.4f}"
        in done.err
    )
    assert "training it first" not in done.err
    _, student = only_run(work / "outputs" / "distill")
    assert student["teacher"]["weights_sha256"] == record["weights_sha256"]
    assert student["teacher"]["test_accuracy"] == record["test"]["accuracy"]
    assert student["teacher"]["training"] == "2 epochs, 144 labels, seed 0"


@pytest.mark.slow
def test_a_missing_teacher_is_trained_as_train_teacher_would(kd, work, small):
    first = kd("distill", *small, "seed=7", "epochs=1", "learning_rate=0.5", "schedule=cosine")
    assert first.code == 0 and "training it first (kd train-teacher dataset=npz" in first.err
    directory, record = only_run(work / "outputs" / "teachers")
    # The student's seed, rate and schedule are not the teacher's.
    assert record["seed"] == 0 and record["config"]["learning_rate"] == 0.001
    assert record["config"]["schedule"]["_target_"] == "kd_cli.training.constant"
    assert (directory / ".hydra" / "overrides.yaml").exists()
    assert "teacher 1/2" in (directory / "kd.log").read_text()
    typed = shlex.split(first.err.split("training it first (kd ")[1].split(")")[0])
    answer = kd(*typed)
    assert answer.code == 0 and "is finished" in answer.err
    assert read_record(directory)["weights_sha256"] == record["weights_sha256"]


@pytest.mark.slow
def test_a_second_teacher_does_not_overwrite_the_first(kd, work, small, trained):
    before = read_record(trained)
    place = f"teacher_dir={trained}"
    done = kd("train-teacher", *small[:4], "epochs=4", place)
    assert done.code == 2
    assert "epochs 2, now 4" in done.error and "rerun=true" in done.error
    assert read_record(trained) == before
    assert kd("train-teacher", *small[:4], "epochs=4", place, "rerun=true").code == 0
    assert read_record(trained.with_name(trained.name + "-2"))["epochs_done"] == 4
    assert read_record(trained) == before


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("dataset.split_seed=9", "another split (validation_fraction 0.1, split_seed 0"),
        pytest.param("dataset.validation_fraction=0.3", "another split", marks=pytest.mark.slow),
        pytest.param("teacher.network.units=[8]", "another network", marks=pytest.mark.slow),
        pytest.param(
            "teacher.input.scale=1", "teacher.input.scale 0.00392157", marks=pytest.mark.slow
        ),
        pytest.param(
            "dataset=digits", "teacher.network.image_shape [6, 6, 1]", marks=pytest.mark.slow
        ),
    ],
)
def test_a_teacher_of_other_data_is_refused(kd, small, trained, override, expected):
    words = [w for w in small[:5] if override != "dataset=digits" or not w.startswith("dataset")]
    done = kd("distill", *words, override, f"teacher_dir={trained}")
    assert done.code == 2 and expected in done.error, done.error
    assert "teacher_dir" in done.error


@pytest.mark.slow
def test_a_teacher_of_other_pixels_is_refused(kd, small, trained, npz):
    with open_npz(npz) as archive:
        arrays = dict(archive)
    arrays["x_test"][0] += 1
    np.savez(npz, **arrays)
    done = kd("distill", *small)
    assert done.code == 2 and "another version of the data" in done.error


@pytest.mark.slow
def test_a_student_is_no_teacher(kd, work, small):
    assert kd("train-student", *small[:2], "epochs=1").code == 0
    run, _ = only_run(work / "outputs" / "train-student")
    done = kd("distill", *small[:2], f"teacher_dir={run}")
    assert done.code == 2 and "a run of train-student" in done.error


@pytest.mark.slow
def test_altered_weights_are_noticed(kd, small, trained):
    model = keras.saving.load_model(trained / "model.keras")
    model.set_weights([weight + 1 for weight in model.get_weights()])
    model.save(trained / "model.keras")
    done = kd("distill", *small)
    assert done.code == 2 and "was altered after training" in done.error


@pytest.mark.slow
def test_a_run_of_another_teacher_is_not_taken_for_this_one(kd, work, small, trained):
    assert kd("distill", *small).code == 0
    trained.rename(work / "old")
    assert kd("train-teacher", *small[:4], "epochs=1").code == 0
    other, _ = only_run(work / "outputs" / "teachers")
    other.rename(trained)
    done = kd("distill", *small)
    assert done.code == 2 and "was distilled from another teacher" in done.error


@pytest.mark.slow
def test_any_keras_file_can_teach(kd, work, small, npz):
    """A file that wants pixels in 0..1 gets them through teacher.input, as a network would."""
    keras.utils.set_random_seed(4)
    inputs = keras.Input((6, 6, 1))
    outputs = keras.layers.Dense(4)(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, outputs)
    model.save(work / "mine.keras")
    words = ["distill", *small[:2], "epochs=1", "teacher.checkpoint=mine.keras"]
    done = kd(*words)
    assert done.code == 0, done.err
    run, record = only_run(work / "outputs" / "distill")
    with open_npz(npz) as data, open_npz(run / "predictions.npz") as saved:
        expected = model.predict(data["x_test"] / 255.0, verbose=0)
        np.testing.assert_allclose(saved["teacher_logits"], expected, atol=1e-4)
    assert record["teacher"]["name"] == "mine" and record["teacher"]["training"] == "unknown"
    assert not (work / "outputs" / "teachers").exists()
    assert kd(*words, "teacher.input.scale=1").code == 0


@pytest.mark.slow
def test_a_model_that_kd_wrote_can_teach_from_its_file(kd, work, small, trained):
    words = ["distill", *small[:2], "epochs=1", f"teacher.checkpoint={trained / 'model.keras'}"]
    assert kd(*words).code == 0
    _, record = only_run(work / "outputs" / "distill")
    assert record["teacher"]["test_accuracy"] == read_record(trained)["test"]["accuracy"]


def test_an_input_beside_a_file_that_has_its_own_is_refused(kd, work, small, trained):
    (teacher,) = work.glob("outputs/teachers/*")
    for given in (teacher, teacher / "model.keras"):
        done = kd("distill", *small[:2], f"teacher.checkpoint={given}", "teacher.input.scale=1")
        assert done.code == 2 and "teacher.input.scale=1 changes nothing" in done.error


def test_a_run_s_folder_gives_its_model_keras(kd, work, small, trained):
    words = ["distill", *small[:2], "epochs=1"]
    assert kd(*words, f"teacher.checkpoint={trained}").code == 0
    _, record = only_run(work / "outputs" / "distill")
    assert record["teacher"]["test_accuracy"] == read_record(trained)["test"]["accuracy"]
    assert record["teacher"]["name"] == "mlp"
    assert record["teacher"]["training"] == "2 epochs, 144 labels, seed 0"
    again = kd(*words, f"teacher.checkpoint={trained}/model.keras")
    assert "is finished" in again.err  # the same teacher, so the same run
    done = kd(*words, f"teacher.checkpoint={trained}", "teacher.module=nets")
    assert done.code == 2 and "has recorded its network; leave teacher.module" in done.error
    done = kd(*words, "teacher.module=nets")
    assert done.code == 2 and "must be null without teacher.checkpoint" in done.error
    done = kd(*words, f"teacher.checkpoint={trained}/model.keras", "teacher.module=nets.py")
    assert done.code == 2 and "dotted name of a Python module" in done.error


@pytest.mark.slow
def test_a_lost_file_of_a_finished_teacher_is_one_line_and_comes_back(kd, work, small, trained):
    before = read_record(trained)
    (trained / "model.keras").unlink()
    for words in (["distill", *small], ["explain", *small], ["evaluate", str(trained)]):
        done = kd(*words)
        assert done.code == 2 and "model.keras is lost, though its run is finished" in done.error
    assert not (work / "outputs" / "distill").exists()
    (trained / "metrics.json").unlink()  # as the line says
    assert kd("train-teacher", *small[:4], "epochs=2").code == 0
    assert read_record(trained)["weights_sha256"] == before["weights_sha256"]
    assert (trained / "model.keras").is_file()


NETS = """
import keras

class Gain(keras.layers.Layer):
    def build(self, shape):
        self.gain = self.add_weight(shape=shape[-1:], initializer="ones")
    def call(self, x):
        return x * self.gain

def net(image_shape, num_classes):
    inputs = keras.Input(tuple(image_shape))
    return keras.Model(
        inputs, keras.layers.Dense(num_classes)(keras.layers.Flatten()(Gain()(inputs)))
    )
"""


@pytest.mark.slow
def test_a_teacher_with_a_layer_of_one_s_own_is_found_again(kd, work, small, monkeypatch):
    """By the network of its run, and from its file by the module that is named."""
    (work / "my_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(work))
    network = "  {_target_: my_nets.net, image_shape: [6, 6, 1], num_classes: 4}\n"
    (work / "c" / "teacher").mkdir(parents=True)
    (work / "c" / "teacher" / "own.yaml").write_text(f"name: own\nnetwork:\n{network}")
    words = ["--config-dir", "c", *small[:2], "epochs=1", "teacher=own"]
    words.append("teacher.training.epochs=1")
    assert kd("distill", *words).code == 0
    directory, record = only_run(work / "outputs" / "teachers")
    assert kd("distill", *words, "alpha=0.5").code == 0
    assert kd("evaluate", str(directory)).code == 0
    file = f"teacher.checkpoint={directory}/model.keras"
    done = kd("distill", *small[:2], "epochs=1", file)
    assert done.code == 2 and "holds the class Gain of the module my_nets" in done.error
    assert "its run has recorded how it is built: give the folder, outputs/teac" in done.error
    assert kd("distill", *small[:2], "epochs=1", file, "teacher.module=my_nets").code == 0
    found = {
        read_record(path.parent)["teacher"]["weights_sha256"]
        for path in (work / "outputs" / "distill").rglob("metrics.json")
    }
    assert found == {record["weights_sha256"]}
    sys.modules.pop("my_nets")


def written(path, seed=0, shape=(6, 6, 1)):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(shape)
    outputs = keras.layers.Dense(4)(keras.layers.Flatten()(inputs))
    keras.Model(inputs, outputs).save(path)
    origin = {"file": str(path), "precision": None, "image_shape": list(shape), "classes": 4}
    return {**origin, "input": {"size": None, "scale": 1.0, "offset": 0.0}}


def test_a_teacher_is_read_once_and_gone_before_the_next_one_is_read(work, monkeypatch):
    first, second = (written(work / f"{seed}.keras", seed) for seed in (0, 1))
    session, genuine, alive = Session(), teachers._read, []

    def read(origin):
        assert [model for model in alive if model() is not None] == []
        model = genuine(origin)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(teachers, "_read", read)
    path = work / "t.keras"
    hashes = [
        teachers.load(origin, path, "t", "", session).weights_sha256
        for origin in (first, first, second, first)
    ]
    assert hashes[0] == hashes[1] == hashes[3] != hashes[2] and len(alive) == 3
    written(work / "0.keras", 5)  # another file of that name
    assert teachers.load(first, path, "t", "", session).weights_sha256 != hashes[0]
    assert len(alive) == 4


@pytest.mark.slow
def test_the_points_of_a_sweep_read_a_given_file_once(kd, work, small, monkeypatch):
    written(work / "mine.keras")
    genuine, reads = teachers.load_keras, []

    def load_keras(path, what, *module):
        reads.append(what)
        return genuine(path, what, *module)

    monkeypatch.setattr(teachers, "load_keras", load_keras)
    words = ["--multirun", *small[:2], "epochs=1", "teacher.checkpoint=mine.keras"]
    assert kd(*words, "alpha=0.1,0.5,0.9").code == 0
    assert reads == ["teacher.checkpoint"]


def test_a_file_for_other_images_is_refused(kd, work, small):
    written(work / "mine.keras", shape=(5, 6, 1))
    done = kd("distill", *small[:2], "teacher.checkpoint=mine.keras")
    assert done.code == 2 and "takes images of shape [5, 6, 1]" in done.error
    assert not (work / "outputs").exists()


@pytest.mark.slow
def test_a_file_of_kd_for_other_images_is_refused(kd, work, small):
    crop = "augment.evaluate=[{_target_:kd_cli.data.central_crop,_partial_:true,fraction:1,size:4}]"
    train = "augment.train=[{_target_:kd_cli.data.random_crop,_partial_:true,size:4}]"
    assert kd("train-teacher", *small[:4], "epochs=1", crop, train, "augment.size=4").code == 0
    directory, _ = only_run(work / "outputs")
    done = kd("distill", *small[:2], f"teacher.checkpoint={directory}/model.keras")
    assert (
        done.code == 2 and "takes images of shape [4, 4, 1], it would get [6, 6, 1]" in done.error
    )


@pytest.mark.parametrize(
    ("units", "activation", "expected"),
    [(4, "sigmoid", "ends in a sigmoid"), (5, None, "5 outputs, the dataset has 4 classes")],
)
def test_a_file_that_is_no_classifier_on_logits_is_refused(
    kd, work, small, units, activation, expected
):
    inputs = keras.Input((6, 6, 1))
    x = keras.layers.Dense(units, activation=activation)(keras.layers.Flatten()(inputs))
    keras.Model(inputs, x).save(work / "mine.keras")
    done = kd("distill", *small[:2], "teacher.checkpoint=mine.keras")
    assert done.code == 2 and expected in done.error


@pytest.mark.slow
def test_the_teacher_does_not_change(kd, work, small, trained):
    before = (trained / "model.keras").read_bytes()
    assert kd("distill", *small).code == 0
    assert (trained / "model.keras").read_bytes() == before
