"""Exported files as rows of a report: what each gets, costs, and which is the smallest good one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

from kd_cli.export.formats import FORMATS
from kd_cli.export.record import FAILED, ExportRecord
from kd_cli.files import DamagedError, file_hash
from kd_cli.report.columns import COUNT, NATS, PERCENT
from kd_cli.report.groups import FILE, Group
from kd_cli.report.page import Picture, Row, Table
from kd_cli.report.statistics import summary
from kd_cli.runs.finished import FinishedRun
from kd_cli.runs.model_file import NAME
from kd_cli.terminal import shown

TOLERANCE = 0.5  # points


@dataclass(frozen=True)
class Exported:
    """A file with its record, and the run in which it lies; None for that of a `.keras` file."""

    path: Path
    record: ExportRecord
    run: FinishedRun | None


@dataclass(frozen=True)
class Files:
    """The same file of the runs of a group, which differ in their seeds.

    Attributes:
        name: Of the network, for people.
        kind: Of the group, or `FILE`.
        made: At least one.
    """

    name: str
    kind: str
    made: tuple[Exported, ...]

    @property
    def record(self) -> ExportRecord:
        return self.made[0].record

    @property
    def title(self) -> str:
        """Format and precision: `LiteRT int8`."""
        softmax = ", probabilities" if self.record.softmax else ""
        return f"{FORMATS[self.record.format].title} {self.record.precision}{softmax}"

    @property
    def data(self) -> str:
        """The fingerprint of the data on which it was measured."""
        return self.record.dataset["fingerprint"]

    def test(self, key: str) -> list[float]:
        """A score on test of each file."""
        return [one.record.test[key] for one in self.made]

    @property
    def accuracy(self) -> float:
        """Mean test accuracy."""
        return fmean(self.test("accuracy"))

    @property
    def spread(self) -> float | None:
        """Standard deviation of the test accuracy over seeds, in points; None for one seed."""
        sd = summary(self.test("accuracy")).sd
        return None if sd is None else 100 * sd

    @property
    def bytes(self) -> float:
        return median(one.record.bytes for one in self.made)

    @property
    def milliseconds(self) -> float:
        """Latency of one image with one thread."""
        return median(one.record.latency["one_thread"]["median_ms"] for one in self.made)


def find(runs: Iterable[FinishedRun], folders: Iterable[Path]) -> tuple[list[Exported], list[str]]:
    """The exported files of runs, and those of `.keras` files below folders.

    Returns:
        The files, and a line for each that is left out.
    """
    places = {run.folder / "export": run for run in runs if run.folder is not None}
    loose = {
        folder
        for root in folders
        for pattern in ("export/*/", "*/export/*/")
        for folder in root.glob(pattern)
        if folder.name != FAILED and folder.parent not in places
    }
    found: list[Exported] = []
    lines: list[str] = []
    for folder in [*places, *sorted(loose)]:
        run = places.get(folder)
        for place in sorted(folder.glob("[!.]*.json")):
            try:
                record = ExportRecord.read(place)
            except DamagedError as error:
                lines.append(str(error))
                continue
            if record is None:
                continue
            path, network = folder / record.file, run.folder / NAME if run else None
            if not path.exists():
                lines.append(f"{shown(path)} is gone; remove {shown(place)}, or export it again")
            elif network and network.is_file() and file_hash(network) != record.source.sha256:
                lines.append(
                    f"{shown(path)}: the network has changed since; remove {shown(place)} and "
                    f"type: kd export {shown(run.folder)}"
                )
            else:
                found.append(Exported(path, record, run))
    return found, lines


def of_groups(found: Sequence[Exported], groups: Sequence[Group]) -> list[Files]:
    """The files by group and kind of file, in the order of the groups; then those of no run."""
    by_run = {id(run): group for group in groups for run in group.runs}
    parts: dict[tuple[str, str], list[Exported]] = {}
    names: dict[tuple[str, str], tuple[str, str]] = {}
    for one in found:
        group = by_run.get(id(one.run))
        if one.run is not None and group is None:
            continue  # it repeats another run
        key = (group.key if group else str(one.path.parent), one.path.name)
        parts.setdefault(key, []).append(one)
        family = f"{group.family_name}, " if group and group.family_name else ""
        name = f"{family}{group.name}" if group else one.record.source.network
        names[key] = (name, group.kind if group else FILE)
    order = {group.key: number for number, group in enumerate(groups)}
    keys = sorted(parts, key=lambda key: (order.get(key[0], len(order)), key))
    return [Files(*names[key], tuple(parts[key])) for key in keys]


def table(files: Sequence[Files]) -> Table:
    """What each file gets on test, and what it costs."""
    heads = [
        "network", "file", "seeds", "test, %", "of Keras, %", "agreement with Keras, %",
        "NLL, nats", "bytes", "latency, ms", "warnings",
    ]  # fmt: skip
    rows = []
    for one in files:
        keras = fmean(each.record.keras.test["accuracy"] for each in one.made)
        accuracy = PERCENT.text(one.accuracy)
        cells = [
            accuracy if one.spread is None else f"{accuracy} ± {one.spread:.2f}",
            PERCENT.text(keras),
            PERCENT.text(fmean(one.test("agreement"))),
            NATS.text(fmean(one.test("nll"))),
            COUNT.text(one.bytes),
            f"{one.milliseconds:.3g}",
            str(sum(bool(each.record.warnings) for each in one.made)),
        ]
        rows.append(Row([one.name, one.title, str(len(one.made)), *cells]))
    return Table(
        "Exported files on the test images, run by their own runtimes; latency of one image with "
        "one thread, median",
        heads,
        rows,
        texts=(0, 1),
    )


def smallest(files: Sequence[Files], tolerance: float = TOLERANCE) -> str:
    """The smallest file that loses at most `tolerance` points of test accuracy, in a sentence.

    Args:
        files: At least one, of one dataset.
        tolerance: Points against the best of them.
    """
    best = max(files, key=lambda one: (one.accuracy, -one.bytes))
    # (Shares of whole images: 1e-9 is rounding.)
    good = [one for one in files if best.accuracy - one.accuracy <= tolerance / 100 + 1e-9]
    chosen = min(good, key=lambda one: (one.bytes, -one.accuracy, one.name, one.title))
    lost = 100 * (best.accuracy - chosen.accuracy)
    against = f"{lost:.2f} points below {best.name}, {best.title}" if lost > 0 else "the best"
    return (
        f"The smallest file that loses at most {tolerance:g} points: {chosen.name}, "
        f"{chosen.title}, {COUNT.text(chosen.bytes)} bytes, {PERCENT.text(chosen.accuracy)} % on "
        f"test ({against}): {shown(chosen.made[0].path)}"
    )


def pictures(files: Sequence[Files], prefix: str) -> list[Picture]:
    """Test accuracy of exported files against their bytes, and against their latency."""
    from kd_cli.report import plots

    drawn, formats = [], len({one.record.format for one in files})
    costs = {
        "bytes": (lambda one: one.bytes, "bytes of the file"),
        "latency": (lambda one: one.milliseconds, "latency of one image, one thread [ms]"),
    }
    for name, (cost, label) in costs.items():
        points = {
            id(one): plots.Point(
                one.kind,
                f"{one.kind} {one.title if formats > 1 else one.record.precision}",
                cost(one),
                100 * one.accuracy,
                one.spread,
            )
            for one in files
        }
        if len({point.cost for point in points.values()}) < 2:
            continue
        text = (
            f"Test accuracy against {name} of exported files of {files[0].record.dataset['name']}"
        )
        best = plots.front(list(points.values()))
        # (Names of all files would hide each other.)
        named = [p if p in best else replace(p, network="") for p in points.values()]
        png = plots.trade_off(named, label)
        drawn.append(Picture(f"{prefix}-files-{name}.png", png, text, f"{text}."))
    return drawn


def by_data(files: Sequence[Files]) -> Mapping[str, list[Files]]:
    """The files by the fingerprint of their data."""
    parts: dict[str, list[Files]] = {}
    for one in files:
        parts.setdefault(one.data, []).append(one)
    return parts
