"""`kd export`: files for another runtime, and what is said and kept of them."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from kd_cli.commands import export
from kd_cli.export import cost, formats, litert
from kd_cli.export.record import ExportRecord
from tests.conftest import Disk, assert_refused, only_run

layers = keras.layers
COST = {
    "latency": {
        name: {"median_ms": 1.0, "p95_ms": 2.0, "runs": 30, "threads": n}
        for name, n in (("one_thread", 1), ("all_threads", 2))
    },
    "peak_memory_bytes": 10**6,
}


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    """How long a file takes is not the point here (tests/export/test_cost.py measures it)."""
    asked = []

    def measure(kind, file, image):
        asked.append((kind, image.dtype.name, image.shape))
        return {key: dict(value) if key == "latency" else value for key, value in COST.items()}

    monkeypatch.setattr(cost, "measure", measure)
    return asked


def quarters():
    """The sum of each quarter's pixels: [36, 4] weights that the data of `npz` reward."""
    weights = np.zeros((6, 6, 4), np.float32)
    for label in range(4):
        row, column = 3 * (label // 2), 3 * (label % 2)
        weights[row : row + 3, column : column + 3, label] = 0.01
    return weights.reshape(36, 4)


@pytest.fixture
def file(work):
    model = keras.Sequential([keras.Input((6, 6, 1)), layers.Flatten(), layers.Dense(4)])
    model.set_weights([quarters(), np.zeros(4)])
    model.save(work / "my.keras")
    return work / "my.keras"


@pytest.fixture
def data(npz):
    return ["dataset=npz", f"dataset.path={npz}"]


def only(work, suffix=".tflite"):
    """The single exported file and its record."""
    (path,) = work.rglob(f"*{suffix}")
    record = json.loads(path.with_suffix(".json").read_text())
    assert ExportRecord.read(path.with_suffix(".json")) == record
    return path, record


def test_a_float_file_and_its_record(kd, work, file, data, npz, measured):
    done = kd("export", "my.keras", *data)
    assert done.code == 0, done.err
    path, record = only(work)
    assert path.name == "my-float32.tflite" and path.parent.parent == work / "outputs" / "export"
    with np.load(npz) as arrays:
        images, labels = arrays["x_test"], arrays["y_test"]
    logits = images.reshape(len(images), -1) @ quarters().astype(np.float64)
    accuracy = (logits.argmax(1) == labels).mean()
    assert accuracy > 0.8
    test = record["test"]
    assert (test["images"], test["accuracy"], test["agreement"]) == (40, accuracy, 1.0)
    nll = np.log(np.exp(logits).sum(1)) - logits[np.arange(40), labels]
    assert test["nll"] == pytest.approx(nll.mean(), rel=1e-5)
    assert record["keras"]["test"]["nll"] == pytest.approx(nll.mean(), rel=1e-5)
    assert test["largest_difference"] < 1e-4
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["bytes"] == path.stat().st_size
    assert record["source"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert record["source"]["bytes"] == file.stat().st_size
    assert record["inputs"][0] == {"name": "image", "dtype": "float32", "shape": [-1, 6, 6, 1]}
    assert record["outputs"][0]["name"] == "logits" and record["outputs"][0]["shape"] == [-1, 4]
    assert "calibration" not in record and record["class_names"] == ["0", "1", "2", "3"]
    assert record["latency"]["one_thread"]["median_ms"] == 1.0 and record["warnings"] == []
    assert measured == [
        ("saved_model", "float32", (1, 6, 6, 1)),
        ("litert", "float32", (1, 6, 6, 1)),
    ]
    for text in ("agreement with Keras, %", "100.00", f"{100 * accuracy:.2f}", "image float32"):
        assert text in done.out


SCRIPT = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
with np.load(sys.argv[2]) as arrays:
    images, labels = arrays["x_test"], arrays["y_test"]
interpreter = Interpreter(model_path=sys.argv[1])
classify = interpreter.get_signature_runner()
right = sum(int(classify(image=i[None])["logits"].argmax() == l) for i, l in zip(images, labels))
print(right / len(labels))
assert "tensorflow" not in sys.modules
"""


def test_int8_takes_raw_bytes(kd, work, file, data, npz, measured):
    """A script with NumPy and ai-edge-litert alone gets the recorded accuracy from raw bytes."""
    assert kd("export", "my.keras", *data, "precision=int8", "calibration=50").code == 0
    path, record = only(work)
    assert path.name == "my-int8-calibration50.tflite"
    expected = {"name": "image", "dtype": "uint8", "scale": 1.0, "zero_point": 0}
    assert {key: record["inputs"][0][key] for key in expected} == expected
    assert measured[1] == ("litert", "uint8", (1, 6, 6, 1))
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), str(npz)], capture_output=True, text=True
    )
    assert float(found.stdout.splitlines()[-1]) == record["test"]["accuracy"], found.stderr
    # (The npz of `data` holds out a tenth of the training images for validation.)
    calibration = record["calibration"]
    assert (calibration["images"], calibration["seed"]) == (50, 0)
    assert len(calibration["rows_sha256"]) == len(calibration["pixels_sha256"]) == 64


def test_probabilities(kd, work, file, data):
    assert kd("export", "my.keras", *data, "softmax=true").code == 0
    path, record = only(work)
    assert path.name == "my-float32-softmax.tflite"
    assert record["outputs"][0]["name"] == "probabilities"
    assert record["test"]["nll"] == pytest.approx(record["keras"]["test"]["nll"], rel=1e-4)
    assert record["test"]["largest_difference"] < 1e-5
    done = kd("evaluate", str(path), *data)  # which finds out by itself
    assert done.code == 0 and "its outputs are probabilities" in done.err
    (result,) = work.glob("outputs/evaluate/*/*/evaluation.json")
    quality = json.loads(result.read_text())["quality"]["test"]
    assert quality["nll"] == pytest.approx(record["test"]["nll"], rel=1e-5)


def test_evaluate_says_what_the_record_says(kd, work, file, data):
    assert kd("export", "my.keras", *data, "precision=int8").code == 0
    path, record = only(work)
    done = kd("evaluate", str(path), *data)
    assert done.code == 0 and f"{100 * record['test']['accuracy']:.2f}" in done.out
    assert "parameters         not counted" in done.out
    (result,) = work.glob("outputs/evaluate/*/*/evaluation.json")
    result = json.loads(result.read_text())
    for key in ("accuracy", "nll", "ece"):
        assert result["quality"]["test"][key] == record["test"][key]
    assert result["weights_sha256"] == record["sha256"]
    assert result["file_bytes"] == record["bytes"]
    assert_one_line(kd("evaluate", str(path)), "has 4 outputs, digits has 10 classes")


def assert_one_line(done, *texts):
    assert done.code == 2 and all(text in done.error for text in texts), done.err


def test_a_second_call_answers_with_the_first_result(kd, work, file, data, monkeypatch):
    first = kd("export", "my.keras", *data)
    path, _ = only(work)
    times = {p: p.stat().st_mtime_ns for p in path.parent.iterdir()}
    monkeypatch.setattr(export, "load_dataset", None)  # which it does not need
    second = kd("export", "my.keras", *data)
    assert second.code == 0 and second.out == first.out
    assert "exported before" in second.err
    assert {p: p.stat().st_mtime_ns for p in path.parent.iterdir()} == times


def test_an_altered_file_is_refused_and_a_lost_one_made_again(kd, work, file, data):
    assert kd("export", "my.keras", *data).code == 0
    path, _ = only(work)
    path.write_bytes(path.read_bytes() + b"x")
    assert_one_line(kd("export", "my.keras", *data), "was altered after it was exported", "remove")
    path.unlink()
    assert kd("export", "my.keras", *data).code == 0
    path, record = only(work)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == record["sha256"]


def test_a_damaged_record_is_one_line(kd, work, file, data):
    assert kd("export", "my.keras", *data).code == 0
    path, record = only(work)
    place = path.with_suffix(".json")
    place.write_text("{")
    assert_one_line(kd("export", "my.keras", *data), "can't be read", "remove it and export again")
    place.write_text(json.dumps(record | {"schema_version": 99}))
    assert_one_line(kd("export", "my.keras", *data), "its schema_version is 99")
    place.write_text(json.dumps(record | {"bytes": "many"}))
    assert_one_line(kd("export", "my.keras", *data), "bytes is str, expected int")


@pytest.fixture
def wrong(monkeypatch):
    """A converter that mixes up the classes."""
    real = litert.convert

    def convert(graph, path, precision, images):
        mixed = keras.Sequential([keras.Input((6, 6, 1)), layers.Flatten(), layers.Dense(4)])
        mixed.set_weights([quarters()[:, [1, 0, 2, 3]], np.zeros(4)])
        from kd_cli.export import graph as graphs

        other = graphs.write(mixed, (6, 6, 1), False, graph.folder.parent / "other")
        real(other, path, precision, images)

    monkeypatch.setattr(litert, "convert", convert)


def test_a_wrong_conversion_fails_and_the_file_is_kept_aside(kd, work, file, data, wrong):
    done = kd("export", "my.keras", *data)
    assert done.code == 1 and done.out == ""
    assert "is not what Keras computes: it agrees with Keras on 5" in done.err
    path, record = only(work)
    assert path.parent.name == "failed" and record["test"]["agreement"] < 0.6
    assert sorted(p.name for p in path.parent.parent.iterdir()) == [".export.lock", "failed"]


def test_a_rounded_file_that_loses_much_warns(kd, work, file, data, wrong):
    done = kd("export", "my.keras", *data, "precision=int8", "calibration=50")
    assert done.code == 0
    assert "points of test accuracy; try calibration=500, or precision=dynamic" in done.err
    _, record = only(work)
    assert len(record["warnings"]) == 2


@pytest.mark.parametrize("number", [1, 4])
def test_a_full_disk_is_one_line_and_leaves_no_half_file(kd, work, file, data, monkeypatch, number):
    with monkeypatch.context() as patched:
        disk = Disk(patched)
        disk.refused = number
        done = kd("export", "my.keras", *data)
        assert disk.count >= number
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("kd: failed: No space left on device")
    assert not list(work.rglob("outputs/export/**/*.json"))
    assert not list(work.rglob("outputs/export/**/.tmp-*"))
    assert kd("export", "my.keras", *data).code == 0
    only(work)


def test_a_network_that_cannot_be_converted_is_one_line(kd, work, data):
    inputs = keras.Input((6, 6, 1))
    x = keras.ops.det(keras.ops.squeeze(inputs, -1) / 255)
    model = keras.Model(inputs, layers.Dense(4)(layers.Reshape((1,))(x)))
    model.save(work / "det.keras")
    done = kd("export", "det.keras", *data)
    assert done.code == 1
    last = done.err.splitlines()[-1]
    assert last.startswith("kd: failed: det.keras can't be exported to LiteRT")
    assert "no operator for MatrixDeterminant" in last
    assert not [p for p in work.rglob("outputs/export/**/*") if p.is_file() and p.suffix != ".lock"]


REFUSED = {
    "nothing to export": (["export"], ["export needs the directory of a finished run"]),
    "no such path": (["export", "nope"], ["nope does not exist"]),
    "unknown precision": (
        ["export", "x", "precision=int4"],
        ["precision=int4 must be float32, float16, dynamic or int8"],
    ),
    "a precision of training": (["export", "x", "precision=mixed_bfloat16"], ["must be float32"]),
    "unknown format": (
        ["export", "x", "format=pdf"],
        ["must be litert, onnx, saved_model or page"],
    ),
    "a precision that the format has not": (
        ["export", "x", "format=onnx", "precision=float16"],
        ["format=onnx holds float32 or int8; leave precision out, or type format=litert"],
    ),
    "a page of whole numbers": (
        ["export", "x", "format=page", "precision=int8"],
        ["format=page holds float32 or float16"],
    ),
    "probabilities of a page": (
        ["export", "x", "format=page", "softmax=true"],
        ["softmax=true changes nothing: a page shows probabilities"],
    ),
    "no calibration": (["export", "x", "calibration=0"], ["calibration=0 must be at least 1"]),
    "idle calibration": (["export", "x", "calibration=9"], ["calibration=9 changes nothing"]),
    "a key of training": (["export", "x", "epochs=3"], ["export does not use epochs: it trains"]),
    "a key of export elsewhere": (
        ["distill", "what=x"],
        ["unknown key 'what'"],
    ),
    "a key of export in evaluate": (
        ["evaluate", "x", "calibration=9"],
        ["evaluate does not use calibration: it belongs to export"],
    ),
    "a flag of Hydra's": (["export", "x", "--run"], ["export does not take --run"]),
    "a mistake in a sweep": (
        ["export", "x", "--multirun", "precision=int8,int4"],
        ["x does not exist"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_one_line(kd, work, name):
    words, texts = REFUSED[name]
    assert_refused(kd, work, words, *texts)


def test_a_missing_package_is_told_with_the_command(kd, work, file, data, monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    done = kd("export", "my.keras", *data, "format=onnx")
    assert_one_line(done, "ONNX needs the package onnx; type: pip install onnx onnxruntime")
    assert not (work / "outputs").exists()


@pytest.mark.parametrize("words", [["format=onnx"], ["format=saved_model"], ["format=page"]])
def test_other_formats(kd, work, file, data, words):
    done = kd("export", "my.keras", *data, *words)
    assert done.code == 0, done.err
    (place,) = work.rglob("*.json")
    record = ExportRecord.read(place)
    assert record.test["agreement"] == 1.0 and record.test["largest_difference"] < 1e-4
    assert record.inputs[0].shape == [-1, 6, 6, 1] and record.outputs[0].name == "logits"
    path = place.parent / record.file
    assert path.exists() and path.name.startswith(f"my-{words[0][7:]}-float32")
    assert kd("export", "my.keras", *data, *words).err == (
        "exported before; remove the file to export it anew\n"
    )
    assert kd("evaluate", str(path), *data).code == 0
    (result,) = work.glob("outputs/evaluate/*/*/evaluation.json")
    quality = json.loads(result.read_text())["quality"]["test"]
    assert quality["nll"] == pytest.approx(record.test["nll"], rel=1e-6)


def test_a_sweep_over_precisions(kd, work, file, data, monkeypatch):
    sweep = ["export", "my.keras", *data, "--multirun", "precision=float32,int4"]
    assert_one_line(kd(*sweep), "precision=int4 must be float32")
    assert not (work / "outputs").exists()
    real = litert.convert

    def convert(graph, path, precision, images):
        if precision == "dynamic":
            raise formats.CantConvertError("LiteRT has no operator for This")
        real(graph, path, precision, images)

    monkeypatch.setattr(litert, "convert", convert)
    done = kd("export", "my.keras", *data, "--multirun", "precision=dynamic,float32,float16")
    assert done.code == 1 and "no operator for This" in done.err
    assert done.err.splitlines()[-1] == "kd: failed: 1 of 3 exports failed"
    made = sorted(p.name for p in work.rglob("*.json"))
    assert made == ["my-float16.json", "my-float32.json"]


def test_data_that_do_not_fit_leave_nothing(kd, work, file):
    done = kd("export", "my.keras", "dataset=digits", "dataset.image_shape=[6,6,1]")
    assert done.code == 2 and "images have shape [8, 8, 1]" in done.error
    assert not list(work.rglob("outputs/export/*"))


# --- of a run ---


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return {"copy": tmp_path_factory.mktemp("kept") / "outputs", "made in": None}


@pytest.fixture
def distilled(kd, work, small, kept):
    """A finished distill run; trained once, and moved to each test's folder."""
    outputs = work / "outputs"
    if kept["made in"] is None:
        assert kd("distill", *small).code == 0
        shutil.copytree(outputs, kept["copy"], symlinks=True)
        kept["made in"] = str(work)
    else:
        shutil.copytree(kept["copy"], outputs, symlinks=True)
        for path in outputs.rglob("metrics.json"):
            path.write_text(path.read_text().replace(kept["made in"], str(work)))
    return only_run(outputs / "distill")


def test_a_run_s_file_lies_in_the_run(kd, work, distilled):
    folder, metrics = distilled
    before = {p: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    assert kd("export", str(folder)).code == 0
    path, record = only(work)
    assert path == folder / "export" / "student-float32.tflite"
    assert record["test"]["accuracy"] == metrics["test"]["accuracy"]
    assert record["source"]["run_id"] == metrics["run_id"]
    assert record["source"]["weights_sha256"] == metrics["weights_sha256"]
    assert record["dataset"]["fingerprint"] == metrics["dataset"]["fingerprint"]
    assert {p: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    assert kd("evaluate", str(folder)).code == 0  # which does not mind


def test_a_teacher_is_exported_too(kd, work, distilled):
    (teacher, _) = only_run(work / "outputs" / "teachers")
    assert kd("export", str(teacher), "precision=dynamic").code == 0
    path, _ = only(work)
    assert path == teacher / "export" / "teacher-dynamic.tflite"


def test_a_changed_network_is_refused(kd, work, distilled):
    folder, _ = distilled
    assert kd("export", str(folder)).code == 0
    path, _ = only(work)
    model = keras.models.load_model(folder / "model.keras")
    model.set_weights([w + 1 for w in model.get_weights()])
    model.save(folder / "model.keras")
    assert_one_line(kd("export", str(folder)), "the network has changed since", "export it anew")
    path.with_suffix(".json").unlink()
    assert_one_line(kd("export", str(folder)), "was altered after training", "kd export ")


def test_a_run_has_its_own_data(kd, work, distilled):
    folder, _ = distilled
    assert_one_line(kd("export", str(folder), "dataset=digits"), "with its own data")
    assert_one_line(kd("export", str(folder), "augment=flip_crop"), "model.keras augment=flip_crop")


# Where the process is killed: when the first of these files is there.
STAGES = {"converts": ".export.lock", "checks": ".tmp-*", "has named the file": "my-int8.tflite"}


@pytest.mark.slow
def test_killed_anywhere_it_leaves_no_half_file(work, file, data):
    """kill -9 while it converts, checks and writes; then the same command ends as ever."""
    command = [sys.executable, "-m", "kd_cli", "export", "my.keras", *data, "precision=int8"]
    for pattern in STAGES.values():
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while not list(work.glob(f"outputs/export/*/{pattern}")) and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for record in work.rglob("outputs/export/*/my-int8.json"):
            tflite = record.with_suffix(".tflite").read_bytes()
            assert json.loads(record.read_text())["sha256"] == hashlib.sha256(tflite).hexdigest()
        for tflite in work.rglob("outputs/export/*/my-int8.tflite"):
            assert litert.open_file(tflite).image.dtype == "uint8"
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path, _ = only(work)
    assert sorted(p.name for p in path.parent.iterdir()) == [
        ".export.lock", "my-int8.json", "my-int8.tflite",
    ]  # fmt: skip


def test_a_page_of_a_distilled_student(kd, work, monkeypatch):
    """The teacher is beside it, or the page says why not."""
    from kd_cli.export import page

    assert kd("distill", "epochs=1", "teacher.training.epochs=1", "dataset.limit=100").code == 0
    done = kd("export", "outputs/latest", "format=page")
    assert done.code == 0, done.err
    path, record = only(work, ".html")
    assert path.name == "student-page-float32.html"
    (teacher,) = work.glob("outputs/teachers/*/metrics.json")
    taught = json.loads(teacher.read_text())
    assert record["teacher"]["weights_sha256"] == taught["weights_sha256"]
    # Weights of 53,002 parameters, and a number each for the scale and the offset of the input.
    assert 4 * taught["parameters"] <= record["teacher"]["bytes"] <= 4 * taught["parameters"] + 8
    assert record["teacher"]["agreement"] == 1 and "teacher     cnn beside it" in done.out
    data = json.loads(path.read_text().split('id="data">')[1].split("</script>")[0])
    assert [one["role"] for one in data["networks"]] == ["student", "teacher"]
    labels = [one["label"] for one in data["examples"]]
    assert len(labels) == 20 and labels[:10] == list(range(10)) == labels[10:]
    monkeypatch.setattr(page, "MOST_OF_TEACHER", 1000)
    done = kd("export", "outputs/latest", "format=page", "precision=float16")
    assert done.code == 0
    sentence = "the page is without the teacher: its weights take 106,"
    assert sentence in done.err and "a page has room for 1,000" in done.err
    record = json.loads(path.with_name("student-page-float16.json").read_text())
    assert "teacher" not in record and record["warnings"][0].startswith(sentence)
