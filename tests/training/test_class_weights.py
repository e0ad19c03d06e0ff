"""Class weights: their formula against scikit-learn, and what a plan says of them."""

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from kd_cli.config.plans import scratch_plan, teacher_plan
from kd_cli.data.dataset import load_dataset
from kd_cli.distillation.losses import formula, hinton
from kd_cli.errors import ConfigError
from kd_cli.runs.identity import run_id, run_spec
from kd_cli.training.assembly import check_labels, parts
from kd_cli.training.class_weights import balanced, of_plan
from tests.conftest import assert_refused, plan_of, read_record

LABELS = np.repeat([0, 2, 3], [1, 7, 40])


def test_balanced_equals_scikit_learn():
    found = balanced(LABELS, 5)
    expected = compute_class_weight("balanced", classes=np.array([0, 2, 3]), y=LABELS)
    np.testing.assert_allclose(found[[0, 2, 3]], expected, rtol=1e-12)
    assert found[[1, 4]].tolist() == [0, 0]
    assert found[LABELS].mean() == pytest.approx(1)


def test_the_weights_are_of_the_rows_that_are_trained_on():
    plan = plan_of("distill", "dataset.labelled_fraction=0.2", "class_weights=balanced")
    dataset = load_dataset(plan.dataset)
    own = dataset.train.labels[dataset.train.rows]
    own = own[own >= 0]  # the others have no label
    assert len(own) < len(dataset.train)
    expected = compute_class_weight("balanced", classes=np.arange(10), y=own)
    np.testing.assert_allclose(of_plan(plan, dataset), expected)
    typed = plan_of("distill", "class_weights=[1,2,3,4,5,6,7,8,9,0]")
    assert of_plan(typed, dataset) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert of_plan(plan_of("distill"), dataset) is None


def test_they_are_part_of_a_run_and_of_its_scratch_student():
    plan = plan_of("distill", "class_weights=balanced")
    assert run_id(plan) != run_id(plan_of("distill"))
    assert run_spec(plan)["class_weights"] == "balanced"
    plain = plan_of("distill")
    assert "class_weights" not in {**run_spec(plain), **plain.loss.hinton}
    scratch = plan_of("train-student", "class_weights=balanced")
    assert run_id(scratch_plan(plan)) == run_id(scratch) != run_id(plan_of("train-student"))
    equal = [run_id(plan_of("distill", f"class_weights={[1.0, *[2] * 9]}".replace(" ", "")))]
    assert equal == [run_id(plan_of("distill", "class_weights=[1,2,2,2,2,2,2,2,2,2.0]"))]
    # The teacher has its own.
    assert run_id(teacher_plan(plan)) == run_id(teacher_plan(plan_of("distill")))
    own = plan_of("distill", "teacher.training.class_weights=balanced")
    trained = plan_of("train-teacher", "class_weights=balanced")
    assert run_spec(teacher_plan(own)) == run_spec(trained)


def test_the_loss_gets_them_beside_its_own_keywords():
    plan = plan_of("distill", "class_weights=[1,2,3,4,5,6,7,8,9,0]", "alpha=0.3")
    (loss,) = parts(plan, load_dataset(plan.dataset), "student").objective.parts
    assert loss.loss is hinton
    assert loss.plain == {
        "alpha": 0.3,
        "temperature": 4.0,
        "t_squared": True,
        "standardise": False,
        "class_weights": [1, 2, 3, 4, 5, 6, 7, 8, 9, 0],
    }
    assert formula("kd_cli.distillation.hinton", loss.plain) == (
        "0.3 * w[label] * CE(labels, student) + 0.7 * T^2 * KL(teacher/T || student/T), T = 4"
    )


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["distill", "class_weights=even"], ["class_weights=even must be balanced, or a list"]),
        (["distill", "class_weights=[1,2]"], ["class_weights=[1, 2] must be a list of 10 numbers"]),
        (["train-student", "class_weights=[1,-1]"], ["must be balanced, or a list"]),
        (["train-student", "class_weights=[0,0,0,0,0,0,0,0,0,0]"], ["not all 0"]),
        (["train-student", "class_weights=[a,b]"], ["must be balanced, or a list"]),
        (["train-student", "+class_weights.a=3"], ["must be a list of 10 numbers"]),
        (["train-student", "class_weights=2"], ["must be balanced, or a list"]),
        (["train-teacher", "class_weights=[1]"], ["must be a list of 10 numbers"]),
        (
            ["distill", "teacher.training.class_weights=[1]"],
            ["teacher.training.class_weights=[1] must be a list of 10 numbers"],
        ),
        (
            ["distill", "loss=function_matching", "class_weights=balanced"],
            ["does not use class_weights", "loss=function_matching does not use it"],
        ),
        (
            ["self-train", "class_weights=balanced"],
            ["does not use class_weights", "pseudo.balance"],
        ),
    ],
)
def test_mistakes_are_one_line(kd, work, words, texts):
    assert_refused(kd, work, words, *texts)


def test_images_without_labels_take_no_weights(tmp_path):
    plan = plan_of("distill", "class_weights=balanced", "teacher.checkpoint=t.keras", "alpha=0")
    dataset = load_dataset(plan.dataset)
    dataset.train.labels[:] = -1
    with pytest.raises(
        ConfigError, match="class_weights=balanced: .* have no labels; leave it out"
    ):
        check_labels(plan, dataset)


def test_a_run_records_its_weights_and_balanced_accuracy(kd, work, npz, small):
    arrays = dict(np.load(npz))
    rows = np.concatenate([np.flatnonzero(arrays["y_train"] == 0)[:8], *[
        np.flatnonzero(arrays["y_train"] == label) for label in (1, 2, 3)
    ]])  # fmt: skip
    arrays |= {"x_train": arrays["x_train"][rows], "y_train": arrays["y_train"][rows]}
    np.savez(npz, **arrays)
    words = [word for word in small if not word.startswith("teacher")]
    done = kd("train-student", *words, "class_weights=balanced", "epochs=1")
    assert done.code == 0, done.err
    record = read_record(next(work.rglob("metrics.json")).parent)
    counts = np.array(record["dataset"]["train_per_class"])
    np.testing.assert_allclose(record["class_weights"], counts.sum() / (4 * counts))
    assert record["loss"] == "w[label] * CE(labels, student)"
    per_class = record["quality"]["test"]["per_class"]
    assert record["quality"]["test"]["balanced_accuracy"] == pytest.approx(np.mean(per_class))
    assert "balanced test, %" in done.out
