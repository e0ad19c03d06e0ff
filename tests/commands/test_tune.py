"""`kd tune`: what a search leaves, what it answers again, and what it refuses."""

import csv
import errno
import itertools
import json
import shlex
from types import SimpleNamespace

import pytest

from kd_cli.commands import tune
from kd_cli.commands.execute import execute
from kd_cli.config.compose import compose
from kd_cli.errors import ConfigError, Pruned
from kd_cli.runs.asked import Runs
from kd_cli.runs.finished import find
from kd_cli.runs.resolvers import register_resolvers
from kd_cli.runs.session import Session
from tests.conftest import assert_refused, only_run, read_record

SPACE = "alpha=interval(0,1)"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["alpha=0.5"], "tune needs a key with a space to search, as in: kd tune 'alpha=inter"),
        ([SPACE, "trials=0"], "trials=0 must be a whole number, at least 1"),
        ([SPACE, "trials=many"], "trials=many must be a whole number"),
        ([SPACE, "prune=hyperband"], "prune=hyperband: expected none or median"),
        ([SPACE, "minutes=0"], "minutes=0 must be a number of minutes above 0"),
        ([SPACE, "minutes=long"], "minutes=long must be a number of minutes"),
        ([SPACE, "objective=test"], "objective=test: expected accuracy or nll, of the validation"),
        ([SPACE, "objective=nll", "early_stopping.monitor=nll"], "leave one of them out"),
        ([SPACE, "rerun=true"], "tune reuses finished runs; remove rerun=true"),
        ([SPACE, "seeds=5"], "seeds=5 belongs to kd tune --compare"),
        ([SPACE, "scratch.learning_rate=0.1"], "belongs to kd tune --compare"),
        ([SPACE, "hydra/launcher=joint"], "tune starts its trials itself; leave it out"),
        ([SPACE, "--compare", "seeds=2"], "seeds=2 must be a whole number from 3 to 1000"),
    ],
)
def test_mistakes_in_its_own_words(words, expected):
    typed = [word for word in words if word != "--compare"]
    with pytest.raises(ConfigError) as error:
        tune.asked_for(typed, "--compare" in words)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_the_folder_is_the_same_for_other_spaces_and_more_trials():
    def folder(*typed):
        asked = tune.asked_for(list(typed), False)
        (name,) = [one for one in asked.overrides if one.startswith("sweep=")]
        return name

    assert folder(SPACE, "trials=3") == folder("alpha=choice(0.1,1)", "trials=9", "minutes=3")
    assert folder(SPACE) != folder(SPACE, "epochs=3") and folder(SPACE).startswith("sweep=tune-")
    assert folder(SPACE, "sweep=mine") == "sweep=mine"
    assert folder(SPACE, "sweep=null") == folder(SPACE)


def test_without_optuna_it_says_what_to_install(kd, work, monkeypatch):
    monkeypatch.setattr(tune, "find_spec", lambda name: None)
    assert_refused(kd, work, ["tune", SPACE], "pip install 'optuna>=5,<6' (the extra tune)")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["alpah=interval(0,1)"], "unknown key 'alpah'"),
        (["alpha=interval(0,1.5)"], "alpha=1.5 must be between 0 and 1"),
        (["loss=choice(hinton,no_such)"], "no option 'no_such' in group 'loss'"),
        (["label_smoothing=interval(0,0.1)"], "distill does not use label_smoothing"),
        ([SPACE, "dataset.validation_fraction=0"], "tune compares trials on the validation split"),
        ([SPACE, "--multirun"], "tune finds its points itself: leave --multirun out"),
        ([SPACE, "--compare", "--cfg", "job"], "--cfg and --compare exclude each other"),
        ([SPACE, "--compare", "scratch.learning_rate=interval(-1,1)"], "learning_rate=-1.0 must"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(kd, work, words, expected):
    pytest.importorskip("optuna")
    assert_refused(kd, work, ["tune", *words], expected)


def test_compare_is_a_flag_of_tune_alone(kd, work):
    assert_refused(kd, work, ["distill", "--compare"], "--compare belongs to tune")


class Training:
    """Stands in for training: validation accuracy follows alpha, and test accuracy is not there.

    Attributes:
        tried: The alphas of the runs that were trained.
        meets: What a run fails of, by the number of the call.
        inputs: Hashes of data, split and teacher.
    """

    def __init__(self, monkeypatch):
        pytest.importorskip("optuna")
        self.tried, self.meets = [], {}
        self.inputs = {"data": "d", "split": "s", "teacher": "t"}
        monkeypatch.setattr("os.fsync", lambda descriptor: None)
        monkeypatch.setattr("kd_cli.commands.search.execute", self.execute)

    def execute(self, run, session, table, wait):
        self.tried.append(run.plan.alpha)
        if len(self.tried) in self.meets:
            raise self.meets[len(self.tried)]
        accuracy = 1 - abs(run.plan.alpha - 0.25)
        best = {"accuracy": accuracy, "nll": 1 - accuracy}
        for epoch in range(1, 4):
            session.judges[run.out](epoch, 4, {key: best[key] * epoch / 4 for key in best})
        validation = SimpleNamespace(best=best)
        return SimpleNamespace(validation=validation, epochs_done=4, inputs=self.inputs)


@pytest.fixture
def runs(monkeypatch):
    return Training(monkeypatch)


def left(work):
    """The rows of the one trials.csv, and the content of search.json."""
    (place,) = (work / "outputs" / "sweeps").glob("*/search-*")
    with open(place / "trials.csv") as file:
        rows = list(csv.DictReader(file))
    assert (place / "search.png").read_bytes()[1:4] == b"PNG"
    return rows, json.loads((place / "search.json").read_text())


def test_what_a_search_leaves(kd, work, small, runs):
    done = kd("tune", *small, "alpha=interval(0.05,0.95)", "trials=4", "seed=2", "sweep=mine")
    assert done.code == 0, done.err
    rows, told = left(work)
    alphas = [float(row["alpha"]) for row in rows]
    assert len(rows) == 4 and len(set(alphas)) == 4
    assert alphas == sorted(alphas, key=lambda alpha: abs(alpha - 0.25))  # the best first
    assert runs.tried[0] == 0.1  # what it is without a search
    assert sorted(runs.tried) == sorted(alphas)
    assert told["winner"] == int(rows[0]["trial"]) and told["spaces"] == {
        "alpha": "interval(0.05,0.95)"
    }
    # The seed of the search is not among those that confirm it.
    expected = ["kd", "compare", *small, f"alpha={alphas[0]}", "seeds=0,1,3,4,5"]
    assert shlex.split(told["confirm"]) == expected
    assert done.out.splitlines()[-1] == told["confirm"]
    assert "test," not in done.out  # no column

    again = kd("tune", *small, "alpha=interval(0.05,0.95)", "trials=4", "seed=2", "sweep=mine")
    assert again.code == 0 and len(runs.tried) == 4 and left(work) == (rows, told)
    more = kd("tune", *small, "alpha=interval(0.05,0.95)", "trials=6", "seed=2", "sweep=mine")
    assert more.code == 0 and len(runs.tried) == 6 and len(left(work)[0]) == 6


def test_the_objective_may_be_nll(kd, work, small, runs):
    assert kd("tune", *small, SPACE, "trials=3", "objective=nll").code == 0
    rows, told = left(work)
    nlls = [float(row["validation_nll"]) for row in rows]
    assert nlls == sorted(nlls) and told["objective"] == "nll"
    assert "early_stopping.monitor=nll" in told["confirm"]


def test_pruning(kd, work, small, runs, monkeypatch):
    """Five finish, then those that are below the median of the finished after two epochs stop."""
    done = kd("tune", *small, SPACE, "trials=12", "prune=median")
    assert done.code == 0, done.err
    rows, _ = left(work)
    by_number = sorted(rows, key=lambda row: int(row["trial"]))
    accuracies = [1 - abs(alpha - 0.25) for alpha in runs.tried]
    finished = []
    for row, accuracy in zip(by_number, accuracies, strict=True):
        behind = len(finished) >= 5 and accuracy < sorted_median(finished)
        assert (row["outcome"] == "pruned") is behind, row
        assert row["epochs"] == ("1" if behind else "4")
        finished += [] if behind else [accuracy]
    assert "pruned" in {row["outcome"] for row in rows}
    outcomes = [row["outcome"] for row in rows]
    assert outcomes == sorted(outcomes)  # the pruned ones last


def sorted_median(values):
    low, high = sorted(values)[(len(values) - 1) // 2], sorted(values)[len(values) // 2]
    return (low + high) / 2


def test_a_trial_that_fails_is_told_and_the_others_go_on(kd, work, small, runs):
    from kd_cli.training.loop import NonFiniteError

    runs.meets = {2: NonFiniteError("the loss is not finite"), 3: RuntimeError("out of memory")}
    done = kd("tune", *small, SPACE, "trials=4")
    assert done.code == 1
    rows, _ = left(work)
    assert [row["outcome"] for row in rows] == ["finished", "finished", "diverged", "failed"]
    assert "kd: failed: trial 3: out of memory" in done.err
    assert "4 trials (2 finished, 1 diverged, 1 failed)" in done.out.replace("\n", " ")
    assert kd("tune", *small, SPACE, "trials=4").code == 0  # nothing is tried again


def test_a_mistake_that_only_training_finds_ends_the_search(kd, work, small, runs):
    runs.meets = {1: ConfigError("loss.at.layers: no layer 'x'")}
    done = kd("tune", *small, SPACE, "trials=4")
    assert done.code == 2 and done.error == "loss.at.layers: no layer 'x'" and len(runs.tried) == 1


def test_a_search_does_not_go_on_with_other_data(kd, work, small, runs):
    assert kd("tune", *small, SPACE, "trials=2").code == 0
    runs.inputs = {**runs.inputs, "teacher": "u"}  # a space may be over teachers
    assert kd("tune", *small, SPACE, "trials=3").code == 0
    runs.inputs = {**runs.inputs, "data": "e"}
    done = kd("tune", *small, SPACE, "trials=4")
    assert done.code == 2 and "saw other data than there are now; type sweep=NAME" in done.error
    assert len(left(work)[0]) == 3


@pytest.mark.parametrize(
    ("problem", "code", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x"), 1, "kd: failed: No space left"),
        (KeyboardInterrupt(), 130, "kd: interrupted; the same command continues"),
    ],
)
def test_what_ends_a_search_leaves_the_trial_to_the_next(
    kd, work, small, runs, problem, code, line
):
    runs.meets = {3: problem}
    done = kd("tune", *small, SPACE, "trials=5")
    assert done.code == code and done.err.splitlines()[-1].startswith(line)
    assert "Traceback" not in done.err
    done = kd("tune", *small, SPACE, "trials=5")
    assert done.code == 0 and "trial 3 was interrupted; it continues" in done.err
    assert len(runs.tried) == 6 and runs.tried[3] == runs.tried[2]
    rows, _ = left(work)
    assert sorted(int(row["trial"]) for row in rows) == [1, 2, 3, 4, 5]
    assert len({row["alpha"] for row in rows}) == 5


def test_after_its_minutes_no_trial_is_begun(kd, work, small, runs, monkeypatch):
    clock = itertools.count(step=20)  # seconds, each time it is asked
    for module in ("tune", "search"):
        fake = SimpleNamespace(monotonic=lambda: float(next(clock)))
        monkeypatch.setattr(f"kd_cli.commands.{module}.time", fake)
    assert kd("tune", *small, SPACE, "trials=9", "minutes=1").code == 0
    assert len(runs.tried) == 2  # asked at 0 (its beginning), 20, 40 and 60
    assert kd("tune", *small, SPACE, "trials=4").code == 0 and len(runs.tried) == 4


def test_a_search_without_a_finished_trial_has_no_winner(kd, work, small, runs):
    runs.meets = {1: RuntimeError("out of memory"), 2: RuntimeError("out of memory")}
    done = kd("tune", *small, SPACE, "trials=2")
    assert done.code == 1 and "kd: failed: no trial of outputs/sweeps/tune-" in done.err
    assert "has finished (out of memory)" in done.err


def test_a_pruned_run_is_not_finished_and_may_be_continued(work, small):
    def run_of(*words):
        runs = Runs()
        register_resolvers(runs)
        return runs.single(compose("train-student", [*small[:2], "epochs=4", *words]))

    def judge(epoch, epochs, best):
        told.append((epoch, epochs, sorted(best)))
        if epoch == 2:
            raise Pruned({"search": "mine", "epoch": epoch})

    run, told, session = run_of(), [], Session()
    session.judges[run.out] = judge
    with pytest.raises(Pruned, match="pruned after epoch 2"):
        execute(run, session, table=False)
    assert told == [(1, 4, ["accuracy", "nll"]), (2, 4, ["accuracy", "nll"])]
    assert json.loads((run.out / "pruned.json").read_text()) == {"search": "mine", "epoch": 2}
    assert read_record(run.out) is None and not (run.out / "error.json").exists()
    assert len((run.out / "history.jsonl").read_text().splitlines()) == 2
    found = find([work / "outputs"])
    assert (found.runs, found.unfinished, found.unreadable) == ([], 0, 0)

    session.judges.clear()
    record = execute(run, session, table=False)
    assert not (run.out / "pruned.json").exists() and record.epochs_done == 4
    undisturbed = execute(run_of("outputs=other"), Session(), table=False)
    assert record.weights_sha256 == undisturbed.weights_sha256


@pytest.mark.slow
def test_values_that_were_tried_are_answered_from_their_points(kd, work, small, taught):
    pytest.importorskip("optuna")
    words = [*small[:2], "teacher=mlp", "teacher.network.units=[16]", *small[-2:], "sweep=mine"]
    assert kd("distill", "--multirun", *words, "alpha=0.25").code == 0  # a sweep's point serves too
    done = kd("tune", *words, "alpha=choice(0.25,0.75)", "trials=5")
    assert done.code == 0, done.err
    assert done.err.count("is finished; rerun=true") == 4 and len(left(work)[0]) == 5
    assert len(list((work / "outputs" / "sweeps" / "mine").glob("*/metrics.json"))) == 2


@pytest.mark.slow
def test_a_real_search_prunes_and_its_winner_is_what_kd_distill_makes(kd, work, small, taught):
    pytest.importorskip("optuna")
    spaces = ["alpha=interval(0,1)", "learning_rate=tag(log,interval(1e-6,1e-1))"]
    done = kd("tune", *small, "epochs=8", *spaces, "trials=10", "prune=median", "sweep=mine")
    assert done.code == 0, done.err
    rows, _ = left(work)
    folder = work / "outputs" / "sweeps" / "mine"
    lengths = {
        row["outcome"]: len((folder / row["directory"] / "history.jsonl").read_text().splitlines())
        for row in rows
    }
    assert lengths["finished"] == 8 and 2 <= lengths["pruned"] < 8
    best = rows[0]
    typed = [f"{key}={best[key]}" for key in ("alpha", "learning_rate")]
    found = kd("distill", *small, "epochs=8", *typed)
    assert found.code == 0, found.err
    _, single = only_run(work / "outputs" / "distill")
    record = json.loads((folder / best["directory"] / "metrics.json").read_text())
    assert record["weights_sha256"] == single["weights_sha256"]
    assert record["validation"]["best"]["accuracy"] == float(best["validation_accuracy"])
