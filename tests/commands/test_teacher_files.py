"""Teachers that are no Keras files: ONNX files, LiteRT files, files of logits."""

import json
import shutil

import numpy as np
import pytest

from kd_cli.config.check import check
from kd_cli.config.compose import compose
from kd_cli.runs.identity import run_dir
from kd_cli.runs.resolvers import register_resolvers
from tests.conftest import only_run, read_record
from tests.torch_twin import TORCH, twin

RUN = ["epochs=2", "batch_size=32", "learning_rate=0.01"]


@pytest.fixture
def data(npz):
    return ["dataset=npz", f"dataset.path={npz}", "student=mlp", "student.network.units=[8]"]


def history(run):
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [
        value for row in rows for value in (*row["train"].values(), *row["validation"].values())
    ]


def taught(kd, work, outputs, *words):
    done = kd("distill", *words, *RUN, f"outputs={outputs}")
    assert done.code == 0, done.err
    return only_run(work / outputs / "distill")[0], done


def assert_refused(kd, work, words, said):
    """A mistake is one line with this text, exit code 2, and leaves nothing behind."""

    def left():  # (what a teacher said is stored before its layers are looked at)
        return [path for path in sorted(work.rglob("*")) if "outputs" not in path.parts]

    before = left()
    done = kd(*words)
    lines = [line for line in done.err.splitlines() if line.startswith("kd: error: ")]
    assert done.code == 2 and len(lines) == 1 and said in lines[0], done.err
    assert "Traceback" not in done.err and left() == before
    assert not list(work.glob("outputs/[dt]*"))


def test_a_network_of_pytorch_teaches_as_its_twin_in_keras(kd, work, data):
    shutil.copy(TORCH, "cnn.onnx")
    twin().save("cnn.keras")
    run, done = taught(kd, work, "a", *data, "teacher.checkpoint=cnn.onnx")
    other, _ = taught(kd, work, "b", *data, "teacher.checkpoint=cnn.keras")
    np.testing.assert_allclose(history(run), history(other), rtol=1e-4)
    assert "it takes images with their channels first" in done.err
    record, of_keras = read_record(run), read_record(other)
    assert "parameters" not in record["teacher"]
    for key in ("test_accuracy", "test_nll"):
        assert record["teacher"][key] == pytest.approx(of_keras["teacher"][key], rel=1e-5)


def test_a_live_teacher_sees_mixed_images(kd, work, data):
    shutil.copy(TORCH, "cnn.onnx")
    mixup = "augment.train=[{_target_: kd_cli.data.mixup}]"
    words = [*data, "loss=function_matching", mixup]
    run, _ = taught(kd, work, "a", *words, "teacher.checkpoint=cnn.onnx")
    twin().save("cnn.keras")
    other, _ = taught(kd, work, "b", *words, "teacher.checkpoint=cnn.keras")
    assert read_record(run)["teacher"]["outputs"].startswith("live (mixup")
    np.testing.assert_allclose(history(run), history(other), rtol=1e-4)


def test_a_file_that_kd_exported_takes_raw_pixels(kd, work, data):
    twin().save("cnn.keras")
    assert kd("export", "cnn.keras", *data[:2], "input.scale=0.25").code == 0
    (file,) = work.glob("outputs/export/*/cnn-float32.tflite")
    run, _ = taught(kd, work, "a", *data, f"teacher.checkpoint={file}")
    other, _ = taught(
        kd, work, "b", *data, "teacher.checkpoint=cnn.keras", "teacher.input.scale=0.25"
    )
    np.testing.assert_allclose(history(run), history(other), rtol=1e-4)
    words = ["distill", *data, f"teacher.checkpoint={file}", "teacher.input.scale=0.5"]
    assert_refused(kd, work, words, "takes raw pixels, its scale is inside")


def test_logits_of_a_file_teach_as_the_network_does(kd, work, data):
    """Bit for bit: the rows are those that the cache would hold."""
    twin().save("cnn.keras")
    scale = "input.scale=0.00392156862745098"
    done = kd("logits", "cnn.keras", *data[:2], scale)
    assert done.code == 0, done.err
    (file,) = work.glob("outputs/logits/npz-cnn-*.npz")
    with np.load(file) as arrays:
        assert arrays["train"].shape == (160, 4) and arrays["test"].shape == (40, 4)
    before = file.stat().st_mtime_ns
    assert "written before" in kd("logits", "cnn.keras", *data[:2], scale).out
    assert file.stat().st_mtime_ns == before
    run, _ = taught(kd, work, "a", *data, f"teacher.logits={file}")
    other, _ = taught(kd, work, "b", *data, "teacher.checkpoint=cnn.keras")
    record, of_network = read_record(run), read_record(other)
    assert record["weights_sha256"] == of_network["weights_sha256"]
    assert record["teacher"]["quality"] == of_network["teacher"]["quality"]
    assert record["teacher"]["outputs"] == "read from the file"
    evaluated = kd("evaluate", str(run))
    assert evaluated.code == 0 and "agreement with its teacher" in evaluated.out
    explained = kd("explain", *data, f"teacher.logits={file}")
    assert explained.code == 0, explained.err


AT = ["loss=[ce,at]", "loss.at.pairs=[[layer1,layer1]]"]
MISTAKES = {
    "taps of ONNX": (["teacher.checkpoint=t.onnx", *AT], "a file for onnxruntime"),
    "taps of logits": (["teacher.logits=l.npz", *AT], "a file of logits, which shows no layers"),
    "simkd": (["teacher.checkpoint=t.onnx", "loss=simkd"], "shows no layers"),
    "precision": (
        ["teacher.checkpoint=t.onnx", "teacher.precision=mixed_bfloat16"], "as it was exported",
    ),
    "module": (["teacher.checkpoint=t.onnx", "teacher.module=m"], "leave teacher.module out"),
    "size": (["teacher.checkpoint=t.onnx", "teacher.input.size=8"], "takes images of shape"),
    "both": (["teacher.checkpoint=t.onnx", "teacher.logits=l.npz"], "teacher.logits"),
    "weights": (["teacher.weights=l.npz", "teacher.logits=l.npz"], "teacher.logits"),
    "members": (["teacher.logits=l.npz", "teacher.members=2"], "teacher.members=2 must be 1"),
    "no file": (["teacher.logits=no.npz"], "teacher.logits=no.npz is not a file; expected"),
    "network": (["teacher.logits=l.npz", "teacher.network.dropout=0.1"], "no network"),
    "input": (["teacher.logits=l.npz", "teacher.input.scale=1"], "no network"),
    "cache": (["teacher.logits=l.npz", "cache.logits=float16"], "is read from its file"),
    "view": (
        ["teacher.logits=l.npz", "augment=crop", "augment.size=6"], "type view=fixed_teacher, or",
    ),
    "mixup": (
        ["teacher.logits=l.npz", "augment.train=[{_target_: kd_cli.data.mixup}]"], "mixup makes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_and_leave_nothing(kd, work, data, name):
    words, said = MISTAKES[name]
    shutil.copy(TORCH, "t.onnx")
    np.savez(
        "l.npz", train=np.eye(4)[np.arange(160) % 4] * 2, test=np.eye(4)[np.arange(40) % 4] * 2
    )
    assert_refused(kd, work, ["distill", *data, *words], said)


def test_the_content_of_a_file_of_logits_is_in_the_run_id(work, data):
    register_resolvers()
    words, ids = [*data, "teacher.logits=l.npz"], set()
    for factor in (2, 3, 2):
        rows = np.eye(4) * factor
        np.savez("l.npz", train=rows[np.arange(160) % 4], test=rows[np.arange(40) % 4])
        ids.add(run_dir(check(compose("distill", words), words)))
    assert len(ids) == 2
