"""`kd tune --compare`: what the scratch student may choose, and the verdict over fresh seeds."""

import json

import numpy as np
import pytest

from kd_cli.commands.spaces import split
from kd_cli.commands.table import COMMANDS
from kd_cli.errors import ConfigError
from kd_cli.runs.session import Session
from tests.records import TEACHER, content

pytest.importorskip("optuna")
from kd_cli.commands.search import Search  # noqa: E402
from kd_cli.commands.search_result import fresh_seeds  # noqa: E402
from kd_cli.commands.tune_compare import (  # noqa: E402
    DISTILLED,
    PLAIN,
    TUNED,
    conclude,
    scratch_space,
)


def searching(*words):
    single, spaces = split(["sweep=mine", *words], None)
    return Search(COMMANDS["distill"], single, spaces, "none", None, Session())


def spaces_of(*words, scratch=()):
    single, spaces = scratch_space(searching(*words), scratch)
    return single, {space.name: space.text.partition("=")[2] for space in spaces}


def test_by_default_the_scratch_student_chooses_what_matters_to_it(work):
    single, spaces = spaces_of("alpha=interval(0,1)", "dataset=digits", "temperature=2")
    assert single == ["sweep=mine", "dataset=digits"]
    assert spaces == {
        "learning_rate": "tag(log,interval(0.0003,0.03))",  # 0.003 by the data set
        "label_smoothing": "interval(0,0.2)",
        "optimizer.weight_decay": "choice(0,1e-4,1e-3,1e-2,0.1)",
        "augment": "choice(none,flip_crop)",
    }


def test_texts_are_not_augmented(work):
    rows = [f"{'good' if n % 2 else 'bad'} film {n % 3},{n % 2}" for n in range(60)]
    (work / "reviews.csv").write_text("\n".join(["text,label", *rows]))
    texts = ["dataset=text", "dataset.path=reviews.csv", "teacher=bag", "student=bag"]
    _, spaces = spaces_of("alpha=interval(0,1)", *texts)
    assert set(spaces) == {"learning_rate", "label_smoothing", "optimizer.weight_decay"}


def test_it_may_choose_what_the_distilled_student_may_and_keeps_what_was_typed(work):
    words = ["alpha=interval(0,1)", "learning_rate=interval(0.1,0.2)", "batch_size=choice(32,64)"]
    single, spaces = spaces_of(
        *words, "optimizer=adamw", "augment=flip_crop", scratch=["label_smoothing=0.1"]
    )
    assert single == ["sweep=mine", "optimizer=adamw", "augment=flip_crop", "label_smoothing=0.1"]
    assert spaces == {
        "learning_rate": "interval(0.1,0.2)",
        "batch_size": "choice(32,64)",
        "optimizer.weight_decay": "tag(log,interval(4e-05,0.04))",  # 0.004 by the optimizer
    }
    single, spaces = spaces_of(*words, scratch=["learning_rate=interval(0.3,0.4)"])
    assert spaces["learning_rate"] == "interval(0.3,0.4)"


def test_with_nothing_to_choose_it_is_one_line(work):
    fixed = ["learning_rate=0.1", "label_smoothing=0", "optimizer.weight_decay=0", "augment=none"]
    with pytest.raises(ConfigError, match="the scratch student has nothing to search"):
        spaces_of("alpha=interval(0,1)", scratch=fixed)


def test_fresh_seeds_are_those_that_the_search_has_not_used(work):
    assert fresh_seeds(searching("alpha=interval(0,1)"), 3) == [1, 2, 3]
    words = ["seed=1", "data_seed=3", "alpha=interval(0,1)"]
    assert fresh_seeds(searching(*words), 5) == [0, 2, 4, 5, 6]


def test_the_verdict_is_of_pairs_with_different_settings(work, capsys):
    """Distilled 82, 84, 83; tuned scratch 80, 81, 79; the other 84, 84, 84: 3 better, -1 not."""
    search = searching("alpha=interval(0,1)")
    points = {}
    tests = {DISTILLED: (82, 84, 83), TUNED: (80, 81, 79), PLAIN: (84, 84, 84)}
    for number, (name, values) in enumerate(tests.items()):
        points[name] = []
        for seed, value in enumerate(values, 1):
            made = content(
                command="distill" if name == DISTILLED else "train-student",
                seed=seed,
                config={"init_seed": seed, "data_seed": seed, "learning_rate": number},
                test={"accuracy": value / 100},
                **({"teacher": TEACHER} if name == DISTILLED else {}),
            )
            folder = work / "outputs" / "sweeps" / "mine" / f"{number}-{seed}"
            folder.mkdir(parents=True)
            (folder / "metrics.json").write_text(json.dumps(made))
            points[name].append(folder)
    conclude(search, points, 20)
    out = capsys.readouterr().out
    assert "winners of 20 trials each, on fresh seeds" in out
    line = "verdict: the distilled student against the tuned scratch student: better by 3.00 perc"
    assert (
        line in out and "without a search of its own: inconclusive: -1.00 percentage points" in out
    )
    told = json.loads((search.place / "comparison.json").read_text())
    paired = told["against_tuned_scratch"]["paired"]
    np.testing.assert_allclose(paired["differences"], [0.02, 0.03, 0.04], atol=1e-12)
    assert told["against_tuned_scratch"]["runs"] == ["1-1", "1-2", "1-3"]
    assert told["trials"] == 20 and len(told["distilled"]) == 3


@pytest.mark.slow
def test_a_whole_comparison(kd, work, small, taught):
    done = kd("tune", "--compare", *small, "alpha=choice(0.1,0.9)", "trials=3", "seeds=3")
    assert done.code == 0, done.err
    places = sorted((work / "outputs" / "sweeps").glob("*/search-*"))
    told = [json.loads((place / "search.json").read_text()) for place in places]
    assert sorted(one["command"] for one in told) == ["distill", "train-student"]
    assert [len(one["trials"]) for one in told] == [3, 3]
    (path,) = (work / "outputs" / "sweeps").glob("*/search-*/comparison.json")
    verdict = json.loads(path.read_text())
    folder = path.parent.parent
    for name in ("against_tuned_scratch", "against_scratch_not_tuned"):
        runs = [verdict["distilled"], verdict[name]["runs"]]
        records = [
            [json.loads((folder / run / "metrics.json").read_text()) for run in own] for own in runs
        ]
        assert [[one["seed"] for one in own] for own in records] == [[1, 2, 3]] * 2
        expected = [
            a["test"]["accuracy"] - b["test"]["accuracy"] for a, b in zip(*records, strict=True)
        ]
        assert verdict[name]["paired"]["differences"] == pytest.approx(expected, abs=1e-12)
    assert "the distilled student can't choose learning_rate" in done.err
    again = kd("tune", "--compare", *small, "alpha=choice(0.1,0.9)", "trials=3", "seeds=3")
    assert again.code == 0 and again.out == done.out
