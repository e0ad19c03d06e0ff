"""`model.keras` of a finished run: lost, damaged, whole; and what a `checkpoint` key means."""

from __future__ import annotations

import json
import zipfile

import pytest

from kd_cli.errors import ConfigError
from kd_cli.runs.model_file import checkpoint_file, model_file, recorded_network
from kd_cli.runs.record import Record
from tests.records import content


@pytest.fixture
def run(work):
    folder = work / "run"
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(content()))
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        archive.writestr("config.json", "{}" * 100)
    return folder


def test_a_whole_file_is_given_back(run):
    assert model_file(run) == checkpoint_file(run) == run / "model.keras"


@pytest.mark.parametrize("fault", ["lost", "cut", "byte", "empty"])
def test_a_lost_or_damaged_file_is_one_line_with_what_to_type(run, fault):
    path = run / "model.keras"
    whole = path.read_bytes()
    path.unlink()
    damaged = {"cut": whole[:60], "byte": whole.replace(b"{}{}{}", b"{}{]{}", 1), "empty": b""}
    if fault in damaged:
        path.write_bytes(damaged[fault])
    for find in (model_file, checkpoint_file):
        with pytest.raises(ConfigError) as caught:
            find(run)
        text = str(caught.value)
        state = "lost" if fault == "lost" else "damaged"
        assert text.startswith(f"run/model.keras is {state}, though its run is finished; remove")
        assert "run/metrics.json" in text and "rerun=true" in text and "\n" not in text


def test_other_files_and_folders_stay_as_they_are(run):
    assert checkpoint_file("some/file.keras").name == "file.keras"
    (run / "saved_model.pb").touch()  # a SavedModel beside whatever else
    assert checkpoint_file(run) == run


def test_the_network_of_a_distilled_run_is_its_student_s():
    teacher = {"network": {"_target_": "a.b"}, "input": {"size": 8}}
    student = {"network": {"_target_": "c.d"}, "input": {"size": None}}
    config = {"teacher": teacher, "student": student, "augment": {"size": 4}}
    record = Record(**content(config=config))
    found = recorded_network(record)
    assert found["role"] == "student" and found["network"] == {"_target_": "c.d"}
    assert found["image_shape"][:2] == [4, 4]
    alone = Record(**content(config={"teacher": teacher}))
    assert recorded_network(alone)["input"] == {"size": 8}
    assert recorded_network(alone)["image_shape"] == list(record.dataset.image_shape)
