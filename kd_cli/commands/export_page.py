"""What `kd export RUN format=page` puts into a page besides the network, and what it leaves out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from kd_cli.commands.evaluate_network import teacher_of_run
from kd_cli.commands.evaluate_target import Target
from kd_cli.data.dataset import Dataset, Split
from kd_cli.errors import ConfigError, RunFailed
from kd_cli.export import check
from kd_cli.export.formats import CantConvertError
from kd_cli.runs.session import Session
from kd_cli.terminal import shown

if TYPE_CHECKING:
    from kd_cli.distillation.teacher import Teacher
    from kd_cli.export.operations import Program
    from kd_cli.export.page import Beside
    from kd_cli.networks.predict import Prepare

_EXAMPLES = 20  # test images to click on
_MEASURED = 1000  # training images that say how large drawings are
_COMPARED = 500  # test images on which the teacher is compared with Keras: it may be slow


@dataclass(frozen=True)
class Added:
    """What a page has besides the network.

    Attributes:
        beside: For the page.
        teacher: Who is in it; None where it has none.
        left_out: What the page has not, a line each.
    """

    beside: Beside
    teacher: Teacher | None
    left_out: list[str]


def beside(
    plan: DictConfig,
    target: Target,
    dataset: Dataset,
    prepare: Prepare | None,
    shape: tuple[int, ...],
    session: Session,
) -> Added:
    """Test images, the measures of a drawing, and the teacher of a distilled student.

    Raises:
        CantConvertError: A browser has no images of so many channels.
    """
    from kd_cli.export import calibration, drawing, page
    from kd_cli.networks.wrap import CantCopyError

    if len(shape) != 3 or shape[-1] not in (1, 3):
        raise CantConvertError(
            f"a page takes images of 1 or 3 channels, the network takes {list(shape)}"
        )
    rows = _spread(dataset.test)
    pixels = calibration.prepared(dataset.test.images, rows, prepare)
    measures = None
    if shape[-1] == 1:
        drawn = calibration.draw(dataset.train, _MEASURED, plan.seed, prepare)
        measures = drawing.measure(drawn.images)
    left_out, teacher, operations = [], None, None
    if plan.augment.evaluate:
        left_out.append(
            "in the page a picture that you drop is stretched to the network's size; it does not "
            "go through augment.evaluate as the test images do"
        )
    if target.record is not None and target.record.teacher is not None:
        try:
            teacher, operations = _teacher(plan, target, dataset, shape, session)
        except (CantConvertError, CantCopyError, ConfigError) as error:
            left_out.append(f"the page is without the teacher: {error}")
    made = page.Beside(
        dataset.name,
        dataset.class_names,
        target.name,
        target.role,
        np.clip(np.rint(pixels), 0, 255).astype(np.uint8),
        dataset.test.labels[rows],
        measures,
        (teacher.name, operations) if teacher else None,
    )
    return Added(made, teacher, left_out)


def _spread(split: Split) -> np.ndarray:
    """Rows of the first images of each class, in turn."""
    labels = split.labels[split.rows]
    turn = np.zeros(len(labels), np.int64)  # the how manieth of its class an image is
    for label in np.unique(labels):
        turn[labels == label] = np.arange((labels == label).sum())
    return split.rows[np.lexsort([labels, turn])[:_EXAMPLES]]


def _teacher(
    plan: DictConfig, target: Target, dataset: Dataset, shape: tuple[int, ...], session: Session
) -> tuple[Teacher, Program]:
    """The run's teacher and its operations.

    Raises:
        ConfigError: It is not there any more.
        CantConvertError: It is too large, or has an operation that a page has not.
    """
    from kd_cli.export import operations, page
    from kd_cli.networks.wrap import in_float32

    teacher, _ = teacher_of_run(plan, target.record, dataset, session)
    for one in teacher.members or (teacher,):
        if Path(one.origin["file"]).suffix != ".keras":
            raise CantConvertError(f"{shown(one.path)} is no network of Keras")
    # Before it is converted, which takes long for a large one.
    least = teacher.model.count_params() * (2 if plan.precision == "float16" else 4)
    if least <= page.MOST_OF_TEACHER:
        found = operations.program(in_float32(teacher.model), shape)
        least = page.stored_bytes(found, plan.precision)
    if least > page.MOST_OF_TEACHER:
        raise CantConvertError(
            f"its weights take {least:,} bytes, and a page has room for {page.MOST_OF_TEACHER:,}"
        )
    return teacher, found


def check_teacher(
    plan: DictConfig, added: Added, made: Path, dataset: Dataset, prepare: Prepare | None
) -> dict[str, Any] | None:
    """The teacher in a page against Keras, for the record; None where there is none.

    Raises:
        RunFailed: It was converted wrongly.
    """
    if added.teacher is None:
        return None
    from kd_cli.export import calibration, page
    from kd_cli.networks.predict import predict_rows

    test = dataset.test
    part = Split(test.images, test.labels, test.rows[:_COMPARED])
    reference = predict_rows(added.teacher.predict, part, prepare)
    images = calibration.prepared(part.images, part.rows, prepare).astype(np.float32)
    found = check.compare(page.opened(made, 1)(images), reference, part.labels[part.rows])
    why = check.failure(plan.precision, found)
    if why:
        raise RunFailed(f"{plan.what}: the teacher in the page is not what Keras computes: {why}")
    return {
        "what": shown(added.teacher.path),
        "network": added.teacher.name,
        "weights_sha256": added.teacher.weights_sha256,
        "bytes": page.stored_bytes(added.beside.teacher[1], plan.precision),
        **{key: found[key] for key in ("images", "agreement", "largest_difference")},
    }
