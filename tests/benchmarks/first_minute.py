"""How sure the first command's verdict is: draws its seeds, and judges groups of a few of them.

    kd compare seeds=40 controls=label_smoothing sweep=first
    python tests/benchmarks/first_minute.py outputs/sweeps/first --png FILE

The seeds 0 to 9 were looked at while the scenario was chosen; the other thirty are fresh. Prints
how often `kd compare`, without controls, says "better" of ten groups of three fresh seeds and of
six groups of five, and the verdicts of all thirty.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from kd_cli.report import groups, statistics
from kd_cli.report.groups import DISTILLED, PLAIN, SCRATCH
from kd_cli.runs import finished
from kd_cli.runs.finished import test_accuracy

FIRST = 10  # the first fresh seed
SIZES = 3, 5  # seeds of a group; five are what kd compare takes
NAMES = {PLAIN: "scratch student", SCRATCH: "with label smoothing", DISTILLED: "distilled student"}
COLOURS = {PLAIN: "#0072B2", SCRATCH: "#A4457E", DISTILLED: "#D55E00"}


def accuracies(folder: Path) -> tuple[dict[str, dict[int, float]], float]:
    """Test accuracy by kind of student and seed, and the teacher's."""
    every, _ = groups.grouped(finished.find([folder]).runs)
    found = {
        group.kind: {run.seeds[0]: test_accuracy(run) for run in group.runs} for group in every
    }
    record = next(group.record for group in every if group.kind == DISTILLED)
    return found, record["teacher"]["test_accuracy"]


def judge(found: dict[str, dict[int, float]], seeds: list[int]) -> dict[str, statistics.Paired]:
    """The verdicts of `kd compare` on these seeds alone."""
    scratch = [found[PLAIN][seed] for seed in seeds]
    others = (kind for kind in (SCRATCH, DISTILLED) if kind in found)
    return statistics.several(
        {kind: ([found[kind][seed] for seed in seeds], scratch) for kind in others}
    )


def draw(found: dict[str, dict[int, float]], teacher: float, seeds: list[int], png: Path) -> None:
    """A dot for each seed; the line is the mean."""
    figure = Figure(figsize=(6.4, 2.7), layout="constrained", facecolor="white")
    ax = figure.subplots()
    jitter = np.random.default_rng(0).uniform(-0.22, 0.22, len(seeds))
    kinds = [kind for kind in (DISTILLED, SCRATCH, PLAIN) if kind in found]
    for row, kind in enumerate(kinds):
        values = [100 * found[kind][seed] for seed in seeds]
        ax.plot(values, row + jitter, "o", color=COLOURS[kind], markersize=5, alpha=0.65)
        mean = float(np.mean(values))
        ax.plot([mean, mean], [row - 0.28, row + 0.28], color="black", linewidth=2)
        ax.text(mean, row + 0.3, f"{mean:.1f} %", ha="center", va="bottom", fontsize=11)
    teacher *= 100
    ax.axvline(teacher, color="black", linestyle="--", linewidth=1.2)
    ax.text(teacher + 0.25, -0.45, "teacher", fontsize=11, rotation=90, va="bottom")
    ax.set_yticks(range(len(kinds)), [NAMES[kind] for kind in kinds], fontsize=12)
    ax.set(ylim=(-0.6, len(kinds) - 0.1), xlim=(None, teacher + 1.6))
    ax.set_xlabel("test accuracy [%], one dot for each seed", fontsize=11)
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(png, dpi=160, metadata={"Software": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="that of kd compare")
    parser.add_argument("--png", type=Path)
    arguments = parser.parse_args()
    found, teacher = accuracies(arguments.folder)
    seeds = [seed for seed in sorted(found[DISTILLED]) if seed >= FIRST]
    alone = {kind: found[kind] for kind in (PLAIN, DISTILLED)}
    for size in SIZES:
        groups_of = [seeds[at : at + size] for at in range(0, len(seeds) - size + 1, size)]
        verdicts = [judge(alone, own)[DISTILLED] for own in groups_of]
        for own, verdict in zip(groups_of, verdicts, strict=True):
            print(f"seeds {own[0]} to {own[-1]}: {statistics.in_words(verdict)}")
        better = sum(verdict.verdict == "better" for verdict in verdicts)
        print(f"better in {better} of {len(verdicts)} groups of {size} seeds")
    for kind, verdict in judge(found, seeds).items():
        print(f"{NAMES[kind]}, all {len(seeds)}: {statistics.in_words(verdict)}")
    if arguments.png:
        draw(found, teacher, seeds, arguments.png)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
