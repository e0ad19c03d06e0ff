"""The columns of every table about runs, whichever command prints it.

A column is one row of `COLUMNS`: what it is called, where its value stands in a run's record, its
unit, and which tables show it. Printed tables and the report give shares in percent; CSV and JSON
files hold the values as they were recorded, shares between 0 and 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from statistics import median
from typing import Any

from kd_cli.config.inputs import many_of
from kd_cli.report.statistics import summary
from kd_cli.runs.finished import FinishedRun, at

NONE = "–"


class In(Flag):
    """The tables."""

    RUN = auto()  # at the end of a run: teacher, distilled and scratch student
    ROUNDS = auto()  # at the end of self-training, a row a round
    SWEEP = auto()  # at the end of a sweep, a row a point; sweep.csv and sweep.json
    COMPARE = auto()  # of `kd compare`, a row a group of seeds
    REPORT = auto()  # of a report, a row a group of seeds
    DIFFERENCES = auto()  # of a report: student minus scratch student; smaller is better
    EVALUATE = auto()  # of `kd evaluate`, whose rows these are: validation and test side by side


@dataclass(frozen=True)
class Unit:
    """How a number is printed.

    Attributes:
        name: Follows the column's name; empty where there is no unit.
        factor: From the recorded to the printed value.
        digits: After the point.
    """

    name: str
    factor: float
    digits: int

    def text(self, value: float, sign: str = "") -> str:
        """A recorded value as it is printed, without the unit; `sign` is `+` to print it always."""
        return f"{self.factor * value:{sign}z,.{self.digits}f}"


COUNT = Unit("", 1, 0)
PERCENT = Unit("%", 100, 2)
NATS = Unit("nats", 1, 4)
SCORE = Unit("", 1, 4)
MILLISECONDS = Unit("ms", 1, 3)
SECONDS = Unit("s", 1, 1)


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: Its name in CSV and JSON files.
        name: Its name for people, without the unit.
        path: Dotted key of the value in a record; `{split}` is `test`, and in the table of
            `kd evaluate` `validation` as well.
        unit: None for texts.
        tables: Which tables show it.
        detail: Its name where it is a row of `kd evaluate`, which has room.
        varies: Whether it differs between seeds. If so, a table of groups shows mean and standard
            deviation, where every run knows the value; else the median of the runs that know it.
        optional: Whether a table leaves it out where no run knows the value.
        differing: Whether a table leaves it out where all runs have the same value.
        uneven: Whether it says nothing new, and is not shown, where classes are about even.
    """

    key: str
    name: str
    path: str
    unit: Unit | None
    tables: In
    detail: str = ""
    varies: bool = True
    optional: bool = False
    differing: bool = False
    uneven: bool = False

    @property
    def header(self) -> str:
        return _with_unit(self.name, self.unit)

    @property
    def label(self) -> str:
        """The header where there is room."""
        return _with_unit(self.detail or self.name, self.unit)

    def value(self, run: FinishedRun) -> Any:
        """As recorded; None where it is not known."""
        if self.uneven and not _has_uneven_classes(run.record):
            return None
        return self._known(run.at(self.path.format(split="test")))

    def on(self, split: str, evaluation: Mapping[str, Any]) -> Any:
        """As `kd evaluate` measured it on `validation` or `test`; None where it is not known."""
        if self.uneven and not _has_uneven_classes(evaluation):
            return None
        return self._known(at(evaluation, self.path.format(split=split)))

    def _known(self, value: Any) -> Any:
        if self.unit is None:
            return None if value is None else str(value)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return value if number and math.isfinite(value) else None

    def cell(self, value: Any) -> str:
        """A recorded value as it is printed."""
        if value is None:
            return NONE
        return str(value) if self.unit is None else self.unit.text(value)

    def signed(self, difference: float) -> str:
        """A difference of two recorded values as it is printed; of shares it is in points."""
        return self.unit.text(difference, sign="+")

    def over(self, runs: Sequence[FinishedRun]) -> str:
        """The cell of runs that differ in their seeds alone."""
        values = [self.value(run) for run in runs]
        known = [value for value in values if value is not None]
        if not known or (self.varies and len(known) < len(values)):
            return NONE
        if not self.varies:
            return self.cell(median(known))
        one = summary(known)
        return self.cell(one.mean) + (f" ± {self.cell(one.sd)}" if one.sd is not None else "")


def _has_uneven_classes(record: Mapping[str, Any]) -> bool:
    """Whether a class of the training or test examples is half as large again as another."""
    for part in ("train", "test"):
        counts = [count for count in at(record, f"dataset.{part}_per_class") or () if count]
        if counts and max(counts) >= 1.5 * min(counts):
            return True
    return False


def _with_unit(name: str, unit: Unit | None) -> str:
    return f"{name}, {unit.name}" if unit and unit.name else name


_ALL = In.RUN | In.ROUNDS | In.SWEEP | In.COMPARE | In.REPORT
_SAW = In.RUN | In.COMPARE | In.REPORT
_SCORES = In.REPORT | In.DIFFERENCES | In.EVALUATE
# In the order in which tables show them.
COLUMNS = (
    Column("network", "network", "network", None, In.RUN),
    Column("parameters", "parameters", "parameters", COUNT, In.RUN | In.REPORT, varies=False),
    Column("labelled", "labelled", "dataset.labelled", COUNT, In.ROUNDS),
    Column("images", "images", "dataset.train", COUNT, _SAW, varies=False, differing=True),
    Column("labels", "labels", "dataset.labelled", COUNT, _SAW, varies=False, differing=True),
    Column("pseudo_images", "pseudo-labelled", "pseudo_labels.images", COUNT, In.ROUNDS),
    Column("pseudo_rows", "in rows", "pseudo_labels.rows", COUNT, In.ROUNDS),
    Column("pseudo_accuracy", "right (hidden labels)", "pseudo_labels.accuracy", PERCENT, In.ROUNDS,
           optional=True),
    Column("validation_accuracy", "validation", "validation.best.accuracy", PERCENT, _ALL),
    Column("validation_nll", "validation NLL", "validation.best.nll", NATS, In.SWEEP),
    Column("best_epoch", "best epoch", "validation.best.epoch", COUNT, In.SWEEP),
    Column("round_0_test", "test of round 0", "rounds.0.test.accuracy", PERCENT, In.SWEEP,
           optional=True),
    Column("test_accuracy", "test", "test.accuracy", PERCENT, _ALL),
    Column("balanced_accuracy", "balanced test", "quality.{split}.balanced_accuracy", PERCENT,
           In.RUN | In.SWEEP | In.COMPARE | In.REPORT | In.EVALUATE, "balanced accuracy",
           optional=True, uneven=True),
    Column("test_last_accuracy", "test of last epoch", "test_last.accuracy", PERCENT, In.RUN),
    Column("test_nll", "test NLL", "test.nll", NATS, In.SWEEP),
    Column("accuracy", "accuracy", "quality.{split}.accuracy", PERCENT, In.EVALUATE),
    Column("top5", "top-5 accuracy", "quality.{split}.top5", PERCENT, In.EVALUATE),
    Column("nll", "NLL", "quality.{split}.nll", NATS, _SCORES),
    Column("brier", "Brier", "quality.{split}.brier", SCORE, _SCORES, "Brier score, 0 to 2"),
    Column("ece", "ECE", "quality.{split}.ece", PERCENT, _SCORES, "ECE, 15 bins of equal width"),
    Column("ece_equal_mass", "ECE of equal mass", "quality.{split}.ece_equal_mass", PERCENT,
           In.EVALUATE, "ECE, 15 bins of equal mass"),
    Column("nll_scaled", "NLL scaled", "quality.{split}.nll_scaled", NATS,
           In.EVALUATE, "NLL, temperature-scaled"),
    Column("ece_scaled", "ECE scaled", "quality.{split}.ece_scaled", PERCENT,
           _SCORES, "ECE, temperature-scaled"),
    Column("agreement", "agreement", "fidelity.{split}.agreement", PERCENT,
           In.REPORT | In.EVALUATE, "agreement with its teacher"),
    Column("agreement_teacher_wrong", "agreement where the teacher is wrong",
           "fidelity.{split}.agreement_teacher_wrong", PERCENT, In.EVALUATE),
    Column("kl", "KL(teacher || student)", "fidelity.{split}.kl", NATS, In.EVALUATE),
    Column("kl_at_temperature", "KL at the training's temperature",
           "fidelity.{split}.kl_at_temperature", NATS, In.EVALUATE),
    Column("latency", "latency", "evaluation.latency.1.median_ms", MILLISECONDS, In.REPORT,
           varies=False, optional=True),
    Column("seconds", "time", "timings.total_seconds", SECONDS, In.RUN | In.ROUNDS | In.SWEEP),
)  # fmt: skip


def columns(table: In, runs: Sequence[FinishedRun]) -> list[Column]:
    """The columns of a table about some runs, in order."""
    many = many_of([run.record.get("dataset", {}) for run in runs])
    return [
        column if column.key != "images" else dataclasses.replace(column, name=many)
        for column in COLUMNS
        if table in column.tables
        and not (column.optional and all(column.value(run) is None for run in runs))
        and not (column.differing and len({column.value(run) for run in runs} - {None}) < 2)
    ]
