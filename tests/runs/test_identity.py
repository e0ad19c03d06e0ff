"""What makes two runs the same run: a teacher is known by how it was made."""

import json
import shutil
from pathlib import Path

import pytest

from kd_cli.config.plans import scratch_plan, teacher_plan
from kd_cli.runs.identity import dataset_spec, run_id, run_spec, teacher_dir
from tests.commands.test_run import without_timings
from tests.conftest import assert_refused, only_run, plan_of

RECIPES = (
    (),
    ("experiment=mnist_cnn",),
    ("experiment=cifar10_cnn",),
    ("experiment=fashion_mnist_mlp",),
    ("experiment=fashion_mnist_function_matching",),
    ("experiment=flowers102_function_matching",),
    ("augment=flip_crop", "augment.padding=2"),
    ("augment=crop_mixup", "augment.size=6", "dataset.image_shape=[8,8,1]"),
    ("teacher=mlp", "teacher.network.units=[9]", "dataset.limit=99"),
    ("teacher.training.epochs=3", "teacher.training.seed=5"),
    ("optimizer@teacher.training.optimizer=sgd", "schedule@teacher.training.schedule=cosine"),
    ("augment=flip_crop", "augment@teacher.training.augment=none"),
)


@pytest.mark.parametrize("typed", RECIPES, ids=" ".join)
def test_distill_describes_the_teacher_that_train_teacher_trains(typed):
    distilled, trained = plan_of("distill", *typed), plan_of("train-teacher", *typed)
    assert run_spec(teacher_plan(distilled)) == run_spec(trained)
    assert teacher_dir(distilled) == teacher_dir(trained)
    name = f"{distilled.dataset.name}-{distilled.teacher.name}-"
    assert teacher_dir(trained).name == name + run_id(trained)


ROOT_KEYS = [
    ("epochs=3", "teacher.training.epochs=3"),
    ("steps=7", "teacher.training.steps=7"),
    ("seed=4", "teacher.training.seed=4"),
    ("data_seed=4", "teacher.training.data_seed=4"),
    ("label_smoothing=0.1", "teacher.training.label_smoothing=0.1"),
    ("early_stopping.patience=2", "teacher.training.early_stopping.patience=2"),
    ("precision=mixed_bfloat16", "teacher.training.precision=mixed_bfloat16"),
    ("optimizer=sgd", "optimizer@teacher.training.optimizer=sgd"),
    ("schedule=cosine", "schedule@teacher.training.schedule=cosine"),
    ("optimizer.amsgrad=true", "teacher.training.optimizer.amsgrad=true"),
]


@pytest.mark.parametrize(("root", "training"), ROOT_KEYS)
def test_root_keys_of_train_teacher_are_those_of_the_teacher_s_training(root, training):
    made = plan_of("train-teacher", root)
    assert run_id(made) == run_id(plan_of("train-teacher", training))
    assert run_id(made) != run_id(plan_of("train-teacher"))
    # At the root of distill they are the student's, and the teacher stays.
    if not root.startswith("label_smoothing"):
        distilled = plan_of("distill", root)
        assert teacher_dir(distilled) == teacher_dir(plan_of("distill"))
        assert run_id(distilled) != run_id(plan_of("distill"))
    assert teacher_dir(plan_of("distill", training)) == teacher_dir(made)


@pytest.mark.parametrize(
    "typed",
    ["teacher.training.epochs=3", "teacher.training.seed=1", "teacher.training.learning_rate=0.1",
     "teacher.training.batch_size=7", "optimizer@teacher.training.optimizer=sgd",
     "schedule@teacher.training.schedule=cosine", "augment@teacher.training.augment=flip_crop",
     "teacher.training.early_stopping.patience=2", "dataset.labelled_fraction=0.5",
     "teacher.network.units=[3]", "dataset.split_seed=1", "augment=flip_crop"],
)  # fmt: skip
def test_another_way_of_training_is_another_teacher_and_another_student(typed):
    base, other = (plan_of("distill", "dataset=digits", *more) for more in ((), (typed,)))
    assert teacher_dir(base) != teacher_dir(other)
    assert run_id(base) != run_id(other)


def test_a_teacher_may_know_more_labels_than_the_student():
    few = ("dataset=digits", "dataset.labelled_fraction=0.05")
    same = plan_of("distill", *few)
    more = plan_of("distill", *few, "teacher.training.labelled_fraction=0.05")
    assert run_id(same) == run_id(more)
    all_labels = plan_of("distill", *few, "teacher.training.labelled_fraction=1")
    assert teacher_dir(all_labels) == teacher_dir(plan_of("train-teacher", "dataset=digits"))
    assert teacher_dir(all_labels) != teacher_dir(same) and run_id(all_labels) != run_id(same)
    assert run_id(all_labels) != run_id(plan_of("distill", "dataset=digits"))


def test_what_is_done_with_unlabelled_images_is_the_student_s():
    few = ("dataset=digits", "dataset.labelled_fraction=0.05")
    use = "dataset.unlabelled=use"
    used = plan_of("distill", *few, use)
    assert run_id(used) != run_id(plan_of("distill", *few))
    assert teacher_dir(used) == teacher_dir(plan_of("distill", *few))
    assert run_id(scratch_plan(used)) == run_id(plan_of("train-student", *few))


def test_the_teacher_s_seed_follows_only_when_told_to():
    alone, bound = (
        plan_of("distill", "seed=3"),
        plan_of("distill", "seed=3", "teacher.training.seed=${seed}"),
    )
    assert teacher_plan(alone).data_seed == 0 and teacher_plan(bound).data_seed == 3
    assert teacher_dir(bound) == teacher_dir(plan_of("train-teacher", "seed=3"))


def test_a_folder_below_the_working_directory_counts_from_there(npz, work, monkeypatch):
    here = plan_of("distill", "dataset=npz", f"dataset.path={npz}")
    (work / "copy").mkdir()
    shutil.copy(npz, work / "copy")
    monkeypatch.chdir(work / "copy")
    there = plan_of("distill", "dataset=npz", f"dataset.path={npz.name}")
    assert dataset_spec(there.dataset)["path"] == npz.name
    assert run_id(there) == run_id(plan_of("distill", "dataset=npz", f"dataset.path=./{npz.name}"))
    monkeypatch.chdir(work)
    assert run_id(here) == run_id(there)


SHORT = """\
name: short
network:
  _target_: kd_cli.networks.mlp
  image_shape: ${dataset.image_shape}
  num_classes: ${dataset.num_classes}
  units: [8]
"""


@pytest.fixture
def my_conf(work) -> str:
    for group in ("teacher", "student"):
        (work / "my_conf" / group).mkdir(parents=True)
        (work / "my_conf" / group / "short.yaml").write_text(SHORT)
    return "--config-dir=my_conf"


def test_yaml_that_leaves_out_keys_with_defaults_has_no_place_in_the_id(my_conf, work, monkeypatch):
    words = ("distill", "teacher=short", "student=short")
    here = plan_of(*words, my_conf)
    assert str(work) not in str(run_spec(here))
    assert teacher_dir(here).name.startswith("digits-short-")
    (work / "elsewhere").mkdir()
    shutil.copytree(work / "my_conf", work / "elsewhere" / "my_conf")
    monkeypatch.chdir(work / "elsewhere")
    assert run_id(plan_of(*words, my_conf)) == run_id(here)


@pytest.mark.slow
def test_two_recipes_are_two_teachers_whatever_was_typed_before(kd, work, small):
    """The order of the commands changes no number."""
    long = [*small, "teacher.training.epochs=3"]
    assert kd("distill", *small).code == 0
    first = kd("distill", *long)
    assert first.code == 0
    assert len(list((work / "outputs" / "teachers").iterdir())) == 2
    (line,) = [one for one in first.err.splitlines() if "teacher_dir=" in one]
    assert "epochs 2, now 3" in line and "take one that was trained with other settings" in line
    results = {p.parent.name: p.read_text() for p in work.glob("outputs/distill/*/*/metrics.json")}
    assert len(results) == 2
    (work / "outputs").rename(work / "before")
    assert kd("distill", *long).code == 0 and kd("distill", *small).code == 0

    for name, text in results.items():
        again = json.loads(
            (work / "outputs" / "distill" / "npz" / name / "metrics.json").read_text()
        )
        assert without_timings(again) == without_timings(json.loads(text))


@pytest.mark.slow
def test_a_sweep_over_the_teacher_s_training_has_two_rows(kd, work, small):
    done = kd("--multirun", *small, "teacher.training.epochs=1,2", "epochs=1", "sweep=s")
    assert done.code == 0
    assert len(list((work / "outputs" / "teachers").iterdir())) == 2
    rows = (work / "outputs" / "sweeps" / "s" / "sweep.csv").read_text().splitlines()
    assert rows[0].startswith("teacher.training.epochs,") and len(rows) == 3
    assert sorted(row.split(",")[0] for row in rows[1:]) == ["1", "2"]


@pytest.mark.slow
def test_a_given_teacher_counts_by_its_weights(kd, work, small):
    assert kd("train-teacher", *small, "teacher_dir=mine").code == 0
    assert kd("distill", *small[:2], "epochs=2", "teacher_dir=mine").code == 0
    folder, record = only_run(work / "outputs" / "distill")
    assert not (work / "outputs" / "teachers").exists()
    # Found again under another name, with the same weights: the same run.
    (work / "mine").rename(work / "moved")
    again = kd("distill", *small[:2], "epochs=2", "teacher_dir=moved")
    assert again.code == 0 and "is finished" in again.err
    # Trained in another way into the same place: another run.
    shutil.rmtree(work / "moved")
    assert kd("train-teacher", *small, "seed=9", "teacher_dir=moved").code == 0
    assert kd("distill", *small[:2], "epochs=2", "teacher_dir=moved").code == 0
    assert len(list((work / "outputs" / "distill").rglob("metrics.json"))) == 2


def test_a_teacher_dir_without_a_teacher_is_one_line(kd, work):
    assert_refused(
        kd, work, ["distill", "teacher_dir=mine"],
        "no finished teacher in teacher_dir=mine", "kd train-teacher teacher_dir=mine",
    )  # fmt: skip


def test_training_settings_of_a_given_teacher_are_refused(kd, work):
    (work / "t.keras").write_bytes(b"x")
    done = kd("distill", "teacher.checkpoint=t.keras", "teacher.training.epochs=3")
    assert done.code == 2
    assert "teacher.training.epochs=3" in done.error and "teacher.checkpoint" in done.error


def test_a_recipe_s_own_augmentation_is_not_left_out_silently(kd, work):
    words = ["train-teacher", "experiment=fashion_mnist_function_matching", "augment=none"]
    assert_refused(kd, work, words, "augment@teacher.training.augment=OPTION")


@pytest.mark.slow
def test_rerun_of_a_teacher_trains_another_beside_it(kd, work, small):
    assert kd("train-teacher", *small).code == 0
    done = kd("train-teacher", *small, "rerun=true")
    assert done.code == 0
    first, second = sorted(Path("outputs/teachers").iterdir())
    assert second.name == f"{first.name}-2" and f"teacher_dir={second}" in done.out
