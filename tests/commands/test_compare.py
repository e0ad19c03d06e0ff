"""`kd compare`: pairs by seed, what is reused, and the verdict that it leaves."""

import json
from pathlib import Path

import pytest

from kd_cli.commands import job
from kd_cli.commands.compare import conclude, sweeps
from kd_cli.commands.table import COMMANDS, Request
from kd_cli.config.compose import compose
from kd_cli.errors import ConfigError
from kd_cli.runs.session import Session
from tests.records import TEACHER, content


def runs(work):
    """Test accuracy by command, alpha and seed, of all points of all sweeps."""
    found = {}
    for path in (work / "outputs" / "sweeps").glob("*/*/metrics.json"):
        record = json.loads(path.read_text())
        found[record["command"], record["alpha"], record["seed"]] = record
    return found


def test_a_comparison_is_two_sweeps_over_the_same_seeds():
    scratch, distilled = sweeps(["alpha=0.1,0.5", "dataset=mnist", "seeds=3", "teacher=mlp"])
    assert scratch[0] == "train-student" and distilled[0] == "distill"
    assert distilled[1][:3] == ["alpha=0.1,0.5", "dataset=mnist", "teacher=mlp"]
    assert scratch[1][0] == "dataset=mnist" and len(scratch[1]) == 3
    for one in (scratch, distilled):
        assert one[1][-1] == "seed=0,1,2"
        assert one[1][-2] == distilled[1][-2]  # the folder
        assert one[1][-2].startswith("sweep=compare-")


def test_a_control_is_a_scratch_student_with_a_setting_more():
    plain, smoothed, distilled = sweeps(["alpha=0.1", "controls=label_smoothing", "epochs=3"])
    assert plain[0] == smoothed[0] == "train-student"
    assert smoothed[1] == [*plain[1], "label_smoothing=0.1"] and "epochs=3" in plain[1]
    assert distilled[0] == "distill" and not any("smoothing" in o for o in distilled[1])
    used = sweeps(["dataset.labelled_fraction=0.1", "dataset.unlabelled=use"])
    assert ["dataset.unlabelled=use" in typed for _, typed in used] == [False, True]


def test_seeds_may_be_named():
    """The seeds that confirm a search are not those that it used."""
    for typed in ("seeds=1,2,5", "seeds=[1,2,5]", "seeds=1,2,5,2"):
        assert [words[-1] for _, words in sweeps(["alpha=0.1", typed])] == ["seed=1,2,5"] * 2


def test_the_folder_is_the_same_for_more_seeds_and_other_points():
    def folder(*typed):
        return sweeps(list(typed))[0][1][-2]

    assert folder("alpha=0.1,0.5") == folder("alpha=0.9,1", "seeds=9")
    assert folder("epochs=3") != folder("epochs=4")
    assert folder("sweep=mine") == "sweep=mine"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("seeds=2", "seeds=2 must be a whole number from 3 to 1000"),
        ("seeds=many", "seeds=many must be a whole number"),
        ("seeds=1,2,2", "seeds=1,2,2: expected 3 to 1000 different seeds"),
        ("seeds=1,2,x", "seeds=1,2,x: each must be a whole number"),
        ("controls=dropout", "controls=dropout: expected some of label_smoothing"),
        ("seed=3", "compare sets the seeds itself; replace seed=3 by seeds=N, the number of seeds"),
        ("init_seed=1,2", "compare sets the seeds itself; replace init_seed=1,2"),
        ("rerun=true", "compare does not take rerun: it reuses finished runs; remove rerun=true"),
    ],
)
def test_mistakes_are_one_line(kd, work, typed, expected):
    with pytest.raises(ConfigError, match="."):
        sweeps([typed])
    done = kd("compare", typed)
    assert done.code == 2 and expected in done.error
    assert list(work.iterdir()) == []


def test_a_mistake_in_the_distilled_half_is_told_before_the_scratch_half_trains(kd, work, small):
    done = kd("compare", *small, "alpha=0.1,7", "seeds=3")
    assert done.code == 2 and "alpha=7.0 must be between 0 and 1" in done.error
    assert not (work / "outputs").exists()


def test_each_sweep_names_its_own_points_when_both_have_the_same_overrides(work, monkeypatch):
    """Nothing of distill alone is typed: Hydra would take the directories of the sweep before."""
    taken = []

    def multirun(request, one):
        point = ["seed=0" if word == "seed=0,1,2" else word for word in request.overrides]
        cfg = compose(request.command.config, point)
        taken.append((Path(cfg.hydra.sweep.dir) / cfg.hydra.sweep.subdir, one.runs))

    monkeypatch.setattr(job, "multirun", multirun)
    parts = [
        job.prepare(Request(COMMANDS[word], overrides, ["--multirun"], None))
        for word, overrides in sweeps(["epochs=1", "sweep=s", "seeds=3"])
    ]
    for part in parts:
        job.train(part, Session(), table=False)
    for (out, runs), part in zip(taken, parts, strict=True):
        assert out in part.points and runs is part.runs
    assert taken[0][0] != taken[1][0]


def made_runs(folder: Path, best: dict | None) -> None:
    """Three pairs of students with test accuracies of 80, 81, 79 and 82, 84, 83 %."""
    for command, tests in (("train-student", (80, 81, 79)), ("distill", (82, 84, 83))):
        for seed, test in enumerate(tests):
            loss = {"train-student": "cross_entropy", "distill": "hinton"}[command]
            changes = {"teacher": TEACHER} if command == "distill" else {}
            if best:
                changes["validation"] = {"best": best, "last": best}
            made = content(
                command=command,
                seed=seed,
                config={
                    "init_seed": seed,
                    "data_seed": seed,
                    "loss": {"_target_": f"kd_cli.distillation.{loss}"},
                },
                test={"accuracy": test / 100},
                weights_sha256=f"{command}{seed}",
                **changes,
            )
            run = folder / f"{command}{seed}"
            run.mkdir(parents=True)
            (run / "metrics.json").write_text(json.dumps(made))


def test_a_comparison_says_which_epochs_count(work, capsys):
    made_runs(work / "without", None)
    conclude(work / "without")
    made_runs(work / "with", {"epoch": 1, "accuracy": 0.8, "nll": 0.5})
    conclude(work / "with")
    without, validated = capsys.readouterr().out.split("report: ", 1)
    assert "no validation split, so the last epochs count;" in without
    assert "Epochs are chosen by validation accuracy;" in validated


def test_the_table_of_a_comparison(work, capsys):
    """Differences 2, 3, 4 points: 3 with the interval 3 -+ 4.3027 / sqrt(3), 0.52 to 5.48."""
    made_runs(work / "mine", {"epoch": 1, "accuracy": 0.8, "nll": 0.5})
    conclude(work / "mine")
    title, head, *lines = capsys.readouterr().out.splitlines()
    assert title.strip() == "mine: mean and standard deviation over seeds"
    assert [cell.strip() for cell in head.split("   ") if cell.strip()] == [
        "seeds", "validation, %", "test, %", "test against scratch, points", "verdict",
    ]  # fmt: skip
    cells = [[cell.strip() for cell in line.split("   ") if cell.strip()] for line in lines[:3]]
    assert cells == [
        ["teacher cnn tttttttt", "1", "–", "95.00", "–", "–"],
        ["scratch", "3", "80.00 ± 0.00", "80.00 ± 1.00", "–", "–"],
        ["hinton", "3", "80.00 ± 0.00", "83.00 ± 1.00", "+3.00", "better"],
    ]
    assert lines[3].startswith(
        "hinton: better by 3.00 percentage points (95 % interval 0.52 to 5.48"
    )
    (one,) = json.loads((work / "mine" / "comparison.json").read_text())["against_scratch"]
    assert one["paired"]["mean"] == pytest.approx(0.03)
    assert (work / "mine" / "report" / "report.html").is_file()


@pytest.mark.slow
def test_a_verdict_over_seeds(kd, work, small):
    """With alpha=1 the teacher does not count: the pairs start and end alike."""
    done = kd("compare", *small, "alpha=1,0.1", "seeds=3")
    assert done.code == 0, done.err
    found = runs(work)
    assert len(found) == 9
    for seed in range(3):
        alone, taught = found["train-student", None, seed], found["distill", 1.0, seed]
        assert taught["test"] == pytest.approx(alone["test"], abs=1e-6)
        assert taught["validation"]["best"] == pytest.approx(alone["validation"]["best"], abs=1e-6)
    (path,) = (work / "outputs" / "sweeps").glob("*/comparison.json")
    rows = {
        row["settings"]["alpha"]: row for row in json.loads(path.read_text())["against_scratch"]
    }
    assert set(rows) == {1.0, 0.1}
    assert rows[1.0]["verdict"] == "inconclusive"
    assert rows[1.0]["paired"]["differences"] == [0, 0, 0]
    expected = [
        found["distill", 0.1, seed]["test"]["accuracy"]
        - found["train-student", None, seed]["test"]["accuracy"]
        for seed in range(3)
    ]
    assert rows[0.1]["paired"]["differences"] == pytest.approx(expected, abs=1e-12)
    assert rows[0.1]["paired"]["points"] == 2
    assert "no difference on any of 3 seeds" in done.out
    for name in ("report.html", "report.md"):
        assert (path.parent / "report" / name).is_file()
    teachers = list((work / "outputs" / "teachers").glob("*/metrics.json"))
    assert len(teachers) == 1

    # More seeds: what is finished is found again.
    more = kd("compare", *small, "alpha=1,0.1", "seeds=4", "--multirun")
    assert more.code == 0 and more.err.count("is finished") == 9
    assert len(runs(work)) == 12
    rows = json.loads(path.read_text())["against_scratch"]
    assert all(len(row["paired"]["differences"]) == 4 for row in rows)
