"""Networks in inference mode: logits of batches and of the rows of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kd_cli.data.dataset import Split
from kd_cli.networks.inputs import as_given, spec_of

# images -> what a teacher that is asked at every step says: `logits` [B, K], and what losses want
# of its layers.
LiveTeacher = Callable[[tf.Tensor], dict[str, Any]]
# Stored images [B, H, W, C] and their rows in the pool -> the images that a network gets.
Prepare = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
_EVALUATION_BYTES = 32 * 2**20  # of float32 pixels at once, and at most 500 images


def predictor(model: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """A traced function from raw pixels or token ids to float32 logits, in inference mode."""

    @tf.function(input_signature=[spec_of(model, None)], autograph=False)
    def predict(images: tf.Tensor) -> tf.Tensor:
        return tf.cast(model(images, training=False), tf.float32)

    return predict


def predict_batches(
    predict: Callable[[tf.Tensor], tf.Tensor],
    split: Split,
    prepare: Prepare | None = None,
    first: int = 0,
) -> Iterator[np.ndarray]:
    """Logits of a split's rows from number `first` on, batch by batch: [b, K] each.

    Args:
        predict: From `predictor`.
        split: Which rows of which images.
        prepare: What becomes of the stored images before the network gets them.
        first: 0, or where an earlier pass ended after a batch.
    """
    size = max(1, min(500, _EVALUATION_BYTES // (4 * int(np.prod(split.images.shape[1:])))))
    for start in range(first, len(split), size):
        rows = split.rows[start : start + size]
        images = tf.constant(split.images[rows])
        if prepare is not None:
            images = prepare(images, tf.constant(rows, tf.int64))
        yield predict(as_given(images)).numpy()


def predict_rows(
    predict: Callable[[tf.Tensor], tf.Tensor], split: Split, prepare: Prepare | None = None
) -> np.ndarray:
    """Logits [n, K] of the rows of a split, in their order."""
    return np.concatenate(list(predict_batches(predict, split, prepare)))
