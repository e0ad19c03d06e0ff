"""Methods from the command line: lists of losses, several teachers, mistakes in one line."""

import json

import keras
import numpy as np
import pytest

from kd_cli.config.compose import conf_dir
from kd_cli.data.dataset import load_dataset
from kd_cli.distillation.teacher import find
from kd_cli.networks.keras_file import load_keras
from kd_cli.runs.session import Session
from tests.conftest import plan_of, read_record

CNN = (
    "student=cnn",
    "teacher=cnn",
    "teacher.network.filters=[4,8]",
    "student.network.filters=[2,4]",
)
EPOCHS = ("epochs=1", "teacher.training.epochs=1")
AT = "loss.at.pairs=[[stage1,stage1]]"


@pytest.fixture
def data(npz):
    return ["dataset=npz", f"dataset.path={npz}", *CNN, *EPOCHS]


def record_of(work):
    (path,) = (work / "outputs/distill").rglob("metrics.json")
    return read_record(path.parent), path.parent


@pytest.mark.slow
def test_every_method_trains_with_the_others_in_one_sweep(kd, work, data):
    alone = ("dkd", "dist", "nkd", "at", "sp", "rkd", "pkt", "hint", "crd", "reviewkd")
    # (The student has two stages, and a list of losses can't be typed with keys of one of them.)
    (work / "my").mkdir()
    for name in alone:
        text = (conf_dir() / "loss" / f"{name}.yaml").read_text()
        for three in (
            "[stage-3, stage-3], [stage-2, stage-2], [stage-1, stage-1]",
            "[stage-2, stage-2]",
        ):
            text = text.replace(three, "[stage1, stage1]")
        (work / "my" / "loss").mkdir(exist_ok=True)
        (work / "my" / "loss" / f"{name}.yaml").write_text(text.replace("16384", "20"))
    losses = ",".join(f"[ce,{name}]" for name in alone)
    words = [f"loss={losses}", "hydra/launcher=joint", "sweep=all", "--config-dir", "my"]
    done = kd("--multirun", *data, *words)
    assert done.code == 0, done.err
    assert "10 points train together" in done.err
    for folder in (work / "outputs/sweeps/all").glob("*ce+*"):
        assert np.isfinite(read_record(folder)["test"]["nll"])
    table = json.loads((work / "outputs/sweeps/all/sweep.json").read_text())["points"]
    assert {point["loss"] for point in table} == {f"ce+{name}" for name in alone}


@pytest.mark.slow
def test_stored_and_live_features_train_the_same_student(kd, work, data):
    words = [*data, "loss=[hinton,at]", AT]
    assert kd("distill", *words, f"outputs={work}/stored").code == 0
    assert kd("distill", *words, "cache.features_gib=0", f"outputs={work}/live").code == 0
    found = {}
    for kind in ("stored", "live"):
        (path,) = (work / kind / "distill").rglob("metrics.json")
        found[kind] = read_record(path.parent)
    assert "attention_map of stage1 as float32" in found["stored"]["teacher"]["outputs"]
    assert "more than cache.features_gib=0" in found["live"]["teacher"]["outputs"]
    for key in ("nll", "accuracy"):
        stored, live = (found[kind]["test"][key] for kind in ("stored", "live"))
        assert stored == pytest.approx(live, rel=1e-4)
    listed = kd("cache", "list", f"cache_dir={work}/stored/cache")
    assert "attention_map of stage1" in listed.out and "144 x 36" in listed.out
    assert kd("cache", "verify", f"cache_dir={work}/stored/cache").code == 0


def test_a_loss_with_weights_is_told_and_not_in_the_file(kd, work, data):
    done = kd("distill", *data, "loss=[hinton,hint]", "loss.hint.pairs=[[pooled,pooled]]",
              "loss.hint.projector=linear")  # fmt: skip
    assert done.code == 0, done.err
    record, folder = record_of(work)
    student = record["parameters"]
    model = load_keras(folder / "model.keras", "student.checkpoint")
    assert model.count_params() == student
    width = {"student": 32, "teacher": 128}  # of cnn's dense layers
    ours, theirs = width["student"], width["teacher"]
    assert record["parameters_for_distilling"] == ours * theirs + theirs
    assert set(record["gradients"]["shares"]) == {"hinton.hard", "hinton.soft", "hint"}


# A head that a student can reuse, and a student of the same stages.
POOLING = (
    "teacher=resnet8", "teacher.network.widths=[3,4,6]", "student=cnn",
    "student.network.filters=[2,4]",
)  # fmt: skip


def test_simkd_deploys_the_teachers_head_and_says_so(kd, work, npz):
    words = ["dataset=npz", f"dataset.path={npz}", *POOLING, *EPOCHS]
    both = kd("distill", "--multirun", *words, "loss=hinton,simkd", "hydra/launcher=joint",
              "sweep=both")  # fmt: skip
    assert both.code == 0, both.err
    assert "2 points train together" in both.err
    plain, rebuilt = sorted((work / "outputs/sweeps/both").glob("*_*"))
    plain, record = read_record(plain), read_record(rebuilt)
    convolutions = (9 * 1 * 2 + 2) + (9 * 2 * 4 + 4)
    inner, wide = 3, 6
    parts = {
        "configured": plain["parameters"],
        "body": convolutions,
        "projector": 4 * inner + 9 * inner * inner + inner * wide + 4 * (2 * inner + wide),
        "head": wide * 4 + 4,
    }
    assert record["deployed"] == parts and "deployed" not in plain
    assert record["parameters"] == parts["body"] + parts["projector"] + parts["head"]
    said = (
        f"student's body (96 of its {plain['parameters']:,} parameters), a projector (159) and the "
        "teacher's head (28, frozen)"
    )
    assert both.err.count(f"what is trained and saved is the {said}") == 1
    # What was trained ends in the weights that the teacher had.
    model = keras.saving.load_model(rebuilt / "model.keras")
    teacher = keras.saving.load_model(work / record["teacher"]["path"] / "model.keras")
    ours, theirs = (one.layers[-1].layers[-1].get_weights() for one in (model, teacher))
    for mine, its in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, its)
    # The same command alone finds the result; evaluating and reporting work, and say it.
    evaluated = kd("evaluate", str(rebuilt))
    assert evaluated.code == 0 and said in evaluated.out
    kept = json.loads((rebuilt / "evaluation.json").read_text())
    assert kept["quality"]["test"]["accuracy"] == record["test"]["accuracy"]
    reported = kd("report", str(rebuilt.parent))
    assert reported.code == 0, reported.err
    (page,) = rebuilt.parent.rglob("report.md")
    assert said in page.read_text()
    explained = kd("explain", *words, "loss=[ce,simkd]")
    assert f"made of the {said}" in explained.out
    # It may teach: its head is the head of its teacher.
    chained = [f"teacher.checkpoint={rebuilt}", *words[:2], *POOLING[2:], "epochs=1", "loss=simkd"]
    assert kd("distill", *chained).code == 0


@pytest.mark.slow
def test_teachers_of_several_seeds_are_trained_and_kept(kd, work, data):
    done = kd("distill", *data, "teacher.members=2", "teacher.combine=confidence")
    assert done.code == 0, done.err
    assert "teacher.training.seed=0)" in done.err and "teacher.training.seed=1)" in done.err
    record, _ = record_of(work)
    assert record["teacher"]["name"] == "2 x cnn"
    folders = sorted((work / "outputs/teachers").iterdir())
    folders = [folder for folder in folders if folder.is_dir()]
    assert [read_record(folder)["seed"] for folder in folders] in ([0, 1], [1, 0])
    files = ",".join(str(folder) for folder in folders)
    again = kd("distill", *data[:4], "epochs=1", f"teacher.checkpoint=[{files}]")
    assert again.code == 0, again.err
    explained = kd("explain", *data[:4], "epochs=1", f"teacher.checkpoint=[{files}]")
    assert "with members as float32" in explained.out
    # Points of a sweep that differ in how the teachers compute don't share them.
    session, keys = Session(), set()
    for more in ([], ["teacher.precision=mixed_bfloat16"]):
        plan = plan_of("distill", *data[:4], "epochs=1", f"teacher.checkpoint=[{files}]", *more)
        keys.add(find(plan, load_dataset(plan.dataset), session).key)
    assert len(keys) == 2


MISTAKES = {
    "no such tap": (["loss=[hinton,at]", "loss.at.pairs=[[stage9,stage1]]"], "has no layer 'st"),
    "of the teacher": (["loss=[hinton,at]", "loss.at.pairs=[[stage1,x]]"], "the teacher has no l"),
    "shapes": (
        ["loss=[hinton,hint]", "loss.hint.projector=none", "loss.hint.pairs=[[stage1,stage1]]"],
        "loss.hint: pair [stage1,stage1]: the student's layer is 6x6x2 and the teacher's 6x6x4",
    ),
    "twice": (["loss=[at,at]"], "loss=[at,at]: at is chosen twice"),
    "twice, with a space": (["loss=[at, at]"], "at is chosen twice"),
    "one more": (["+loss=at"], "loss is chosen already: type it without the +, or add losses up"),
    "a list, or a sweep": (["loss=hinton,at"], "or type one list: 'loss=[hinton,at]'"),
    "no pairs": (["loss=[hinton,at]", "loss.at.pairs=[]"], "must name at least one pair"),
    "a switch": (["loss.hinton.standardise=maybe"], "standardise=maybe must be true or false"),
    "no number": (["loss=dkd", "loss.dkd.nontarget=a"], "loss.dkd.nontarget=a must be a number"),
    "half a layer": (["loss=[ce,reviewkd]", "loss.reviewkd.width=1.5"], "must be a whole number"),
    "the opposite": (["loss=[ce,rkd]", "loss.rkd.angle=-5"], "angle=-5 must be at least 0"),
    "no weight": (["loss=[hinton,at]", AT, "loss.at.weight=0"], "must be a number above 0"),
    "negative": (["loss=[hinton,at]", AT, "loss.at.weight=-1"], "must be a number above 0"),
    "half a ramp": (
        ["loss=[hinton,at]", AT, "loss.at.weight={start: 1}"], "or {start: 0, stop: 100, epochs"
    ),
    "pairs": (["loss=[hinton,at]", "loss.at.pairs=[stage1]"], "must be a list of pairs [student's"),
    "layers alone": (["loss=at", AT], "add a loss of logits: loss=[hinton,at]"),
    "one image": (["loss=[ce,rkd]", "batch_size=1"], "rkd compares the images of a batch"),
    "mixed": (
        ["loss=[ce,crd]", "augment=flip_crop_mixup"], "crd is not defined for mixed images"
    ),
    "a function at the top": (["+loss._target_=kd_cli.distillation.hard"], "an entry with a name"),
    "several teachers": (
        ["loss=[ce,at]", AT, "teacher.members=2"], "layers of a teacher, and this run has 2"
    ),
    "a head that can't be reused": (
        ["loss=simkd"], "the teacher's head is not global pooling and one dense layer alone (it"
    ),
    "several teachers of SimKD": (
        ["loss=simkd", "teacher.members=2"], "layers of a teacher, and this run has 2"
    ),
    "factor": (["loss=simkd", "loss.simkd.factor=0"], "factor=0 must be a whole number, at le"),
    "pairs of SimKD": (["loss=simkd", "loss.simkd.pairs=[[stage1,map]]"], "pairs must be [[map,"),
    "combine": (["teacher.combine=confidence"], "there is one teacher; type teacher.members=3"),
    "cache": (["cache.features=float16"], "no loss compares layers of the teacher"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(kd, work, data, name):
    words, said = MISTAKES[name]
    done = kd("distill", *data, *words)
    assert done.code == 2 and done.err.count("\n") == 1, done.err
    assert said in done.err
    assert not list((work / "outputs").rglob("metrics.json"))
