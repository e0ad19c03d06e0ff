"""Teachers: who is refused, who is warned about, with which numbers, and where."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from omegaconf import OmegaConf

from kd_cli.config.check import check
from kd_cli.config.compose import compose
from kd_cli.config.inputs import Images
from kd_cli.config.plans import scratch_plan
from kd_cli.data.dataset import Dataset, Split
from kd_cli.distillation import teacher_checks
from kd_cli.errors import ConfigError
from kd_cli.runs import identity
from kd_cli.runs.resolvers import register_resolvers
from tests.conftest import only_run, read_record
from tests.records import content

# A given teacher and a student's few epochs, on the quarters of conftest.
QUARTERS = ("epochs=2", "batch_size=32")


def quarters(path: Path, *, blind: bool = False, head: str | None = None) -> Path:
    """Writes a network that tells the bright quarter exactly, given pixels in 0..1.

    Each hidden unit is tanh(60 * (mean of a quarter - 0.35)); the means are about 0.24, and 0.47
    in the bright one. Other scales saturate it or leave it near 0.

    Args:
        path: A .keras file.
        blind: To the column, so that half of the images are right.
        head: What comes after the logits: `softmax` as a layer, `activation`, or `operations`.
    """
    inputs = keras.Input((6, 6, 1))
    hidden = keras.layers.Dense(4, activation="tanh")
    logits = keras.layers.Dense(4)
    outputs = logits(hidden(keras.layers.Flatten()(inputs)))
    kernel = np.zeros((6, 6, 4))
    for label in range(4):
        row, column = 3 * (label // 2), 3 * (label % 2)
        kernel[row : row + 3, column : column + 3, label] = 60 / 9
    hidden.set_weights([kernel.reshape(36, 4), np.full(4, -60 * 0.35)])
    mixing = np.kron(np.eye(2), np.ones((2, 2))) if blind else np.eye(4)
    logits.set_weights([3 * mixing, np.zeros(4)])
    if head == "softmax":
        outputs = keras.layers.Softmax()(outputs)
    elif head == "activation":
        outputs = keras.layers.Activation("softmax")(outputs)
    elif head == "operations":
        powers = keras.ops.exp(outputs)
        outputs = powers / keras.ops.sum(powers, axis=-1, keepdims=True)
    keras.Model(inputs, outputs).save(path)
    return path


def dataset(n: int = 100, names: tuple[str, ...] = ("a", "b", "c", "d"), **changes) -> Dataset:
    """`n` validation and twice as many test images, equally many of each class."""
    labels = np.tile(np.arange(len(names)), 3 * n)
    split = [
        Split(np.zeros((len(labels), 6, 6, 1), np.uint8), labels, rows)
        for rows in (np.arange(5), np.arange(n), np.arange(2 * n))
    ]
    made = {"fingerprint": "pixels", "held_out_fingerprint": "rows", "validation": split[1]}
    made |= {"split_fingerprint": "split"} | changes
    return Dataset("quarters", Images((6, 6, 1)), names, split[0], test=split[2], **made)


def stub(folder: Path, record: dict | None = None) -> SimpleNamespace:
    """A teacher with weights `w` whose file lies beside `record`."""
    folder.mkdir(exist_ok=True)
    if record is not None:
        (folder / "metrics.json").write_text(json.dumps(record))
    origin = {"file": str(folder / "model.keras")}
    return SimpleNamespace(path=folder, origin=origin, weights_sha256="w")


def record_of(data: Dataset, on_validation: float, on_test: float, **changes) -> dict:
    described = {
        "class_names": list(data.class_names),
        "test": len(data.test),
        "fingerprint": data.fingerprint,
        "held_out_fingerprint": data.held_out_fingerprint,
    }
    best = {"accuracy": on_validation, "nll": 0.5, "epoch": 2}
    return content(
        weights_sha256="w",
        dataset=described | changes,
        validation={"best": best, "last": best},
        test={"accuracy": on_test},
    )


def known(accuracy: float, test: float | None = None, nll: float = 0.5) -> dict:
    score = {"accuracy": accuracy, "nll": nll}
    return {"validation": score, "test": {**score, "accuracy": accuracy if test is None else test}}


@pytest.fixture
def plan(work, npz):
    register_resolvers()
    typed = ["dataset=npz", f"dataset.path={npz}"]
    return check(compose("distill", typed), typed)


def test_an_accuracy_at_chance(plan, work):
    teacher, data = stub(work / "file"), dataset(100)
    limit = 0.25 + 2 * math.sqrt(0.25 * 0.75 / 100)  # 0.3366
    (line,) = teacher_checks.warnings(teacher, plan, data, known(0.33))
    assert "validation accuracy 0.3300 is at chance (0.2500" in line and f"{limit:.4f}" in line
    assert teacher_checks.warnings(teacher, plan, data, known(0.34)) == []
    # Test has twice the images and judges only where there is no validation.
    assert teacher_checks.warnings(teacher, plan, data, known(0.34, test=0.25)) == []
    (line,) = teacher_checks.warnings(
        teacher, plan, dataset(100, validation=None), {"test": known(0.3)["test"]}
    )
    assert "test accuracy 0.3000 is at chance" in line


def test_a_likelihood_worse_than_even_guesses(plan, work):
    teacher, data = stub(work / "file"), dataset(100)
    (line,) = teacher_checks.warnings(teacher, plan, data, known(0.9, nll=1.4))
    assert "NLL 1.4000 is above that of even guesses (1.3863 = ln 4)" in line
    assert teacher_checks.warnings(teacher, plan, data, known(0.9, nll=1.38)) == []


@pytest.mark.parametrize("sweep", [None, "mine"])
def test_below_the_scratch_student(plan, work, sweep):
    teacher, data = stub(work / "file"), dataset(100)
    plan = OmegaConf.merge(plan, {"sweep": sweep})
    place = identity.run_dir if sweep is None else identity.point_dir
    scratch = place(scratch_plan(plan))
    scratch.mkdir(parents=True)

    def write(**changes):
        record = record_of(data, 0.8, 0.7, **changes)
        (scratch / "metrics.json").write_text(json.dumps(record))

    write()
    (line,) = teacher_checks.warnings(teacher, plan, data, known(0.79, test=0.9))
    assert "validation accuracy 0.7900 is below the scratch student's 0.8000" in line
    assert str(scratch) in line
    assert teacher_checks.warnings(teacher, plan, data, known(0.8, test=0.1)) == []
    for other in ({"fingerprint": "others"}, {"held_out_fingerprint": "others"}):
        write(**other)
        assert teacher_checks.warnings(teacher, plan, data, known(0.79)) == []
    (scratch / "metrics.json").write_text("{")
    (line,) = teacher_checks.warnings(teacher, plan, data, known(0.79))
    assert f"not compared with the scratch student: {scratch}/metrics.json is damaged" in line


@pytest.mark.parametrize(
    ("n", "before", "now", "warned"),
    [
        (10_000, 0.95, 0.931, False),  # two points count where the error is small
        (10_000, 0.95, 0.929, True),
        (100, 0.95, 0.89, False),  # three standard errors, 7.1 points, where it is large
        (100, 0.95, 0.87, True),
        (40, 1.0, 0.975, False),  # one image of forty is no alarm
        (40, 1.0, 0.875, True),
        (100, 0.95, 0.99, False),
    ],
)
def test_far_below_its_own_record(plan, work, n, before, now, warned):
    data = dataset(n)
    teacher = stub(work / "run", record_of(data, before, 0.1))
    found = teacher_checks.warnings(teacher, plan, data, known(now, test=0.1))
    assert len(found) == warned
    if warned:
        assert (
            f"validation accuracy {now:.4f} is {100 * (before - now):.1f} points below" in found[0]
        )
        assert f"the {before:.4f} of its own record" in found[0]


def test_its_own_record_is_compared_on_the_same_images(plan, work):
    data = dataset(1000)
    # Other training rows: validation is another split then, test the same.
    teacher = stub(work / "run", record_of(data, 0.95, 0.9, held_out_fingerprint="others"))
    (line,) = teacher_checks.warnings(teacher, plan, data, known(0.5, test=0.8))
    assert "test accuracy 0.8000 is 10.0 points below the 0.9000" in line
    assert teacher_checks.warnings(teacher, plan, data, known(0.5, test=0.9)) == []
    for other in ({"held_out_fingerprint": "others", "test": 7}, {"fingerprint": "others"}):
        teacher = stub(work / "run", record_of(data, 0.95, 0.9, **other))
        assert teacher_checks.warnings(teacher, plan, data, known(0.5)) == []
    # A record of other weights, or what is none, says nothing.
    altered = record_of(data, 0.95, 0.9) | {"weights_sha256": "other"}
    assert teacher_checks.recorded(stub(work / "run", altered)) is None
    for foreign in ("accuracy 0.9", "[1, 2]", '{"weights_sha256": "w"}'):
        (work / "run" / "metrics.json").write_text(foreign)
        assert teacher_checks.recorded(stub(work / "run")) is None
        assert teacher_checks.warnings(stub(work / "run"), plan, data, known(0.5)) == []


@pytest.mark.parametrize(
    ("theirs", "ours", "refused"),
    [
        ("abcd", "abcd", ""),
        ("abcd", "acbd", "'b' is its class 1, in quarters it is class 2"),
        ("abcd", "xbad", "'a' is its class 0, in quarters it is class 2"),
        ("wxyz", "abcd", ""),  # other names may be other words for the same
        ("0123", "abcd", ""),  # numbers are no names
        ("abcd", "0123", ""),
        ("0123", "1234", ""),
        ("0123", "1023", "'0' is its class 0, in quarters it is class 1"),
    ],
)
def test_the_order_of_classes(plan, work, theirs, ours, refused):
    data = dataset(names=tuple(ours))
    right = record_of(data, 0.9, 0.9, class_names=list(theirs))
    teacher = stub(work / "run", right)
    if refused:
        with pytest.raises(ConfigError, match=refused):
            teacher_checks.refuse(teacher, data)
        return
    teacher_checks.refuse(teacher, data)
    lines = teacher_checks.warnings(teacher, plan, data, known(0.9))
    if theirs == "wxyz":
        assert "other classes (its class 0 is 'w', in quarters 'a')" in lines.pop()
    assert lines == []


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("activation", "its softmax is taken off, so that it gives logits"),
        ("exported", "it ends in a softmax: its log-probabilities are its logits"),
    ],
)
def test_a_teacher_that_ends_in_a_softmax_teaches(kd, work, small, npz, head, said):
    """As one line says; what it teaches are its probabilities, by any of the two ways."""
    name = "mine.keras"
    path = quarters(work / name, head="activation")
    model = keras.saving.load_model(path)
    if head == "exported":
        name = "published"
        model.export(work / name, verbose=False)
    done = kd("distill", *small[:2], *QUARTERS, f"teacher.checkpoint={name}")
    assert done.code == 0, done.err
    assert [f"the teacher {name}: {said}" in line for line in done.err.splitlines()].count(
        True
    ) == 1
    run, _ = only_run(work / "outputs" / "distill")
    with np.load(npz) as data, np.load(run / "predictions.npz") as saved:
        logits = saved["teacher_logits"].astype(np.float64)
        expected = model.predict(data["x_test"] / 255.0, verbose=0)
    powers = np.exp(logits)
    np.testing.assert_allclose(powers / powers.sum(axis=1, keepdims=True), expected, atol=1e-5)


@pytest.mark.slow
def test_a_softmax_in_a_teacher_directory_is_refused(kd, work, small):
    """With the very weights of the record: only the graph was altered."""
    assert kd("train-teacher", *small[:4], "epochs=2").code == 0
    directory, _ = only_run(work / "outputs")
    model = keras.saving.load_model(directory / "model.keras")
    probabilities = keras.layers.Softmax()(model.output)
    keras.Model(model.input, probabilities).save(directory / "model.keras")
    done = kd("distill", *small)
    assert done.code == 2 and "the network ends in a softmax" in done.error
    assert not (work / "outputs" / "distill").exists()


@pytest.mark.slow
def test_another_order_of_classes_in_a_run_s_file_is_refused(kd, work, small, npz):
    (work / "named_classes.py").write_text(
        "import dataclasses\n"
        "from kd_cli.data import npz\n"
        "def source(path, scale, offset, names):\n"
        "    arrays = npz(path, scale, offset)\n"
        "    return dataclasses.replace(arrays, class_names=tuple(names), fingerprint='')\n"
    )
    words = [*small[:2], "dataset.source._target_=named_classes.source"]
    first = ["+dataset.source.names=[north,east,south,west]", "teacher=mlp", "epochs=1"]
    assert kd("train-teacher", *words, *first).code == 0
    directory, _ = only_run(work / "outputs")
    given = f"teacher.checkpoint={directory}/model.keras"
    other = "+dataset.source.names=[north,south,east,west]"
    done = kd("distill", *words, other, *QUARTERS, given)
    assert done.code == 2
    assert "another order of classes ('east' is its class 1, in npz it is class 2)" in done.error
    assert not (work / "outputs" / "distill").exists()
    assert not (work / "outputs" / "cache" / "logits").exists()


@pytest.mark.slow
def test_a_file_with_the_wrong_input_scale_is_warned_about(kd, work, small):
    """In the terminal and in metrics.json, and once after the run was continued."""
    quarters(work / "mine.keras")
    words = ["distill", *small[:2], *QUARTERS, "teacher.checkpoint=mine.keras"]
    words.append("teacher.input.scale=1")  # saturates every unit: all classes alike
    done = kd(*words)
    assert done.code == 0
    wrong, record = only_run(work / "outputs" / "distill")
    said = [line for line in done.err.splitlines() if "warning: the teacher" in line]
    assert len(said) == 1 and "validation accuracy 0.2500 is at chance (0.2500" in said[0]
    first = record["warnings"]
    assert [f"kd: warning: {line}" for line in first if "the teacher" in line] == said

    (wrong / "metrics.json").unlink()  # as a kill just before the end leaves it
    again = kd(*words)
    assert "continuing after epoch 2" in again.err
    assert read_record(wrong)["warnings"] == first
    assert "is finished" in kd(*words).err and read_record(wrong)["warnings"] == first


@pytest.mark.slow
def test_a_file_with_the_right_input_scale_is_not(kd, work, small):
    quarters(work / "mine.keras")
    words = ["distill", *small[:2], *QUARTERS, "teacher.checkpoint=mine.keras"]
    assert kd(*words).code == 0
    _, record = only_run(work / "outputs" / "distill")
    assert record["teacher"]["quality"]["validation"]["accuracy"] == 1.0
    assert not any("the teacher" in line for line in record["warnings"])


@pytest.mark.slow
def test_a_teacher_below_the_scratch_student_is_warned_about(kd, work, small):
    quarters(work / "mine.keras", blind=True)  # half of the images right
    budget = ["epochs=20", "learning_rate=0.03"]
    assert kd("train-student", *small[:2], *budget).code == 0
    scratch, alone = only_run(work / "outputs" / "train-student")
    assert alone["validation"]["best"]["accuracy"] > 0.5
    done = kd("distill", *small[:2], *budget, "teacher.checkpoint=mine.keras")
    assert done.code == 0
    _, record = only_run(work / "outputs" / "distill")
    (line,) = [line for line in record["warnings"] if "the teacher" in line]
    best = alone["validation"]["best"]["accuracy"]
    assert f"validation accuracy 0.5000 is below the scratch student's {best:.4f}" in line
    assert str(scratch.relative_to(work)) in line and line in done.err


@pytest.mark.slow
def test_an_input_adapter_put_twice_is_warned_about(kd, work, small):
    """A run's network without its adapter's mark, beside the run's own record."""
    teacher = ["teacher=mlp", "teacher.network.units=[16]", "teacher.network.activation=tanh"]
    assert kd("train-teacher", *small[:2], *teacher, "epochs=30", "learning_rate=0.03").code == 0
    directory, own = only_run(work / "outputs")
    best = own["validation"]["best"]["accuracy"]
    assert best > 0.9
    model = keras.saving.load_model(directory / "model.keras")
    (work / "copied").mkdir()
    shutil.copy(directory / "metrics.json", work / "copied")
    inputs = keras.Input((6, 6, 1))
    scaled = keras.layers.Rescaling(1 / 255, name="mine")(inputs)
    keras.Model(inputs, model.layers[-1](scaled)).save(work / "copied" / "model.keras")
    words = ["distill", *small[:2], *QUARTERS, "teacher.checkpoint=copied/model.keras"]
    assert kd(*words, "teacher.input.scale=1").code == 0
    right, record = only_run(work / "outputs" / "distill")
    assert not any("the teacher" in line for line in record["warnings"])
    shutil.rmtree(right)
    assert kd(*words).code == 0  # 1/255 twice
    _, record = only_run(work / "outputs" / "distill")
    now = record["teacher"]["quality"]["validation"]["accuracy"]
    assert any(
        f"validation accuracy {now:.4f} is {100 * (best - now):.1f} points below" in line
        for line in record["warnings"]
    )


@pytest.mark.slow
def test_each_point_of_a_joint_sweep_has_its_own_warnings(kd, work, small):
    """Only one of two seeds has a scratch student to be compared with."""
    quarters(work / "mine.keras", blind=True)
    budget = ["epochs=20", "learning_rate=0.03", "data_seed=0"]
    assert kd("train-student", *small[:2], *budget, "init_seed=1").code == 0
    points = ["--multirun", "hydra/launcher=joint", "init_seed=1,2"]
    done = kd("distill", *small[:2], *budget, "teacher.checkpoint=mine.keras", *points)
    assert done.code == 0, done.err
    lines = {
        record["config"]["init_seed"]: [line for line in record["warnings"] if "scratch" in line]
        for record in map(read_record, (work / "outputs" / "sweeps").glob("*/*/"))
        if record
    }
    assert len(lines[1]) == 1 and lines[2] == []
