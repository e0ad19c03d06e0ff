"""The directory in which Hydra runs is the directory that was checked."""

import json

import pytest

from tests.conftest import assert_refused, only_run

SCRATCH = ("epochs=1", "student.network.units=[4]")


@pytest.fixture
def words(npz) -> list[str]:
    return ["train-student", "dataset=npz", f"dataset.path={npz}", *SCRATCH]


def config_of(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())["config"]


def test_a_chosen_run_dir_is_checked_as_our_own(kd, work, words):
    assert kd(*words, "hydra.run.dir=r").code == 0
    assert "is finished" in kd(*words, "hydra.run.dir=r").err
    other = kd(*words, "learning_rate=0.5", "hydra.run.dir=r")
    assert other.code == 2 and "learning_rate 0.001, now 0.5" in other.error
    assert config_of(work / "r")["learning_rate"] == 0.001
    assert not (work / "outputs" / "latest").exists()


@pytest.mark.parametrize("name", ["model.keras", "predictions.npz", "metrics.json", "notes.txt"])
def test_files_of_the_user_s_are_not_overwritten(kd, work, words, name):
    (work / "r").mkdir()
    (work / "r" / name).write_text("mine")
    done = kd(*words, "hydra.run.dir=r")
    assert done.code == 2 and name in done.error and len(done.err.splitlines()) == 1
    assert [p.name for p in (work / "r").iterdir()] == [name]
    assert (work / "r" / name).read_text() == "mine"


def test_a_sweep_goes_where_hydra_is_told(kd, work, words):
    sweep = [*words, "--multirun", "hydra.sweep.dir=sw", "hydra.sweep.subdir=${hydra.job.num}"]
    done = kd(*sweep, "learning_rate=0.1,0.2")
    assert done.code == 0 and "sw: 2 points" in done.out
    assert (work / "sw" / "sweep.csv").exists()
    assert [config_of(work / "sw" / n)["learning_rate"] for n in "01"] == [0.1, 0.2]
    other = kd(*sweep, "learning_rate=0.3,0.4")
    assert other.code == 2 and "learning_rate 0.1, now 0.3" in other.error
    assert [config_of(work / "sw" / n)["learning_rate"] for n in "01"] == [0.1, 0.2]


def test_two_points_in_one_directory_are_refused(kd, work, words):
    typed = [*words, "--multirun", "hydra.sweep.subdir=same", "learning_rate=0.1,0.2"]
    done = kd(*typed)
    assert done.code == 2 and "two points of the sweep would write to" in done.error


def test_another_working_directory_is_refused(kd, work):
    assert_refused(kd, work, ["train-student", "hydra.job.chdir=true"], "hydra.job.chdir=true")


def test_a_directory_with_odd_characters(kd, work, words):
    assert kd(*words, r"hydra.run.dir='it\'s a (run), 1'").code == 0
    assert only_run(work)[0].name == "it's a (run), 1"
    assert "is finished" in kd(*words, r"hydra.run.dir='it\'s a (run), 1'").err


def test_an_option_of_the_user_s_wins_over_ours(kd, work, words):
    (work / "my_conf" / "student").mkdir(parents=True)
    (work / "my_conf" / "student" / "mlp.yaml").write_text(
        "name: mine\n"
        "network:\n"
        "  _target_: kd_cli.networks.mlp\n"
        "  image_shape: ${dataset.image_shape}\n"
        "  num_classes: ${dataset.num_classes}\n"
        "  units: [5]\n"
    )
    assert kd(*words[:-1], "--config-dir", "my_conf", "student=mlp").code == 0
    _, record = only_run(work / "outputs")
    assert record["network"] == "mine" and record["config"]["student"]["network"]["units"] == [5]
    # An option that only kd has is found as well.
    shown = kd("distill", "--config-dir", "my_conf", "student=cnn", "--cfg", "job")
    assert shown.code == 0 and "kd_cli.networks.cnn" in shown.out


def test_a_name_of_an_older_version_is_named_anew(kd, work, words):
    done = kd(*words[:-1], "student.network._target_=kd_cli.models.mlp")
    assert done.code == 2 and "did you mean kd_cli.networks.mlp?" in done.error


def test_a_reference_that_is_typed_is_resolved(kd, work, words):
    done = kd(*words, "seed=4", "init_seed=${.seed}")
    assert done.code == 0, done.err
    out, record = only_run(work / "outputs" / "train-student")
    assert record["config"]["init_seed"] == 4
    assert "init_seed=${.seed}" in (out / ".hydra" / "overrides.yaml").read_text()


def test_a_working_folder_that_looks_like_a_reference_is_refused(kd, work, words, monkeypatch):
    (work / "${x}").mkdir()
    monkeypatch.chdir(work / "${x}")
    assert_refused(kd, work / "${x}", words, "${ as a reference")
    assert_refused(kd, work / "${x}", [*words, "-m", "seed=0,1"], "${ as a reference")
