"""Refuses unusable teachers; warns about doubtful ones.

The teacher is judged by its logits through the input path of the run: stored images, the steps of
evaluation, its adapter, its precision. Validation decides where there is one: you may choose by a
warning, and nothing may be chosen on test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from kd_cli.config.inputs import Images, Inputs, Tokens
from kd_cli.config.plans import scratch_plan
from kd_cli.data.dataset import Dataset
from kd_cli.distillation.teacher import Teacher
from kd_cli.errors import ConfigError
from kd_cli.runs import identity
from kd_cli.runs.quality import STEPS_TO_LEARN, chance
from kd_cli.runs.record import Record, RecordError
from kd_cli.terminal import shown

# The same weights give the same decisions on the same images but for near-ties (another device, a
# narrower cache or precision), which are far fewer than one image in fifty; three standard errors
# more, so that one image of a small split is no alarm.
_FAR_POINTS, _FAR_ERRORS = 0.02, 3


def refuse(teacher: Teacher, dataset: Dataset) -> None:
    """Refuses a teacher whose outputs are not of this dataset's classes in its order.

    It comes before any of the teacher's logits are stored.

    Args:
        teacher: With one logit per class (`networks.wrap.check_network`).
        dataset: Of the run.

    Raises:
        ConfigError: The run that left the teacher's file has recorded the classes in another order.
    """
    record = recorded(teacher)
    if record is not None:
        moved = _moved(record.dataset.class_names, dataset.class_names)
        if moved is not None:
            name, theirs, ours = moved
            raise ConfigError(
                f"the teacher {shown(teacher.path)} was trained with another order of classes "
                f"('{name}' is its class {theirs}, in {dataset.name} it is class {ours}); bring "
                "the classes into one order, or train a teacher on this data: kd train-teacher"
            )


# What a teacher that does badly may get wrong, for three of the warnings, and on the way to it.
_LOOK: dict[type[Inputs], tuple[str, str, str]] = {
    Images: (
        "pixels (teacher.input.scale, .offset)",
        "pixels (teacher.input.scale, .offset: 1/255 and 0 for a network that wants 0..1)",
        "pixels (teacher.input)",
    ),
    Tokens: ("vocabulary",) * 3,
}
_PATH: dict[type[Inputs], str] = {
    Images: "teacher.input (1 and 0 for a file that scales by itself), augment.evaluate and ",
    Tokens: "the vocabulary and ",
}


def warnings(
    teacher: Teacher, plan: DictConfig, dataset: Dataset, known: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """What speaks against this teacher, a line each with the numbers and what to do.

    Args:
        teacher: Passed `refuse`.
        plan: Of the run that it is to teach.
        dataset: Of the run.
        known: The teacher's quality by split, from `quality.of_splits` through the run's input
            path; `validation` is judged where there is one, else `test`.

    Returns:
        Lines for accuracy at chance; an NLL above that of even guesses; accuracy below the scratch
        student's, where that was trained; accuracy far below its own record; other class names.
    """
    part = "validation" if dataset.validation is not None else "test"
    split = dataset.validation or dataset.test
    labels = split.labels[split.rows]
    accuracy, nll = known[part]["accuracy"], known[part]["nll"]
    who = f"the teacher's {part} accuracy {accuracy:.4f}"
    found = []
    pixels, ranges, scaled = _LOOK[type(dataset.inputs)]
    share, limit = chance(labels)
    record = recorded(teacher)
    if accuracy <= limit:
        advice = (
            f"look at its {pixels} and at the order of its classes"
            if record is None or record.steps_done >= STEPS_TO_LEARN
            else f"it was trained for {record.steps_done} steps: train it longer"
        )
        found.append(
            f"{who} is at chance ({share:.4f}, the most frequent class, {limit:.4f} with sampling "
            f"error): it has nothing to teach; {advice}"
        )
    even = math.log(dataset.num_classes)
    if nll > even and not found:
        found.append(
            f"the teacher's {part} NLL {nll:.4f} is above that of even guesses ({even:.4f} = ln "
            f"{dataset.num_classes}) at accuracy {accuracy:.4f}: it is sure of its mistakes; look "
            f"at its {ranges}, or raise temperature"
        )
    try:
        scratch, folder = _scratch(plan, dataset, part)
    except RecordError as error:
        found.append(f"the teacher is not compared with the scratch student: {error}")
    else:
        if scratch is not None and accuracy < scratch:
            found.append(
                f"{who} is below the scratch student's {scratch:.4f} ({shown(folder)}): the "
                f"student does better alone; choose another teacher, or look at its {scaled}"
            )
    if record is not None:
        found += _against_record(record, dataset, part, known)
    return found


def recorded(teacher: Teacher) -> Record | None:
    """The record of the run that left the teacher's file; None for a file that no run left.

    The directory of the file must hold it, and the weights be those that it recorded.
    """
    try:
        record = Record.read(Path(teacher.origin["file"]).parent)
    except RecordError:  # a file of that name beside the user's own network
        return None
    same = record is not None and record.weights_sha256 == teacher.weights_sha256
    return record if same else None


def _against_record(
    record: Record, dataset: Dataset, part: str, known: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    found = []
    theirs, ours = record.dataset.class_names, list(dataset.class_names)
    if not _is_numbering(theirs) and not _is_numbering(ours):
        pairs = enumerate(zip(theirs, ours, strict=True))
        other = next(
            (f"{n} is '{a}', in {dataset.name} '{b}'" for n, (a, b) in pairs if a != b), ""
        )
        if other:
            found.append(
                f"the teacher was trained on other classes (its class {other}); unless that is "
                "another word for the same, train a teacher on this data: kd train-teacher"
            )
    # Its record on the judged split; on test where the training rows are others.
    for split in dict.fromkeys((part, "test")):
        before = _accuracy(record, split)
        if before is None or not _same_rows(record, dataset, split):
            continue
        now = known[split]["accuracy"]
        far = max(_FAR_POINTS, _FAR_ERRORS * _standard_error(before, len(getattr(dataset, split))))
        if now < before - far:
            found.append(
                f"the teacher's {split} accuracy {now:.4f} is {100 * (before - now):.1f} points "
                f"below the {before:.4f} of its own record: other {dataset.inputs.values} reach it "
                f"than in its training; look at {_PATH[type(dataset.inputs)]}teacher.precision"
            )
        break
    return found


def _standard_error(accuracy: float, count: int) -> float:
    """Of a share of `count`, one right and one wrong added, so that 0 and 1 have one too."""
    share = (accuracy * count + 1) / (count + 2)
    return math.sqrt(share * (1 - share) / count)


def _accuracy(record: Record, part: str) -> float | None:
    """Of the weights in `model.keras`, as the run recorded it."""
    if part == "test":
        return record.test.accuracy
    return record.validation.best.accuracy if record.validation else None


def _same_rows(record: Record, dataset: Dataset, part: str) -> bool:
    """Whether a run was evaluated on the images that this one has in a split.

    The test split does not depend on which rows are trained on, only on how many are kept of it.
    """
    theirs = record.dataset
    if theirs.fingerprint != dataset.fingerprint:
        return False
    if theirs.held_out_fingerprint == dataset.held_out_fingerprint:
        return True
    return part == "test" and theirs.test == len(dataset.test)


def _scratch(plan: DictConfig, dataset: Dataset, part: str) -> tuple[float | None, Path]:
    """The scratch student's accuracy, and its directory: same network, seeds and budget.

    It is looked for as a single run, and as a point of the same sweep (`kd compare`).
    """
    alone = scratch_plan(plan)
    places = [identity.run_dir(alone)]
    if alone.sweep is not None:
        places.append(identity.point_dir(alone))
    for folder in places:
        record = Record.read(folder)
        if record is not None and _same_rows(record, dataset, part):
            return _accuracy(record, part), folder
    return None, places[0]


def _moved(theirs: Sequence[str], ours: Sequence[str]) -> tuple[str, int, int] | None:
    """The first class of one name with two numbers: name, theirs, ours; None where all agree.

    Names that only count (0, 1, 2, ...) are those of a source that names none: they say nothing,
    unless the other side has the very same names in another order.
    """
    if set(theirs) != set(ours) and (_is_numbering(theirs) or _is_numbering(ours)):
        return None
    numbers = {name: number for number, name in enumerate(ours)}
    for number, name in enumerate(theirs):
        if numbers.get(name, number) != number:
            return name, number, numbers[name]
    return None


def _is_numbering(names: Sequence[str]) -> bool:
    return list(names) == [str(number) for number in range(len(names))]
