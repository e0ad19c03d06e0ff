"""Why distilling helped, or did not: sentences from what the runs have recorded.

Each sentence has a number and, where something can be done, what to try. To add one: write a
function `(Case) -> sentence or ''` and put it into RULES; give it a case of its own in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kd_cli.config.inputs import inputs_of
from kd_cli.report.groups import Comparison, Group
from kd_cli.runs.finished import settings_of, test_accuracy

# Percentage points: with all labels of MNIST and Fashion-MNIST (0.5 and 1.5) nothing was gained.
FAR_AHEAD = 2.0
SURE = 0.05  # of the largest entropy there can be: outputs that are nearly the labels
RIGHT = 0.99
# Of the training examples: a student that differs on more than one in twenty has not learned what
# it was shown.
FITS = 0.95
# Agreement on training minus that on test: far more than the sampling error of 300 test examples
# (two standard errors are at most 0.06).
MEMORISED = 0.1
# A term with this share of the gradient turns the sum by at most arcsin(0.1 / 0.9) = 6 degrees.
LITTLE = 0.1
ALONG = 0.9  # cosine: less than 26 degrees between the two gradients


@dataclass(frozen=True)
class Case:
    """A distilled group beside its scratch students, as means over the seeds.

    Attributes:
        group: The distilled runs.
        comparison: With the scratch group.
    """

    group: Group
    comparison: Comparison

    def mean(self, path: str, group: Group | None = None) -> float | None:
        """Mean of what the records say under a dotted key; None where one does not say."""
        values = [run.at(path) for run in (group or self.group).runs]
        return None if None in values else sum(values) / len(values)

    @property
    def many(self) -> str:
        """What its inputs are called."""
        return inputs_of(self.group.record["dataset"]).many

    @property
    def lead(self) -> float | None:
        """The teacher's test accuracy minus the scratch students', in points."""
        own, baseline = self.mean("teacher.test_accuracy"), self.comparison.baseline
        if own is None or baseline is None:
            return None
        return 100 * (own - sum(map(test_accuracy, baseline.runs)) / len(baseline.runs))


def _labelled(record: Any) -> int:
    return record["dataset"]["labelled"]


def _lead(case: Case) -> str:
    if case.lead is None:
        return ""
    if case.lead < 0:
        return (
            f"The teacher is {-case.lead:.1f} points below the scratch student on test: train it "
            "better, or take another one."
        )
    if case.lead < FAR_AHEAD:
        return (
            f"The teacher is only {case.lead:.1f} points above the scratch student on test: it "
            "knows little that the labels do not tell; try a stronger one, or one that knows more "
            f"labels or more {case.many}."
        )
    return f"The teacher is {case.lead:.1f} points above the scratch student on test."


def _more_labels(case: Case) -> str:
    theirs, ours = case.group.record["teacher"].get("labelled"), _labelled(case.group.record)
    if theirs is None or theirs <= ours:
        return ""
    return (
        f"The teacher learned from {theirs:,} labels, the student has {ours:,}: its outputs stand "
        "in for labels that the student does not have."
    )


def _sure(case: Case) -> str:
    """Says nothing where the outputs stand in for labels: then they may be as sure as labels."""
    right, images = case.mean("teacher.on_training.accuracy"), case.group.record["dataset"]["train"]
    temperature = case.group.record.get("temperature")
    at = "entropy" if temperature is None else "entropy_at_temperature"
    entropy = case.mean(f"teacher.on_training.{at}")
    if right is None or entropy is None or right < RIGHT or _labelled(case.group.record) < images:
        return ""
    if entropy > SURE * math.log(len(case.group.record["dataset"]["class_names"])):
        return ""
    where = "" if temperature is None else f" at T {temperature:g}"
    return (
        f"The teacher is right on {100 * right:.1f} % of the training {case.many}, and its mean "
        f"entropy{where} is {entropy:.2f} nats: its outputs are nearly the labels; try "
        f"augmentation, a teacher that was not trained on these {case.many}, or a higher "
        "temperature."
    )


def _follows(case: Case) -> str:
    same, scratch = case.mean("fidelity.test.agreement"), case.comparison.baseline
    teacher = case.mean("teacher.test_accuracy")
    if same is None or teacher is None or scratch is None:
        return ""
    if same >= teacher - 0.05:
        return f"The student decides as its teacher on {100 * same:.1f} % of the test {case.many}."
    advice = "; try more steps, a higher learning rate or a larger student"
    if case.mean("fidelity.training.agreement") is not None:
        advice = ""  # the training images tell which: `_fits`
    return (
        f"The student decides as its teacher on only {100 * same:.1f} % of the test {case.many}, "
        f"and the teacher is right on {100 * teacher:.1f} %: it does not reproduce its "
        f"teacher{advice}."
    )


def _fits(case: Case) -> str:
    seen, unseen = case.mean("fidelity.training.agreement"), case.mean("fidelity.test.agreement")
    right = case.mean("fidelity.training.accuracy")
    if seen is None or unseen is None:
        return ""
    if seen >= FITS:
        if seen - unseen < MEMORISED:
            return ""
        return (
            f"The student agrees with the teacher on {100 * seen:.1f} % of the training "
            f"{case.many}, but on {100 * unseen:.1f} % of the test {case.many}: it has memorised "
            f"the former; try more {case.many} (without labels too) or augmentation."
        )
    text = (
        f"The student agrees with the teacher on only {100 * seen:.1f} % of the training "
        f"{case.many}"
    )
    if right is not None and right >= FITS:
        return (
            f"{text} and has the label on {100 * right:.1f} %: it follows the labels where the two "
            "differ."
        )
    return f"{text}: it underfits; try more steps, a larger student or a higher learning rate."


def _share(case: Case) -> str:
    """Of the labels' terms and those that the teacher has a part in."""
    cosine, record = case.mean("gradients.cosine"), case.group.record
    terms = record.get("gradients", {}).get("shares", {})
    labels = [name for name in terms if name.rpartition(".")[2] in ("hard", "ce")]
    names = [name for name in terms if name not in (*labels, "regularisation")]
    shares = [case.mean(f"gradients.shares.{name}") for name in names]
    if not labels or not names or None in shares or sum(shares) >= LITTLE:
        return ""
    along = (
        f" and points where the labels' does (cosine {cosine:.2f})"
        if cosine is not None and cosine >= ALONG
        else ""
    )
    loss = settings_of(record["config"])
    advice = "give it a larger weight"
    if loss.get("loss.alpha"):
        advice = "lower alpha"
        if loss.get("loss.temperature") and "loss.t_squared" in loss:
            more = "raise the temperature" if loss["loss.t_squared"] else "type t_squared=true"
            advice += f", or {more}"
    return (
        f"The teacher's term has {100 * sum(shares):.2g} % of the gradient at the first step{along}"
        f": it can hardly change anything; {advice}."
    )


def _ends_early(case: Case) -> str:
    last = [
        run.at("validation.best.epoch") == run.at("epochs_done") and run.at("epochs_done") > 1
        for run in case.group.runs
    ]
    if not all(last):
        return ""
    return "Every run was best at its last epoch: it may not have ended learning; try more steps."


def _calibration(case: Case) -> str:
    own, baseline = case.mean("quality.test.ece"), case.comparison.baseline
    teacher = case.mean("teacher.quality.test.ece")
    scratch = case.mean("quality.test.ece", baseline) if baseline else None
    if own is None or teacher is None or scratch is None:
        return ""
    return (
        f"Expected calibration error on test, in points: teacher {100 * teacher:.1f}, student "
        f"{100 * own:.1f}, scratch student {100 * scratch:.1f}."
    )


RULES: tuple[Callable[[Case], str], ...] = (
    _lead, _more_labels, _sure, _share, _follows, _fits, _ends_early, _calibration,
)  # fmt: skip


def reasons(group: Group, comparison: Comparison) -> list[str]:
    """What speaks for and against distilling in one group, a sentence each.

    Args:
        group: Distilled runs.
        comparison: Of the group, as `groups.compared` found it.
    """
    case = Case(group, comparison)
    return [sentence for rule in RULES if (sentence := rule(case))]
