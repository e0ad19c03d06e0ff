"""Self-training: what is selected, what is learned from, and that hidden labels stay hidden."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_cli.commands import execute, self_train
from kd_cli.commands.joint import groups
from kd_cli.config.check import check
from kd_cli.config.compose import compose
from kd_cli.config.inputs import Images
from kd_cli.config.plans import scratch_plan
from kd_cli.data.dataset import Dataset, Split, load_dataset
from kd_cli.distillation import losses
from kd_cli.errors import ConfigError
from kd_cli.runs.asked import Run
from kd_cli.runs.identity import run_id, run_spec
from kd_cli.runs.resolvers import register_resolvers
from kd_cli.training import trackers
from tests.commands.test_run import without_timings
from tests.conftest import assert_refused, only_run, read_record


def plan(*overrides, command="self-train"):
    register_resolvers()
    return check(compose(command, list(overrides)), overrides)


# What a round learns from.

CONFIDENCE = np.array([0.9, 0.5, 0.8, 0.9, 0.3, 0.6, 0.95])
LABELS = np.array([0, 0, 0, 1, 1, 0, 3])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # Above 0.4: 0, 1, 2, 5 of class 0; 3 of class 1; 6 of class 3. 6 of 4 classes: 2 of each.
        ({"threshold": 0.4}, [0, 2, 3, 3, 6, 6]),
        ({"threshold": 0.5}, [0, 2, 3, 3, 6, 6]),  # 0.5 is not above 0.5; 5 of 4 classes: 2
        ({"threshold": 0.85}, [0, 3, 6]),  # 3 of 4 classes: 1
        ({"threshold": 0.0, "per_class": 3}, [0, 2, 3, 3, 4, 5, 6, 6, 6]),  # the surer one twice
        ({"threshold": 0.0, "per_class": 1}, [0, 3, 6]),
        ({"threshold": 0.4, "balance": False}, [0, 1, 2, 3, 5, 6]),
        ({"threshold": 0.95}, []),
        ({"threshold": 0.95, "balance": False}, []),
    ],
)
def test_selection_by_hand(options, expected):
    assert self_train.select(CONFIDENCE, LABELS, 4, **options).tolist() == expected


def test_of_equally_confident_images_the_first_are_taken():
    alike = np.full(8, 0.7)
    labels = np.array([1, 0, 0, 1, 0, 1, 0, 1])
    assert self_train.select(alike, labels, 2, 0.1, per_class=2).tolist() == [0, 1, 2, 3]


def test_selection_against_a_slow_one():
    generator = np.random.default_rng(3)
    for _ in range(50):
        confidence = generator.integers(1, 9, 40) / 10
        labels = generator.integers(0, 5, 40)
        expected = []
        passed = [n for n in range(40) if confidence[n] > 0.35]
        for label in range(5):
            own = [n for n in passed if labels[n] == label]
            own.sort(key=lambda n: (-confidence[n], n))
            wanted = -(-len(passed) // 5) if own else 0
            expected += [own[n % len(own)] for n in range(wanted)]
        assert self_train.select(confidence, labels, 5, 0.35).tolist() == sorted(expected)


def small_dataset():
    """Six rows in a pool of eight; rows 1 and 4 are labelled, 0, 2 and 6 hidden."""
    images = np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1)
    labels = np.array([0, 1, 2, 0, 2, 1, 1, 0])
    train, hidden = (Split(images, labels, np.array(rows)) for rows in ([1, 4], [0, 2, 6]))
    held_out = Split(images, labels, np.array([3, 5]))
    return Dataset(
        "s", Images((1, 1, 1)), ("a", "b", "c"), train, held_out, held_out, "data", "split", hidden
    )


def test_the_rows_of_a_round_hold_no_hidden_label():
    dataset = small_dataset()
    lesson = self_train.with_pseudo_labels(dataset, np.array([2, 2, 6]), np.array([0, 0, 2]))
    assert lesson.train.rows.tolist() == [1, 4, 2, 2, 6]
    assert lesson.train.labels.tolist() == [-1, 1, 0, -1, 2, -1, 2, -1]
    assert (lesson.labelled, len(lesson.train), lesson.train.labelled) == (2, 5, 5)
    assert lesson.unlabelled is None and lesson.validation is dataset.validation
    assert (dataset.labelled, dataset.train.labels[0]) == (2, 0)  # untouched
    prints = {dataset.split_fingerprint, lesson.split_fingerprint}
    for rows, labels in (([2, 2, 6], [0, 0, 1]), ([2, 6], [0, 2]), ([2, 6, 6], [0, 2, 2])):
        other = self_train.with_pseudo_labels(dataset, np.array(rows), np.array(labels))
        prints.add(other.split_fingerprint)
    assert len(prints) == 5


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_targets_are_the_labels_and_what_the_teacher_says(smoothing):
    generator = np.random.default_rng(0)
    said = generator.normal(size=(4, 3)).astype(np.float32) * 5
    student = generator.normal(size=(6, 3)).astype(np.float32) * 3
    targets = self_train.soft_targets(np.array([2, 0]), said, smoothing)
    got = losses.soft_cross_entropy(None, {"logits": student}, {"logits": targets})["soft"]

    log_q = student - np.log(np.exp(student).sum(axis=1, keepdims=True))
    known = losses.cross_entropy(
        tf.constant([2, 0]), {"logits": student[:2]}, None, label_smoothing=smoothing
    )["hard"]
    p = np.exp(said) / np.exp(said).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(got[:2], known, rtol=1e-5)
    np.testing.assert_allclose(got[2:], -(p * log_q[2:]).sum(axis=1), rtol=1e-5)
    if not smoothing:
        np.testing.assert_allclose(got[:2], [-log_q[0, 2], -log_q[1, 0]], rtol=1e-5)


def test_the_soft_loss_stays_finite_and_pulls_towards_the_teacher():
    far = np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32)
    student = tf.Variable(-far)
    with tf.GradientTape() as tape:
        value = losses.soft_cross_entropy(None, {"logits": student}, {"logits": far})["soft"]
    gradient = tape.gradient(value, student).numpy()
    np.testing.assert_allclose(value, [2e4, 2e4])
    np.testing.assert_allclose(gradient, [[-1, 1], [1, -1]])


# Configuration and identity.


@pytest.mark.slow
def test_more_rounds_are_the_same_run():
    assert run_id(plan("rounds=5")) == run_id(plan())
    for override in (
        "pseudo.labels=hard", "pseudo.threshold=0.5", "pseudo.balance=false", "pseudo.per_class=9",
        "seed=1", "label_smoothing=0.1", "augment=flip_crop", "student.network.units=[3]",
    ):  # fmt: skip
        assert run_id(plan(override)) != run_id(plan())


def test_a_recipe_may_set_the_rounds():
    made = plan("experiment=fashion_mnist_self_training")
    assert (made.pseudo.epochs, made.pseudo.threshold, made.steps) == (12, 0.3, 1500)
    assert plan("experiment=fashion_mnist_self_training", "pseudo.epochs=9").pseudo.epochs == 9


def test_round_0_is_the_baseline():
    words = ("dataset.labelled_fraction=0.1", "label_smoothing=0.1", "augment=flip_crop")
    scratch = plan(*words, command="train-student")
    assert run_spec(scratch_plan(plan(*words, "rounds=2"))) == run_spec(scratch)


def test_each_round_has_seeds_and_a_teacher_of_its_own():
    made = plan("augment=flip_crop", "augment_seed=3")
    longer = self_train._plan(plan("pseudo.epochs=7", "steps=9"), 1, {"weights_sha256": "abc"})
    assert (longer.epochs, longer.steps) == (7, None) and run_spec(longer)["epochs"] == 7
    spec = [run_spec(self_train._plan(made, n, {"weights_sha256": "abc"})) for n in (1, 2)]
    for key in ("init_seed", "data_seed"):
        assert len({made[key], spec[0][key], spec[1][key]}) == 3
    assert len({3, *(one["augment"]["seed"] for one in spec)}) == 3
    assert spec[0]["round"] == {"number": 1, "teacher": "abc", "label_smoothing": 0.0}


def test_points_of_a_joint_sweep_run_apart(work):
    runs = [Run(plan(f"init_seed={n}"), work / str(n), []) for n in (1, 2)]
    assert groups(runs, 8) == [[0], [1]]


MISTAKES = {
    "rounds": (["self-train", "rounds=0"], "rounds=0 must be at least 1"),
    "labels": (["self-train", "pseudo.labels=firm"], "pseudo.labels=firm must be hard or soft"),
    "threshold": (["self-train", "pseudo.threshold=1"], "at least 0 and below 1"),
    "per class": (
        ["self-train", "pseudo.balance=false", "pseudo.per_class=3"],
        "null with pseudo.balance=false",
    ),
    "alpha": (["self-train", "alpha=0.5"], "self-train does not use alpha"),
    "teacher": (["self-train", "teacher=cnn"], "each round's network is the next one's teacher"),
    "view": (["self-train", "view=independent"], "does not use view"),
    "views": (["self-train", "cache.views=3"], "does not use cache.views"),
    "rounds of another": (["distill", "rounds=3"], "it belongs to self-train"),
    "labels of another": (["train-student", "pseudo.labels=hard"], "belongs to self-train"),
    "rounds of a recipe": (
        ["distill", "experiment=fashion_mnist_self_training", "rounds=2"],
        "distill does not use rounds: it belongs to self-train; remove rounds=2",
    ),
    "misspelt": (["self-train", "pseudo.treshold=0.4"], "did you mean 'pseudo.threshold'"),
    "a point of a sweep": (["self-train", "--multirun", "pseudo.threshold=0.3,2"], "threshold=2"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(kd, work, name):
    words, expected = MISTAKES[name]
    assert_refused(kd, work, words, expected)


# Runs.


@pytest.fixture
def words(npz):
    """Rounds of about a second: 24 labelled, 120 unlabelled and 16 validation images."""
    return [
        "dataset=npz", f"dataset.path={npz}", "dataset.labelled_fraction=0.17", "epochs=3",
        "batch_size=16", "learning_rate=0.01", "student.network.dropout=0.2", "rounds=2",
    ]  # fmt: skip


def test_without_unlabelled_images_one_line_says_what_to_type(kd, work, words, npz):
    done = kd("self-train", *words, "dataset.labelled_fraction=1")
    assert done.code == 2 and "type dataset.labelled_fraction=0.1" in done.error
    mixup = "augment.train=[{_target_: kd_cli.data.mixup, _partial_: true}]"
    done = kd("self-train", *words, mixup)
    assert done.code == 2 and "type pseudo.labels=hard" in done.error
    assert [p.name for p in work.iterdir()] == [npz.name]


def finished(work):
    return next(p.parent for p in work.glob("outputs/self-train/npz/*/metrics.json"))


def test_two_rounds_leave_what_the_schema_says(kd, work, words):
    done = kd("self-train", *words)
    assert done.code == 0, done.err
    top = finished(work)
    record = read_record(top)
    assert (work / "outputs" / "latest").resolve() == top
    assert [one["directory"] for one in record["rounds"]] == ["round-0", "round-1", "round-2"]
    labelled = record["rounds"][0]["labelled"]
    for number, one in enumerate(record["rounds"]):
        below = read_record(top / f"round-{number}")
        assert {"model.keras", "history.jsonl", "predictions.npz", "state", "kd.log"} <= {
            p.name for p in (top / f"round-{number}").iterdir()
        }
        assert one["test"] == below["test"] and one["validation"] == below["validation"]["best"]
        assert below["dataset"]["labelled"] == one["labelled"] == labelled
        if number:
            pseudo = one["pseudo_labels"]
            assert below["dataset"]["train"] == labelled + pseudo["rows"]
            assert below["timings"]["teacher_forward_seconds"] > 0
            assert sum(pseudo["per_class"]) == pseudo["rows"]
            assert len({n for n in pseudo["per_class"] if n}) == 1  # balanced
            assert 0 <= pseudo["accuracy"] <= 1 and pseudo["images"] <= pseudo["rows"]
            assert pseudo["unlabelled"] + labelled + 16 == 160
            before = record["rounds"][number - 1]["weights_sha256"]
            assert below["config"]["round"]["teacher"] == before
            assert below["loss"].endswith("elsewhere CE(teacher, student)")
    assert below["weights_sha256"] == record["weights_sha256"]
    model = keras.saving.load_model(top / "model.keras")
    last = keras.saving.load_model(top / "round-2" / "model.keras")
    for ours, theirs in zip(model.get_weights(), last.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    validation = [one["validation"]["accuracy"] for one in record["rounds"]]
    assert validation[record["best_round"]] == max(validation)
    assert "best on validation: round" in done.out and "hidden labels" in done.out
    assert "known because the labels were only hidden" in done.err
    assert "without augmentation and dropout" not in done.err  # it has dropout

    times = {p: p.stat().st_mtime_ns for p in top.rglob("*.keras")}
    again = kd("self-train", *words, "rounds=1")  # it has more than that
    assert again.code == 0 and "is finished" in again.err
    more = kd("self-train", *words, "rounds=3")
    assert more.code == 0, more.err
    after = read_record(finished(work))
    assert after["rounds"][:3] == record["rounds"] and len(after["rounds"]) == 4
    kept = [p for p in times if p.parent != top]
    assert [p.stat().st_mtime_ns for p in kept] == [times[p] for p in kept]


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["hard", pytest.param("soft", marks=pytest.mark.slow)])
def test_hidden_labels_are_never_learned_from(kd, work, words, labels, monkeypatch):
    """The hidden labels in the arrays are others; all but the report of accuracy is the same."""
    words = ["self-train", *words, f"pseudo.labels={labels}", "rounds=1"]
    assert kd(*words).code == 0
    first = read_record(finished(work))
    genuine = load_dataset

    def scrambled(*arguments):
        dataset = genuine(*arguments)
        wrong = dataset.train.labels.copy()
        hidden = dataset.unlabelled.rows
        wrong[hidden] = (wrong[hidden] + 1) % 4
        return dataclasses.replace(
            dataset,
            train=dataclasses.replace(dataset.train, labels=wrong),
            unlabelled=dataclasses.replace(dataset.unlabelled, labels=wrong),
        )

    monkeypatch.setattr(execute, "load_dataset", scrambled)
    (work / "outputs").rename(work / "before")
    assert kd(*words).code == 0
    second = read_record(finished(work))
    right = [r["rounds"][1]["pseudo_labels"].pop("accuracy") for r in (first, second)]
    assert right[0] > right[1]
    for record in (first, second):
        for one in record["rounds"]:
            one.pop("seconds")
    assert without_timings(first) == without_timings(second)


def test_without_labels_there_is_no_report_of_right_ones(work, words, caplog):
    register_resolvers()
    caplog.set_level("INFO", "kd")
    made = self_train._plan(plan(*words), 1, {"weights_sha256": "abc"})
    dataset = small_dataset()
    logits = np.array([[3, 0, 0], [0, 2, 0], [0, 1, 4]], np.float32)
    run = Run(made, work, [])
    _, taught = self_train._training_set(run, dataset, logits, 0.0)
    assert taught.record["pseudo_labels"]["accuracy"] == pytest.approx(1 / 3)  # of 0, 2, 1
    # Nobody knows the label of row 2: of 0 and 1 one is right.
    some = dataclasses.replace(dataset.unlabelled, labels=np.array([0, 1, -1, 0, 2, 1, 1, 0]))
    _, taught = self_train._training_set(
        run, dataclasses.replace(dataset, unlabelled=some), logits, 0.0
    )
    assert taught.record["pseudo_labels"]["accuracy"] == 0.5
    assert "0.5000 of 2 right" in caplog.text
    bare = dataclasses.replace(dataset.unlabelled, labels=np.full(8, -1))
    _, taught = self_train._training_set(
        run, dataclasses.replace(dataset, unlabelled=bare), logits, 0.0
    )
    assert "accuracy" not in taught.record["pseudo_labels"]
    run.plan.pseudo.threshold = 0.4
    with pytest.raises(ConfigError, match=r"round 1: .*threshold=0.4 \(the highest is 0.3333\)"):
        self_train._training_set(run, dataset, np.zeros((3, 3), np.float32), 0.0)


@pytest.mark.slow
def test_a_killed_command_continues_to_the_same_numbers(kd, work, words, monkeypatch):
    words = ["self-train", *words, "augment=flip_crop", "augment.padding=1"]
    assert kd(*words).code == 0
    top = finished(work)
    undisturbed = read_record(top)
    for one in undisturbed["rounds"]:
        one.pop("seconds")
    for stop in ((0, 2), (1, 1), (2, 1), (2, 3)):  # (round, epoch)
        top.rename(work / f"before-{stop[0]}-{stop[1]}")

        def interrupt(self, row, model, stop=stop):
            number = len(list(top.glob("round-*/metrics.json")))
            if (number, row["epoch"]) == stop:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(trackers.Trackers, "epoch", interrupt)
            assert kd(*words).code == 130
        assert not (top / "metrics.json").exists()
        done = kd(*words)
        assert done.code == 0, done.err
        resumed = read_record(top)
        for one in resumed["rounds"]:
            one.pop("seconds")
        assert without_timings(resumed) == without_timings(undisturbed)


@pytest.mark.slow
def test_a_kill_between_rounds_labels_again(kd, work, words, monkeypatch):
    assert kd("self-train", *words).code == 0
    top = finished(work)
    undisturbed = read_record(top)
    top.rename(work / "kept")
    genuine = self_train._logits

    def kill(plan, dataset, before, *more):
        if before.name == "round-1":
            raise KeyboardInterrupt
        return genuine(plan, dataset, before, *more)

    monkeypatch.setattr(self_train, "_logits", kill)
    assert kd("self-train", *words).code == 130
    monkeypatch.setattr(self_train, "_logits", genuine)
    assert kd("self-train", *words).code == 0
    resumed = read_record(top)
    assert [r["weights_sha256"] for r in resumed["rounds"]] == [
        r["weights_sha256"] for r in undisturbed["rounds"]
    ]


@pytest.mark.slow
def test_a_round_of_another_teacher_is_not_continued(kd, work, words, monkeypatch):
    """Round 0 was removed and is trained on other data: round 1 is not its successor."""
    assert kd("self-train", *words).code == 0
    top = finished(work)
    (top / "metrics.json").unlink()
    record = json.loads((top / "round-0" / "metrics.json").read_text())
    record["weights_sha256"] = "0" * 64
    (top / "round-0" / "metrics.json").write_text(json.dumps(record))
    done = kd("self-train", *words)
    assert done.code == 2 and "round.teacher" in done.error and "rerun=true" in done.error
    # A later round that was made from other data, as when folders were copied together.
    record["weights_sha256"] = json.loads((top / "round-1" / "metrics.json").read_text())["config"][
        "round"
    ]["teacher"]
    (top / "round-0" / "metrics.json").write_text(json.dumps(record))
    other = json.loads((top / "round-2" / "metrics.json").read_text())
    other["inputs"]["data"] = "0" * 64
    (top / "round-2" / "metrics.json").write_text(json.dumps(other))
    done = kd("self-train", *words)
    assert done.code == 2 and "round-2 was made from other data" in done.error
    assert (top / "round-2" / "metrics.json").exists()


@pytest.mark.slow
def test_a_threshold_that_nothing_passes_leaves_the_baseline(kd, work, words):
    done = kd("self-train", *words, "pseudo.threshold=0.999")
    assert done.code == 2 and "lower pseudo.threshold" in done.error
    assert only_run(work / "outputs" / "self-train")[0].name == "round-0"


@pytest.mark.slow
def test_streamed_and_in_memory_learn_the_same_from_repeated_rows(kd, work, words):
    """The augmentation and hard labels: mixup comes with them, the targets of both kinds too."""
    mixup = "augment.train=[{_target_: kd_cli.data.mixup, _partial_: true}]"
    for options in (["pseudo.per_class=60"], ["pseudo.labels=hard", mixup]):
        hashes = []
        for place in ("memory_gib=4", "memory_gib=0"):
            done = kd("self-train", *words, "rounds=1", *options, place)
            assert done.code == 0, done.err
            record = read_record(finished(work))
            hashes.append(record["weights_sha256"])
            (work / "outputs").rename(work / f"{options[0]} {place}")
        pseudo = record["rounds"][1]["pseudo_labels"]
        assert pseudo["rows"] > pseudo["images"]  # some count twice
        assert hashes[0] == hashes[1]


@pytest.mark.slow
def test_a_sweep_of_self_trainings(kd, work, words):
    words = [*words[:-2], "rounds=1", "seed=0,1"]  # without dropout
    done = kd("self-train", "--multirun", *words)
    assert "the student trains without augmentation and dropout" in done.err
    assert done.code == 0, done.err
    rows = json.loads(next((work / "outputs" / "sweeps").rglob("sweep.json")).read_text())
    assert sorted(row["seed"] for row in rows["points"]) == [0, 1]
    assert all(0 < row["round_0_test"] <= 1 for row in rows["points"])
    assert "test of round 0, %" in done.out
