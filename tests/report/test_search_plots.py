"""The figure of a search: where values stand, and how far the axis reaches."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from kd_cli.report import search_plots
from kd_cli.report.search_plots import Slice, search_figure

POINTS = {
    "finished": [(0.01, 95.0), (0.02, 96.0), (0.1, 94.0), (0.5, 10.0)],
    "pruned": [(0.2, 93.0)],
    "winner": [(0.03, 97.0)],
}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are made."""
    made = []

    class Kept(Figure):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(search_plots, "Figure", Kept)
    return made


def test_a_panel_for_each_key_the_most_important_first(drawn):
    choices = ("adam", "sgd")
    named = {
        kind: [(choices[n % 2], result) for n, (_, result) in enumerate(points)]
        for kind, points in POINTS.items()
    }
    slices = [
        Slice("optimizer", choices, (0, 0), False, 0.2, named),
        Slice("learning_rate", (), (0.001, 1), True, 0.8, POINTS),
    ]
    assert search_figure(slices, "validation accuracy [%]")[:4] == b"\x89PNG"
    rate, optimizer = drawn[0].axes
    assert rate.get_title() == "learning_rate, importance 0.80" and rate.get_xscale() == "log"
    assert rate.get_xlim()[0] < 0.001 and rate.get_xlim()[1] > 1  # the whole space
    assert [label.get_text() for label in optimizer.get_xticklabels()] == ["adam", "sgd"]
    lines = {line.get_label(): line for line in optimizer.lines}
    np.testing.assert_array_equal(lines["finished"].get_xdata(), [0, 1, 0, 1])
    np.testing.assert_array_equal(lines["winner"].get_ydata(), [97])
    # 10 % lies far below the others, which are 93 to 97: it stands at the edge.
    rates = {line.get_label(): line for line in rate.lines}
    np.testing.assert_array_equal(rates["finished"].get_ydata(), [95, 96, 94, 93])


def test_the_axis_leaves_out_what_lies_three_widths_beyond_the_middle_half():
    """Of 1, 2, 3, 4, 5 the middle half is 2 to 4: what lies below -4 or above 10 is left out."""
    assert search_plots._limits([1, 2, 3, 4, 5]) == (1, 5)
    assert search_plots._limits([2, 2.9, 3, 3.1, 4, -40, 50]) == (2, 4)
    assert search_plots._limits([0.5]) == (0.5, 0.5)


def test_few_trials_without_importances(drawn):
    points = {"finished": [], "pruned": [], "winner": [(3, 0.5)]}
    assert search_figure([Slice("epochs", (), (1, 9), False, None, points)], "NLL")[:4]
    (ax,) = drawn[0].axes
    assert ax.get_title() == "epochs" and ax.get_ylim() == (-0.5, 1.5)
