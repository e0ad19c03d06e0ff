"""`kd explain`: each number against an independent computation, and nothing left behind."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from omegaconf import OmegaConf

from kd_cli.commands.explain import optimizer_line, schedule_line
from kd_cli.commands.explain_losses import loss_line, remarks
from kd_cli.config.check import check
from kd_cli.config.compose import compose
from kd_cli.distillation import losses
from kd_cli.distillation.objective import Objective, of_plan
from kd_cli.runs.resolvers import register_resolvers
from kd_cli.training.balance import Balance, balance
from kd_cli.training.schedules import cosine, warmup_cosine
from kd_cli.training.step import Learner
from tests.conftest import only_run

BATCH, SHAPE, CLASSES = 7, (2, 3, 1), 5


def learner_of(loss, hyper, model=None, optimizer=None) -> Learner:
    if model is None:
        keras.utils.set_random_seed(3)
        inputs = keras.Input(SHAPE)
        model = keras.Model(inputs, keras.layers.Dense(CLASSES)(keras.layers.Flatten()(inputs)))
    optimizer = optimizer or keras.optimizers.SGD(0.1)
    return Learner(model, optimizer, Objective.of(loss, **hyper), lambda step: 0.1)


def batch(seed: int = 1):
    generator = np.random.default_rng(seed)
    images = generator.normal(size=(BATCH, *SHAPE)).astype(np.float32)
    labels = generator.integers(0, CLASSES, BATCH)
    logits = 3 * generator.normal(size=(BATCH, CLASSES)).astype(np.float32)
    index = tf.range(BATCH, dtype=tf.int64)
    return tf.constant(images), tf.constant(labels), {"logits": tf.constant(logits)}, index


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def closed_form(learner, images, labels, teacher, _, alpha, temperature, t_squared):
    """Norms [2] and cosine for a linear softmax student z = x W + b.

    d(hard)/dz = alpha (q - y) / B; d(soft)/dz = (1 - alpha) T^2 (q_T - p_T) / (T B).
    """
    kernel, bias = (np.asarray(w, np.float64) for w in learner.model.get_weights())
    x = images.numpy().reshape(BATCH, -1).astype(np.float64)
    z = x @ kernel + bias
    hard = alpha * (softmax(z) - np.eye(CLASSES)[labels.numpy()]) / BATCH
    p = softmax(teacher["logits"].numpy() / temperature)
    factor = temperature**2 if t_squared else 1.0
    soft = (1 - alpha) * factor * (softmax(z / temperature) - p) / (temperature * BATCH)
    flat = [np.concatenate([(x.T @ g).ravel(), g.sum(axis=0)]) for g in (hard, soft)]
    norms = np.array([np.linalg.norm(g) for g in flat])
    return norms, flat[0] @ flat[1] / norms.prod()


@pytest.mark.parametrize(
    ("alpha", "temperature", "t_squared"),
    [(0.1, 4.0, True), (0.9, 1.0, True), (0.5, 10.0, False), (0.5, 10.0, True)],
)
def test_the_shares_of_a_linear_student(alpha, temperature, t_squared):
    hyper = {"alpha": alpha, "temperature": temperature, "t_squared": t_squared}
    learner = learner_of(losses.hinton, hyper)
    before = learner.model.get_weights()
    given = batch()
    found = balance(learner, *given)
    norms, angle = closed_form(learner, *given, alpha, temperature, t_squared)
    assert found.terms == ["hard", "soft"] and found.examples == BATCH
    np.testing.assert_allclose(found.norms, norms, rtol=1e-4)
    np.testing.assert_allclose(found.shares, norms / norms.sum(), rtol=1e-4)
    assert found.cosines[0, 1] == pytest.approx(angle, abs=1e-4)
    assert found.cosines[0, 0] == pytest.approx(1)
    # Nothing moved.
    for kept, now in zip(before, learner.model.get_weights(), strict=True):
        np.testing.assert_array_equal(kept, now)


def test_without_t_squared_the_soft_term_shrinks_by_t_squared():
    """The trap: at T = 10 the teacher's share falls from 43 % to below 1 %."""
    found = {}
    for switch in (True, False):
        hyper = {"alpha": 0.5, "temperature": 10.0, "t_squared": switch}
        found[switch] = balance(learner_of(losses.hinton, hyper), *batch())
    assert found[True].norms[0] == pytest.approx(found[False].norms[0])
    assert found[True].norms[1] / found[False].norms[1] == pytest.approx(100, rel=1e-4)
    assert found[True].values[1] / found[False].values[1] == pytest.approx(100, rel=1e-4)
    assert found[True].shares[1] > 0.4 and found[False].shares[1] < 0.01


def test_the_advice_does_what_it_says():
    hyper = {"alpha": 0.9, "temperature": 10.0, "t_squared": False}
    (line,) = remarks(balance(learner_of(losses.hinton, hyper), *batch()), hyper)
    share = re.search(r"'soft' has (\S+) % of the gradient norm, 'hard' (\S+) %", line)
    assert float(share[1]) < 1 and float(share[2]) > 99
    with_factor = balance(learner_of(losses.hinton, hyper | {"t_squared": True}), *batch())
    told = re.search(r"t_squared=true \(T\^2 = 100\) would give it (\d+) %", line)
    assert int(told[1]) == round(100 * with_factor.shares[1])
    alpha = float(re.search(r"alpha=(\S+) would balance", line)[1])
    balanced = balance(learner_of(losses.hinton, hyper | {"alpha": alpha}), *batch())
    np.testing.assert_allclose(balanced.shares, 0.5, atol=1e-3)


def test_a_network_with_dropout_batch_norm_and_a_loss_of_its_own():
    """Against one tape per term, around the layers called one by one."""
    keras.utils.set_random_seed(5)
    inputs = keras.Input(SHAPE)
    x = keras.layers.Flatten()(inputs)
    x = keras.layers.Dense(6, kernel_regularizer=keras.regularizers.L2(0.01))(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.4, seed=8)(keras.layers.ReLU()(x))
    model = keras.Model(inputs, keras.layers.Dense(CLASSES)(x))
    images, labels, teacher, index = batch()
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    learner = learner_of(losses.hard, {"alpha": 0.3}, model)
    found = balance(learner, images, labels, teacher, index)
    assert found.terms == ["hard", "teacher", "regularisation"]
    # The regulariser's gradient is 2 l W.
    kernel = model.layers[2].kernel.numpy()
    assert found.norms[2] == pytest.approx(2 * 0.01 * np.linalg.norm(kernel), rel=1e-4)
    assert found.values[2] == pytest.approx(0.01 * (kernel**2).sum(), rel=1e-4)
    decisions = tf.argmax(teacher["logits"], axis=-1)
    for position, (weight, wanted) in enumerate([(0.3, labels), (0.7, decisions)]):
        again = keras.models.clone_model(twin)  # a dropout that has drawn nothing yet
        again.set_weights(twin.get_weights())
        with tf.GradientTape() as tape:
            logits = again(images, training=True)
            every = tf.nn.sparse_softmax_cross_entropy_with_logits(wanted, logits)
            value = weight * tf.reduce_mean(every)
        gradients = tape.gradient(value, again.trainable_variables)
        assert found.values[position] == pytest.approx(float(value), rel=1e-4)
        expected = math.sqrt(sum(float(tf.reduce_sum(g**2)) for g in gradients))
        assert found.norms[position] == pytest.approx(expected, rel=1e-3)


def test_a_scaled_loss_has_the_same_norms():
    """Under mixed_float16 the loss is multiplied by 32,768 before its gradient is taken."""
    hyper = {"alpha": 0.5, "temperature": 2.0, "t_squared": True}
    plain = balance(learner_of(losses.hinton, hyper), *batch())
    scaling = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    scaled = balance(learner_of(losses.hinton, hyper, optimizer=scaling), *batch())
    np.testing.assert_allclose(scaled.norms, plain.norms, rtol=1e-5)
    np.testing.assert_allclose(scaled.values, plain.values, rtol=1e-6)


def of_norms(*norms: float, terms=("hard", "soft")) -> Balance:
    count = len(norms)
    return Balance(list(terms), np.ones(count), np.array(norms), np.eye(count), BATCH)


@pytest.mark.parametrize(
    ("norms", "warned"),
    [((0.0102, 1.0), ""), ((0.0100, 1.0), "hard"), ((1.0, 0.0100), "soft"), ((1.0, 1.0), "")],
)
def test_a_share_below_one_percent_is_warned_about(norms, warned):
    lines = remarks(of_norms(*norms), {"alpha": 0.2, "temperature": 1.0, "t_squared": True})
    assert len(lines) == bool(warned)
    if warned:
        assert lines[0].startswith(f"warning: the term '{warned}' has 0.99 % of the gradient norm")
        # Unit weights: hard n0 / 0.2, soft n1 / 0.8; alpha = soft / (hard + soft).
        alpha = (norms[1] / 0.8) / (norms[0] / 0.2 + norms[1] / 0.8)
        assert f"alpha={alpha:.4g} would balance" in lines[0] and "t_squared" not in lines[0]


def test_what_was_asked_for_is_a_note_and_what_can_not_be_is_said():
    hyper = {"temperature": 4.0, "t_squared": True}
    assert remarks(of_norms(0, 1), hyper | {"alpha": 0.0}) == [
        "note: alpha=0 switches the term 'hard' off"
    ]
    assert remarks(of_norms(1, 0), hyper | {"alpha": 1.0}) == [
        "note: alpha=1 switches the term 'soft' off"
    ]
    (line,) = remarks(of_norms(1, 0), hyper | {"alpha": 0.0})  # the teacher agrees already
    assert line.startswith("warning: the term 'soft' has 0.00 %")
    assert remarks(of_norms(0.001, terms=["soft"]), hyper) == []  # one term has no balance
    assert remarks(of_norms(1, 0.001, terms=["soft", "regularisation"]), hyper) == []
    assert "no term has a gradient" in remarks(of_norms(0, 0), hyper)[0]
    assert "the term 'soft' or its gradient is not" in remarks(of_norms(1, np.nan), hyper)[0]
    mine = remarks(of_norms(1, 1e-3, 1e-4, terms=["a", "b", "c"]), {})
    assert len(mine) == 2 and all("give it a larger weight" in line for line in mine)


def test_the_rates_are_those_of_the_schedule():
    register_resolvers()

    def line(made, *words):
        return schedule_line(check(compose("distill", list(words))), made, 100, 10)

    rise = warmup_cosine(100, 10, learning_rate=0.4, warmup_learning_rate=0.1, warmup_epochs=2)
    words = ["schedule=warmup_cosine", "schedule.warmup_epochs=2"]
    middle, last = (0.2 * (1 + math.cos(math.pi * (step - 20) / 80)) for step in (50, 99))
    assert line(rise, *words) == (
        "warmup_cosine: 0.1 at the first step, 0.4 at the end of the warm-up (step 20), "
        f"{middle:.4g} at the middle (step 50), {last:.4g} at the last step (99)"
    )
    fall = cosine(100, 10, learning_rate=0.4, floor=0.25)
    last = 0.4 * (0.25 + 0.75 * 0.5 * (1 + math.cos(math.pi * 0.99)))
    expected = f"0.4 at the first step, 0.25 at the middle (step 50), {last:.4g} at the last"
    assert expected in line(fall, "schedule=cosine")


def test_the_loss_and_the_optimizer_in_a_line():
    register_resolvers()

    def plan(*words):
        return check(compose("distill", list(words)))

    def line(*words):
        return loss_line(of_plan(OmegaConf.to_container(plan(*words).loss)))

    assert line("alpha=0.25", "temperature=3") == (
        "0.25 * CE(labels, student) + 0.75 * T^2 * KL(teacher/T || student/T), T = 3 (T^2 = 9)"
    )
    bare = line("temperature=10", "t_squared=false")
    assert bare.endswith("0.9 * KL(teacher/T || student/T), T = 10 (without T^2 = 100)")
    assert line("loss=hard") == ("0.5 * CE(labels, student) + 0.5 * CE(argmax teacher, student)")
    assert optimizer_line(plan("optimizer=sgd", "precision=mixed_bfloat16")) == (
        "SGD(momentum=0.9, nesterov=False), mixed_bfloat16"
    )


def files(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if "cache" not in path.relative_to(root).parts}


def numbers(out: str) -> dict[str, list[float]]:
    """The table: term -> value, norm, share in %."""
    found = re.findall(r"^(\w+) +(\S+) +(\S+) +(\S+) %$", out, flags=re.MULTILINE)
    return {name: [float(word) for word in words] for name, *words in found}


@pytest.fixture
def given(work) -> str:
    """A teacher's file, given."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((6, 6, 1))
    logits = keras.layers.Dense(4)(keras.layers.Flatten()(inputs))
    keras.Model(inputs, logits).save(work / "given.keras")
    return "teacher.checkpoint=given.keras"


def test_a_missing_teacher_is_not_trained(kd, work, small):
    before = files(work)
    done = kd("explain", *small)
    assert done.code == 0 and files(work) == before and not (work / "outputs").exists()
    for text in (
        "\nteacher     mlp, not trained yet; kd distill trains it first, with:\n",
        "\n            teacher, trained first: ",
        " once for 144 images, then ",
        "\nThe gradients need the trained teacher: train it, and explain again.\n",
    ):
        assert text in done.out, text
    assert "gradient norm" not in done.out
    done = kd("explain", *small, "teacher.train_if_missing=false")
    assert done.code == 2 and "no finished teacher in outputs/teachers/npz-mlp-" in done.error
    assert "train it with: kd train-teacher dataset=npz" in done.error


@pytest.mark.slow
def test_the_command_that_trains_a_missing_teacher_does(kd, small):
    typed = re.search(r"trains it first, with:\n +kd (.*)", kd("explain", *small).out)[1]
    assert kd(*shlex.split(typed)).code == 0
    done = kd("explain", *small)
    assert done.code == 0 and "mlp, 2 epochs, 144 labels, seed 0, validation" in done.out
    assert "trained first" not in done.out


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["augment=flip_crop", "augment.padding=1", "cache.views=2"]])
def test_the_outputs_on_training_images_are_not_computed(kd, work, small, given, more):
    """They may take hours; the numbers are those with stored ones."""
    words = [*small[:2], given, "epochs=3", *more]
    before = kd("explain", *words)
    again = kd("explain", *words)
    kept = len(list((work / "outputs/cache/logits").glob("*/manifest.json")))
    assert kept == 2  # validation and test
    number = "2 views of " if more else ""
    for done in (before, again):
        assert f" once for {number}144 images, then " in done.out, done.out
    assert kd("distill", *words).code == 0
    after = kd("explain", *words)
    assert f"cached: outputs of {number}144 images are stored, then " in after.out
    for term, values in numbers(after.out).items():
        assert numbers(before.out)[term] == pytest.approx(values, rel=2e-3)
    if not more:  # the same images
        line = r"on 144 training images .*"
        assert re.search(line, before.out)[0] == re.search(line, after.out)[0]


@pytest.mark.slow
def test_it_tells_the_path_of_the_data_and_leaves_nothing(kd, work, small, given):
    before = files(work)
    done = kd("explain", *small[:2], given, "batch_size=32", "steps=8", "alpha=0.3")
    assert done.code == 0, done.err
    assert files(work) == before | {work / "outputs"}
    assert [path.name for path in (work / "outputs").iterdir()] == ["cache"]
    assert done.out.startswith("loss        0.3 * CE(labels, student) + 0.7 * T^2 * KL(")
    for text in (
        "npz: 144 training, 16 validation, 40 test images of 4 classes",
        "8 of 32 images, 5 an epoch, 2 epochs; order by data_seed 0",
        "[6, 6, 1] uint8, 0..255, in memory",
        "none: the same pixels in every epoch",
        "pixels * 0.00392157 + 0 (0..255 becomes 0..1)",
        "given, validation 0.",
        "cached as float32: the pixels are the same in every epoch",
        "\ntime        estimates from a few steps, for this machine as it is now",
        "hydra/launcher=joint: sharing the batches saves ",
        "\n            this run: ",
        "32 images; initial weights of init_seed 0",
        "cosine of the gradients of hard and soft: ",
    ):
        assert text in done.out, text
    table = numbers(done.out)
    assert set(table) == {"hard", "soft"}
    assert sum(share for *_, share in table.values()) == pytest.approx(100, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [["student.network.dropout=0.5"], ["augment=flip_crop_mixup", "augment.padding=1"]]
)
def test_the_values_are_those_of_the_first_step_of_the_run(kd, work, small, given, more):
    """As the run's history has them: dropout's masks, crops and mixing are the same."""
    words = [*small[:2], given, "batch_size=32", "steps=1", "alpha=0.3", *more]
    table = numbers(kd("explain", *words).out)
    assert kd("distill", *words).code == 0
    run, _ = only_run(work / "outputs" / "distill")
    row = json.loads((run / "history.jsonl").read_text())
    assert row["train"]["soft"] > 0
    for term, (value, *_) in table.items():
        assert value == pytest.approx(row["train"][term], rel=1e-3)
    assert numbers(kd("explain", *words).out) == table  # a finished run changes nothing


def test_a_live_teacher_of_mixed_crops(kd, small, given):
    words = ["augment=flip_crop_mixup", "augment.padding=1", "student.input.size=3"]
    done = kd("explain", *small[:2], given, *words, "student.input.offset=-1")
    assert done.code == 0, done.err
    for text in (
        "pad_and_crop(padding=1), horizontal_flip, mixup(coefficient=uniform); in evaluation none",
        "consistent: teacher and student get the same tensor, [6, 6, 1]",
        "resized to 3x3, pixels * 0.00392157 - 1 (0..255 becomes -1..0)",
        "live (mixup makes new images at every step)",
        " of each epoch, and no cache serves",
        "hydra/launcher=joint: sharing the batches and the teacher saves ",
    ):
        assert text in done.out, text
    assert all(np.isfinite(row).all() for row in numbers(done.out).values())


def test_what_would_store_the_outputs_of_a_live_teacher(kd, small, given):
    both = ["augment=flip_crop", "augment.padding=1"]
    for words, could in [
        (both, "cache.views=K: "),
        ([*both, "cache.logits=none"], "cache.logits=float32 cache.views=K: "),
        (["cache.logits=none"], "cache.logits=float32: "),
    ]:
        out = kd("explain", *small[:2], given, *words).out
        assert f" of each epoch; with {could}" in out, out


def test_a_training_that_breaks_has_no_estimate(kd, small, given):
    done = kd("explain", *small[:2], given, "optimizer=sgd", "learning_rate=1e30")
    assert done.code == 0
    assert "\ntime        no estimate: the loss is not finite\n" in done.out


def test_the_teacher_is_checked_here_too(kd, work, small):
    inputs = keras.Input((6, 6, 1))
    logits = keras.layers.Dense(4, kernel_initializer="zeros")
    bare = keras.Model(inputs, logits(keras.layers.Flatten()(inputs)))
    bare.save(work / "blank.keras")
    done = kd("explain", *small[:2], "teacher.checkpoint=blank.keras")
    assert done.code == 0
    assert "warning: the teacher's validation accuracy 0.2500 is at chance" in done.out
    probabilities = keras.Model(inputs, keras.layers.Activation("sigmoid")(bare.output))
    probabilities.save(work / "soft.keras")
    done = kd("explain", *small[:2], "teacher.checkpoint=soft.keras")
    assert done.code == 2 and "ends in a sigmoid" in done.error
    bare.set_weights([np.full(weight.shape, np.nan) for weight in bare.get_weights()])
    bare.save(work / "nan.keras")
    for command in ("explain", "distill"):
        done = kd(command, *small[:2], "teacher.checkpoint=nan.keras")
        assert done.code == 2 and "nan.keras can't teach: the logits of nan on" in done.error
    assert not list((work / "outputs").glob("[!c]*"))


def test_the_word_is_known(kd, monkeypatch):
    assert "\n  explain  " in kd("--help").out
    shown = kd("explain", "--help")
    assert shown.code == 0 and "explain takes the keys of distill" in shown.out
    assert "temperature=4 " in shown.out
    assert "command: distill" in kd("explain", "--cfg", "job").out
    assert "did you mean 'explain'" in kd("explian").error
    assert "remove --multirun" in kd("explain", "--multirun", "alpha=0.1,0.2").error
    assert "alpha=7.0 must be between 0 and 1" in kd("explain", "alpha=7").error

    def complete(line):
        monkeypatch.setenv("COMP_LINE", line)
        return kd("-sc", "query=bash").out.split()

    assert complete("kd expl") == ["explain"]
    assert complete("kd explain dataset=ci") == ["dataset=cifar10", "dataset=cifar100"]


def test_a_loss_of_the_user_s(kd, work, small, given):
    """Several terms by names of its own; one array is called `loss`."""
    (work / "explained_losses.py").write_text(
        "import tensorflow as tf\n"
        "def three(labels, student, teacher):\n"
        "    gap = student['logits'] - teacher['logits']\n"
        "    size = tf.reduce_sum(gap ** 2, -1)\n"
        "    return {'near': size, 'tiny': 1e-6 * size, 'still': 0 * size}\n"
    )
    words = ["~loss.hinton", "+loss.mine._target_=explained_losses.three"]
    done = kd("explain", *small[:2], given, *words)
    assert done.code == 0, done.err
    table = numbers(done.out)
    assert list(table) == ["near", "tiny", "still"]
    assert table["tiny"][1] == pytest.approx(1e-6 * table["near"][1], rel=1e-3)
    assert table["still"][1:] == [0, 0]
    assert "'tiny' has 0.00 %" in done.out and "'still' has 0.00 %" in done.out
