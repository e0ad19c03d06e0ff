"""The tables of a report: what each group reached, and how it differs from its scratch students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kd_cli.report.columns import NONE, Column, In, columns
from kd_cli.report.groups import (
    PLAIN,
    TAUGHT,
    TEACHER,
    Comparison,
    Group,
    chosen,
    families,
)
from kd_cli.report.page import Row, Table
from kd_cli.report.statistics import MIN_SEEDS, paired
from kd_cli.runs.finished import FinishedRun


def results(groups: Sequence[Group], comparisons: Mapping[str, Comparison]) -> Table:
    """Every group with its means over seeds, and the verdict on its accuracy."""
    shown = columns(In.REPORT, [run for group in groups for run in group.runs])
    heads = ["group", "seeds", *[column.header for column in shown]]
    heads.append("against the scratch student, test accuracy")
    rows: list[Row] = []
    teachers = [group for group in groups if group.kind == TEACHER]
    parts = [("Teachers", teachers)] if teachers else []
    own = families([group for group in groups if group.kind != TEACHER])
    for title, family in [*parts, *[(family[0].family_name, family) for family in own]]:
        rows.append(Row(span=title))
        best = chosen(family)
        several = sum(group.kind in TAUGHT for group in family) > 1
        for group in family:
            cells = [group.name, str(len(group.runs))]
            cells += [column.over(group.runs) for column in shown]
            if group.key in comparisons:
                cells.append(comparisons[group.key].sentence)
            else:
                cells.append("the baseline" if group.kind == PLAIN else "")
            rows.append(Row(cells, strong=several and group is best))
    caption = "Mean ± standard deviation over seeds; bold: chosen on validation"
    if any(column.key == "latency" for column in shown):
        caption += "; latency of one example, median"
    return Table(caption, heads, rows, texts=(0, len(heads) - 1))


def differences(groups: Sequence[Group], comparisons: Mapping[str, Comparison]) -> Table | None:
    """Likelihood and calibration against the paired scratch students; None where nothing is paired.

    It describes: a verdict on each of these as well would have to be corrected for all of them.
    """
    shown = columns(In.DIFFERENCES, [run for group in groups for run in group.runs])
    rows: list[Row] = []
    for family in families([group for group in groups if group.key in comparisons]):
        own = []
        for group in family:
            pairs = comparisons[group.key].pairs
            cells = [_difference(pairs, column) for column in shown]
            if set(cells) != {NONE}:
                own.append(Row([group.name, str(len(pairs)), *cells]))
        if own:
            rows += [Row(span=family[0].family_name), *own]
    if not rows:
        return None
    return Table(
        "Student minus the scratch student of the same seed, on test: mean difference (95 % t "
        "interval over seeds); below 0 is better. No verdicts: the intervals are not corrected for "
        "their number",
        ["group", "pairs", *[column.header for column in shown]],
        rows,
    )


def _difference(pairs: Sequence[tuple[FinishedRun, FinishedRun]], column: Column) -> str:
    values = [(column.value(student), column.value(scratch)) for student, scratch in pairs]
    if len(values) < MIN_SEEDS or any(None in pair for pair in values):
        return NONE
    found = paired(*zip(*values, strict=True))
    text = column.signed(found.mean)
    if found.interval is None:
        return text
    low, high = map(column.cell, found.interval)
    return f"{text} ({low} to {high})"
