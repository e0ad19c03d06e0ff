"""Where a step's batch comes from: gathered from tensors in memory, or streamed from the disk.

Both give the same batches for the same order of examples.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from kd_cli.data.dataset import Split

# Images [B, H, W, C] as stored, labels [B], rows of the pool [B], positions in the split [B], the
# teacher's stored rows [B, width] by name.
Batch = tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]
# What a teacher says of a split, [n, width] in its order, of one view or of several, by name.
Stored = Mapping[str, Sequence[np.ndarray]]


class InMemory:
    """The pool as tensors, uint8 where it is uint8 on disk; a batch is a gather.

    Args:
        split: Rows of a pool of images.
        stored: The teacher's rows; empty for none.
        batch_size: Examples per step.
    """

    def __init__(self, split: Split, stored: Stored, batch_size: int) -> None:
        self.batch_size = batch_size
        self.images = tf.constant(split.images)
        self.labels = tf.constant(split.labels, dtype=tf.int64)
        self.order = tf.Variable(tf.zeros([len(split)], tf.int64), trainable=False)
        self.position = tf.constant(_position(split))
        self.stored = {
            name: tf.Variable(views[0], trainable=False) for name, views in stored.items()
        }
        self.views = {
            name: [tf.constant(view) for view in views]
            for name, views in stored.items()
            if len(views) > 1
        }
        _forget_pages(split.images)

    def start(self, order: tf.Tensor, first: int, view: int) -> tuple[()]:
        """An epoch begins.

        Args:
            order: Rows of the pool.
            first: Step from which `batch` will be called.
            view: Number of the teacher's rows.
        """
        self.order.assign(order)
        for name, views in self.views.items():
            self.stored[name].assign(views[view])
        return ()

    def batch(self, step: tf.Tensor) -> Batch:
        rows = self.order[step * self.batch_size : (step + 1) * self.batch_size]
        index = tf.gather(self.position, rows)
        stored = {
            name: tf.cast(tf.gather(table, index), tf.float32)
            for name, table in self.stored.items()
        }
        return tf.gather(self.images, rows), tf.gather(self.labels, rows), rows, index, stored


class Streamed:
    """The pool stays on disk, memory-mapped; tf.data reads the next batches beside the training.

    The arguments are those of `InMemory`.
    """

    def __init__(self, split: Split, stored: Stored, batch_size: int) -> None:
        self.batch_size = batch_size
        self.split = split
        self.stored = dict(stored)
        self.position = _position(split)
        self.signature = [
            tf.TensorSpec([None, *split.images.shape[1:]], tf.as_dtype(split.images.dtype)),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([None], tf.int64),
            *(
                tf.TensorSpec([None, views[0].shape[1]], views[0].dtype)
                for views in self.stored.values()
            ),
        ]
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
        index = self.position[chosen]
        labels = self.split.labels[chosen].astype(np.int64)
        rows = [views[self.view if len(views) > 1 else 0][index] for views in self.stored.values()]
        return [self.split.images[chosen], labels, chosen, index, *rows]

    def batch(self, step: tf.Tensor, iterator: Any) -> Batch:
        images, labels, rows, index, *found = iterator.get_next()
        stored = {
            name: tf.cast(table, tf.float32) for name, table in zip(self.stored, found, strict=True)
        }
        return images, labels, rows, index, stored


def source(split: Split, stored: Stored, batch_size: int, budget: float) -> InMemory | Streamed:
    """`InMemory` if images and the teacher's rows take at most `budget` bytes, else `Streamed`."""
    needed = split.images.nbytes + sum(one.nbytes for views in stored.values() for one in views)
    kind = InMemory if needed <= budget else Streamed
    return kind(split, stored, batch_size)


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
