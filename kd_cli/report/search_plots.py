"""The figure of a search: how much each key matters, and the validation results over its values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from kd_cli.report.plots import WIDTH, drawn

_LOOKS = {
    "finished": {"color": "#0072B2", "marker": "o"},
    "pruned": {"color": "#888888", "marker": "x"},
    "winner": {"color": "#D55E00", "marker": "*", "markersize": 12},
}
_ROOM = 0.06  # of an axis, beyond its ends


@dataclass(frozen=True)
class Slice:
    """One key of a search.

    Attributes:
        name: Of the key.
        choices: Its values, where they are no numbers on an axis; else empty.
        ends: Of its axis, where there are no choices.
        log: Whether its axis is logarithmic.
        importance: Between 0 and 1; None where it is not known.
        points: `finished`, `pruned` and `winner` -> (value, validation result) of each trial.
    """

    name: str
    choices: Sequence[str]
    ends: tuple[float, float]
    log: bool
    importance: float | None
    points: Mapping[str, Sequence[tuple[Any, float]]]


@drawn
def search_figure(slices: Sequence[Slice], ylabel: str) -> Figure:
    """A panel for each key, the most important first.

    Results far from the others, of trials that went wrong, stand at the edge of the panel.

    Args:
        slices: At least one; all have the same trials.
        ylabel: What the results are, with their unit.
    """
    slices = sorted(slices, key=lambda one: -(one.importance or 0))
    figure = Figure(figsize=(WIDTH, 0.6 + 2.1 * len(slices)), layout="constrained")
    axes = figure.subplots(len(slices), 1, squeeze=False)[:, 0]
    every = [result for points in slices[0].points.values() for _, result in points]
    low, high = _limits(every)
    for ax, one in zip(axes, slices, strict=True):
        share = "" if one.importance is None else f", importance {one.importance:.2f}"
        ax.set(title=f"{one.name}{share}", ylabel=ylabel)
        for kind, points in one.points.items():
            if points:
                values, results = zip(*points, strict=True)
                line = {"linestyle": "none", "label": kind, "clip_on": False, **_LOOKS[kind]}
                ax.plot(_across(ax, one, values), np.clip(results, low, high), **line)
        room = _ROOM * (high - low) or 1.0
        ax.set_ylim(low - room, high + room)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=3)
    return figure


def _across(ax: Axes, one: Slice, values: Sequence[Any]) -> Sequence[float]:
    """Where values stand on the axis of a key."""
    if one.choices:
        ax.set_xticks(range(len(one.choices)), one.choices)
        ax.set_xlim(-0.5, len(one.choices) - 0.5)
        return [list(one.choices).index(value) for value in values]
    low, high = one.ends
    if one.log:
        factor = (high / low) ** _ROOM
        ax.set(xscale="log", xlim=(low / factor, high * factor))
        few = high / low < 30
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        room = _ROOM * (high - low)
        ax.set_xlim(low - room, high + room)
    return values


def _limits(results: Sequence[float]) -> tuple[float, float]:
    """The ends of the axis: without what lies far from the middle half of the results."""
    first, third = np.quantile(results, [0.25, 0.75])
    reach = 3 * (third - first)
    kept = [r for r in results if first - reach <= r <= third + reach]
    return min(kept), max(kept)
