"""The report's figures as PNG: each function takes numbers and returns the bytes.

They are read on paper and on a phone: one column of 4.8 inches, and every line has its own marker
and dashes beside its colour. Matplotlib's objects are used without pyplot, so nothing is global and
no display is needed.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from kd_cli.report.groups import DISTILLED, FILE, MUTUAL, PLAIN, SCRATCH, SELF, TEACHER
from kd_cli.runs.quality import reliability as reliability_bins

WIDTH = 4.8
_STYLES = (
    {"color": "#000000", "linestyle": "-", "marker": "o"},
    {"color": "#0072B2", "linestyle": "--", "marker": "s"},
    {"color": "#D55E00", "linestyle": "-.", "marker": "^"},
    {"color": "#00795A", "linestyle": ":", "marker": "D"},
    {"color": "#A4457E", "linestyle": (0, (6, 1, 1, 1, 1, 1)), "marker": "v"},
)
MAX_LINES = len(_STYLES)
_KINDS = {
    FILE: {"color": "#555555", "marker": "X"},
    TEACHER: {"color": "#000000", "marker": "*", "markersize": 13},
    PLAIN: {"color": "#0072B2", "marker": "s", "markerfacecolor": "white"},
    SCRATCH: {"color": "#0072B2", "marker": "D", "markerfacecolor": "white"},
    DISTILLED: {"color": "#D55E00", "marker": "o"},
    SELF: {"color": "#00795A", "marker": "v"},
    MUTUAL: {"color": "#8A4FA3", "marker": "P"},
}
_LOOK = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#d8d8d8",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "text.parse_math": False,  # names are the user's: $ is a dollar
    "savefig.dpi": 160,
}


def drawn(draw: Callable[..., Figure]) -> Callable[..., bytes]:
    """Makes a function that draws a figure return it as PNG, in the look of a report."""

    @wraps(draw)
    def to_png(*args: Any, **options: Any) -> bytes:
        with rc_context(_LOOK), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Glyph .* missing"
            )  # class names in any script
            figure = draw(*args, **options)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()

    return to_png


@drawn
def heat_map(
    alphas: Sequence[float],
    temperatures: Sequence[float],
    panels: Mapping[str, np.ndarray],
    marks: Mapping[str, np.ndarray] | None = None,
) -> Figure:
    """Accuracy over alpha and temperature, one panel under the other.

    Args:
        alphas: [a] across.
        temperatures: [t] downwards.
        panels: Title -> [t, a] accuracies in %, NaN where there is no point.
        marks: Title -> [t, a] texts set under the numbers.
    """
    height = 1.3 + 0.42 * min(len(temperatures), 12)
    figure = Figure(figsize=(WIDTH, height * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for ax, (title, values) in zip(axes, panels.items(), strict=True):
        ax.grid(False)
        ax.patch.set(hatch="///", edgecolor="#999999", facecolor="white")
        image = ax.imshow(np.ma.masked_invalid(values), cmap="cividis", aspect="auto")
        ax.set(title=title, xlabel="alpha (weight of the hard labels)", ylabel="temperature")
        ax.set_xticks(range(len(alphas)), [f"{value:g}" for value in alphas])
        ax.set_yticks(range(len(temperatures)), [f"{value:g}" for value in temperatures])
        low, high = np.nanmin(values), np.nanmax(values)
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value) and len(alphas) <= 12:
                mark = (marks or {}).get(title, np.full(values.shape, ""))[row, column]
                dark = value < (low + high) / 2 and high > low
                wide = len(alphas) <= 6
                text = f"{value:.{2 if wide else 1}f}" + (f"\n{mark}" if mark else "")
                size = 9 if wide else 7
                color = "white" if dark else "black"
                _in_cell(ax, row, column, text, color, size)
        figure.colorbar(image, ax=ax, label="accuracy [%]")
    return figure


@drawn
def learning_curves(curves: Mapping[str, np.ndarray], ylabel: str) -> Figure:
    """Mean over seeds by epoch, with bars of one standard deviation on either side.

    Args:
        curves: Name -> [seeds, epochs]; at most MAX_LINES, in the order of the legend.
        ylabel: What the values are, with their unit.
    """
    figure = Figure(figsize=(WIDTH, 3.4 + 0.2 * len(curves)), layout="constrained")
    ax = figure.subplots()
    shown = []
    for number, (style, (name, values)) in enumerate(zip(_STYLES, curves.items(), strict=False)):
        epochs, mean = np.arange(1, values.shape[1] + 1), values.mean(axis=0)
        every = max(1, values.shape[1] // 4)
        # Each line has its markers and bars at epochs of its own, or they would hide each other.
        places = (number * every // len(curves), every)
        spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(mean)
        bars = {"yerr": spread, "errorevery": places} if len(values) > 1 else {}
        line = {"label": _wrapped(name), "markevery": places, "elinewidth": 0.9, "capsize": 2.5}
        ax.errorbar(epochs, mean, **bars, **line, **style)
        late = slice(values.shape[1] // 10, None)
        shown.append(((mean - spread)[late].min(), (mean + spread)[late].max()))
    low, high = min(a for a, _ in shown), max(b for _, b in shown)
    room = 0.06 * (high - low) or 1.0
    ax.set_ylim(low - room, high + room)
    ax.set(xlabel="epoch", ylabel=ylabel)
    ax.set_xlim(left=1 - 0.02 * max(values.shape[1] for values in curves.values()))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower left")
    return figure


@drawn
def reliability(networks: Mapping[str, tuple[np.ndarray, np.ndarray]], least: int = 5) -> Figure:
    """Accuracy against confidence, and below it the share of the examples in each bin.

    Args:
        networks: Name -> (logits [n, K], labels [n]); at most MAX_LINES.
        least: Bins with fewer examples are not drawn: their accuracy is noise.
    """
    figure = Figure(figsize=(WIDTH, 4.9 + 0.2 * len(networks)), layout="constrained")
    ax, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    ax.plot([0, 100], [0, 100], color="#888888", linewidth=1, label="as right as it is confident")
    for style, (name, (logits, labels)) in zip(_STYLES, networks.items(), strict=False):
        bins = reliability_bins(logits, labels)
        kept = bins["count"] >= least
        ax.plot(
            100 * bins["confidence"][kept],
            100 * bins["accuracy"][kept],
            label=_wrapped(name),
            **style,
        )
        share = 100 * bins["count"] / bins["count"].sum()
        line = {key: style[key] for key in ("color", "linestyle")}
        below.stairs(share, 100 * bins["edges"], linewidth=1.4, **line)
    ax.set(ylabel="accuracy [%]", xlim=(0, 100), ylim=(0, 100))
    below.set(xlabel="confidence in the top class [%]", ylabel="examples [%]")
    figure.legend(loc="outside lower left")
    return figure


@dataclass(frozen=True)
class Point:
    """A group in `trade_off`.

    Attributes:
        kind: Of `groups`: which marker.
        network: What is written beside the point.
        cost: Parameters, or milliseconds; positive.
        accuracy: Mean test accuracy in %.
        spread: Standard deviation over the seeds; None for one seed.
    """

    kind: str
    network: str
    cost: float
    accuracy: float
    spread: float | None


def front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front, cheapest first: no other point is as cheap and at least as accurate."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


@drawn
def trade_off(points: Sequence[Point], cost: str) -> Figure:
    """Accuracy against cost on a logarithmic axis, with the Pareto front.

    Args:
        points: At least one.
        cost: Label of the axis, with its unit.
    """
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    ax = figure.subplots()
    best = front(points)
    xs = [point.cost for point in best]
    ys = [point.accuracy for point in best]
    ax.step(
        xs, ys, where="post", color="#666666", linestyle="--", linewidth=1, label="Pareto front"
    )
    for kind, look in _KINDS.items():
        own = [point for point in points if point.kind == kind]
        if own:
            ax.errorbar(
                [point.cost for point in own],
                [point.accuracy for point in own],
                [point.spread or 0 for point in own],
                linestyle="none",
                capsize=3,
                elinewidth=1,
                label=kind,
                **look,
            )
    tops = {point.network: point for point in sorted(points, key=lambda point: point.accuracy)}
    middle = np.sqrt(min(p.cost for p in points) * max(p.cost for p in points))
    order = sorted(tops.items(), key=lambda one: one[1].cost)
    for number, (name, point) in enumerate(order):
        left = point.cost > middle
        # (Points that lie close: one name above, the next one below.)
        above = number % 2 == 0 or order[number - 1][1].cost * 2 < point.cost
        ax.annotate(
            _short(name, 32),
            (point.cost, point.accuracy),
            textcoords="offset points",
            xytext=(-8 if left else 8, 8 if above else -15),
            ha="right" if left else "left",
            fontsize=9,
        )
    ax.set_xscale("log")
    decades = np.log10(max(p.cost for p in points) / min(p.cost for p in points))
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 1.5 else (1,)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _engineering(value)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.margins(x=0.12, y=0.15)
    ax.set(xlabel=f"{cost}, logarithmic", ylabel="test accuracy [%]")
    figure.legend(loc="outside lower left", ncols=3)
    return figure


@dataclass(frozen=True)
class Effect:
    """A row in `effects`.

    Attributes:
        family: Rows of one family follow each other, under its name.
        name: Beside the row.
        mean: Difference in points.
        interval: Its ends in points, both the mean where there is none.
        verdict: Of `groups.Comparison`.
    """

    family: str
    name: str
    mean: float
    interval: tuple[float, float]
    verdict: str


_VERDICTS = {
    "better": {"color": "#00795A", "marker": "^"},
    "worse": {"color": "#D55E00", "marker": "v"},
    "inconclusive": {"color": "#000000", "marker": "o", "markerfacecolor": "white"},
}


@drawn
def effects(rows: Sequence[Effect]) -> Figure:
    """Student minus scratch student with intervals, a row for each group, from the top down."""
    ticks: list[tuple[float, str]] = []
    heads: list[tuple[float, str]] = []
    y = 0.0
    for number, row in enumerate(rows):
        if number == 0 or rows[number - 1].family != row.family:
            y += 1.4 if number else 0.4
            heads.append((y, row.family))
        y += 1.0
        ticks.append((y, row.name))
    figure = Figure(figsize=(WIDTH + 0.6, 1.3 + 0.19 * y), layout="constrained")
    ax = figure.subplots()
    ax.grid(axis="y", visible=False)
    ax.axvline(0, color="#666666", linewidth=1)
    for verdict, look in _VERDICTS.items():
        own = [(y, row) for (y, _), row in zip(ticks, rows, strict=True) if row.verdict == verdict]
        if own:
            mean = np.array([row.mean for _, row in own])
            low, high = np.array([row.interval for _, row in own]).T
            ax.errorbar(
                mean,
                [y for y, _ in own],
                xerr=(mean - low, high - mean),
                linestyle="none",
                capsize=2.5,
                elinewidth=1.2,
                label=verdict,
                **look,
            )
    ax.set_ylim(y + 0.8, -0.2)
    ax.set_yticks([y for y, _ in ticks], [_short(name, 34) for _, name in ticks], fontsize=8)
    for y, family in heads:  # over the whole width: long ones name several settings
        head = ax.annotate(
            _short(family, 62),
            (0.01, y),
            xycoords=("figure fraction", "data"),
            va="center",
            fontsize=8.5,
            fontweight="bold",
        )
        head.set_in_layout(False)
    ax.set(xlabel="test accuracy: student minus scratch [points]")
    figure.legend(loc="outside lower left", ncols=3)
    return figure


@drawn
def confusion(student: np.ndarray, teacher: np.ndarray, names: Sequence[str]) -> Figure:
    """Of the examples that the teacher puts in a class, how many % the student puts where.

    Args:
        student: [n] top classes.
        teacher: [n] top classes, the same examples.
        names: [K] class names.
    """
    classes = len(names)
    counts = np.bincount(teacher * classes + student, minlength=classes**2)
    counts = counts.reshape(classes, classes)
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    ax = figure.subplots()
    ax.grid(False)
    image = ax.imshow(share, cmap="Greys", norm=PowerNorm(0.5, 0, 100))  # a few % must be seen
    if classes <= 12:
        for (row, column), value in np.ndenumerate(share):
            if counts[row, column]:
                text = f"{value:.0f}" if value >= 0.5 else "<1"
                color = "white" if value > 35 else "black"
                _in_cell(ax, row, column, text, color, 8)
    if classes <= 30:
        short = [_short(str(name), 14) or str(name)[:14] for name in names]
        turned = 90 if max(map(len, short)) > 2 else 0
        ax.set_xticks(range(classes), short, rotation=turned, fontsize=8)
        ax.set_yticks(range(classes), short, fontsize=8)
    suffix = "" if classes <= 30 else " (class number)"
    ax.set(xlabel=f"student's top class{suffix}", ylabel=f"teacher's top class{suffix}")
    figure.colorbar(image, ax=ax, label="share of the teacher's class [%]", shrink=0.8)
    return figure


def _in_cell(ax: Axes, row: int, column: int, text: str, color: str, size: float) -> None:
    drawn = ax.text(column, row, text, ha="center", va="center", color=color, fontsize=size)
    drawn.set_in_layout(False)  # it lies inside the axes; measuring hundreds of texts takes long


def _engineering(value: float) -> str:
    """A number on an axis: 20k, 1.5M, 0.2."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def _short(text: str, width: int) -> str:
    return textwrap.shorten(text, width, placeholder="...")


def _wrapped(name: str) -> str:
    return textwrap.fill(name, 50)
