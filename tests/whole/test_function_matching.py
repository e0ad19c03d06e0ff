"""The recipes of function matching: what is composed, and a few steps of each."""

import keras
import numpy as np
import pytest
import tensorflow_datasets

from kd_cli.config.check import check
from kd_cli.config.compose import compose
from kd_cli.files import read_rows
from kd_cli.runs.resolvers import register_resolvers
from tests.conftest import only_run


def test_the_flowers102_recipe_is_the_published_one():
    register_resolvers()
    plan = check(compose("distill", ["experiment=flowers102_function_matching"]))
    assert (plan.steps, plan.batch_size, plan.learning_rate) == (1992, 64, 0.003)
    assert plan.schedule.warmup_steps == 1500
    assert plan.loss.function_matching == {
        "_target_": "kd_cli.distillation.function_matching",
        "_partial_": True,
        "temperature": 10.0,
        "t_squared": False,
        "standardise": False,
    }
    optimizer = dict(plan.optimizer)
    assert optimizer.pop("_target_") == "kd_cli.training.AdamW"
    assert optimizer.pop("amsgrad") is False
    assert optimizer == {"weight_decay": 0.001, "decoupled": True, "clipnorm": 1.0}
    nodes = [node["_target_"].removeprefix("kd_cli.data.") for node in plan.augment.train]
    assert nodes == ["random_crop", "horizontal_flip", "mixup"]
    assert plan.augment.train[0]["size"] == 128 and plan.dataset.image_shape == [160, 160, 3]
    assert plan.augment.evaluate[0]["fraction"] == 0.875
    assert plan.view == "consistent"
    assert plan.student.input.scale == pytest.approx(1 / 255)
    assert list(plan.student.network.input_shape) == [128, 128, 3]
    assert (plan.teacher.network.depth, plan.teacher.network.width) == (101, 3)
    assert not plan.teacher.train_if_missing


def distilled(kd, work, *words):
    """The directory and the metrics of the run."""
    done = kd("distill", *words)
    assert done.code == 0, done.err
    return only_run(work / "outputs" / "distill")


def small_teacher(path, shape, classes):
    """A file without an input adapter of its own."""
    inputs = keras.Input(shape)
    x = keras.layers.AveragePooling2D(16)(inputs)
    x = keras.layers.Flatten()(x)
    keras.Model(inputs, keras.layers.Dense(classes)(x)).save(path)
    return path


@pytest.mark.slow
def test_the_flowers102_recipe_takes_steps(kd, work, monkeypatch):
    monkeypatch.setattr("kd_cli.data.sources._look_for", lambda urls: None)
    teacher = small_teacher(work / "teacher.keras", (128, 128, 3), 102)
    with tensorflow_datasets.testing.mock_data(num_examples=6):
        out, record = distilled(
            kd,
            work,
            "experiment=flowers102_function_matching",
            f"teacher.checkpoint={teacher}",
            f"data_dir={work}",
            "steps=3",
            "schedule.warmup_steps=1",
            "batch_size=2",
            "augment.preview=true",
        )
    assert record["steps_done"] == 3
    assert record["input"] == "pixels 0..255, [batch, 128, 128, 3]"
    assert record["teacher"]["outputs"].startswith("live (mixup")
    assert record["parameters"] == 23_773_798  # ResNet50V2 without its top, and 2,049 * 102
    assert (out / "augment.png").stat().st_size > 10_000
    assert np.load(out / "predictions.npz")["student_logits"].shape == (6, 102)


@pytest.mark.slow
def test_function_matching_on_real_flowers(kd, work, real_data):
    out, record = distilled(
        kd,
        work,
        "experiment=flowers12_function_matching",
        f"dataset.path={real_data / 'flowers12'}",
        "epochs=6",
        "schedule.warmup_epochs=1",
        "teacher.training.epochs=6",
        # Its moving averages follow too slowly for six epochs of 21 steps.
        "teacher.network.batch_norm=false",
        "student.network.batch_norm=false",
    )
    assert record["teacher"]["outputs"].startswith("live (mixup")
    # Twelve kinds, so chance is 0.083.
    assert record["teacher"]["test_accuracy"] > 0.2
    assert record["test"]["accuracy"] > 0.12
    rows = read_rows(out / "history.jsonl")
    assert rows[-1]["train"]["loss"] < 0.9 * rows[0]["train"]["loss"]


@pytest.mark.slow
def test_teacher_and_student_of_other_sizes_get_the_same_crop(kd, work, small):
    out, _ = distilled(
        kd,
        work,
        *small,
        "augment=flip_crop",
        "augment.padding=1",
        "teacher.input.size=12",
        "student.input.size=3",
        "student.input.scale=0.0078431",
        "student.input.offset=-1",
    )
    teacher_dir, _ = only_run(work / "outputs" / "teachers")
    crop = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 1)).astype(np.float32)
    for folder, size, scale, offset in (
        (teacher_dir, 12, 1 / 255, 0),
        (out, 3, 0.0078431, -1),
    ):
        model = keras.saving.load_model(folder / "model.keras")
        assert model.input_shape == (None, 6, 6, 1)
        network = model.layers[-1]
        assert network.input_shape == (None, size, size, 1)
        resized = keras.ops.image.resize(crop, (size, size))
        np.testing.assert_allclose(
            model(crop), network(resized * scale + offset), rtol=1e-4, atol=1e-5
        )
