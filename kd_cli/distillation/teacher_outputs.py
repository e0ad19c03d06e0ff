"""What a training gets from its teacher: tables of its outputs, or a teacher asked at every step.

Mixed images and the teacher's own crops are new in every step, so they take a live teacher.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from omegaconf import DictConfig

from kd_cli.data.dataset import Dataset
from kd_cli.data.views import Views
from kd_cli.distillation.logits_cache import entry, fault
from kd_cli.distillation.teacher import Teacher
from kd_cli.distillation.teacher_features import Features, Wanted, unpacked
from kd_cli.distillation.teacher_tables import logits, request
from kd_cli.errors import ConfigError
from kd_cli.networks.predict import LiveTeacher
from kd_cli.runs.session import Session


@dataclass(frozen=True)
class Outputs:
    """What a training gets from its teacher.

    Attributes:
        key: All that decides the values; equal keys give equal training steps.
        how: In words: `cached as float32`, or `live` and why.
        stored: Rows [n, width] of the training split by name, for each view; memory-mapped. These
            are `logits` [n, K], and what losses want of layers; empty for a live teacher.
        features: What the losses get of its layers; None where there is no network.
        live: images -> the same as a mapping; None for a cached teacher.
        repeats: How many views of an image there are; None for a new one in every epoch.
        seconds: Spent on computing or reading them now.
    """

    key: str
    how: str
    stored: dict[str, list[np.ndarray]]
    features: Features | None
    live: LiveTeacher | None
    repeats: int | None
    seconds: float

    @property
    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Of what losses want of layers, by name and tap."""
        return self.features.shapes if self.features else {}

    @property
    def logits(self) -> list[np.ndarray]:
        """[n, K] for each view; empty for a live teacher."""
        return self.stored.get("logits", [])


def outputs(
    teacher: Teacher,
    features: Features,
    plan: DictConfig,
    dataset: Dataset,
    views: Views | None,
    epochs: int,
    session: Session,
) -> Outputs:
    """The teacher's outputs: read from the cache if the images repeat, else computed at every step.

    Args:
        teacher: Whom to ask.
        features: Of that teacher, with what the losses want of its layers.
        plan: Its `view` and `cache` choose.
        dataset: Its training split is asked about.
        views: The run's augmentation, or None.
        epochs: No more views than these are used.
        session: As `logits`.
    """
    started, wanted = time.monotonic(), features.wanted
    key = " ".join([teacher.key, *(one.key for one in wanted)])
    numbers = _stored_views(plan, views, epochs)
    why = why_live(plan, views) or _too_large(features, plan, len(dataset.train), len(numbers))
    if why:
        how = f"live ({why})"
        took = time.monotonic() - started
        return Outputs(f"{key} {how}", how, {}, features, features, None, took)
    stored = {
        "logits": [logits(teacher, plan, dataset, "train", views, session, v) for v in numbers]
    }
    for one in wanted:
        stored[one.key] = [
            logits(teacher, plan, dataset, "train", views, session, view, (features, one))
            for view in numbers
        ]
    how, repeats = _how(plan, numbers, wanted)
    if repeats:
        key += f" of seed {views.seed}"
    took = time.monotonic() - started
    return Outputs(f"{key} {how}", how, stored, features, None, repeats, took)


def _too_large(features: Features, plan: DictConfig, rows: int, views: int) -> str:
    """Why what losses want of the teacher's layers is not stored; empty if it is."""
    if not features.wanted:
        return ""
    size = np.dtype(plan.cache.features).itemsize * rows * views
    gib = sum(features.width(one) for one in features.wanted) * size / 2**30
    if gib <= plan.cache.features_gib:
        return ""
    what = "; ".join(one.what for one in features.wanted)
    return f"{what}: {gib:.2g} GiB, more than cache.features_gib={plan.cache.features_gib:g}"


def _stored_views(plan: DictConfig, views: Views | None, epochs: int) -> list[int | None]:
    """The views whose logits are kept; None is the image as in evaluation."""
    if views is None or plan.view == "fixed_teacher" or plan.teacher.get("logits") is not None:
        return [None]
    return list(range(min(plan.cache.views or 1, epochs)))


def _how(
    plan: DictConfig, numbers: list[int | None], wanted: Sequence[Wanted]
) -> tuple[str, int | None]:
    """In words, and how many views of an image there are."""
    if plan.teacher.get("logits") is not None:
        return "read from the file", None
    how = f"cached as {plan.cache.logits}"
    if wanted:
        how += f", with {'; '.join(one.what for one in wanted)} as {plan.cache.features}"
    if numbers == [None]:
        return how, None
    return f"{how}, {len(numbers)} view{'s' if len(numbers) > 1 else ''} per image", len(numbers)


@dataclass(frozen=True)
class Planned:
    """What a run will get from its teacher, with nothing computed for it.

    Attributes:
        outputs: The stored logits where all are stored; else numbers in their place that say
            nothing, for an engine that takes as long as that of the run without the teacher.
        views: Versions of each training image whose logits the run stores; 0 for a live teacher.
        missing: Of these, how many the cache does not have yet.
    """

    outputs: Outputs
    views: int
    missing: int


def planned(
    teacher: Teacher | None,
    features: Features,
    plan: DictConfig,
    dataset: Dataset,
    views: Views | None,
    epochs: int,
    session: Session,
) -> Planned:
    """What `outputs` will give, with the same arguments; no teacher is one to be trained.

    Args:
        features: Of the teacher, or of the network that it will have.
    """
    wanted, shapes = features.wanted, features.shapes
    widths = {"logits": dataset.num_classes, **{w.key: features.width(w) for w in wanted}}
    # (Zeros may divide by zero.)
    blank = {key: np.linspace(-1, 1, n, dtype=np.float32) for key, n in widths.items()}
    numbers = _stored_views(plan, views, epochs)
    why = why_live(plan, views) or _too_large(features, plan, len(dataset.train), len(numbers))
    if why:
        how = f"live ({why})"

        def live(images: Any) -> Any:
            count = tf.shape(images)[0]
            rows = {key: tf.repeat(row[None], count, axis=0) for key, row in blank.items()}
            return unpacked(rows, shapes)

        return Planned(Outputs(f"planned {how}", how, {}, features, live, None, 0.0), 0, 0)
    how, repeats = _how(plan, numbers, wanted)
    missing = len(numbers)
    if teacher is not None and teacher.table is not None:
        missing = 0
    elif teacher is not None:
        root = Path(plan.cache_dir)
        asked = [None, *((features, one) for one in wanted)]
        lost = [
            any(
                fault(entry(root, request(teacher, plan, dataset, "train", view, one)),
                      session.checked)
                for one in asked
            )
            for view in numbers
        ]  # fmt: skip
        missing = sum(lost)
    if not missing:
        found = outputs(teacher, features, plan, dataset, views, epochs, session)
        return Planned(found, len(numbers), 0)
    kinds = {key: plan.cache.features for key in blank} | {"logits": plan.cache.logits}
    tables = {
        key: [np.broadcast_to(row.astype(kinds[key]), (len(dataset.train), len(row)))]
        * len(numbers)
        for key, row in blank.items()
    }
    made = Outputs(f"planned {how}", how, tables, features, None, repeats, 0.0)
    return Planned(made, len(numbers), missing)


def _refuse_new_images(plan: DictConfig, views: Views | None) -> None:
    """A file of logits has one row for each stored image."""
    if views is None or not (views.nodes or views.mixes):
        return
    given = f"teacher.logits={plan.teacher.logits}: the file knows the stored images alone, and "
    if views.mixes:
        raise ConfigError(f"{given}mixup makes new ones; choose another augmentation")
    if plan.view != "fixed_teacher":
        raise ConfigError(
            f"{given}with view={plan.view} the teacher would see augmented ones; type "
            "view=fixed_teacher, or augment=none"
        )


def why_live(plan: DictConfig, views: Views | None) -> str:
    """Why the teacher must be asked at every step; empty when the cache serves.

    Raises:
        ConfigError: `cache.views` is set where no cache of views can serve.
    """
    if plan.teacher.get("logits") is not None:
        _refuse_new_images(plan, views)
        return ""
    why = ""
    if views is not None and views.mixes:
        why = "mixup makes new images at every step"
    elif views is not None and plan.view == "independent":
        why = "view=independent: the teacher has crops of its own"
    if plan.cache.views is not None:
        if not why and (views is None or not views.nodes):
            why = "nothing is augmented, so each image has one version"
        if not why and plan.view == "fixed_teacher":
            why = "view=fixed_teacher: the teacher gets one version of each image"
        if not why and plan.cache.logits == "none":
            why = "cache.logits=none stores nothing"
        if why:
            raise ConfigError(
                f"cache.views={plan.cache.views} has no effect ({why}): leave it out, or where a "
                "recipe sets it, type cache.views=null"
            )
    elif not why and views is not None and views.nodes and plan.view == "consistent":
        why = "every epoch has new versions of the images; cache.views=K stores K of them"
    return why or ("cache.logits=none" if plan.cache.logits == "none" else "")
