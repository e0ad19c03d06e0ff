"""`checkpoint.every`: the networks of chosen epochs are those that were validated."""

import keras
import numpy as np
import pytest

from kd_cli.files import read_rows
from kd_cli.training import loop
from tests.conftest import assert_refused, only_run


@pytest.fixture
def words(small) -> list[str]:
    return ["train-student", *small[:2], "epochs=5"]


def kept(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["ema=0.9"]])
def test_they_give_the_accuracies_of_their_epochs(kd, work, words, npz, more):
    """The validation images by hand: those that a run's predictions name."""
    done = kd(*words, "checkpoint.every=2", "learning_rate=0.01", *more)
    assert done.code == 0, done.err
    run, record = only_run(work / "outputs")
    assert kept(run) == ["epoch-2.keras", "epoch-4.keras"]
    best = record["validation"]["best"]["epoch"]
    whole = keras.saving.load_model(run / "model.keras")
    with np.load(run / "predictions.npz") as arrays, np.load(npz) as data:
        labels, logits = arrays["validation_labels"], arrays["validation_student_logits"]
        images = data["x_train"]
    # Rows of the training images that have these logits.
    every = whole.predict(images, verbose=0)
    rows = [int(np.abs(every - one).sum(axis=1).argmin()) for one in logits]
    for row in read_rows(run / "history.jsonl"):
        if row["epoch"] in (2, 4, best):
            name = f"checkpoints/epoch-{row['epoch']}" if row["epoch"] != best else "model"
            found = keras.saving.load_model(run / f"{name}.keras").predict(images, verbose=0)[rows]
            right = (found.argmax(axis=1) == labels).mean()
            assert right == pytest.approx(row["validation"]["accuracy"])


@pytest.mark.slow
def test_a_run_that_kept_none_says_so(kd, work, words):
    assert kd(*words).code == 0
    run, _ = only_run(work / "outputs")
    done = kd(*words, "checkpoint.every=1")
    assert done.code == 0 and not (run / "checkpoints").exists()
    text = "checkpoints has no epoch-1.keras, epoch-2.keras, epoch-3.keras, ...: it was trained"
    assert text in done.err and "rerun=true" in done.err
    assert "has no" not in kd(*words).err


@pytest.mark.slow
def test_a_stopped_run_keeps_the_rest(kd, work, words, monkeypatch):
    genuine = loop.Training.end_epoch

    def end_epoch(self, *args):
        row = genuine(self, *args)
        if row["epoch"] == 2:
            raise KeyboardInterrupt
        return row

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "end_epoch", end_epoch)
        assert kd(*words, "checkpoint.every=2").code == 130
    done = kd(*words, "checkpoint.every=1")
    assert done.code == 0
    run, _ = only_run(work / "outputs")
    assert kept(run) == [f"epoch-{epoch}.keras" for epoch in (2, 3, 4, 5)]
    assert "has no epoch-1.keras: it was trained" in done.err


@pytest.mark.parametrize(
    ("command", "more"), [("train-student", []), ("distill", ["teacher.training.epochs=3"])]
)
def test_more_epochs_than_there_are_is_one_line(kd, work, command, more):
    typed = [command, "dataset=digits", "epochs=5", "checkpoint.every=6", *more]
    text = "checkpoint.every=6 changes nothing: the training ends after epoch 5"
    assert_refused(kd, work, typed, text)
