"""The tables of a report: what each group reached, and how it differs from its scratch students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from kd_cli.report.groups import (
    DISTILLED,
    PLAIN,
    SELF,
    TEACHER,
    Comparison,
    Group,
    chosen,
    families,
)
from kd_cli.report.page import Row, Table
from kd_cli.report.statistics import MIN_SEEDS, paired
from kd_cli.runs.finished import Run, Value, test_accuracy
from kd_cli.runs.finished import validation_accuracy as on_validation

NONE = "–"


def _first(*keys: str) -> Value:
    return lambda run: run.value(*keys)


# Column, value, factor, digits.
_COLUMNS: tuple[tuple[str, Value, float, int], ...] = (
    ("validation [%]", on_validation, 100, 2),
    ("test [%]", test_accuracy, 100, 2),
    ("NLL", _first("quality.test.nll", "test.nll"), 1, 3),
    ("Brier", _first("quality.test.brier"), 1, 3),
    ("ECE [%]", _first("quality.test.ece"), 100, 2),
    ("ECE scaled [%]", _first("quality.test.ece_scaled"), 100, 2),
    ("agreement [%]", _first("fidelity.test.agreement"), 100, 2),
)


def results(groups: Sequence[Group], comparisons: Mapping[str, Comparison]) -> Table:
    """Every group with its means over seeds, and the verdict on its accuracy."""
    timed = any(run.latency() for group in groups for run in group.runs)
    columns = ["group", "seeds", *[name for name, *_ in _COLUMNS], "parameters"]
    columns += ["latency [ms]"] if timed else []
    columns.append("against plain scratch, test accuracy")
    rows: list[Row] = []
    teachers = [group for group in groups if group.kind == TEACHER]
    parts = [("Teachers", teachers)] if teachers else []
    own = families([group for group in groups if group.kind != TEACHER])
    for title, family in [*parts, *[(family[0].family_name, family) for family in own]]:
        rows.append(Row(span=title))
        best = chosen(family)
        several = sum(group.kind in (DISTILLED, SELF) for group in family) > 1
        for group in family:
            cells = [group.name, str(len(group.runs))]
            cells += [_mean(group, value, factor, digits) for _, value, factor, digits in _COLUMNS]
            parameters = group.runs[0].value("parameters")
            cells.append(f"{parameters:,.0f}" if parameters else NONE)
            if timed:
                cells.append(_latency(group))
            if group.key in comparisons:
                cells.append(comparisons[group.key].sentence)
            else:
                cells.append("the baseline" if group.kind == PLAIN else "")
            rows.append(Row(cells, strong=several and group is best))
    caption = "Mean ± standard deviation over seeds; bold: chosen on validation"
    if timed:
        caption += "; latency of one image, median"
    return Table(caption, columns, rows, texts=(0, len(columns) - 1))


def _mean(group: Group, value: Value, factor: float, digits: int) -> str:
    one = group.summary(value)
    if one is None:
        return NONE
    text = f"{factor * one.mean:.{digits}f}"
    return text if one.sd is None else f"{text} ± {factor * one.sd:.{digits}f}"


def _latency(group: Group) -> str:
    """Median over the runs that were timed: one is enough, seeds share their network."""
    known = [value for value in map(Run.latency, group.runs) if value is not None]
    return f"{median(known):.3f}" if known else NONE


# Lower is better. Column, value, factor, digits.
_BEYOND = tuple(column for column in _COLUMNS if column[0].startswith(("NLL", "Brier", "ECE")))


def differences(groups: Sequence[Group], comparisons: Mapping[str, Comparison]) -> Table | None:
    """Likelihood and calibration against the paired scratch students; None where nothing is paired.

    It describes: a verdict on each of these as well would have to be corrected for all of them.
    """
    rows: list[Row] = []
    for family in families([group for group in groups if group.key in comparisons]):
        own = []
        for group in family:
            cells = [
                _difference(comparisons[group.key].pairs, value, factor, digits)
                for _, value, factor, digits in _BEYOND
            ]
            if set(cells) != {NONE}:
                own.append(Row([group.name, str(len(comparisons[group.key].pairs)), *cells]))
        if own:
            rows += [Row(span=family[0].family_name), *own]
    if not rows:
        return None
    return Table(
        "Student minus the scratch student of the same seed, on test: mean difference (95 % t "
        "interval over seeds); below 0 is better. No verdicts: the intervals are not corrected for "
        "their number",
        ["group", "pairs", *[name for name, *_ in _BEYOND]],
        rows,
    )


def _difference(pairs: Sequence[tuple[Run, Run]], value: Value, factor: float, digits: int) -> str:
    values = [(value(student), value(scratch)) for student, scratch in pairs]
    if len(values) < MIN_SEEDS or any(None in pair for pair in values):
        return NONE
    found = paired(*zip(*values, strict=True))
    text = f"{factor * found.mean:+.{digits}f}"
    if found.interval is None:
        return text
    low, high = (f"{factor * end:.{digits}f}" for end in found.interval)
    return f"{text} ({low} to {high})"
