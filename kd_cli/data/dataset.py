"""One `Dataset` from any source: splits, shapes and classes that were checked, a fingerprint."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import DictConfig

from kd_cli.config.inputs import Inputs, Tokens, inputs_of
from kd_cli.config.instantiate import build
from kd_cli.data.arrays import Arrays, fingerprint, unlabelled_fingerprint
from kd_cli.data.labels import without_images
from kd_cli.data.pixels import formed, to_bytes
from kd_cli.data.splits import labelled, limited, stratified
from kd_cli.data.token_ids import checked
from kd_cli.device import wanting
from kd_cli.errors import ConfigError

log = logging.getLogger("kd")


@dataclass(frozen=True)
class Split:
    """Rows of a pool of images. Training and validation rows may point into one pool.

    Attributes:
        images: The pool: images [N, H, W, C], pixels 0..255, uint8 or float32; or token ids [N, L]
            of texts, int32. Possibly memory-mapped.
        labels: [N] class numbers of the pool; -1 where an image has no label.
        rows: [n] the rows of the pool that belong to this split.
    """

    images: np.ndarray
    labels: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labelled(self) -> int:
        """How many of its images have a label."""
        return int((self.labels[self.rows] >= 0).sum())

    @property
    def sha256(self) -> str:
        """Of its rows."""
        return _hash([self.rows])

    def with_labels(self) -> Split:
        """Its images that have a label."""
        return Split(self.images, self.labels, self.rows[self.labels[self.rows] >= 0])


@dataclass(frozen=True)
class Dataset:
    """Images or texts, and labels, with their three splits.

    Attributes:
        name: For messages.
        inputs: What the inputs are, and their shape.
        class_names: One per label; the class numbers where the source names none.
        train: Images to be trained on, with all labels, some or none.
        validation, test: The other splits; validation is None with validation_fraction=0, and where
            nothing can be held out because the training images have no labels.
        unlabelled: Training images whose labels labelled_fraction hides, then those of the source's
            unlabelled_path; None without either. Here the hidden labels are in the arrays all the
            same, and never to be trained on. `train` has the latter, and may have the former,
            without labels.
        pseudo_labelled: Training rows, the last ones, whose labels are a network's.
        fingerprint: SHA-256 of the source's images, labels and class names, but unlabelled_path's.
        split_fingerprint: SHA-256 of the rows of all splits, and of those whose labels are hidden.
        held_out_fingerprint: SHA-256 of the rows of validation and test.
        unlabelled_fingerprint: SHA-256 of the images of unlabelled_path; empty where none is used.
        tokenizer: How texts became token ids, where the source says so.
    """

    name: str
    inputs: Inputs
    class_names: tuple[str, ...]
    train: Split
    validation: Split | None
    test: Split
    fingerprint: str
    split_fingerprint: str
    unlabelled: Split | None = None
    pseudo_labelled: int = 0
    held_out_fingerprint: str = ""
    unlabelled_fingerprint: str = ""
    tokenizer: dict[str, Any] | None = None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C), of images."""
        return self.inputs.shape

    @property
    def held_out(self) -> list[tuple[str, Split]]:
        """Validation and test, each after the prefix of its keys in predictions.npz."""
        validation = [] if self.validation is None else [("validation_", self.validation)]
        return [*validation, ("", self.test)]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def per_class(self, split: Split) -> list[int] | None:
        """How many images of a split each class has; None where they have no labels."""
        if not split.labelled:
            return None
        labels = split.labels[split.rows]
        return np.bincount(labels[labels >= 0], minlength=self.num_classes).tolist()

    @property
    def labelled(self) -> int:
        """How many training rows have a label of the source."""
        return max(self.train.labelled - self.pseudo_labelled, 0)


def load_dataset(cfg: DictConfig, device: str = "auto") -> Dataset:
    """Reads the dataset that a checked `dataset` node describes.

    Args:
        cfg: The node.
        device: Of this process, where images are decoded by TensorFlow.

    Raises:
        ConfigError: When the data can't be read, or are not what the node declares.
    """
    with wanting(device):
        arrays = build(cfg.source, "dataset.source")
    inputs = inputs_of(cfg)
    arrays = _check(arrays, cfg, inputs)
    names = tuple(arrays.class_names) or tuple(str(n) for n in range(cfg.num_classes))
    pool, test = arrays.train, arrays.test
    if arrays.unlabelled and cfg.get("unlabelled_path") is None:
        log.info(
            "%s: a network that learns from labels alone is trained without the %s %s that have "
            "none",
            *(cfg.name, f"{arrays.unlabelled:,}", inputs.many),
        )
        pool = tuple(array[: arrays.known] for array in pool)

    def rows_of(labels: np.ndarray) -> np.ndarray:
        if cfg.limit is None or cfg.limit >= len(labels):
            return np.arange(len(labels))
        return limited(labels, cfg.limit, cfg.split_seed)

    own = pool[1][: arrays.known]  # without the images that lie beside the labelled data
    rows, test_rows = rows_of(own), rows_of(test[1])
    beside = len(own) + rows_of(pool[1][len(own) :])
    validation = None
    if arrays.validation is not None:
        validation = Split(*arrays.validation, rows_of(arrays.validation[1]))
    elif cfg.validation_fraction > 0 and own.min() >= 0:
        kept_back = rows[stratified(pool[1][rows], cfg.validation_fraction, cfg.split_seed)]
        rows = np.setdiff1d(rows, kept_back)
        validation = Split(*pool, kept_back)
    hidden = rows[:0]
    fraction = cfg.labelled_fraction
    if fraction < 1:
        if own.min() < 0:
            raise ConfigError(
                f"dataset.labelled_fraction={fraction}: the training {inputs.many} have no labels; "
                "leave it out"
            )
        kept = rows[labelled(pool[1][rows], fraction, cfg.labelled_seed)]
        rows, hidden = kept, np.setdiff1d(rows, kept)
    if cfg.unlabelled == "use" and not len(hidden) and pool[1].min() >= 0:
        raise ConfigError(
            f"dataset.unlabelled=use: all training {inputs.many} have labels; leave it out, or "
            "type dataset.labelled_fraction=0.1 to use the labels of a tenth alone"
        )
    train = Split(*pool, np.concatenate([rows, beside]))
    if len(hidden) and cfg.unlabelled == "use":
        known = np.full_like(pool[1], -1)
        known[rows] = pool[1][rows]
        train = Split(pool[0], known, np.concatenate([np.union1d(rows, hidden), beside]))
    if not len(rows) or (validation is not None and not len(validation)):
        raise ConfigError(
            f"dataset.limit={cfg.limit} with dataset.validation_fraction="
            f"{cfg.validation_fraction} leaves {len(rows)} training and "
            f"{len(validation) if validation else 0} validation {inputs.many}; raise one of them"
        )
    held_out = [validation.rows if validation else test_rows[:0], test_rows]
    parts = [rows, *held_out, hidden] if len(hidden) else [rows, *held_out]
    unlabelled = np.concatenate([hidden, beside])
    return Dataset(
        cfg.name,
        inputs,
        names,
        train,
        validation,
        Split(*test, test_rows),
        arrays.fingerprint or fingerprint(arrays),
        _hash(parts),
        Split(*pool, unlabelled) if len(unlabelled) else None,
        held_out_fingerprint=_hash(held_out),
        unlabelled_fingerprint=(
            (arrays.unlabelled_fingerprint or unlabelled_fingerprint(arrays)) if len(beside) else ""
        ),
        tokenizer=arrays.tokenizer,
    )


def _hash(parts: list[np.ndarray]) -> str:
    sha = hashlib.sha256()
    for rows in parts:
        sha.update(np.ascontiguousarray(rows, dtype=np.int64).data)
        sha.update(b"|")
    return sha.hexdigest()


def _check(arrays: Any, cfg: DictConfig, inputs: Inputs) -> Arrays:
    """Compares the data with what the configuration declares; brings pixels to 0..255."""
    target = cfg.source["_target_"]
    if not isinstance(arrays, Arrays):
        raise ConfigError(
            f"dataset.source: {target} returned {type(arrays).__name__}; "
            "expected kd_cli.data.Arrays"
        )
    if arrays.notice:
        log.warning("%s", arrays.notice)
    are_texts = isinstance(inputs, Tokens)
    arrays = checked(arrays, inputs, cfg.name) if are_texts else formed(arrays, cfg.name)
    for part in ("train", "validation", "test"):
        split = getattr(arrays, part)
        if split is None:
            continue
        images, labels = split
        bare = labels[arrays.known :] if part == "train" else labels[:0]
        if (bare != -1).any():
            raise ConfigError(
                f"{cfg.name}: the source says that the last {len(bare)} training {inputs.many} "
                "have no label; theirs must be -1"
            )
        labels = labels[: len(labels) - len(bare)]
        if len(labels) == 0:
            raise ConfigError(f"{cfg.name}: the {part} split is empty")
        if tuple(images.shape[1:]) != inputs.shape:
            raise ConfigError(
                f"{cfg.name}: the {part} images have shape {list(images.shape[1:])}, but "
                f"dataset.image_shape={list(inputs.shape)}"
            )
        unlabelled = part == "train" and (labels == -1).all()
        if not unlabelled and (labels.min() < 0 or labels.max() >= cfg.num_classes):
            raise ConfigError(
                f"{cfg.name}: the {part} labels run from {labels.min()} to {labels.max()}, "
                f"but dataset.num_classes={cfg.num_classes} (labels 0 to "
                f"{cfg.num_classes - 1})"
            )
    if arrays.class_names and len(arrays.class_names) != cfg.num_classes:
        raise ConfigError(
            f"{cfg.name}: the data have {len(arrays.class_names)} classes, but "
            f"dataset.num_classes={cfg.num_classes}"
        )
    labels = arrays.train[1]
    absent = without_images(labels, cfg.num_classes, arrays.class_names)
    if absent and labels.max() >= 0:
        what = "of the classes" if arrays.class_names else "with the class numbers"
        log.warning("%s: there is no training %s %s %s", cfg.name, inputs.one, what, absent)
    if are_texts:
        return arrays
    arrays, doubt = to_bytes(arrays, cfg.name)
    if doubt:
        log.warning("%s", doubt)
    return arrays
