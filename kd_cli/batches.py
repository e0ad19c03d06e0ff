"""Where a step's batch comes from: gathered from tensors in memory, or streamed from the disk.

Both give the same batches for the same order of examples.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import tensorflow as tf

from kd_cli.data import Split

# Images [B, H, W, C] float32, labels [B], the teacher's cached logits [B, K] or None.
Batch = tuple[tf.Tensor, tf.Tensor, "tf.Tensor | None"]


class InMemory:
    """The pool as tensors, uint8 where it is uint8 on disk; a batch is a gather.

    Args:
        split: Rows of a pool of images.
        logits: The teacher's, [n, K] in the split's order, or None.
        batch_size: Examples per step.
    """

    def __init__(self, split: Split, logits: np.ndarray | None, batch_size: int) -> None:
        self.batch_size = batch_size
        self.images = tf.constant(split.images)
        self.labels = tf.constant(split.labels, dtype=tf.int64)
        self.order = tf.Variable(tf.zeros([len(split)], tf.int64), trainable=False)
        self.position = tf.constant(_position(split)) if logits is not None else None
        self.logits = tf.constant(logits) if logits is not None else None
        _forget_pages(split.images)

    def start(self, order: tf.Tensor, first: int) -> tuple[()]:
        """An epoch begins: `order` are rows of the pool; the steps from `first` on will follow."""
        self.order.assign(order)
        return ()

    def batch(self, step: tf.Tensor) -> Batch:
        rows = self.order[step * self.batch_size : (step + 1) * self.batch_size]
        images = tf.cast(tf.gather(self.images, rows), tf.float32)
        logits = None
        if self.logits is not None:
            logits = tf.gather(self.logits, tf.gather(self.position, rows))
            logits = tf.cast(logits, tf.float32)
        return images, tf.gather(self.labels, rows), logits


class Streamed:
    """The pool stays on disk, memory-mapped; tf.data reads the next batches beside the training.

    The arguments are those of `InMemory`.
    """

    def __init__(self, split: Split, logits: np.ndarray | None, batch_size: int) -> None:
        self.batch_size = batch_size
        self.split = split
        self.logits = logits
        self.position = _position(split)
        self.signature = [
            tf.TensorSpec([None, *split.images.shape[1:]], tf.as_dtype(split.images.dtype)),
            tf.TensorSpec([None], tf.int64),
        ]
        if logits is not None:
            self.signature.append(tf.TensorSpec([None, logits.shape[1]], logits.dtype))
        self.order = np.empty(0, dtype=np.int64)

    def start(self, order: tf.Tensor, first: int) -> tuple[Any]:
        """As `InMemory.start`; returns the iterator that `batch` wants."""
        self.order = order.numpy()
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
        found = [self.split.images[chosen], self.split.labels[chosen].astype(np.int64)]
        if self.logits is not None:
            found.append(self.logits[self.position[chosen]])
        return found

    def batch(self, step: tf.Tensor, iterator: Any) -> Batch:
        images, labels, *logits = iterator.get_next()
        cached = tf.cast(logits[0], tf.float32) if logits else None
        return tf.cast(images, tf.float32), labels, cached


def source(
    split: Split, logits: np.ndarray | None, batch_size: int, budget: float
) -> InMemory | Streamed:
    """`InMemory` when images and logits take at most `budget` bytes, else `Streamed`."""
    needed = split.images.nbytes + (0 if logits is None else logits.nbytes)
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
