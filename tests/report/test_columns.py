"""The columns of all tables: their values, units and digits, and which tables show them."""

from __future__ import annotations

import pytest

from kd_cli.report.columns import COLUMNS, NATS, NONE, PERCENT, Column, In, columns
from kd_cli.runs.finished import FinishedRun
from kd_cli.runs.record import Record, schema
from tests.records import PSEUDO_LABELS, SCORE, TEACHER, content

BEST = {"accuracy": 0.875, "nll": 0.25, "epoch": 3}


def finished(**changes) -> FinishedRun:
    return FinishedRun(Record(**content(**changes)))


def texts(table: In, run: FinishedRun) -> dict[str, str]:
    return {column.header: column.cell(column.value(run)) for column in columns(table, [run])}


def test_the_columns_of_every_table():
    """What each table shows, written out once more: an accidental change is seen here."""
    taught = finished(
        command="distill",
        validation={"best": BEST, "last": BEST},
        teacher=TEACHER,
        fidelity={"test": {"agreement": 0.75}},
        quality={"test": {"ece_scaled": 0.01}},
    )
    run = {"network": "mlp", "parameters": "1,000", "validation, %": "87.50", "test, %": "90.00"}
    run |= {"test of last epoch, %": "85.00", "time, s": "12.5"}
    assert texts(In.RUN, taught) == run
    assert texts(In.SWEEP, taught) == {
        "validation, %": "87.50",
        "validation NLL, nats": "0.2500",
        "best epoch": "3",
        "test, %": "90.00",
        "test NLL, nats": "0.3000",
        "time, s": "12.5",
    }
    assert texts(In.COMPARE, taught) == {"validation, %": "87.50", "test, %": "90.00"}
    scores = {"NLL, nats": "0.3000", "Brier": "0.2000", "ECE, %": "5.00", "ECE scaled, %": "1.00"}
    assert texts(In.DIFFERENCES, taught) == scores
    assert texts(In.REPORT, taught) == {
        "parameters": "1,000",
        "validation, %": "87.50",
        "test, %": "90.00",
        **scores,
        "agreement, %": "75.00",
    }


@pytest.mark.parametrize("part", ["train_per_class", "test_per_class"])
def test_balanced_accuracy_is_shown_where_classes_are_uneven(part):
    quality = {"test": {"balanced_accuracy": 0.625}}
    for counts, shown in (([30, 15], True), ([0, 4], False), ([40, 27], False), ([27, 41], True)):
        run = finished(dataset={part: counts}, quality=quality)
        for table in (In.RUN, In.SWEEP, In.COMPARE, In.REPORT):
            found = texts(table, run)
            assert ("balanced test, %" in found) == shown
            assert found.get("balanced test, %", "62.50") == "62.50"


def test_the_rounds_of_self_training():
    learned = finished(pseudo_labels=PSEUDO_LABELS, validation={"best": BEST, "last": BEST})
    assert texts(In.ROUNDS, learned) == {
        "labelled": "90",
        "pseudo-labelled": "60",
        "in rows": "80",
        "right (hidden labels), %": "75.00",
        "validation, %": "87.50",
        "test, %": "90.00",
        "time, s": "12.5",
    }


@pytest.mark.parametrize(
    "column", [c for c in COLUMNS if "evaluation." not in c.path], ids=lambda column: column.key
)
def test_every_value_stands_in_the_record(column):
    """`quality` and `fidelity` are plain there: their keys are those of runs/quality.py."""
    path = column.path.format(split="test").replace(".0.", ".*.")
    head = ".".join(path.split(".")[:2])
    assert path in schema() or head in ("quality.test", "fidelity.test")


def test_no_two_columns_of_a_table_share_a_name():
    for table in In:
        shown = [column for column in COLUMNS if table in column.tables]
        assert len({column.key for column in shown}) == len(shown) > 1
        assert len({column.header for column in shown}) == len(shown)
        assert len({column.label for column in shown}) == len(shown)


def test_one_quantity_has_one_unit():
    for column in COLUMNS:
        last = column.path.rsplit(".", 1)[-1]
        shares = ("accuracy", "top5", "ece", "agreement")
        if last.startswith(shares):
            assert column.unit is PERCENT and column.header.endswith(", %"), column.key
        elif last.startswith(("nll", "kl")):
            assert column.unit is NATS and column.label.endswith(", nats"), column.key


def test_what_no_run_knows_is_left_out_where_it_is_optional():
    plain, tired = finished(), finished(rounds=[round_of(0.5)])
    keys = [column.key for column in columns(In.SWEEP, [plain])]
    assert "round_0_test" not in keys and "validation_accuracy" in keys
    keys = [column.key for column in columns(In.SWEEP, [plain, tired])]
    assert keys.index("round_0_test") < keys.index("test_accuracy")
    (column,) = [column for column in COLUMNS if column.key == "round_0_test"]
    assert column.value(tired) == 0.5 and column.value(plain) is None


def round_of(accuracy):
    return {
        "directory": "round-0",
        "labelled": 9,
        "pseudo_labels": None,
        "validation": None,
        "test": SCORE | {"accuracy": accuracy},
        "weights_sha256": "w",
        "seconds": 1.0,
    }


def test_values_are_as_recorded_and_cells_are_for_people():
    run = finished(test={"accuracy": 1 / 3})
    (test,) = [column for column in columns(In.COMPARE, [run]) if column.key == "test_accuracy"]
    assert test.value(run) == 1 / 3 and test.cell(1 / 3) == "33.33"
    assert test.cell(None) == NONE == "–"
    assert test.signed(0.0301) == "+3.01" and test.signed(-0.5) == "-50.00"
    assert test.signed(-1e-9) == "+0.00" and test.cell(-1e-9) == "0.00"  # no -0.00


def test_over_seeds():
    # Of 0.8, 0.9, 1.0 the mean is 0.9, and the standard deviation with n - 1 is 0.1.
    runs = [finished(test={"accuracy": value}) for value in (0.8, 0.9, 1.0)]
    by_key = {column.key: column for column in COLUMNS}
    assert by_key["test_accuracy"].over(runs) == "90.00 ± 10.00"
    assert by_key["test_accuracy"].over(runs[:1]) == "80.00"
    assert by_key["validation_accuracy"].over(runs) == NONE
    known = finished(validation={"best": BEST, "last": BEST})
    assert by_key["validation_accuracy"].over([*runs, known]) == NONE  # not every seed knows it
    assert by_key["parameters"].over(runs) == "1,000"


def test_what_does_not_vary_is_the_median_of_those_who_know():
    timed = [
        FinishedRun(finished().record, None, {"latency": {"1": {"median_ms": value}}})
        for value in (1.0, 9.0, 2.0)
    ]
    (latency,) = [column for column in COLUMNS if column.key == "latency"]
    assert latency.over([*timed, finished()]) == "2.000"
    damaged = FinishedRun(finished().record, None, {"latency": {"1": {"median_ms": "fast"}}})
    assert latency.value(damaged) is None


def test_a_row_of_evaluate_is_read_by_split():
    evaluation = {"quality": {"validation": {"ece": 0.125}, "test": {"ece": 0.25}}}
    (ece,) = [column for column in COLUMNS if column.key == "ece"]
    assert (ece.on("validation", evaluation), ece.on("test", evaluation)) == (0.125, 0.25)
    assert ece.label == "ECE, 15 bins of equal width, %" and ece.header == "ECE, %"
    agreement = next(column for column in COLUMNS if column.key == "agreement")
    assert agreement.on("test", evaluation) is None


def test_a_new_column_is_one_row(monkeypatch):
    extra = Column("steps", "steps", "steps_done", None, In.RUN | In.SWEEP)
    monkeypatch.setattr("kd_cli.report.columns.COLUMNS", (*COLUMNS, extra))
    assert texts(In.RUN, finished())["steps"] == texts(In.SWEEP, finished())["steps"] == "4"


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ([{"image_shape": [8, 8, 1]}] * 2, "images"),
        ([{"length": 4, "vocabulary": 9}] * 2, "texts"),
        ([{"image_shape": [8, 8, 1]}, {"length": 4, "vocabulary": 9}], "examples"),
    ],
)
def test_the_column_of_training_inputs_is_called_as_they_are(keys, name):
    runs = [
        FinishedRun({"dataset": {**one, "train": 10 + number, "labelled": 5}})
        for number, one in enumerate(keys)
    ]
    headers = {column.key: column.header for column in columns(In.COMPARE, runs)}
    assert headers["images"] == name
