"""Which figures a report has, and what they show: groups in, pictures with captions out.

Only what is drawn is read from the disk: `history.jsonl` of a few groups, `predictions.npz` of one
run and its scratch student. What a figure leaves out, its caption says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kd_cli.report import plots, statistics
from kd_cli.report.columns import COLUMNS
from kd_cli.report.groups import (
    DISTILLED,
    PLAIN,
    TAUGHT,
    TEACHER,
    Comparison,
    Group,
    candidates,
    chosen,
    families,
)
from kd_cli.report.page import Bullets, Picture
from kd_cli.runs.finished import (
    FinishedRun,
    Value,
    history,
    predictions,
    test_accuracy,
    validation_accuracy,
)

MAX_FAMILIES = 4
MAX_HEAT_MAPS = 2
MAX_POINTS = 40
Comparisons = Mapping[str, Comparison]


def drawn_families(groups: Sequence[Group]) -> list[list[Group]]:
    """The families with figures: those with students to compare, and of these the biggest."""
    students = [group for group in groups if group.kind != TEACHER]

    def rank(family: list[Group]) -> tuple[bool, bool, int]:
        kinds = {group.kind for group in family}
        taught = bool(kinds & set(TAUGHT))
        return taught and PLAIN in kinds, taught, sum(len(group.runs) for group in family)

    ranked = sorted(families(students), key=rank, reverse=True)
    return ranked[:MAX_FAMILIES]


@dataclass(frozen=True)
class Example:
    """One distilled student and its scratch student: what needs test examples shows these two.

    Attributes:
        group: Of the student.
        run: The student, with the lowest seeds that have a pair.
        scratch: Its scratch student; None where there is none.
        arrays: The student's `predictions.npz`.
        scratch_arrays: The scratch student's; empty without one or when its test labels differ.
        why: How the group was chosen.
    """

    group: Group
    run: FinishedRun
    scratch: FinishedRun | None
    arrays: Mapping[str, np.ndarray]
    scratch_arrays: Mapping[str, np.ndarray]
    why: str


def example(family: Sequence[Group], comparisons: Comparisons) -> Example | None:
    """The pair of the group that was chosen on validation; without one, of the first in the table.

    None where the family has no distilled student with predictions.
    """
    taught = [group for group in family if group.kind in TAUGHT]
    if not taught:
        return None
    best = chosen(family)
    group = best or taught[0]
    pairs = comparisons[group.key].pairs if group.key in comparisons else ()
    run, scratch = pairs[0] if pairs else (group.runs[0], None)
    arrays = predictions(run)
    if not {"labels", "student_logits"} <= set(arrays):
        return None
    other = predictions(scratch) if scratch else {}
    same = {"labels", "student_logits"} <= set(other) and np.array_equal(
        other["labels"], arrays["labels"]
    )
    why = "the best on validation" if best and len(taught) > 1 else "the only one"
    if len(taught) > len(candidates(family)) == 1:
        why = f"the only one with {statistics.MIN_SEEDS} seeds or more"
    if best is None:
        why = "the first of the table, because no validation split chooses one"
    return Example(group, run, scratch, arrays, other if same else {}, why)


def effects(
    groups: Sequence[Group], comparisons: Comparisons, titles: Mapping[str, str]
) -> Picture | None:
    """All verdicts at one glance; None for fewer than two. `titles` names the data by their key."""
    rows = []
    for group in groups:
        comparison = comparisons.get(group.key)
        result = comparison.result if comparison else None
        if comparison is None or result is None or result.p_value is None:
            continue
        low, high = result.interval or (result.mean, result.mean)
        rows.append(
            plots.Effect(
                f"{titles[group.data]} {group.family_name}",
                group.name,
                100 * result.mean,
                (100 * low, 100 * high),
                comparison.verdict,
            )
        )
    if len(rows) < 2:
        return None
    text = "Test accuracy of each group minus that of its scratch students, by seed"
    caption = (
        f"{text}: mean and interval (95 %, wider under Holm's correction where several groups "
        "are compared with the same scratch student). An interval that holds 0 is inconclusive."
    )
    if len(rows) > MAX_POINTS:
        caption += f" Drawn are the first {MAX_POINTS} of {len(rows)}."
    return Picture("effects.png", plots.effects(rows[:MAX_POINTS]), text, caption)


def of_family(
    family: Sequence[Group], comparisons: Comparisons, shown: Example | None, prefix: str
) -> list[Picture]:
    """Heat maps, learning curves, reliability diagram and confusion, where there is data for them.

    Args:
        family: Of `groups.families`.
        comparisons: Of `groups.compared`.
        shown: Of `example`.
        prefix: Of the files' names.
    """
    pictures = [
        *_heat_maps(family, comparisons, f"{prefix}-heat-map"),
        _curves(family, f"{prefix}-learning-curves"),
    ]
    if shown:
        pictures.append(_reliability(shown, f"{prefix}-reliability"))
        pictures.append(_confusion(shown, f"{prefix}-confusion"))
    return [picture for picture in pictures if picture]


def _heat_maps(family: Sequence[Group], comparisons: Comparisons, name: str) -> list[Picture]:
    grids: dict[str, list[Group]] = {}
    for group in family:
        if group.kind == DISTILLED and None not in _place(group):
            rest = {k: v for k, v in group.settings.items() if k not in ("alpha", "temperature")}
            grids.setdefault(repr(sorted(rest.items())), []).append(group)
    pictures = []
    for grid in grids.values():
        alphas = sorted({_place(group)[0] for group in grid})
        temperatures = sorted({_place(group)[1] for group in grid})
        if min(len(alphas), len(temperatures)) < 2:
            continue
        panels: dict[str, np.ndarray] = {}
        marks = np.full((len(temperatures), len(alphas)), "", dtype=object)
        for title, value in (
            ("validation accuracy (this is what chooses)", validation_accuracy),
            ("test accuracy", test_accuracy),
        ):
            values = np.full(marks.shape, np.nan)
            for group in grid:
                alpha, temperature = _place(group)
                place = temperatures.index(temperature), alphas.index(alpha)
                one = group.summary(value)
                values[place] = 100 * one.mean if one else np.nan
                verdict = comparisons[group.key].verdict if group.key in comparisons else ""
                marks[place] = {"better": "▲", "worse": "▼"}.get(verdict, "")
            if np.isfinite(values).any():
                panels[title] = values
        seeds = sorted({len(group.runs) for group in grid})
        method = grid[0].name.split(" ")[0]
        text = (
            f"{method} over alpha and temperature ({grid[0].family_name}): mean of "
            f"{' to '.join(map(str, {seeds[0]: 0, seeds[-1]: 0}))} seeds per point"
        )
        caption = f"{text}. ▲ better, ▼ worse than the scratch student on test; hatched: no runs."
        png = plots.heat_map(alphas, temperatures, panels, {"test accuracy": marks})
        number = f"-{len(pictures) + 1}" if pictures else ""
        pictures.append(Picture(f"{name}{number}.png", png, f"Heat map: {text}", caption))
        if len(pictures) == MAX_HEAT_MAPS:
            break
    return pictures


def _place(group: Group) -> tuple[float | None, float | None]:
    return group.record["alpha"], group.record["temperature"]


def _curves(family: Sequence[Group], name: str) -> Picture | None:
    best = chosen(family)
    first = [group for group in family if group.kind == PLAIN or group is best]
    rest = [group for group in family if group not in first]

    def validation(group: Group) -> float:
        one = group.summary(validation_accuracy)
        return one.mean if one else 0.0

    groups = [*first, *sorted(rest, key=validation, reverse=True)][: plots.MAX_LINES]
    rows = {group.name: [history(run) for run in group.runs] for group in groups}
    for split in ("validation", "train"):
        curves = {}
        for label, seeds in rows.items():
            values = [[_accuracy(row, split) for row in one] for one in seeds if one]
            shortest = min((len(one) for one in values), default=0)
            values = [one[:shortest] for one in values]
            if shortest and not any(value is None for one in values for value in one):
                curves[label] = 100 * np.array(values, np.float64)
        if len(curves) == len(groups):
            break
    if not curves or max(values.shape[1] for values in curves.values()) < 2:
        return None
    what = f"{'training' if split == 'train' else 'validation'} accuracy"
    text = f"Learning curves ({family[0].family_name}): {what} by epoch, mean over seeds"
    caption = f"{text}; bars are one standard deviation to either side. "
    if max(values.shape[1] for values in curves.values()) >= 10:
        caption += "The first tenth of the epochs may lie outside the frame. "
    if len(curves) < len(family):
        caption += (
            f"Drawn are {len(curves)} of {len(family)} groups: the scratch student and the best on "
            "validation. "
        )
    png = plots.learning_curves(curves, f"{what} [%]")
    return Picture(f"{name}.png", png, text, caption.strip())


def _accuracy(row: Mapping[str, Any], split: str) -> float | None:
    return (row.get(split) or {}).get("accuracy")


def _networks(shown: Example) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    labels, networks = shown.arrays["labels"], {}
    if "teacher_logits" in shown.arrays:
        networks["teacher"] = shown.arrays["teacher_logits"], labels
    if shown.scratch_arrays:
        networks["scratch"] = shown.scratch_arrays["student_logits"], labels
    networks[shown.group.name] = shown.arrays["student_logits"], labels
    return networks


def _one_run(shown: Example) -> str:
    return f"{shown.group.name} ({shown.why}), {seeds_of(shown.run)}"


def seeds_of(run: FinishedRun) -> str:
    """`seed 0`, or both seeds where they differ."""
    init, data = run.seeds
    return f"seed {init}" if init == data else f"init_seed {init}, data_seed {data}"


def _reliability(shown: Example, name: str) -> Picture | None:
    networks = _networks(shown)
    try:
        png = plots.reliability(networks)
    except ValueError:  # logits that no network of kd leaves: not finite, of another shape
        return None
    text = f"Reliability diagram of {', '.join(networks)} on test ({shown.group.family_name})"
    caption = (
        f"{text}: one run of each, {seeds_of(shown.run)}; {shown.group.name} is {shown.why}. Below "
        "the diagonal a network is surer than it is right. Bins with fewer than 5 examples are "
        "left out."
    )
    return Picture(f"{name}.png", png, text, caption)


def _confusion(shown: Example, name: str) -> Picture | None:
    if (
        shown.arrays.get("teacher_logits", np.zeros(0)).shape
        != shown.arrays["student_logits"].shape
    ):
        return None
    student = shown.arrays["student_logits"].argmax(axis=1)
    teacher = shown.arrays["teacher_logits"].argmax(axis=1)
    classes = shown.arrays["student_logits"].shape[1]
    names = shown.run.record["dataset"]["class_names"]
    names = names if len(names) == classes else [str(number) for number in range(classes)]
    text = f"Top classes of the student against its teacher's on test ({shown.group.family_name})"
    agreement = 100 * float((student == teacher).mean())
    caption = f"{text}: {_one_run(shown)}. They agree on {agreement:.2f} % of the examples."
    return Picture(f"{name}.png", plots.confusion(student, teacher, names), text, caption)


def one_pair(shown: Example) -> Bullets | None:
    """What the test examples say of one pair, which is no verdict on the method."""
    if not shown.scratch_arrays:
        return None
    labels = shown.arrays["labels"]
    tops = {name: logits.argmax(axis=1) for name, (logits, _) in _networks(shown).items()}
    student, scratch = tops[shown.group.name], tops["scratch"]
    exact = statistics.mcnemar(student == labels, scratch == labels)
    drawn = statistics.bootstrap(student == labels, scratch == labels, seed=0)
    low, high = (f"{100 * bound:+.2f}" for bound in drawn.interval)
    total = len(labels)
    items = [
        f"The pair: {_one_run(shown)}, and the scratch student with the same seeds, on the same "
        f"{total:,} test examples.",
        f"Right: both on {exact.both:,}, the student alone on {exact.only_a:,}, scratch "
        f"alone on {exact.only_b:,}, neither on {exact.neither:,}; exact McNemar test p = "
        f"{exact.p_value:.3g}.",
        f"Accuracy: student minus scratch {100 * drawn.difference:+.2f} points, bootstrap over "
        f"the test examples {low} to {high} (95 %).",
    ]
    if "teacher" in tops:
        agree = {k: 100 * float((top == tops["teacher"]).mean()) for k, top in tops.items()}
        items.append(
            f"Agreement with the teacher: student {agree[shown.group.name]:.2f} %, scratch "
            f"{agree['scratch']:.2f} %."
        )
    return Bullets(items, lead=True)


def trade_offs(groups: Sequence[Group], prefix: str) -> list[Picture]:
    """Test accuracy against parameters, and against latency where it was measured.

    Of each kind and size the group that is best on validation is drawn, at most MAX_POINTS.
    """
    best: dict[tuple, Group] = {}
    for group in groups:
        place = group.kind, group.record.get("parameters"), group.record["network"]
        now, before = (
            one.summary(validation_accuracy) if one else None for one in (group, best.get(place))
        )
        if place not in best or (now and before and now.mean > before.mean):
            best[place] = group
    kept = list(best.values())[:MAX_POINTS]
    pictures = []
    for name, label in (("parameters", "parameters"), ("latency", "latency of one example [ms]")):
        (cost,) = [column for column in COLUMNS if column.key == name]
        points = [_point(group, cost.value) for group in kept]
        points = [point for point in points if point]
        if len({point.cost for point in points}) < 2:
            continue
        text = f"Test accuracy against {name} on {groups[0].record['dataset']['name']}"
        caption = f"{text}: means over seeds with one standard deviation."
        if len(points) < len(groups):
            caption += (
                f" Drawn are {len(points)} of {len(groups)} groups: of each kind and size the best "
                "on validation."
            )
        png = plots.trade_off(points, label)
        pictures.append(Picture(f"{prefix}-{name}.png", png, text, caption))
    return pictures


def _point(group: Group, cost: Value) -> plots.Point | None:
    known = [value for value in map(cost, group.runs) if value]
    accuracy = group.summary(test_accuracy)
    if not known or accuracy is None:
        return None
    spread = 100 * accuracy.sd if accuracy.sd is not None else None
    network = group.record["network"]
    mean = float(np.median(known))
    return plots.Point(group.kind, network, mean, 100 * accuracy.mean, spread)
