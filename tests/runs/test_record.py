"""`metrics.json`: what is written, what is refused before it is written, and what is read."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest

from kd_cli.errors import ConfigError
from kd_cli.runs.record import Part, Record, RecordError, Score, schema
from tests.records import PSEUDO_LABELS, SCORE, TEACHER, content

ROUND = {
    "directory": "round-0",
    "labelled": 90,
    "pseudo_labels": None,
    "validation": None,
    "test": SCORE,
    "weights_sha256": "w",
    "seconds": 3.0,
}
EPOCH = {"epoch": 2, **SCORE}
WHOLE = content(
    command="self-train",
    git_commit="0a1b2c",
    validation={"best": EPOCH, "last": EPOCH},
    fidelity={"test": {"agreement": 0.5}, "training": {"agreement": 0.6}},
    gradients={"examples": 32, "shares": {"hard": 0.9, "soft": 0.1}, "cosine": None},
    teacher=TEACHER,
    pseudo_labels=PSEUDO_LABELS,
    rounds=[ROUND, ROUND | {"pseudo_labels": PSEUDO_LABELS, "validation": EPOCH}],
    best_round=1,
)
WHOLE = json.loads(json.dumps(WHOLE))  # no object twice


def made(**changes) -> Record:
    return Record(**content(**changes))


@pytest.mark.parametrize("values", [content(), WHOLE])
def test_what_is_written_is_read(work, values):
    record = Record(**values)
    record.write(work)
    assert json.loads((work / "metrics.json").read_text()) == values
    assert Record.read(work) == record == values


def test_a_part_is_read_by_attribute_and_by_key():
    record = Record(**WHOLE)
    assert record.rounds[1].test.accuracy == record["rounds"][1]["test"]["accuracy"] == 0.9
    assert isinstance(record.test, Score) and record.teacher.quality.test["nll"] == 0.2
    assert dict(record["test"]) == SCORE and "validation" in record


def test_what_is_absent_is_no_key_and_what_is_null_is_one():
    record = made()
    assert record.validation is None and "validation" not in record
    assert record.get("rounds", ()) == () and "rounds" not in record.to_json()
    assert record.alpha is None and record["alpha"] is None and record.to_json()["alpha"] is None
    with pytest.raises(KeyError):
        record["teacher"]


def leaves(value, path=()):
    """The path of every key of nested mappings and lists, but not inside plain dicts."""
    plain = {("config",), ("inputs",), ("versions",), ("quality", "test"), ("fidelity", "test")}
    plain |= {("teacher", "quality", "test"), ("fidelity", "training"), ("gradients",)}
    if path in plain:
        return
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, inner in items:
        if isinstance(value, dict) or isinstance(inner, dict):
            yield (*path, key)
        yield from leaves(inner, (*path, key))


def changed(path, act):
    values = copy.deepcopy(WHOLE)
    node = values
    for key in path[:-1]:
        node = node[key]
    act(node, path[-1])
    return values


OPTIONAL = {("pseudo_labels", "accuracy"), ("teacher", "labelled"), ("teacher", "on_training")}
OPTIONAL |= {("dataset", "train_per_class"), ("dataset", "test_per_class")}
OPTIONAL |= {("fidelity", "training"), ("teacher", "parameters")}
OPTIONAL |= {
    (key,)
    for key in (
        *("validation", "fidelity", "gradients", "teacher", "class_weights"),
        "parameters_for_distilling",
        "deployed",
        *("pseudo_labels", "rounds", "best_round"),
    )
}
PATHS = list(leaves(WHOLE))
NAMED = [path for path in PATHS if isinstance(path[-1], str)]


def test_the_whole_record_has_every_key_of_the_schema():
    dotted = {".".join("*" if isinstance(key, int) else key for key in path) for path in NAMED}
    splits = {f"{part}.validation" for part in ("quality", "fidelity", "teacher.quality")}
    texts = {"dataset.length", "dataset.vocabulary", "dataset.tokenizer_sha256"}
    assert dotted == set(schema()) - splits - texts


def test_a_record_of_texts(work):
    """Length and vocabulary stand in the place of the images' shape."""
    values = changed(("dataset", "image_shape"), lambda node, key: node.__delitem__(key))
    values["dataset"] |= {"length": 40, "vocabulary": 6002}
    assert Record(**values).to_json()["dataset"] == values["dataset"]
    del values["dataset"]["vocabulary"]
    with pytest.raises(ValueError, match="image_shape is missing"):
        Record(**values)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_a_wrong_type_is_refused(path):
    """No field takes the object; nor is a number a text, or a text a number."""
    before = changed(path, lambda node, key: None)
    node = before
    for key in path:
        node = node[key]
    wrong = 7 if isinstance(node, str) else "text"
    for value in (object(), wrong):
        with pytest.raises(ValueError, match=str(path[-1])):
            Record(**changed(path, lambda node, key, value=value: node.__setitem__(key, value)))


@pytest.mark.parametrize("path", NAMED, ids=lambda path: ".".join(map(str, path)))
def test_a_missing_key_is_refused(work, path):
    values = changed(path, lambda node, key: node.__delitem__(key))
    may_lack = path in OPTIONAL or path[-2:] in OPTIONAL
    (work / "metrics.json").write_text(json.dumps(values))
    if may_lack:
        assert Record.read(work) == Record(**values) == values
        return
    dotted = ".".join(map(str, path))
    why = "no schema_version" if dotted == "schema_version" else f"{dotted} is missing"
    with pytest.raises(RecordError, match=why):
        Record.read(work)
    if path != ("schema_version",):  # which a new record has by itself
        with pytest.raises((TypeError, ValueError), match=path[-1]):
            Record(**values)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"test": {"nll": float("nan")}}, "test.nll is nan, expected a finite number"),
        ({"test": {"accuracy": float("inf")}}, "test.accuracy is inf"),
        ({"test": {"accuracy": True}}, "test.accuracy is bool, expected float"),
        ({"seed": True}, "seed is bool, expected int"),
        ({"parameters": 3.0}, "parameters is float, expected int"),
        ({"test": {"f1": 0.5}}, "test.f1 is no key of a record"),
        ({"warnings": ["a", 1]}, "warnings.1 is int, expected str"),
        ({"dataset": {"image_shape": (6, 6, 1)}}, "image_shape is tuple, expected list"),
        ({"schema_version": 2}, "schema_version is 2, expected 3"),
        ({"command": "distill"}, "teacher is missing"),
    ],
)
def test_what_can_not_be_made_is_not_written(changes, why):
    with pytest.raises(ValueError, match=why):
        made(**changes)
    with pytest.raises(ValueError, match="nll is str"):
        dataclasses.replace(made(), test={"accuracy": 0.5, "nll": "0.5"})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"config": {"loss": 7}}, "config.loss is int"),
        ({"config": {"init_seed": {}}}, "config.init_seed is dict"),
        ({"config": {"dataset": "pets"}}, "config.dataset is str"),
        ({"inputs": {"split": 3}}, "inputs.split is int"),
    ],
)
def test_what_every_reader_relies_on_in_a_plain_mapping(work, changes, why):
    (work / "metrics.json").write_text(json.dumps(content(**changes)))
    with pytest.raises(RecordError, match=why):
        Record.read(work)


def test_a_whole_number_is_a_number():
    assert made(test={"accuracy": 1, "nll": 0}).test == {"accuracy": 1, "nll": 0}


def test_what_json_has_not_is_not_written(work):
    record = made(config={"path": work})
    with pytest.raises(TypeError):
        record.write(work)
    assert list(work.iterdir()) == []


def test_no_run_is_no_record(work):
    (work / "file").write_text("")
    for folder in (work, work / "nowhere", work / "file"):
        assert Record.read(folder) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ('{"schema_version": 3, "comm', "Unterminated string"),
        ("[1]", "no object"),
        ('{"accuracy": 1}', "no schema_version"),
        (b"\xff\xfe", "codec can't decode"),
        (json.dumps(content(test=7)), "test is int, expected Score"),
        (json.dumps(content(test={"nll": float("nan")})), "test.nll is nan"),
        (None, "Is a directory"),
    ],
)
def test_damage_is_one_line_that_says_what_to_type(work, text, why):
    file = work / "run" / "metrics.json"
    file.parent.mkdir()
    if text is None:
        file.mkdir()
    else:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        Record.read(work / "run")
    line = str(caught.value)
    assert line.startswith("run/metrics.json is damaged, or not written by kd (") and why in line
    assert "remove this file and type the run's command again" in line and "\n" not in line


@pytest.mark.parametrize("version", [1, 2, 4])
def test_another_version_is_named(work, version):
    (work / "metrics.json").write_text(json.dumps({"schema_version": version}))
    with pytest.raises(RecordError) as caught:
        Record.read(work)
    assert f"is of schema version {version}, this kd reads 3" in str(caught.value)
    assert "rerun=true" in str(caught.value)


def test_a_later_key_is_left_out(work):
    later = content(later=1, test={"f1": 0.5}) | {"rounds": [ROUND | {"more": 2}]}
    (work / "metrics.json").write_text(json.dumps(later))
    assert Record.read(work) == content(rounds=[ROUND])


def test_the_schema_says_type_and_meaning_of_every_key():
    rows = schema()
    assert rows["test.nll"] == ("float", "mean negative log-likelihood, in nats")
    assert rows["validation"][0] == "Validation?" and rows["rounds.*.seconds"][0] == "float"
    assert rows["rounds.*.validation"][0] == "EpochScore | None"
    assert all(len(meaning) > 5 for _, meaning in rows.values())
    parts = [part for part in Part.__subclasses__() if part.__module__ == Record.__module__]
    assert len(parts) > 8  # of which each field has a meaning:
    for part in parts:
        assert all("meaning" in field.metadata for field in dataclasses.fields(part))


@pytest.mark.slow
def test_a_damaged_run_is_finished_again_after_the_file_is_removed(kd, work, small):
    """As the line says, and nothing else is lost."""
    words = ["train-student", *small[:2], "epochs=1"]
    assert kd(*words).code == 0
    (file,) = (work / "outputs" / "train-student").rglob("metrics.json")
    before = json.loads(file.read_text())
    history = (file.parent / "history.jsonl").read_text()
    file.write_text(file.read_text()[:100])
    done = kd(*words)
    assert done.code == 2 and "is damaged, or not written by kd" in done.error
    assert (file.parent / "model.keras").exists() and file.exists()
    file.unlink()
    assert kd(*words).code == 0
    after = json.loads(file.read_text())
    assert {**after, "timings": 0} == {**before, "timings": 0}
    assert (file.parent / "history.jsonl").read_text() == history
