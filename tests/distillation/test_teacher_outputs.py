"""Runs with augmentation: cached or live teacher, what a run leaves, and what makes it the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from matplotlib.image import imread

from kd_cli import cli
from kd_cli.commands import execute
from kd_cli.config.check import check
from kd_cli.config.compose import compose
from kd_cli.config.plans import scratch_plan
from kd_cli.distillation import logits_cache
from kd_cli.files import read_rows
from kd_cli.runs import identity
from kd_cli.runs.asked import Run
from kd_cli.runs.resolvers import register_resolvers
from kd_cli.runs.session import Session
from tests.conftest import SMALL, npz, only_run
from tests.whole.test_resume import approximately, result

SHORT = ("epochs=3", "batch_size=48", "teacher.train_if_missing=false")  # 3 steps an epoch
FLIP = "augment=flip_crop"
MIX = "augment=flip_crop_mixup"
INVERT = "augment.evaluate=[{_target_:tests.data.test_views.invert,_partial_:true}]"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory with the data and a trained teacher, to be copied."""
    folder = tmp_path_factory.mktemp("home")
    npz.__wrapped__(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = ("dataset=npz", f"dataset.path={folder}/quarters.npz")
        assert cli.main(["train-teacher", *data, *SMALL]) == 0
    return folder


@pytest.fixture
def made(home, work):
    """Makes a run of `kd distill` in a directory that has the teacher."""
    register_resolvers()
    shutil.copytree(home / "outputs", work / "outputs", symlinks=True)

    def make(*more, command="distill"):
        data = ["dataset=npz", f"dataset.path={home}/quarters.npz"]
        common = [*SMALL, *SHORT] if command == "distill" else ["epochs=2", "batch_size=48"]
        typed = [*data, *common, *more]
        plan = check(compose(command, typed), typed)
        return Run(plan, identity.run_dir(plan), typed)

    return make


def outside_xla(images, draw):
    """A node that XLA can't compile."""
    shape = images.shape
    shown = tf.numpy_function(lambda values: 255 - values, [images], images.dtype)
    return tf.ensure_shape(shown, shape)


def trained(one):
    """Its metrics, its history and the weights it ended with."""
    record = execute.execute(one, Session(), table=False)
    weights = keras.saving.load_model(one.out / "model.keras", compile=False).get_weights()
    return record, read_rows(one.out / "history.jsonl"), weights


def assert_alike(first, second, near):
    for one, other in zip(first[1], second[1], strict=True):
        for part in ("train", "validation"):
            assert one[part] == pytest.approx(other[part], rel=near, abs=near)
    for one, other in zip(first[2], second[2], strict=True):
        np.testing.assert_allclose(one, other, rtol=near, atol=near)


def entries():
    """The manifests of the cache, by part and view."""
    found = {}
    for folder in logits_cache.entries(Path("outputs/cache")):
        manifest = logits_cache.read_manifest(folder)
        found[manifest["origin"]["part"], manifest["origin"]["view"]] = (folder, manifest)
    return found


@pytest.mark.slow
def test_kept_views_train_the_student_that_a_live_teacher_trains(made, kd, monkeypatch):
    live = trained(made(FLIP))
    assert live[0]["teacher"]["outputs"] == (
        "live (every epoch has new versions of the images; cache.views=K stores K of them)"
    )
    kept = trained(made(FLIP, "cache.views=3"))
    assert kept[0]["teacher"]["outputs"] == "cached as float32, 3 views per image"
    assert_alike(live, kept, 1e-4)
    # More than there are epochs are not made.
    more = trained(made(FLIP, "cache.views=9"))
    assert more[0]["teacher"]["outputs"] == "cached as float32, 3 views per image"
    assert_alike(kept, more, 0)
    # The third epoch sees the first view again: the first two epochs are the same.
    two = trained(made(FLIP, "cache.views=2"))
    for row, other in zip(two[1][:2], kept[1][:2], strict=True):
        assert row["train"] == other["train"]
    # By more than rounding: the wider the tolerance, the more must differ.
    assert two[1][2]["train"] != pytest.approx(kept[1][2]["train"], rel=1e-4)
    # Streamed from the disk.
    one = made(FLIP, "cache.views=3", "memory_gib=0")
    assert one.out == made(FLIP, "cache.views=3").out
    shutil.rmtree(one.out)
    assert_alike(kept, trained(one), 0)

    found = entries()
    views = {("train", 0), ("train", 1), ("train", 2)}
    assert set(found) == {("test", None), ("validation", None)} | views
    tables = [np.load(found["train", view][0] / "logits.npy") for view in range(3)]
    assert all(np.abs(a - b).max() > 0.01 for a, b in zip(tables, tables[1:], strict=False))
    done = kd("cache", "verify", "rows=16")
    assert done.code == 0 and done.out.count("right (16 random rows compared)") == 5
    done = kd("cache", "list")
    assert "npz: mlp on train, view 2" in done.out
    # The logits of another view than is written are noticed.
    folder, manifest = found["train", 1]
    manifest["origin"]["view"] = 2
    (folder / "manifest.json").write_text(json.dumps(manifest))
    done = kd("cache", "verify")
    assert done.code == 1 and f"{folder.name}: differs from the teacher by up to" in done.out


@pytest.mark.slow
def test_views_of_a_node_that_xla_does_not_know_can_be_verified(made, kd):
    node = f"augment.train=[{{_target_:{__name__}.outside_xla,_partial_:true}}]"
    execute.execute(made(FLIP, node, "cache.views=1"), Session(), table=False)
    done = kd("cache", "verify")
    assert done.code == 0 and done.out.count("right (") == 3, done.out + done.err


@pytest.mark.slow
def test_the_teacher_on_the_plain_image_uses_the_plain_cache(made, kd):
    fixed = trained(made(FLIP, "view=fixed_teacher"))
    assert fixed[0]["teacher"]["outputs"] == "cached as float32"
    live = trained(made(FLIP, "view=fixed_teacher", "cache.logits=none"))
    assert live[0]["teacher"]["outputs"] == "live (cache.logits=none)"
    assert_alike(fixed, live, 1e-4)
    assert set(entries()) == {(part, None) for part in ("train", "validation", "test")}
    # The same logits as without augmentation: nothing is computed again.
    folder = entries()["train", None][0]
    before = (folder / "logits.npy").stat().st_mtime_ns
    plain = trained(made())
    assert plain[0]["teacher"]["outputs"] == "cached as float32"
    assert (folder / "logits.npy").stat().st_mtime_ns == before and len(entries()) == 3
    assert plain[1][0]["train"] != fixed[1][0]["train"]


@pytest.mark.slow
def test_evaluation_nodes_are_what_both_networks_get_of_the_test_split(made, kd, home):
    plain = trained(made(FLIP))
    one = made(FLIP, INVERT, "view=fixed_teacher")
    inverted = trained(one)
    with np.load(home / "quarters.npz") as data:
        pixels = 255 - data["x_test"].astype(np.float32)
    teacher = identity.teacher_dir(one.plan) / "model.keras"
    with np.load(one.out / "predictions.npz") as found:
        for key, path in (("student", one.out / "model.keras"), ("teacher", teacher)):
            model = keras.saving.load_model(path, compile=False)
            expected = model.predict(pixels, verbose=0)
            np.testing.assert_allclose(found[f"{key}_logits"], expected, rtol=1e-3, atol=1e-4)
    assert inverted[0]["teacher"]["test_nll"] != pytest.approx(plain[0]["teacher"]["test_nll"])
    # Validation sees them too: the last epoch's numbers are those of other pixels, and by more
    # than rounding.
    assert inverted[1][0]["validation"] != pytest.approx(plain[1][0]["validation"], rel=1e-3)
    done = kd("cache", "verify", "rows=16")
    assert done.code == 0 and done.out.count("right (16 random rows compared)") == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "how"),
    [
        ([MIX, "view=independent"], "live (mixup makes new images at every step)"),
        pytest.param(
            [FLIP, "cache.views=2"],
            "cached as float32, 2 views per image",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_joint_runs_with_augmentation_are_single_runs(made, more, how):
    both = [made(*more, f"alpha={alpha}") for alpha in (0.2, 0.7)]
    together = execute.execute_together(both, Session())
    rows = [read_rows(one.out / "history.jsonl") for one in both]
    for one, record, old in zip(both, together, rows, strict=True):
        shutil.rmtree(one.out)
        alone = execute.execute(one, Session(), table=False)
        # The joint graph adds float32 numbers in another order.
        assert alone["test"] == pytest.approx(record["test"], rel=1e-5)
        assert alone["teacher"] == record["teacher"]
        assert record["teacher"]["outputs"] == how
        expected = [row["train"] for row in approximately(old)]
        assert [row["train"] for row in read_rows(one.out / "history.jsonl")] == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("train-student", []),
        pytest.param("distill", ["view=independent"], marks=pytest.mark.slow),
    ],
)
def test_a_point_with_another_seed_finds_the_graph_and_draws_its_own_views(made, command, more):
    first, reused = (made(MIX, *more, f"seed={seed}", command=command) for seed in (4, 5))
    session = Session()
    execute.execute(first, session, table=False)
    execute.execute(reused, session, table=False)
    assert session.engine.made._chunk.experimental_get_tracing_count() == 1
    found = result(reused.out)
    shutil.rmtree(reused.out)
    execute.execute(reused, Session(), table=False)
    assert result(reused.out) == found


@pytest.mark.slow
def test_a_teacher_with_crops_of_its_own_is_asked_at_every_step(made):
    record, rows, _ = trained(made(FLIP, "view=independent"))
    assert record["teacher"]["outputs"] == (
        "live (view=independent: the teacher has crops of its own)"
    )
    consistent = trained(made(FLIP))
    # The same crops for the student: only the soft term differs.
    assert rows[0]["train"]["soft"] != pytest.approx(consistent[1][0]["train"]["soft"], rel=1e-4)
    assert set(entries()) == {("test", None), ("validation", None)}


@pytest.mark.slow
def test_a_scratch_student_learns_from_mixed_labels(made):
    """With the picture of its views; streamed it is the same run."""
    one = made(MIX, "augment.preview=true", "label_smoothing=0.1", command="train-student")
    record, rows, _ = first = trained(one)
    assert "view" not in record["config"] and len(record["config"]["augment"]["train"]) == 3
    assert 0 < rows[0]["train"]["accuracy"] < 1
    # 8 of 144 images; stored and in three epochs, for the one network that there is.
    image = imread(one.out / "augment.png")
    assert image.shape[:2] == (150 * 8, 150 * 4) and image[..., :3].std() > 0.1
    shutil.rmtree(one.out)
    plain = made(MIX, "label_smoothing=0.1", "memory_gib=0", command="train-student")
    assert plain.out == one.out
    assert_alike(first, trained(plain), 0)
    assert not (one.out / "augment.png").exists()


@pytest.mark.slow
def test_a_missing_teacher_is_trained_on_its_own_augmentation(kd, work, small):
    own = "augment@teacher.training.augment=flip_crop"
    preview = ["augment.preview=true", "teacher.training.augment.preview=true"]
    words = [*small, MIX, own, "loss=function_matching", *preview]
    done = kd("distill", *words)
    assert done.code == 0, done.err
    teacher, record = only_run(work / "outputs" / "teachers")
    targets = [node["_target_"] for node in record["config"]["augment"]["train"]]
    assert targets == ["kd_cli.data.pad_and_crop", "kd_cli.data.horizontal_flip"]
    out, record = only_run(work / "outputs" / "distill")
    assert len(record["config"]["augment"]["train"]) == 3
    assert (out / "augment.png").is_file() and (teacher / "augment.png").is_file()
    # The picture does not make another run.
    again = kd("distill", *words[:-2])
    assert again.code == 0 and "is finished" in again.err


@pytest.mark.slow
def test_larger_crops_of_a_larger_resize_and_a_central_crop(made, kd):
    nodes = [
        "{_target_:kd_cli.data.resize,_partial_:true,size:10}",
        "{_target_:kd_cli.data.random_crop,_partial_:true,size:8}",
    ]
    central = "{_target_:kd_cli.data.central_crop,_partial_:true,fraction:0.9,size:8}"
    record, _, _ = trained(
        made(
            f"augment.train=[{','.join(nodes)}]",
            f"augment.evaluate=[{central}]",
            "augment.size=8",
            "cache.views=2",
            "teacher.train_if_missing=true",
        )
    )
    assert record["input"] == "pixels 0..255, [batch, 8, 8, 1]"
    done = kd("cache", "verify")
    assert done.code == 0 and done.out.count("right (") == 4


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([MIX], "(mixup makes new images at every step): leave it out"),
        ([FLIP, "view=independent"], "(view=independent: the teacher has crops of its own)"),
        ([FLIP, "view=fixed_teacher"], "the teacher gets one version of each image"),
        ([], "(nothing is augmented, so each image has one version)"),
        ([FLIP, "cache.logits=none"], "(cache.logits=none stores nothing)"),
    ],
)
def test_a_cache_of_views_without_use_is_one_line_and_leaves_nothing(
    kd, work, small, npz, words, expected
):
    done = kd("distill", *small, *words, "cache.views=2")
    assert done.code == 2
    assert done.error.startswith("cache.views=2 has no effect (") and expected in done.error
    assert [path.name for path in work.iterdir()] == [npz.name]


@pytest.mark.parametrize(
    ("command", "words", "expected"),
    [
        ("train-student", [FLIP, "view=independent"], "does not use view"),
        ("train-teacher", [FLIP, "view=consistent"], "does not use view"),
        ("train-student", [FLIP, "cache.views=2"], "does not use cache.views"),
        ("distill", ["view=same"], "view=same must be consistent, independent or fixed_teacher"),
        ("distill", [FLIP, "cache.views=0"], "cache.views=0 must be at least 1"),
        ("distill", ["augment_seed=-1"], "augment_seed=-1 must be between"),
        ("distill", ["augment.size=0"], "augment.size=0 must be at least 1"),
        ("distill", ["augment.train=[flip]"], "augment.train[0]=flip must be a node such as"),
        ("distill", [FLIP, "augment.padding=2.5.1"], "augment.train[0]"),
    ],
)
def test_mistakes_are_one_line(kd, work, npz, command, words, expected):
    done = kd(command, "dataset=npz", f"dataset.path={npz}", *words)
    assert done.code == 2 and expected in done.error
    assert [path.name for path in work.iterdir()] == [npz.name]


@pytest.mark.slow
def test_what_makes_another_run(made):
    def spec(*more, command="distill"):
        return identity.run_spec(made(*more, command=command).plan)

    def same(first, second, command="distill"):
        runs = [made(*words, command=command) for words in (first, second)]
        return len({identity.run_id(one.plan) for one in runs}) == 1

    # As before there was augmentation: the directories of old runs are found.
    assert not {"augment", "view", "cache"} & spec().keys()
    assert not {"augment", "view"} & spec(command="train-student").keys()
    assert same([], ["augment=none"])
    assert same([FLIP], [FLIP, "augment.preview=true"])
    assert not same([], [FLIP]) and not same([FLIP], [MIX])
    assert not same([FLIP], [FLIP, "augment_seed=5"])
    assert not same([FLIP], [FLIP, "augment.padding=2"])
    assert not same([FLIP], [FLIP, "view=independent"])
    assert not same([FLIP], [FLIP, "cache.views=2"])
    assert not same([FLIP], [FLIP, INVERT])
    assert not same([], [INVERT])
    assert same([FLIP, "data_seed=3"], [FLIP, "data_seed=3", "augment_seed=3"])
    assert not same([FLIP], [], command="train-student")
    # The scratch student of a distilled one has its augmentation, whatever the teacher saw.
    plan = made(FLIP, "view=independent", "epochs=2").plan
    assert identity.run_spec(scratch_plan(plan))["augment"] == spec(FLIP)["augment"]
