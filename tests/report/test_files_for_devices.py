"""Exported files in a report: rows, the front, and the smallest good one, of records by hand."""

import hashlib
import json

import pytest

from kd_cli.report.build import build_report
from kd_cli.report.files_for_devices import Files, by_data, find, of_groups, smallest, table
from kd_cli.report.groups import FILE, grouped
from kd_cli.report.page import to_markdown
from kd_cli.runs.finished import find as find_runs
from tests.conftest import assert_refused
from tests.records import content

TENSOR = {"name": "image", "dtype": "float32", "shape": [-1, 6, 6, 1]}


def exported(name, accuracy, size, milliseconds=0.5, *, source="", data="d" * 64, **more):
    made = {
        "schema_version": 1, "format": "litert", "precision": "int8", "softmax": False,
        "file": name, "bytes": size, "sha256": "f", "inputs": [TENSOR], "outputs": [TENSOR],
        "source": {
            "what": "x", "network": "mlp", "sha256": source, "weights_sha256": "w", "bytes": 9,
        },
        "class_names": ["a"], "dataset": {"name": "pets", "fingerprint": data},
        "test": {"accuracy": accuracy, "nll": 0.5, "agreement": 0.99},
        "latency": {"one_thread": {"median_ms": milliseconds}}, "peak_memory_bytes": 1,
        "keras": {"test": {"accuracy": 0.9}, "latency": {}, "peak_memory_bytes": 1},
        "runtime": "r", "device": "cpu", "cores": 2, "load_average": 0.0, "git_commit": None,
        "versions": {}, "warnings": [],
    }  # fmt: skip
    return made | more


def leave(folder, name, *args, **more):
    """An exported file and its record."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("file")
    (folder / f"{name.rpartition('.')[0]}.json").write_text(
        json.dumps(exported(name, *args, **more))
    )


def leave_run(folder, **changes):
    folder.mkdir(parents=True)
    (folder / "model.keras").write_text(f"network of {folder.name}")
    more = {"inputs": {"data": "d" * 64, "split": "s"}, **changes}
    (folder / "metrics.json").write_text(json.dumps(content(**more)))
    return hashlib.sha256(f"network of {folder.name}".encode()).hexdigest()


def loose(work, *files):
    """Files of `.keras` files: name, accuracy and bytes."""
    for name, accuracy, size in files:
        leave(work / "outputs" / "export" / name, f"{name}.tflite", accuracy, size)
    return of_groups(find([], [work / "outputs"])[0], [])


def test_the_smallest_within_the_tolerance(work):
    files = loose(work, ("big", 0.900, 900), ("middle", 0.895, 500), ("small", 0.894, 100))
    assert {one.kind for one in files} == {FILE}
    said = smallest(files, 0.5)
    assert "at most 0.5 points: mlp, LiteRT int8, 500 bytes, 89.50 % on test" in said
    assert "(0.50 points below mlp, LiteRT int8): outputs/export/middle/middle.tflite" in said
    assert ", 100 bytes, 89.40 % on test (0.60 points" in smallest(files, 0.6)
    assert ", 900 bytes, 90.00 % on test (the best)" in smallest(files, 0)


def test_of_equal_sizes_the_better_and_of_equal_scores_the_smaller(work):
    files = loose(work, ("a", 0.900, 100), ("b", 0.901, 100), ("c", 0.901, 300))
    assert "export/b/b.tflite" in smallest(files, 0.5) and "(the best)" in smallest(files, 0)


def test_seeds_of_a_group_are_one_row(work):
    for seed, accuracy in ((0, 0.90), (1, 0.92)):
        run = work / "outputs" / f"run{seed}"
        config = {"init_seed": seed, "data_seed": seed}
        source = leave_run(run, seed=seed, config=config)
        leave(run / "export", "student-int8.tflite", accuracy, 100 + seed, source=source)
    runs = find_runs([work / "outputs"])
    found, left = find(runs.runs, [work / "outputs"])
    assert left == [] and len(found) == 2
    (files,) = of_groups(found, grouped(runs.runs)[0])
    assert files.accuracy == pytest.approx(0.91) and files.bytes == 100.5
    assert files.spread == pytest.approx(100 * 0.02 / 2**0.5)  # n - 1
    (row,) = table([files]).rows
    assert row.cells[1:6] == ["LiteRT int8", "2", "91.00 ± 1.41", "90.00", "99.00"]


def test_what_is_left_out_is_told(work):
    run = work / "outputs" / "run"
    source = leave_run(run)
    leave(run / "export", "good.tflite", 0.9, 1, source=source)
    leave(run / "export", "old.tflite", 0.9, 1, source="another")
    leave(run / "export", "gone.tflite", 0.9, 1, source=source)
    (run / "export" / "gone.tflite").unlink()
    (run / "export" / "damaged.json").write_text("{")
    leave(run / "export" / "failed", "bad.tflite", 0.1, 1, source=source)
    found, left = find(find_runs([work / "outputs"]).runs, [work / "outputs"])
    assert [one.path.name for one in found] == ["good.tflite"]
    damaged, gone, old = left
    assert "damaged.json" in damaged and "gone.tflite is gone" in gone
    assert "old.tflite: the network has changed since" in old and "kd export outputs/run" in old


def test_a_report_with_files_of_two_datasets(kd, work):
    run = work / "outputs" / "run"
    source = leave_run(run)
    leave(run / "export", "student-int8.tflite", 0.9, 100, 0.5, source=source)
    leave(run / "export", "student-float32.tflite", 0.91, 400, 0.7, source=source, precision="f32")
    leave(work / "outputs" / "export" / "x", "x.onnx", 0.5, 7, data="e" * 64, format="onnx")
    done = kd("report", "outputs", "tolerance=1")
    assert done.code == 0, done.err
    page = (work / "outputs" / "report" / "report.md").read_text()
    assert page.count("### Files for devices") == 2 and "| ONNX int8 |" in page
    assert (work / "outputs" / "report" / "data-1-files-bytes.png").is_file()
    assert (work / "outputs" / "report" / "data-1-files-latency.png").is_file()
    said = [line for line in done.out.splitlines() if "smallest file" in line]
    assert len(said) == 2 and said[0].startswith("pets: The smallest file that loses at most 1 p")
    assert "student-int8.tflite" in said[0] and "x.onnx" in said[1]


def test_a_report_without_files_says_nothing_of_them(work):
    leave_run(work / "outputs" / "run")
    found = find_runs([work / "outputs"])
    assert find(found.runs, [work / "outputs"]) == ([], [])
    assert "Files for devices" not in to_markdown(build_report(found, ["outputs"]))


@pytest.mark.parametrize("value", ["x", "-1", "101", "nan", ""])
def test_a_tolerance_that_is_none(kd, work, value):
    said = f"tolerance={value} must be a number from 0 to 100"
    assert_refused(kd, work, ["report", ".", f"tolerance={value}"], said)
    assert_refused(kd, work, ["report", ".", "tolerance=1", "tolerance=2"], "typed twice")


def test_files_of_one_dataset_are_together(work):
    leave(work / "outputs" / "export" / "x", "x.tflite", 0.5, 7, data="e" * 64)
    parts = by_data(loose(work, ("a", 0.9, 1)))
    assert {data[0]: [one.made[0].path.name for one in own] for data, own in parts.items()} == {
        "d": ["a.tflite"],
        "e": ["x.tflite"],
    }
    assert all(isinstance(one, Files) for own in parts.values() for one in own)
