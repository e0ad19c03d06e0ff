"""What a teacher says of the rows of a split, as tables: read from the cache, or asked now.

The cache serves wherever the teacher sees pixels that can be made again: the stored images, those
of evaluation, and the first K views of an augmentation of single images.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from omegaconf import DictConfig, OmegaConf

from kd_cli.data.dataset import Dataset, Split
from kd_cli.data.views import Views
from kd_cli.device import set_up
from kd_cli.distillation.logits_cache import Request, obtain
from kd_cli.distillation.teacher import Teacher, load
from kd_cli.distillation.teacher_features import Features, Wanted
from kd_cli.errors import ConfigError
from kd_cli.networks.predict import Prepare, predict_batches, predict_rows
from kd_cli.runs.session import Session
from kd_cli.terminal import CountProgress, shown


def logits(
    teacher: Teacher,
    plan: DictConfig,
    dataset: Dataset,
    part: str,
    views: Views | None,
    session: Session,
    view: int | None = None,
    of_layers: tuple[Features, Wanted] | None = None,
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
        of_layers: What losses want of its layers, in place of the logits: rows [n, width].

    Raises:
        ConfigError: One is not finite, or more than the cache's type can hold.
    """
    if teacher.table is not None:
        return teacher.table.rows(dataset, part)
    split: Split = getattr(dataset, part)
    what = f"teacher on {part}" + ("" if view is None else f", view {view + 1}")
    predict = teacher.predict
    if of_layers is not None:
        what += f" ({of_layers[1].what})"
        predict = of_layers[0].rows(of_layers[1])

    def compute(first: int = 0) -> Iterator[np.ndarray]:
        prepare = _prepare(views, view)
        with CountProgress(what, len(split)) as progress:
            done = first
            for batch in predict_batches(predict, split, prepare, first):
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
    wanted = request(teacher, plan, dataset, part, view, of_layers)
    name = teacher.name + what.removeprefix("teacher")
    try:
        return obtain(Path(plan.cache_dir), wanted, compute, name, session.checked)
    except FloatingPointError as error:
        raise ConfigError(f"the teacher {shown(teacher.path)} can't teach: {error}") from error


def request(
    teacher: Teacher,
    plan: DictConfig,
    dataset: Dataset,
    part: str,
    view: int | None,
    of_layers: tuple[Features, Wanted] | None = None,
) -> Request:
    """Names the logits of a split's rows in the cache; the arguments are those of `logits`."""
    augment, pixels = _augment(plan, view)
    features: dict[str, Any] = {}
    if of_layers is not None:
        features = {"features": of_layers[1].key}
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
            **features,
        },
        rows=len(getattr(dataset, part)),
        width=of_layers[0].width(of_layers[1]) if of_layers else dataset.num_classes,
        dtype=plan.cache.features if of_layers else plan.cache.logits,
        origin={
            "teacher": {**teacher.origin, "sha256": teacher.file_sha256},
            "dataset": OmegaConf.to_container(plan.dataset),
            "part": part,
            "augment": augment,
            "view": view,
            **({"layers": _layers(of_layers[1])} if of_layers else {}),
        },
    )


def _layers(one: Wanted) -> dict[str, Any]:
    """A wish as a manifest keeps it, for `_wanted`."""
    part = one.part and f"{one.part.__module__}:{one.part.__qualname__}"
    return {"taps": list(one.taps), "part": part}


def _wanted(layers: dict[str, Any]) -> Wanted:
    part = layers["part"]
    return Wanted(tuple(layers["taps"]), part and pkgutil.resolve_name(part))


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
    stored = views is None or plan.view == "fixed_teacher" or teacher.table is not None
    if tables and stored:
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


def of_origin(
    origin: dict[str, Any], dataset: Dataset, session: Session
) -> tuple[Teacher, Callable[[Any], Any], Prepare | None, dict[str, str]]:
    """What a cache's manifest names: teacher, its function, its preprocessing, its hashes now."""
    teacher = load(origin["teacher"], Path(origin["teacher"]["file"]), "", "", session)
    predict = teacher.predict
    if origin.get("layers"):
        one = _wanted(origin["layers"])
        predict = Features(teacher.model, [one]).rows(one)
    augment = OmegaConf.create(origin["augment"])
    views = None
    if augment.train or augment.evaluate:
        views = Views(
            augment, "consistent", dataset, set_up("auto") == "cpu", augment.get("seed", 0)
        )
    return (
        teacher,
        predict,
        _prepare(views, origin["view"]),
        {
            "weights": teacher.weights_sha256,
            "network": teacher.network_sha256,
            **_data(dataset, origin["part"]),
        },
    )
