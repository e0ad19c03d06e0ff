"""Latency and memory of a file, measured in a process of its own."""

import time

import numpy as np
import pytest

from kd_cli.errors import RunFailed
from kd_cli.export import cost, graph, litert
from kd_cli.runs.environment import cores
from tests.export.test_litert import SHAPE, model  # noqa: F401


def test_a_file_runs_in_a_process_of_its_own(model, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(cost, "SECONDS", 0.1)
    made = graph.write(model, SHAPE, False, tmp_path / "saved_model")
    litert.convert(made, tmp_path / "a.tflite", "float32", None)
    ballast = np.ones(10**8)  # of this process, which the other's memory must not count
    found = cost.measure("litert", tmp_path / "a.tflite", np.zeros((1, *SHAPE), np.float32))
    assert 5e6 < found["peak_memory_bytes"] < 4e8 < ballast.nbytes
    for name, threads in (("one_thread", 1), ("all_threads", cores())):
        taken = found["latency"][name]
        assert 0 < taken["median_ms"] <= taken["p95_ms"] < 1000
        assert taken["runs"] >= 30 and taken["threads"] == threads


def test_a_file_that_cannot_be_run_is_one_line(tmp_path):
    (tmp_path / "a.tflite").write_bytes(b"no file")
    started = time.monotonic()
    with pytest.raises(RunFailed, match="a.tflite can't be run in a process of its own: "):
        cost.measure("litert", tmp_path / "a.tflite", np.zeros((1, *SHAPE), np.float32))
    assert time.monotonic() - started < 60


@pytest.mark.slow
def test_what_it_is_compared_with_runs_in_one_too(model, tmp_path):  # noqa: F811
    graph.write(model, SHAPE, False, tmp_path / "saved_model")
    image = np.zeros((1, *SHAPE), np.float32)
    found = cost.measure("saved_model", tmp_path / "saved_model", image)
    assert found["peak_memory_bytes"] > 1e8 and found["latency"]["one_thread"]["runs"] >= 30


@pytest.mark.slow
def test_without_its_own_runtime_tensorflow_s_interpreter_runs_it(model, tmp_path, monkeypatch):  # noqa: F811
    made = graph.write(model, SHAPE, False, tmp_path / "saved_model")
    litert.convert(made, tmp_path / "a.tflite", "float32", None)
    (tmp_path / "ai_edge_litert.py").write_text("raise ImportError('it is not installed')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = cost.measure("litert", tmp_path / "a.tflite", np.zeros((1, *SHAPE), np.float32))
    assert found["peak_memory_bytes"] > 1e8 and found["latency"]["one_thread"]["runs"] >= 30
