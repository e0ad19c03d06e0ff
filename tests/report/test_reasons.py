"""Each sentence about a comparison, on a case made for it."""

import pytest

from kd_cli.report import groups
from kd_cli.report.reasons import reasons
from kd_cli.runs.finished import FinishedRun
from tests.report.test_build import record


def told(change=lambda run: None, scratch=0.8) -> str:
    """The sentences about three pairs: scratch students of this accuracy, a teacher of 0.9."""
    runs = [record("train-student", seed, scratch, validation=0.8) for seed in range(3)]
    for seed in range(3):
        run = record("distill", seed, 0.83, validation=0.8)
        run["dataset"] |= {"train": 100, "labelled": 100}
        run["epochs_done"] = 5
        run["fidelity"] = {"test": {"agreement": 0.92}}
        change(run)
        runs.append(run)
    every, _ = groups.grouped([FinishedRun(run) for run in runs])
    found = groups.compared(every)
    (group,) = (one for one in every if one.kind == groups.DISTILLED)
    return " ".join(reasons(group, found[group.key]))


@pytest.mark.parametrize(
    ("scratch", "sentence"),
    [
        (0.80, "The teacher is 10.0 points above the scratch student on test."),
        (0.89, "only 1.0 points above the scratch student on test: it knows little"),
        (0.95, "5.0 points below the scratch student on test: train it better"),
    ],
)
def test_the_teacher_s_lead(scratch, sentence):
    assert sentence in told(scratch=scratch)


def test_more_labels():
    def change(run):
        run["teacher"]["labelled"] = 100
        run["dataset"]["labelled"] = 7

    assert "The teacher learned from 100 labels, the student has 7: its outputs stand in" in told(
        change
    )
    assert "stand in for labels" not in told(lambda run: run["teacher"].update(labelled=100))


def certain(right: float, entropy: float):
    def change(run):
        said = {"images": 100, "accuracy": right, "entropy": 0.0, "entropy_at_temperature": entropy}
        run["teacher"]["on_training"] = said

    return change


def test_outputs_that_are_nearly_the_labels():
    sentence = (
        "The teacher is right on 99.9 % of the training images, and its mean entropy at T 4 is "
        "0.02 nats: its outputs are nearly the labels; try augmentation"
    )
    assert sentence in told(certain(0.999, 0.02))
    assert "nearly the labels" not in told(certain(0.97, 0.02))
    # Of three classes the largest entropy is ln 3 = 1.099, and a twentieth of it 0.0549.
    assert "nearly the labels" in told(certain(0.999, 0.0548))
    assert "nearly the labels" not in told(certain(0.999, 0.0551))

    def few(run):
        certain(0.999, 0.02)(run)
        run["dataset"]["labelled"] = 7

    assert "nearly the labels" not in told(few)


def test_whether_the_student_follows():
    assert "decides as its teacher on 92.0 % of the test images." in told()
    sentence = "on only 84.0 % of the test images, and the teacher is right on 90.0 %: it does not"
    assert sentence in told(lambda run: run.update(fidelity={"test": {"agreement": 0.84}}))


def test_the_last_epoch_is_the_best():
    assert "last epoch" not in told()
    assert "Every run was best at its last epoch" in told(lambda run: run.update(epochs_done=3))


def test_calibration():
    def change(run):
        run["teacher"]["quality"] = {"test": {"ece": 0.03}}
        run["quality"]["test"]["ece"] = 0.05

    sentence = "in points: teacher 3.0, student 5.0, scratch student 12.5."
    assert sentence in told(change)
