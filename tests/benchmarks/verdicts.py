"""Draws every difference with an interval of the guide's table of recommendations.

    python tests/benchmarks/verdicts.py --png .images/verdicts.png

The third column of the table holds them as `name: +1.32 (0.28 to 2.35)`, with semicolons between.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from matplotlib.figure import Figure

GUIDE = Path(__file__).parents[2] / "kd_cli/guide/evidence.md"
TABLE = "## Which setting for which situation"
EFFECT = re.compile(r"(.+): ([+-]\d+\.\d+) \((-?[\d.]+) to (-?[\d.]+)\)")
COLOURS = {"better": "#00724F", "worse": "#B54B00", "inconclusive": "#555555"}
MARKERS = {"better": "^", "worse": "v", "inconclusive": "o"}


def effects(page: str) -> list[tuple[str, float, float, float]]:
    """Name, difference and interval of each effect in the table."""
    rows = page.split(TABLE)[1].split("\n## ")[0].splitlines()
    cells = [line.split("|")[3] for line in rows if line.count("|") == 5]
    matches = [EFFECT.fullmatch(one.strip()) for cell in cells for one in cell.split(";")]
    return [(m[1], *map(float, m.groups()[1:])) for m in matches if m]


def verdict(low: float, high: float) -> str:
    return "better" if low > 0 else "worse" if high < 0 else "inconclusive"


def draw(rows: list[tuple[str, float, float, float]], path: Path) -> None:
    figure = Figure(figsize=(7.2, 0.42 * len(rows) + 1.2), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for place, (_, mean, low, high) in enumerate(rows):
        which = verdict(low, high)
        axes.plot([low, high], [place, place], color=COLOURS[which], linewidth=3)
        axes.plot(mean, place, MARKERS[which], color=COLOURS[which], markersize=9)
        axes.annotate(
            f"{mean:+.2f}",
            (max(high, mean), place),
            (6, 0),
            textcoords="offset points",
            va="center",
            color=COLOURS[which],
            fontsize=13,
        )
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=13)
    axes.invert_yaxis()
    axes.set_xlim(right=axes.get_xlim()[1] + 2)
    axes.tick_params(axis="x", labelsize=13)
    axes.set_xlabel("test accuracy minus scratch [points]", fontsize=14)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--png", type=Path)
    arguments = parser.parse_args()
    rows = effects(GUIDE.read_text())
    for name, mean, low, high in rows:
        print(f"{name}: {mean:+.2f} ({low} to {high}), {verdict(low, high)}")
    if arguments.png:
        draw(rows, arguments.png)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
