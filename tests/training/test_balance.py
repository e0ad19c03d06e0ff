"""Shares of the gradient in a run's record: those of the first step, and nothing is moved by them.

(The numbers themselves are tested with `kd explain`, which prints them.)
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_cli.commands import execute
from kd_cli.data.dataset import load_dataset
from kd_cli.distillation import losses
from kd_cli.networks.keras_file import load_keras
from kd_cli.runs import identity
from kd_cli.runs.asked import Run
from kd_cli.runs.session import Session
from kd_cli.training import train
from kd_cli.training.balance import Balance, balance
from tests.commands.test_explain import BATCH, CLASSES, SHAPE, batch, learner_of
from tests.conftest import plan_of


def test_the_learner_stays_as_it_was():
    keras.utils.set_random_seed(5)
    inputs = keras.Input(SHAPE)
    x = keras.layers.BatchNormalization()(keras.layers.Flatten()(inputs))
    outputs = keras.layers.Dense(CLASSES)(keras.layers.Dropout(0.4)(x))
    model = keras.Model(inputs, outputs)
    hyper = {"alpha": 0.5, "temperature": 2.0, "t_squared": True}
    learner = learner_of(losses.hinton, hyper, model)
    before = [variable.numpy() for variable in learner.variables]
    first = balance(learner, *batch())
    for kept, now in zip(before, learner.variables, strict=True):
        np.testing.assert_array_equal(kept, now.numpy())
    assert balance(learner, *batch()).norms.tolist() == first.norms.tolist()  # the same dropout
    model(batch()[0], training=True)
    assert any((a != b.numpy()).any() for a, b in zip(before, learner.variables, strict=True))


def of(norms, terms, cosine=0.25):
    cosines = np.full((len(norms), len(norms)), cosine)
    return Balance(list(terms), np.ones(len(norms)), np.array(norms), cosines, BATCH).to_record()


def test_what_is_recorded():
    assert of([3.0, 1.0], ["hard", "soft"]) == {
        "examples": BATCH,
        "shares": {"hard": 0.75, "soft": 0.25},
        "cosine": 0.25,
    }
    with_reg = of([2.0, 1.0, 1.0], ["hard", "soft", "regularisation"])
    assert with_reg["shares"]["regularisation"] == 0.25 and with_reg["cosine"] == 0.25
    assert of([2.0, 1.0, 1.0], ["a", "b", "c"])["cosine"] is None
    assert of([0.0, 1.0], ["hard", "soft"], np.nan)["cosine"] is None
    assert of([1.0, 1.0], ["soft", "regularisation"]) is None
    assert of([0.0, 0.0], ["hard", "soft"]) is None and of([np.nan, 1.0], ["a", "b"]) is None


@pytest.fixture
def distilled(work, small):
    """Trains a run with dropout."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((6, 6, 1))
    logits = keras.layers.Dense(4)(keras.layers.Flatten()(inputs))
    keras.Model(inputs, logits).save(work / "given.keras")
    words = [*small[:2], "teacher.checkpoint=given.keras", "epochs=2", "batch_size=32"]
    words += ["student.network.dropout=0.5"]

    def make(*more):
        plan = plan_of("distill", *words, *more)
        run = Run(plan, identity.run_dir(plan), [*words, *more])
        return execute.execute(run, Session(), table=False), run.out

    return make


@pytest.mark.slow
def test_a_run_has_them_and_is_not_disturbed(distilled, work, monkeypatch):
    record, _ = distilled()
    assert set(record.gradients["shares"]) == {"hard", "soft"}
    assert sum(record.gradients["shares"].values()) == pytest.approx(1)
    assert record.gradients["examples"] == 32 and -1 <= record.gradients["cosine"] <= 1

    def too_large(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "out of memory")

    monkeypatch.setattr(train, "balance", too_large)
    (work / "outputs").rename(work / "first")
    other, _ = distilled()
    assert other.gradients is None and "gradients" not in other.to_json()
    assert other.weights_sha256 == record.weights_sha256
    assert other.test_last == record.test_last


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("augment=flip_crop", "augment.padding=1")])
def test_agreement_on_training_images(distilled, npz, work, more):
    """By the saved networks, with NumPy; without augmentation the teacher's outputs are stored."""
    record, out = distilled(*more)
    with np.load(npz) as data:
        images, labels = data["x_train"], data["y_train"]
    found = record.fidelity.training
    assert found["images"] == 144  # of 160; the others are validation
    model = load_keras(out / "model.keras", "")
    teacher = load_keras(work / "given.keras", "")
    rows = load_dataset(plan_of("distill", f"dataset.path={npz}", "dataset=npz").dataset).train.rows
    pixels, labels = images[rows].astype(np.float32), labels[rows]
    z, t = np.array(model(pixels), np.float64), np.array(teacher(pixels / 255), np.float64)
    assert found["agreement"] == pytest.approx(np.mean(z.argmax(1) == t.argmax(1)))
    assert found["accuracy"] == pytest.approx(np.mean(z.argmax(1) == labels))

    def log_softmax(x):
        return (
            x
            - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True))
            - x.max(1, keepdims=True)
        )

    p, q = log_softmax(t), log_softmax(z)
    assert found["kl"] == pytest.approx((np.exp(p) * (p - q)).sum(1).mean(), rel=1e-4)
