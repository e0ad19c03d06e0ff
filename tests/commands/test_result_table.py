"""What is printed at the end of a run and of self-training."""

from __future__ import annotations

import json
import shlex

import pytest

from kd_cli.commands.result_table import print_result, print_rounds
from kd_cli.config.check import check
from kd_cli.config.compose import compose
from kd_cli.config.plans import scratch_plan
from kd_cli.runs import identity
from kd_cli.runs.asked import Run
from kd_cli.runs.record import Record
from kd_cli.runs.resolvers import register_resolvers
from tests.records import PSEUDO_LABELS, SCORE, TEACHER, content

BEST = {"epoch": 2, "accuracy": 0.875, "nll": 0.25}
VALIDATION = {"best": BEST, "last": BEST}


@pytest.fixture
def typed(work, npz):
    register_resolvers()
    return ["dataset=npz", f"dataset.path={npz}"]


def rows(text: str) -> dict[str, list[str]]:
    """The cells of a printed table by its rows' names; two spaces part cells."""
    lines = [line.strip().split("   ") for line in text.splitlines() if "   " in line]
    return {cells[0].strip(): [c.strip() for c in cells[1:] if c.strip()] for cells in lines}


def printed(capsys, record, command, typed):
    plan = check(compose(command, typed), typed)
    print_result(Record(**record), Run(plan, identity.run_dir(plan), typed))
    return capsys.readouterr().out


def leave(folder, record):
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(record))


def distilled(**changes):
    return content(command="distill", teacher=TEACHER, validation=VALIDATION, **changes)


def test_the_command_that_is_printed_names_the_config_dir(capsys, typed):
    typed = [*typed, "alpha=0.3", 'student.name="l\'été"']
    plan = check(compose("distill", typed), typed)
    run = Run(plan, identity.run_dir(plan), typed, "my conf")
    print_result(Record(**distilled()), run)
    (line,) = [s for s in capsys.readouterr().out.splitlines() if "kd train-student" in s]
    words = shlex.split(line.partition("not trained yet: ")[2])
    assert words == ["kd", "train-student", "--config-dir", "my conf", *typed[:2], typed[-1]]


def test_a_teacher_that_is_a_file_has_what_its_student_knows_of_it(capsys, typed):
    taught = distilled()
    taught["teacher"]["quality"]["validation"] = {"accuracy": 0.96}
    out = printed(capsys, taught, "distill", typed)
    assert "npz: accuracy" in out
    shown = rows(out)
    assert shown["teacher"] == ["cnn", "9,000", "96.00", "95.00", "–", "–"]
    assert shown["distilled student"] == ["mlp", "1,000", "87.50", "90.00", "85.00", "12.5"]
    assert shown["scratch student"] == ["not trained yet"]
    for head in ("validation, %", "test, %", "test of last epoch, %", "time, s"):
        assert head in out
    assert f"teacher:           {TEACHER['path']}" in out
    assert "scratch student:   not trained yet: kd train-student dataset=npz" in out


def test_finished_neighbours_stand_beside_a_student(capsys, work, typed):
    plan = check(compose("distill", typed), typed)
    scratch = identity.run_dir(scratch_plan(plan))
    leave(scratch, content(test={"accuracy": 0.7}))
    teacher = content(command="train-teacher", network="cnn", test={"accuracy": 0.99})
    leave(work / TEACHER["path"], teacher)
    out = printed(capsys, distilled(), "distill", typed)
    assert rows(out)["teacher"] == ["cnn", "1,000", "–", "99.00", "85.00", "12.5"]
    assert rows(out)["scratch student"] == ["mlp", "1,000", "–", "70.00", "85.00", "12.5"]
    assert f"scratch student:   {scratch}" in out
    assert "20.00 points above the scratch student, 9.00 points below the teacher (one seed" in out
    # Another split is another experiment.
    other = content(dataset={"split_fingerprint": "other"})
    (scratch / "metrics.json").write_text(json.dumps(other))
    assert rows(printed(capsys, distilled(), "distill", typed))["scratch student"] == [
        "not trained yet"
    ]


def test_damaged_neighbours_do_not_fail_a_finished_run(capsys, work, typed):
    """An error here would count as this run's, whose fresh directory would be removed."""
    plan = check(compose("distill", typed), typed)
    scratch = identity.run_dir(scratch_plan(plan))
    for folder in (scratch, work / TEACHER["path"]):
        leave(folder, [])
    out = printed(capsys, distilled(), "distill", typed)
    assert rows(out)["teacher"] == ["cnn", "9,000", "–", "95.00", "–", "–"]
    assert rows(out)["scratch student"] == ["not readable"]
    assert f"scratch student:   {scratch}/metrics.json is damaged" in out


def test_without_labels_there_is_no_scratch_student(capsys, typed):
    out = printed(capsys, distilled(dataset={"labelled": 0}), "distill", typed)
    assert "scratch student:   needs labels" in out and "train-student" not in out
    assert set(rows(out)) >= {"teacher", "distilled student"} and "not trained" not in out


@pytest.mark.parametrize(
    ("command", "name"), [("train-teacher", "teacher"), ("train-student", "scratch student")]
)
def test_a_run_alone_without_a_validation_split(capsys, typed, command, name):
    record = content(command=command, selection="the last epoch: because")
    out = printed(capsys, record, command, typed)
    assert rows(out)[name] == ["mlp", "1,000", "–", "90.00", "85.00", "12.5"]
    assert "epoch:             the last epoch: because" in out
    lines = [line.strip() for line in out.splitlines()]
    assert len(lines) == 5 and lines[-1].startswith(f"{name}:")  # title, head, row, epoch, place


def test_the_rounds(capsys, work):
    first = {
        "directory": "round-0",
        "labelled": 90,
        "pseudo_labels": None,
        "validation": BEST,
        "test": SCORE,
        "weights_sha256": "w",
        "seconds": 3.04,
    }
    second = first | {"pseudo_labels": PSEUDO_LABELS, "test": {"accuracy": 0.95, "nll": 0.2}}
    record = content(command="self-train", validation=VALIDATION, rounds=[first, second])
    print_rounds(Record(**record, best_round=1), work)
    out = capsys.readouterr().out
    assert rows(out)["0"] == ["90", "–", "–", "–", "87.50", "90.00", "3.0"]
    assert rows(out)["1"] == ["90", "60", "80", "75.00", "87.50", "95.00", "3.0"]
    assert "best on validation: round 1" in out and "network: model.keras" in out
