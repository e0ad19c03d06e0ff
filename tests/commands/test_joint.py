"""Joint sweeps: what can share trains together, and each point is what a single run would be."""

import json

import pytest

from kd_cli.commands import joint
from kd_cli.config.check import check
from kd_cli.config.compose import compose
from kd_cli.files import read_rows
from kd_cli.runs.asked import Run
from kd_cli.runs.identity import point_dir
from kd_cli.runs.resolvers import register_resolvers
from tests.conftest import only_run, read_record

JOINT = ("--multirun", "hydra/launcher=joint")


def made(small, *typed):
    register_resolvers()
    words = [*small, "sweep=s", *typed]
    plan = check(compose("distill", words), words)
    return Run(plan, point_dir(plan), words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        (["alpha=0.1"], ["alpha=0.9"], True),
        (["temperature=1"], ["temperature=9"], True),
        (["t_squared=true"], ["t_squared=false"], True),
        (["loss=hinton"], ["loss=hard"], True),
        (["init_seed=1"], ["init_seed=2"], True),
        (["learning_rate=0.1"], ["learning_rate=0.2"], True),
        (["learning_rate=0.1", "schedule=cosine"], ["schedule=cosine"], True),
        (["seed=1"], ["seed=2"], False),  # its data_seed differs
        (["seed=1", "data_seed=0"], ["seed=2", "data_seed=0"], True),
        (["data_seed=1"], ["data_seed=2"], False),
        (["epochs=1"], ["epochs=2"], True),
        (["steps=3"], ["steps=4"], False),
        (["steps=3"], ["epochs=2"], False),
        (["batch_size=8"], ["batch_size=16"], False),
        (["schedule=constant"], ["schedule=cosine"], False),
        (["optimizer=adam"], ["optimizer=sgd"], False),
        (["student.network.units=[8]"], ["student.network.units=[16]"], False),
        (["teacher.network.units=[8]"], ["teacher.network.units=[16]"], False),
        (["cache.logits=none"], ["cache.logits=float32"], False),
        (["dataset.limit=80"], ["dataset.limit=90"], False),
        (["early_stopping.patience=1"], ["early_stopping.patience=2"], False),
        (["augment=flip_crop"], ["augment=none"], False),
        (["augment=flip_crop", "augment_seed=1"], ["augment=flip_crop"], False),
        (["augment=flip_crop", "view=independent"], ["augment=flip_crop"], False),
        (["augment=flip_crop", "cache.views=2"], ["augment=flip_crop"], False),
        (["augment=flip_crop", "alpha=0.1"], ["augment=flip_crop", "alpha=0.9"], True),
    ],
)
def test_which_points_can_share(work, small, first, second, together):
    runs = [
        made([w for w in small if w != "epochs=2" or not typed[0].startswith("steps")], *typed)
        for typed in (first, second)
    ]
    assert joint.groups(runs, 8) == ([[0, 1]] if together else [[0], [1]])


@pytest.mark.slow
def test_big_groups_are_cut_and_keep_their_order(work, small):
    runs = [made(small, f"alpha=0.{n}", f"data_seed={n % 2}") for n in range(1, 8)]
    assert joint.groups(runs, 3) == [[0, 2, 4], [6], [1, 3, 5]]


def points(folder):
    found = {}
    for path in sorted(folder.glob("*/metrics.json")):
        record = read_record(path.parent)
        found[path.parent.name] = (record, read_rows(path.parent / "history.jsonl"), path.parent)
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("taught")
def test_every_point_is_what_a_single_run_leaves(kd, work, small):
    sweep = ["alpha=0.2,0.8", "epochs=2,3", "student.network.dropout=0.2", "schedule=cosine"]
    done = kd(*JOINT, *small, *sweep, "sweep=together")
    assert done.code == 0, done.err
    assert "4 points train together" in done.err
    assert kd("--multirun", *small, *sweep, "sweep=apart").code == 0
    together = points(work / "outputs/sweeps/together")
    apart = points(work / "outputs/sweeps/apart")
    assert set(together) == set(apart) and len(apart) == 4
    for name, (record, rows, folder) in together.items():
        single, single_rows, single_folder = apart[name]
        assert record["timings"]["learners"] == 4 and single["timings"]["learners"] == 1
        for part in ("test", "test_last", "config", "inputs", "run_id", "loss", "alpha"):
            assert record[part] == close(single[part])
        for row, single_row in zip(rows, single_rows, strict=True):
            for part in ("train", "validation", "learning_rate", "step"):
                assert row[part] == close(single_row[part])
        assert {p.name for p in folder.iterdir()} == {p.name for p in single_folder.iterdir()}
        log = (folder / "kd.log").read_text()
        first = f"1/{record['epochs_done']}"
        assert log.count(f"{name} {first}") == 1 and log.count(f" {first} ") == 1  # its own alone
    # A point is finished when its own training ends, not with the longest one.
    ended = {2: [], 3: []}
    for record, _, folder in together.values():
        ended[record["epochs_done"]].append(folder)
    finished = [(folder / "metrics.json").stat().st_mtime_ns for folder in ended[2]]
    still = [(folder / "history.jsonl").stat().st_mtime_ns for folder in ended[3]]
    assert max(finished) < min(still)
    # The same command again answers, and has nothing to train.
    again = kd(*JOINT, *small, *sweep, "sweep=together")
    assert again.code == 0 and again.err.count("is finished") == 4


def close(value):
    if isinstance(value, dict) and all(isinstance(v, float) for v in value.values()):
        return pytest.approx(value, rel=1e-5)
    return pytest.approx(value, rel=1e-6) if isinstance(value, float) else value


@pytest.mark.slow
@pytest.mark.usefixtures("taught")
def test_a_point_that_breaks_ends_alone(kd, work, small):
    done = kd(*JOINT, *small, "learning_rate=0.01,1e30", "optimizer=sgd", "sweep=s")
    assert done.code == 1
    folder, record = only_run(work / "outputs" / "sweeps")
    assert record["epochs_done"] == 2 and record["config"]["learning_rate"] == 0.01
    (error,) = (work / "outputs" / "sweeps").rglob("error.json")
    assert error.parent != folder
    assert "is not finite" in json.loads(error.read_text())["message"]
    assert "kd: failed:" in done.err and error.parent.name in done.err


@pytest.mark.slow
@pytest.mark.usefixtures("taught")
def test_points_that_cannot_share_run_apart(kd, work, small):
    done = kd(*JOINT, *small, "alpha=0.1,0.9", "seed=0,1", "sweep=s")
    assert done.code == 0
    assert done.err.count("2 points train together") == 2
    assert len(points(work / "outputs/sweeps/s")) == 4


@pytest.mark.slow
def test_students_and_teachers_train_together_too(kd, work, small):
    done = kd("train-student", *JOINT, *small[:2], "epochs=1", "init_seed=0,1", "sweep=s")
    assert done.code == 0 and "2 points train together" in done.err
    assert len(points(work / "outputs/sweeps/s")) == 2


@pytest.mark.slow
def test_a_mistake_that_concerns_all_points_is_told_by_each(kd, work, small):
    done = kd(*JOINT, *small, "alpha=0.1,0.9", "teacher.network._target_=no.such", "sweep=s")
    assert done.code in (1, 2)
    assert "no.such" in done.err and "Traceback" not in done.err
    assert not list((work / "outputs").rglob("metrics.json"))


@pytest.mark.slow
@pytest.mark.parametrize("value", ["0", "many"])
def test_max_points_is_checked(kd, work, small, value):
    done = kd(*JOINT, *small, "alpha=0.1,0.9", f"hydra.launcher.max_points={value}")
    assert done.code == 2 and "max_points" in done.error


@pytest.mark.slow
@pytest.mark.usefixtures("taught")
def test_two_points_that_are_the_same_run_are_trained_once(kd, work, small):
    done = kd(*JOINT, *small, "temperature=4,4.0,2", "sweep=s")
    assert done.code == 0 and "2 points train together" in done.err
    found = points(work / "outputs/sweeps/s")
    assert len(found) == 2
    # The entropy of a softened distribution rises with its temperature; each has its own.
    said = {
        record["temperature"]: record["teacher"]["on_training"] for record, *_ in found.values()
    }
    entropies = [said[2]["entropy"], *(said[t]["entropy_at_temperature"] for t in (2, 4))]
    assert entropies == sorted(entropies) and len(set(entropies)) == 3
    again = kd(*JOINT, *small, "temperature=4,4.0,2", "sweep=s")
    assert again.code == 0 and not list(work.rglob("error.json"))
