"""Training images without labels: read from a folder, distilled on, and refused where they must."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_cli.data.dataset import Dataset, load_dataset
from kd_cli.distillation import losses
from kd_cli.errors import ConfigError
from tests.conftest import only_run
from tests.data.test_dataset import node, plan
from tests.data.test_folders import plain, read_folder, values, write


@pytest.fixture
def bare(work):
    """train/ with 24 images of no class, test/ with 3 dark and 3 light ones of two classes."""
    root = work / "images"
    for number in range(24):
        write(root / "train" / f"{number:02d}.png", plain(10 * number))
    for number in range(3):
        write(root / "test" / "dark" / f"{number}.png", plain(20 + number))
        write(root / "test" / "light" / f"{number}.png", plain(200 + number))
    return root


@pytest.fixture
def watched(bare):
    for number in range(2):
        write(bare / "validation" / "dark" / f"{number}.png", plain(30 + number))
        write(bare / "validation" / "light" / f"{number}.png", plain(210 + number))
    return bare


def load(root, **changes) -> Dataset:
    source = {"_target_": "kd_cli.data.image_folder", "path": str(root)}
    source |= {"image_shape": [4, 4, 3], "cache_dir": str(root.parent / "cache")}
    return load_dataset(node(source, (4, 4, 3), 2, **changes))


def test_images_outside_class_folders_have_no_label(bare):
    arrays = read_folder(bare)
    assert values(arrays.train) == [(10 * number, -1) for number in range(24)]
    assert [label for _, label in values(arrays.test)] == [0, 0, 0, 1, 1, 1]
    assert arrays.class_names == ("dark", "light") and arrays.validation is None
    assert plan("dataset=image_folder", f"dataset.path={bare}").dataset.num_classes == 2


def test_without_labels_no_row_is_held_out(bare):
    dataset = load(bare)
    assert (len(dataset.train), dataset.validation, len(dataset.test)) == (24, None, 6)
    assert not dataset.train.labelled and dataset.test.labelled
    limited = load(bare, limit=5)
    assert (len(limited.train), len(limited.test)) == (5, 5)


def test_a_validation_folder_is_the_validation_split(watched):
    dataset = load(watched)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (24, 4, 6)
    assert dataset.validation.labels.tolist() == [0, 0, 1, 1]
    again = load(watched)  # from the decoded cache
    assert again.fingerprint == dataset.fingerprint
    np.testing.assert_array_equal(again.validation.images, dataset.validation.images)


def test_a_validation_folder_beside_labelled_images(watched):
    for number in range(3):
        for name in ("dark", "light"):
            write(watched / "train" / name / f"{number}.png", plain(number))
    dataset = load(watched)  # class folders: the images beside them are none of theirs
    assert (len(dataset.train), len(dataset.validation)) == (6, 4)
    assert dataset.train.labelled


def test_a_class_of_validation_that_test_does_not_have_is_refused(watched):
    write(watched / "validation" / "drak" / "0.png", plain(1))
    with pytest.raises(ConfigError, match=r"validation/drak is no class of .*test; did .*'dark'"):
        read_folder(watched)


def test_images_without_class_folders_need_a_test_folder(work):
    write(work / "images" / "train" / "0.png", plain(1))
    with pytest.raises(ConfigError, match=r"has train/ but no test/; expected"):
        read_folder(work / "images")


def test_labels_of_which_some_are_missing_are_refused(tmp_path):
    images, labels = np.zeros((4, 4, 4, 3), np.uint8), np.array([0, 1, -1, 1])
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images, y_test=labels % 2)
    with pytest.raises(ConfigError, match="train labels run from -1 to 1"):
        source = {"_target_": "kd_cli.data.npz", "path": str(tmp_path / "a.npz")}
        load_dataset(node(source, (4, 4, 3), 2))


# --- losses ---

RNG = np.random.default_rng(7)
STUDENT, TEACHER = ({"logits": tf.constant(RNG.normal(0, 2, (5, 3)), tf.float32)} for _ in range(2))


@pytest.mark.parametrize("alpha", [0.0, tf.Variable(0.0)])
def test_at_alpha_0_losses_do_without_labels(alpha):
    labels = tf.constant([0, 1, 2, 0, 1])
    for loss, options in (
        (losses.hinton, {"temperature": 3.0, "t_squared": True}),
        (losses.hard, {}),
    ):
        known = loss(labels, STUDENT, TEACHER, alpha=alpha, **options)
        unknown = loss(None, STUDENT, TEACHER, alpha=alpha, **options)
        assert known.keys() == unknown.keys()
        for term in known:
            np.testing.assert_array_equal(known[term], unknown[term])


def test_above_alpha_0_a_loss_without_labels_is_not_finite():
    terms = losses.hard(None, STUDENT, TEACHER, alpha=tf.Variable(0.5))
    assert np.isnan(terms["hard"]).all() and np.isfinite(terms["teacher"]).all()


# --- commands ---


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train-student", "distill"])
def test_a_run_trains_on_the_labelled_share_alone(kd, work, small, command):
    kept = [w for w in small if command == "distill" or not w.startswith("teacher")]
    done = kd(command, *kept, "dataset.labelled_fraction=0.2", "batch_size=8")
    assert done.code == 0, done.err
    _, record = only_run(work / "outputs" / command)
    sizes = {key: record["dataset"][key] for key in ("train", "labelled", "validation", "test")}
    assert sizes == {"train": 28, "labelled": 28, "validation": 16, "test": 40}  # 4 x 7 of 4 x 36
    assert record["steps_done"] == 2 * 4
    if command == "distill":
        _, teacher = only_run(work / "outputs" / "teachers")
        assert teacher["dataset"]["train"] == 28
        # The teacher has seen no image that is held out, so it may teach with other labels.
        given = f"teacher_dir={record['teacher']['path']}"
        assert kd(command, *small[:2], "epochs=1", given).code == 0
        changed = kd(command, *small[:2], "epochs=1", given, "dataset.split_seed=1")
        assert "another split (" in changed.error and "split_seed 0" in changed.error


def test_images_without_labels_have_no_labelled_share(bare):
    with pytest.raises(ConfigError, match="labelled_fraction=0.5: the training images have no"):
        load(bare, labelled_fraction=0.5)


@pytest.fixture
def words(bare):
    """A teacher that tells dark from light by the sum of the pixels, and the data."""
    inputs = keras.Input((4, 4, 3))
    x = keras.layers.Rescaling(1 / 255, -0.5)(inputs)
    dense = keras.layers.Dense(2)
    model = keras.Model(inputs, dense(keras.layers.Flatten()(x)))
    dense.set_weights([np.array([[-0.5, 0.5]] * 48, np.float32), np.zeros(2, np.float32)])
    model.save(bare.parent / "teacher.keras")
    return [
        "dataset=image_folder", f"dataset.path={bare}", "dataset.image_shape=[4,4,3]",
        "epochs=30", "batch_size=8",
    ]  # fmt: skip


GIVEN = ("teacher.checkpoint=teacher.keras", "teacher.input.scale=1.0")


@pytest.mark.slow
@pytest.mark.parametrize("loss", [["loss=function_matching"], ["loss=hinton", "alpha=0"]])
def test_a_student_learns_from_the_teacher_alone(kd, work, words, loss):
    done = kd("distill", *words, *GIVEN, *loss, "learning_rate=0.01")
    assert done.code == 0, done.err
    assert "have no labels and there is no validation/" in done.err
    run, record = only_run(work / "outputs" / "distill")
    sizes = {key: record["dataset"][key] for key in ("train", "labelled", "validation", "test")}
    assert sizes == {"train": 24, "labelled": 0, "validation": 0, "test": 6}
    assert record["test"] == record["test_last"] and record["test"]["accuracy"] == 1
    assert "scratch student:   needs labels" in done.out and "train-student" not in done.out
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert all("accuracy" not in row["train"] for row in rows)
    assert rows[-1]["train"]["loss"] < rows[0]["train"]["loss"]
    assert "accuracy" not in done.err.split("student 1/30")[1].splitlines()[0]


def test_a_validation_folder_chooses_the_best_epoch(kd, work, words, watched):
    done = kd("distill", *words, *GIVEN, "loss=function_matching", "early_stopping.patience=2")
    assert done.code == 0, done.err
    assert "no validation/" not in done.err
    _, record = only_run(work / "outputs" / "distill")
    assert record["dataset"]["validation"] == 4 and "best" in record["validation"]


MISTAKES = {
    "teacher": (["train-teacher"], "the training images have no labels, which train-teacher needs"),
    "student": (["train-student"], "the training images have no labels, which train-student needs"),
    "no teacher": (["distill", "loss=function_matching"], "give one: teacher.checkpoint=FILE"),
    "hinton": (["distill", *GIVEN, "alpha=0.1"], "loss kd_cli.distillation.hinton needs them (not"),
    "hard": (["distill", *GIVEN, "loss=hard", "alpha=1"], "kd_cli.distillation.hard needs them"),
    "a loss of the user's": (
        ["distill", *GIVEN, "~loss.hinton", "+loss.mine._target_=my_loss.mine"],
        "the loss my_loss.mine needs them (",
    ),
    "patience": (
        ["distill", *GIVEN, "loss=function_matching", "early_stopping.patience=3"],
        "put labelled ones into validation/<class>/",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_what_needs_labels_is_one_line(kd, work, words, name):
    (work / "my_loss.py").write_text(
        "import tensorflow as tf\n"
        "def mine(labels, student, teacher):\n"
        "    return tf.gather(student['logits'], labels, batch_dims=1)\n"
    )
    typed, expected = MISTAKES[name]
    done = kd(typed[0], *words, *typed[1:])
    assert done.code == 2 and expected in done.error
    assert [p.name for p in (work / "outputs").iterdir()] == ["cache"]
    assert [p.name for p in (work / "outputs" / "cache").iterdir()] == ["data"]  # no logits


@pytest.mark.slow
def test_in_a_joint_sweep_only_the_points_that_need_labels_fail(kd, work, words):
    done = kd("--multirun", "hydra/launcher=joint", *words, *GIVEN, "alpha=0,0.5", "epochs=2")
    assert done.code == 1 and "kd_cli.distillation.hinton needs them" in done.err
    assert only_run(work / "outputs" / "sweeps")[1]["alpha"] == 0
