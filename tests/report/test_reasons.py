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


def fits(training: float, test: float, right: float | None = 0.9):
    def change(run):
        seen = {"images": 100, "agreement": training, "kl": 0.1, "accuracy": right}
        run["fidelity"] = {"training": seen, "test": {"agreement": test}}

    return change


def test_a_student_that_underfits_or_memorises():
    short = "The student agrees with the teacher on only 80.0 % of the training images"
    assert f"{short}: it underfits; try more steps" in told(fits(0.8, 0.7))
    assert "underfits" in told(fits(0.949, 0.9)) and "underfits" not in told(fits(0.951, 0.9))
    assert f"{short}: it underfits" in told(fits(0.8, 0.7, None))  # no image has a label
    labels = told(fits(0.8, 0.7, 0.97))
    assert f"{short} and has the label on 97.0 %: it follows the labels" in labels
    assert "underfits" not in labels
    known = (
        "agrees with the teacher on 99.0 % of the training images, but on 85.0 % of the test "
        "images: it has memorised the former; try more images"
    )
    assert known in told(fits(0.99, 0.85)) and "underfits" not in told(fits(0.99, 0.85))
    assert "memorised" in told(fits(0.96, 0.859)) and "memorised" not in told(fits(0.96, 0.861))
    # The training images say what to do, so the sentence about test does not.
    assert "it does not reproduce its teacher." in told(fits(0.99, 0.7))
    assert "the training images" not in told()  # runs of before


def pulls(cosine: float | None = 0.5, loss=None, **shares: float):
    def change(run):
        run["gradients"] = {"examples": 32, "shares": shares, "cosine": cosine}
        run["config"]["loss"] = {**run["config"]["loss"], **(loss or {})}

    return change


def test_a_teacher_s_term_without_weight():
    sentence = (
        "The teacher's term has 4 % of the gradient at the first step and points where the "
        "labels' does (cosine 0.95): it can hardly change anything; lower alpha, or raise the "
        "temperature."
    )
    assert sentence in told(pulls(0.95, hard=0.96, soft=0.04))
    elsewhere = told(pulls(0.89, hard=0.96, soft=0.04))
    assert "at the first step: it can hardly change anything" in elsewhere
    assert "lower alpha, or type t_squared=true." in told(
        pulls(loss={"t_squared": False}, hard=0.96, soft=0.04)
    )
    assert "at the first step: it can hardly change anything; give it a larger weight." in told(
        pulls(None, loss={"alpha": 0.0}, hard=0.95, a=0.02, b=0.03)
    )
    assert "has 9.9 % of the gradient" in told(pulls(hard=0.901, soft=0.099))
    assert "of the gradient" not in told(pulls(hard=0.9, soft=0.1))
    # A network's own losses are not the teacher's.
    assert "has 9.5 % of" in told(pulls(hard=0.5, soft=0.095, regularisation=0.405))
    assert "of the gradient" not in told(pulls(near=0.99, far=0.01))  # which is the labels'?
    assert "of the gradient" not in told()  # runs of before


def test_runs_of_before_beside_new_ones():
    def some(run):
        if run["seed"] != 1:
            fits(0.8, 0.7)(run)
            pulls(hard=0.96, soft=0.04)(run)

    assert "underfits" not in told(some) and "of the gradient" not in told(some)


def test_the_last_epoch_is_the_best():
    assert "last epoch" not in told()
    assert "Every run was best at its last epoch" in told(lambda run: run.update(epochs_done=3))


def test_calibration():
    def change(run):
        run["teacher"]["quality"] = {"test": {"ece": 0.03}}
        run["quality"]["test"]["ece"] = 0.05

    sentence = "in points: teacher 3.0, student 5.0, scratch student 12.5."
    assert sentence in told(change)
