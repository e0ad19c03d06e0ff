"""Where a step's batch comes from: gathered from tensors in memory, or streamed from the disk.

Both give the same batches for the same order of examples.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from kd_cli.data.dataset import Split

# Images [B, H, W, C] as stored, labels [B], rows of the pool [B], the teacher's cached logits
# [B, K] or None.
Batch = tuple[tf.Tensor, tf.Tensor, tf.Tensor, "tf.Tensor | None"]
# The teacher's logits [n, K] in the split's order, of one view or of several.
Logits = Sequence[np.ndarray]


class InMemory:
    """The pool as tensors, uint8 where it is uint8 on disk; a batch is a gather.

    Args:
        split: Rows of a pool of images.
        logits: The teacher's, one array per view; empty for none.
        batch_size: Examples per step.
    """

    def __init__(self, split: Split, logits: Logits, batch_size: int) -> None:
        self.batch_size = batch_size
        self.images = tf.constant(split.images)
        self.labels = tf.constant(split.labels, dtype=tf.int64)
        self.order = tf.Variable(tf.zeros([len(split)], tf.int64), trainable=False)
        self.position = tf.constant(_position(split)) if logits else None
        self.logits = tf.Variable(logits[0], trainable=False) if logits else None
        self.views = [tf.constant(view) for view in logits] if len(logits) > 1 else []
        _forget_pages(split.images)

    def start(self, order: tf.Tensor, first: int, view: int) -> tuple[()]:
        """An epoch begins.

        Args:
            order: Rows of the pool.
            first: Step from which `batch` will be called.
            view: Number of the logits.
        """
        self.order.assign(order)
        if self.views:
            self.logits.assign(self.views[view])
        return ()

    def batch(self, step: tf.Tensor) -> Batch:
        rows = self.order[step * self.batch_size : (step + 1) * self.batch_size]
        logits = None
        if self.logits is not None:
            logits = tf.gather(self.logits, tf.gather(self.position, rows))
            logits = tf.cast(logits, tf.float32)
        return tf.gather(self.images, rows), tf.gather(self.labels, rows), rows, logits


class Streamed:
    """The pool stays on disk, memory-mapped; tf.data reads the next batches beside the training.

    The arguments are those of `InMemory`.
    """

    def __init__(self, split: Split, logits: Logits, batch_size: int) -> None:
        self.batch_size = batch_size
        self.split = split
        self.logits = logits
        self.position = _position(split)
        self.signature = [
            tf.TensorSpec([None, *split.images.shape[1:]], tf.as_dtype(split.images.dtype)),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([None], tf.int64),
        ]
        if logits:
            self.signature.append(tf.TensorSpec([None, logits[0].shape[1]], logits[0].dtype))
        self.order = np.empty(0, dtype=np.int64)
        self.view = 0

    def start(self, order: tf.Tensor, first: int, view: int) -> tuple[Any]:
        """As `InMemory.start`; returns the iterator that `batch` wants."""
        self.order = order.numpy()
        self.view = view
        steps = -(-len(self.order) // self.batch_size)
        numbers = tf.data.Dataset.range(first, steps)
        batches = numbers.map(self._load, num_parallel_calls=2, deterministic=True)
        return (iter(batches.prefetch(4)),)

    # TensorFlow keeps every function that a map has called until the session is cleared: it must
    # hold nothing of an epoch.
    def _load(self, step: tf.Tensor) -> tuple[tf.Tensor, ...]:
        dtypes = [spec.dtype for spec in self.signature]
        tensors = tf.numpy_function(self._read, [step], dtypes, stateful=False)
        for tensor, spec in zip(tensors, self.signature, strict=True):
            tensor.set_shape(spec.shape)
        return tuple(tensors)

    def _read(self, step: np.ndarray) -> list[np.ndarray]:
        chosen = self.order[step * self.batch_size : (step + 1) * self.batch_size]
        found = [self.split.images[chosen], self.split.labels[chosen].astype(np.int64), chosen]
        if self.logits:
            found.append(self.logits[self.view][self.position[chosen]])
        return found

    def batch(self, step: tf.Tensor, iterator: Any) -> Batch:
        images, labels, rows, *logits = iterator.get_next()
        cached = tf.cast(logits[0], tf.float32) if logits else None
        return images, labels, rows, cached


def source(split: Split, logits: Logits, batch_size: int, budget: float) -> InMemory | Streamed:
    """`InMemory` when images and logits take at most `budget` bytes, else `Streamed`."""
    needed = split.images.nbytes + sum(view.nbytes for view in logits)
    kind = InMemory if needed <= budget else Streamed
    return kind(split, logits, batch_size)


def _position(split: Split) -> np.ndarray:
    """[N] where each row of the pool stands in the split; -1 for the rows of other splits."""
    position = np.full(len(split.labels), -1, dtype=np.int64)
    position[split.rows] = np.arange(len(split))
    return position


def _forget_pages(array: np.ndarray) -> None:
    """Lets the system take back the pages of a memory map that has been copied to a tensor."""
    mapped = getattr(array, "_mmap", None)
    if mapped is not None:
        mapped.madvise(mmap.MADV_DONTNEED)
