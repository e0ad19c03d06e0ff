"""The images that set the ranges of int8 numbers: of the training split, never of another."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from kd_cli.data.dataset import Split
from kd_cli.networks.predict import Prepare

_STREAM = 2  # beside those of data.splits


@dataclass(frozen=True)
class Calibration:
    """What a file was calibrated on.

    Attributes:
        images: [n, H, W, C] uint8, as a device would feed them.
        rows: [n] their rows in the pool of training images.
        rows_sha256, pixels_sha256: Of `rows` (int64) and of `images`.
        changed_pixels: How many were set to 0 or 255, because no image had such a pixel. The range
            of the input then is 0..255, and a byte stands for itself.
    """

    images: np.ndarray
    rows: np.ndarray
    rows_sha256: str
    pixels_sha256: str
    changed_pixels: int


def draw(split: Split, count: int, seed: int, prepare: Prepare | None) -> Calibration:
    """The first rows of a random order of the training split, as bytes.

    Args:
        split: The training split.
        count: How many; of a smaller split all.
        seed: Of the order.
        prepare: What evaluation makes of stored images; what it gives is rounded to bytes.
    """
    order = np.random.default_rng([seed, _STREAM]).permutation(len(split))
    rows = np.sort(split.rows[order[:count]]).astype(np.int64)
    images = prepared(split.images, rows, prepare)
    images = np.clip(np.rint(images), 0, 255).astype(np.uint8)
    before = images.copy()
    if images.min() > 0:
        images.flat[images.argmin()] = 0
    if images.max() < 255:
        images.flat[images.argmax()] = 255
    changed = int((images != before).sum())
    return Calibration(images, rows, _sha(rows), _sha(images), changed)


def prepared(pool: np.ndarray, rows: np.ndarray, prepare: Prepare | None) -> np.ndarray:
    """Stored images as the network gets them, [n, H, W, C]."""
    if prepare is None:
        return np.asarray(pool[rows])
    import tensorflow as tf

    return np.asarray(prepare(tf.constant(pool[rows]), tf.constant(rows, tf.int64)))


def _sha(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
