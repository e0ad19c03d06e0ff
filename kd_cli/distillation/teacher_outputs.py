"""The teacher's logits for the images of a run: read from the cache, or computed at every step.

The cache serves wherever the teacher sees pixels that can be made again: the stored images, those
of evaluation, and the first K views of an augmentation of single images. Mixed images and the
teacher's own crops are new in every step, so they take a live teacher.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from omegaconf import DictConfig, OmegaConf

from kd_cli.data.dataset import Dataset, Split
from kd_cli.data.views import Views
from kd_cli.device import set_up
from kd_cli.distillation.logits_cache import Request, entry, fault, obtain
from kd_cli.distillation.teacher import Teacher, load
from kd_cli.errors import ConfigError
from kd_cli.networks.predict import LiveTeacher, Prepare, predict_batches, predict_rows
from kd_cli.runs.session import Session
from kd_cli.terminal import CountProgress, shown


@dataclass(frozen=True)
class Outputs:
    """What a training gets from its teacher.

    Attributes:
        key: All that decides the values; equal keys give equal training steps.
        how: In words: `cached as float32`, or `live` and why.
        logits: [n, K] of the training rows for each view, memory-mapped; empty for a live teacher.
        live: images -> logits; None for a cached teacher.
        repeats: How many views of an image there are; None for a new one in every epoch.
        seconds: Spent on computing or reading them now.
    """

    key: str
    how: str
    logits: list[np.ndarray]
    live: LiveTeacher | None
    repeats: int | None
    seconds: float


def outputs(
    teacher: Teacher,
    plan: DictConfig,
    dataset: Dataset,
    views: Views | None,
    epochs: int,
    session: Session,
) -> Outputs:
    """The teacher's logits: read from the cache if the images repeat, else computed at every step.

    Args:
        teacher: Whom to ask.
        plan: Its `view` and `cache` choose.
        dataset: Its training split is asked about.
        views: The run's augmentation, or None.
        epochs: No more views than these are used.
        session: As `logits`.
    """
    started = time.monotonic()
    key = teacher.key
    why = why_live(plan, views)
    if why:

        def live(images: Any) -> Any:
            return keras.ops.cast(teacher.model(images, training=False), "float32")

        how = f"live ({why})"
        return Outputs(f"{key} {how}", how, [], live, None, time.monotonic() - started)
    numbers = _stored_views(plan, views, epochs)
    tables = [logits(teacher, plan, dataset, "train", views, session, view) for view in numbers]
    how, repeats = _how(plan, numbers)
    if repeats:
        key += f" of seed {views.seed}"
    return Outputs(f"{key} {how}", how, tables, None, repeats, time.monotonic() - started)


def _stored_views(plan: DictConfig, views: Views | None, epochs: int) -> list[int | None]:
    """The views whose logits are kept; None is the image as in evaluation."""
    if views is None or plan.view == "fixed_teacher":
        return [None]
    return list(range(min(plan.cache.views or 1, epochs)))


def _how(plan: DictConfig, numbers: list[int | None]) -> tuple[str, int | None]:
    """In words, and how many views of an image there are."""
    how = f"cached as {plan.cache.logits}"
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
    plan: DictConfig,
    dataset: Dataset,
    views: Views | None,
    epochs: int,
    session: Session,
) -> Planned:
    """What `outputs` will give, with the same arguments; no teacher is one to be trained."""
    blank = np.linspace(-1, 1, dataset.num_classes, dtype=np.float32)  # zeros may divide by zero
    why = why_live(plan, views)
    if why:
        how = f"live ({why})"

        def live(images: Any) -> Any:
            return tf.repeat(blank[None], tf.shape(images)[0], axis=0)

        return Planned(Outputs(f"planned {how}", how, [], live, None, 0.0), 0, 0)
    numbers = _stored_views(plan, views, epochs)
    how, repeats = _how(plan, numbers)
    missing = len(numbers)
    if teacher is not None:
        folders = [
            entry(Path(plan.cache_dir), _request(teacher, plan, dataset, "train", view))
            for view in numbers
        ]
        missing = sum(fault(folder, session.checked) is not None for folder in folders)
        if not missing:
            found = outputs(teacher, plan, dataset, views, epochs, session)
            return Planned(found, len(numbers), 0)
    table = np.broadcast_to(blank.astype(plan.cache.logits), (len(dataset.train), len(blank)))
    made = Outputs(f"planned {how}", how, [table] * len(numbers), None, repeats, 0.0)
    return Planned(made, len(numbers), missing)


def on_training(
    teacher: Teacher, tables: list[np.ndarray], dataset: Dataset, views: Views | None
) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, K] and labels [n] (-1: none) of training images, for `quality.certainty`.

    Of stored logits (`tables`) these are the first view's, of at most 10,000 rows; a live teacher
    is asked about 256 rows as in evaluation, because a large one is slow.
    """
    places = _spread(dataset.train, 10_000 if tables else 256)
    labels = dataset.train.labels[dataset.train.rows[places]]
    if tables:
        return np.asarray(tables[0][places], np.float32), labels
    return _asked(teacher, dataset.train, places, views)[1], labels


def in_evaluation(
    teacher: Teacher,
    plan: DictConfig,
    tables: list[np.ndarray],
    dataset: Dataset,
    views: Views | None,
) -> tuple[Split, np.ndarray]:
    """Training images (at most 2,000), and the teacher's logits [n, K] of them as in evaluation.

    Where those are not stored the teacher is asked: less than it says in an epoch or in a view.
    """
    split = dataset.train
    places = _spread(split, 2000)
    if tables and (views is None or plan.view == "fixed_teacher"):
        part = Split(split.images, split.labels, split.rows[places])
        return part, np.asarray(tables[0][places], np.float32)
    return _asked(teacher, split, places, views)


def _spread(split: Split, most: int) -> np.ndarray:
    """Places in a split, evenly: a folder's images come class by class."""
    return np.unique(np.linspace(0, len(split) - 1, most).astype(np.int64))


def _asked(
    teacher: Teacher, split: Split, places: np.ndarray, views: Views | None
) -> tuple[Split, np.ndarray]:
    part = Split(split.images, split.labels, split.rows[places])
    return part, predict_rows(teacher.predict, part, _prepare(views, None))


def why_live(plan: DictConfig, views: Views | None) -> str:
    """Why the teacher must be asked at every step; empty when the cache serves.

    Raises:
        ConfigError: `cache.views` is set where no cache of views can serve.
    """
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


def logits(
    teacher: Teacher,
    plan: DictConfig,
    dataset: Dataset,
    part: str,
    views: Views | None,
    session: Session,
    view: int | None = None,
) -> np.ndarray:
    """The teacher's logits [n, K] of a split's rows, from the cache on disk where there is one.

    Args:
        teacher: Whom to ask.
        plan: Names the cache, and whether and how logits are stored in it.
        dataset: Where the rows are.
        part: `train`, `validation` or `test`.
        views: The run's augmentation; its evaluation decides what the teacher sees.
        session: Remembers what was checked, and the logits that no cache keeps.
        view: Number of a view of the training images, to see that instead.

    Raises:
        ConfigError: One is not finite, or more than the cache's type can hold.
    """
    split: Split = getattr(dataset, part)
    what = f"teacher on {part}" + ("" if view is None else f", view {view + 1}")

    def compute(first: int = 0) -> Iterator[np.ndarray]:
        prepare = _prepare(views, view)
        with CountProgress(what, len(split)) as progress:
            done = first
            for batch in predict_batches(teacher.predict, split, prepare, first):
                yield batch
                done += len(batch)
                progress.done(done)

    if plan.cache.logits == "none":
        _, pixels = _augment(plan, view)
        key = f"{teacher.key} {_data(dataset, part)} {_rows(dataset, part)} {pixels}"
        if key not in session.logits:
            found = np.concatenate(list(compute()))
            if not np.isfinite(found).all():
                raise ConfigError(
                    f"the teacher {shown(teacher.path)} can't teach: the logits of {what} are not "
                    "finite"
                )
            session.logits[key] = found
        return session.logits[key]
    wanted = _request(teacher, plan, dataset, part, view)
    name = teacher.name + what.removeprefix("teacher")
    try:
        return obtain(Path(plan.cache_dir), wanted, compute, name, session.checked)
    except FloatingPointError as error:
        raise ConfigError(f"the teacher {shown(teacher.path)} can't teach: {error}") from error


def _request(
    teacher: Teacher, plan: DictConfig, dataset: Dataset, part: str, view: int | None
) -> Request:
    """Names the logits of a split's rows in the cache; the arguments are those of `logits`."""
    augment, pixels = _augment(plan, view)
    return Request(
        key={
            "weights": teacher.weights_sha256,
            "network": teacher.network_sha256,
            **_data(dataset, part),
            "part": _rows(dataset, part),
            # Another device or version rounds differently.
            "device": set_up(plan.device),
            "tensorflow": tf.__version__,
            **({"pixels": pixels} if pixels else {}),
        },
        rows=len(getattr(dataset, part)),
        classes=dataset.num_classes,
        dtype=plan.cache.logits,
        origin={
            "teacher": {**teacher.origin, "sha256": teacher.file_sha256},
            "dataset": OmegaConf.to_container(plan.dataset),
            "part": part,
            "augment": augment,
            "view": view,
        },
    )


def _rows(dataset: Dataset, part: str) -> str:
    split: Split = getattr(dataset, part)
    whole = part != "train" or split.labelled in (0, len(split))
    return part if whole else "train, unlabelled too"


def _augment(plan: DictConfig, view: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The augmentation with its seed, and what of it decides the pixels that the teacher sees."""
    augment = {**OmegaConf.to_container(plan.augment), "seed": plan.get("augment_seed", 0)}
    return augment, _pixels(augment, view)


def _data(dataset: Dataset, part: str) -> dict[str, str]:
    """Hashes of what decides the images of a split; those that nobody labelled may be some."""
    found = {"data": dataset.fingerprint, "split": dataset.split_fingerprint}
    if part in ("train", "unlabelled") and dataset.unlabelled_fingerprint:
        rows = getattr(dataset, part).sha256  # not all, with a limit
        found["images of unlabelled_path"] = f"{dataset.unlabelled_fingerprint} {rows}"
    return found


def held_out(
    teacher: Teacher, plan: DictConfig, dataset: Dataset, views: Views | None, session: Session
) -> dict[str, np.ndarray]:
    """What `predictions.npz` holds of the teacher: labels and its logits on test and validation.

    They are asked through the same input path as the distillation's.
    """
    arrays = {}
    for prefix, split in dataset.held_out:
        part = "validation" if prefix else "test"
        arrays[f"{prefix}labels"] = split.labels[split.rows]
        found = logits(teacher, plan, dataset, part, views, session)
        arrays[f"{prefix}teacher_logits"] = np.asarray(found)
    return arrays


def _pixels(plain: dict[str, Any], view: int | None) -> dict[str, Any]:
    """What decides the pixels that the teacher sees; empty for the stored ones."""
    if view is not None:
        return {**{key: plain[key] for key in ("train", "size", "seed")}, "view": view}
    return {key: plain[key] for key in ("evaluate", "size")} if plain["evaluate"] else {}


def _prepare(views: Views | None, view: int | None) -> Prepare | None:
    if views is None:
        return None
    if view is None:
        return views.evaluate
    views.start(view)
    return views.pixels


def of_origin(
    origin: dict[str, Any], dataset: Dataset, session: Session
) -> tuple[Teacher, Prepare | None, dict[str, str]]:
    """Loads the teacher that a cache's manifest names, its preprocessing and its hashes now."""
    teacher = load(origin["teacher"], Path(origin["teacher"]["file"]), "", "", session)
    augment = OmegaConf.create(origin["augment"])
    views = None
    if augment.train or augment.evaluate:
        views = Views(
            augment, "consistent", dataset, set_up("auto") == "cpu", augment.get("seed", 0)
        )
    return (
        teacher,
        _prepare(views, origin["view"]),
        {
            "weights": teacher.weights_sha256,
            "network": teacher.network_sha256,
            **_data(dataset, origin["part"]),
        },
    )
