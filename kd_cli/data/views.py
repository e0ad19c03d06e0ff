"""Which pixels the student and the teacher get: views of the stored images.

View number v of an example is a function of (seed, example, v): the numbers of its nodes come from
tables that are drawn anew for each view, one row per example. Epoch e trains on view e - 1, or on
view (e - 1) mod K where the teacher's logits of K views are kept.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from omegaconf import DictConfig, ListConfig

from kd_cli.config.instantiate import build
from kd_cli.data import augment
from kd_cli.data.augment import Draw
from kd_cli.data.dataset import Dataset, Split
from kd_cli.errors import ConfigError, first_line
from kd_cli.files import atomic

# The student's numbers, those of the teacher's own crops in view=independent, and of the mixing.
_STUDENT, _TEACHER, _MIXING = 0, 1, 2


class Views:
    """The augmentation of a run.

    Args:
        node: The checked `augment` node.
        view: `consistent`: student and teacher get the same tensor; `independent`: other crops and
            flips for the teacher; `fixed_teacher`: the teacher gets the image as in evaluation.
            Batch-wise nodes act alike on both.
        dataset: Its pool of training images.
        compiled: Whether XLA compiles nodes of kd's own: on a CPU they take a third of the time
            then. Where one of a user's is among them nothing is compiled, because XLA does not
            know every operation.
        seed: Of all that is drawn.

    Attributes:
        seed: Of all that is drawn.
        shape: [H, W, C] of what the networks get.
        mixes: Whether there are batch-wise nodes.

    Raises:
        ConfigError: A node that fails on these images, or gives another shape than declared.
    """

    def __init__(
        self, node: DictConfig, view: str, dataset: Dataset, compiled: bool, seed: int = 0
    ) -> None:
        self.view = view
        self.seed = seed
        self.classes = dataset.num_classes
        every = [build(one, f"augment.train[{n}]") for n, one in enumerate(node.train)]
        batch_wise = [_is_batch_wise(one) for one in every]
        if batch_wise != sorted(batch_wise):
            raise ConfigError(
                "augment.train: batch-wise nodes (mixup) must come last, after those of one image"
            )
        self.nodes = [one for one, is_last in zip(every, batch_wise, strict=True) if not is_last]
        self.last = [one for one, is_last in zip(every, batch_wise, strict=True) if is_last]
        self.evaluation = _evaluation(node.evaluate)
        self.mixes = bool(self.last)
        self.shape = dataset.inputs.sized(node.size).shape
        pool = dataset.train.images
        blank = tf.zeros([2, *pool.shape[1:]], pool.dtype)
        counts = self._try("train", [*self.nodes, *self.last], blank)
        self._try("evaluate", self.evaluation, blank)
        self._mixing_counts = counts[len(self.nodes) :]
        streams = [_STUDENT, _TEACHER] if view == "independent" else [_STUDENT]
        self._tables = {
            (stream, number): tf.Variable(tf.zeros([len(pool), count]), trainable=False)
            for stream in streams
            for number, count in enumerate(counts[: len(self.nodes)])
        }
        self._state = tf.Variable([self.seed, 0], dtype=tf.int64, trainable=False)
        compiled = compiled and all(one.func.__module__ == augment.__name__ for one in every)
        self._apply = tf.function(self._nodes, autograph=False, jit_compile=compiled)
        self.evaluate = tf.function(self._evaluate, autograph=False)

    def _try(self, part: str, nodes: list[Callable[..., Any]], images: tf.Tensor) -> list[int]:
        """How many numbers each node draws; refuses what can't serve."""
        counts = []
        for number, node in enumerate(nodes):
            drawn = [0]

            def draw(count: int, drawn: list[int] = drawn) -> tf.Tensor:
                drawn[0] += count
                return tf.fill([2, count], 0.5)

            try:
                images = node(images, None, draw)[0] if _is_batch_wise(node) else node(images, draw)
            except (ConfigError, ValueError, TypeError, tf.errors.OpError) as error:
                raise ConfigError(f"augment.{part}[{number}]: {first_line(error)}") from error
            counts.append(drawn[0])
        if part == "evaluate" and any(counts):
            raise ConfigError("augment.evaluate holds a random node: it belongs to augment.train")
        if tuple(images.shape[1:]) != self.shape:
            raise ConfigError(
                f"augment.{part} gives images of shape {list(images.shape[1:])}, the networks are "
                f"built for {list(self.shape)}: set augment.size, or the size of the last node"
            )
        return counts

    def start(self, view: int) -> None:
        """Draws the numbers of a view for every example."""
        self._state.assign([self.seed, view])
        for (stream, number), table in self._tables.items():
            seed = tf.random.fold_in(tf.random.fold_in([self.seed, view], stream), number)
            table.assign(tf.random.stateless_uniform(table.shape, seed))

    def __call__(
        self, images: tf.Tensor, rows: tf.Tensor, labels: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """What a training step sees of a batch in the view that was started.

        Args:
            images: [B, H, W, C] as stored.
            rows: [B] their rows in the pool.
            labels: [B].
            step: The optimizer's step, for batch-wise nodes.

        Returns:
            The student's images, float32; the labels [B], or [B, K] shares of the classes after
            batch-wise nodes; the teacher's images.
        """
        numbers = self._numbers(_STUDENT, rows)
        mixing = []
        state = tf.random.fold_in(tf.random.fold_in(self._state, _MIXING), step)
        for number, count in enumerate(self._mixing_counts):
            seed = tf.random.fold_in(state, number)
            mixing.append(tf.random.stateless_uniform([tf.shape(rows)[0], count], seed))
        student, mixed = self._apply(images, numbers, labels, mixing)
        if self.view == "consistent":
            return student, mixed, student
        if self.view == "independent":
            teacher, _ = self._apply(images, self._numbers(_TEACHER, rows), labels, mixing)
        else:
            teacher = self._evaluate(images, rows)
            for node, draws in zip(self.last, mixing, strict=True):
                teacher, _ = node(teacher, None, _handing_out(draws))
        return student, mixed, teacher

    def pixels(self, images: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """The student's images in the view that was started, without batch-wise nodes."""
        labels = tf.zeros([tf.shape(rows)[0]], tf.int64)
        return self._apply(images, self._numbers(_STUDENT, rows), labels, [])[0]

    def _numbers(self, stream: int, rows: tf.Tensor) -> list[tf.Tensor]:
        return [tf.gather(self._tables[stream, n], rows) for n in range(len(self.nodes))]

    def _nodes(
        self,
        images: tf.Tensor,
        numbers: list[tf.Tensor],
        labels: tf.Tensor,
        mixing: list[tf.Tensor],
    ) -> tuple[tf.Tensor, tf.Tensor]:
        for node, draws in zip(self.nodes, numbers, strict=True):
            images = node(images, _handing_out(draws))
        if mixing:
            labels = tf.one_hot(labels, self.classes)
        for node, draws in zip(self.last if mixing else [], mixing, strict=True):
            images, labels = node(images, labels, _handing_out(draws))
        return tf.cast(images, tf.float32), labels

    def _evaluate(self, images: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """What every network gets in evaluation; not random, so that the rows decide nothing."""
        return _in_turn(self.evaluation, images)


def evaluated(nodes: ListConfig, images: tf.Tensor) -> tf.Tensor:
    """Images as a network gets them in evaluation: through the nodes of `augment.evaluate`."""
    return _in_turn(_evaluation(nodes), images)


def _evaluation(nodes: ListConfig) -> list[Callable[..., Any]]:
    return [build(one, f"augment.evaluate[{n}]") for n, one in enumerate(nodes)]


def _in_turn(nodes: list[Callable[..., Any]], images: tf.Tensor) -> tf.Tensor:
    for node in nodes:
        images = node(images, _handing_out(tf.zeros([1, 0])))
    return tf.cast(images, tf.float32)


def preview(views: Views, split: Split, path: Path) -> None:
    """Draws a grid: some training images as stored, and what the networks get in three epochs."""
    from matplotlib.figure import Figure

    rows = split.rows[:: -(-len(split) // 8)]
    images, labels = tf.constant(split.images[rows]), tf.constant(split.labels[rows], tf.int64)
    columns = {"stored": images}
    for epoch in (1, 2, 3):
        views.start(epoch - 1)
        step = tf.constant(epoch, tf.int64)
        student, _, teacher = views(images, tf.constant(rows), labels, step)
        if views.view == "consistent":
            columns[f"epoch {epoch}"] = student
        else:
            columns |= {f"epoch {epoch}, student": student, f"epoch {epoch}, teacher": teacher}
    figure = Figure(figsize=(1.5 * len(columns), 1.5 * len(rows)), layout="compressed")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for column, (title, shown) in enumerate(columns.items()):
        axes[0, column].set_title(title, fontsize=8)
        for row, image in enumerate(np.clip(np.asarray(shown, np.float32), 0, 255)):
            axes[row, column].imshow(image / 255, cmap="gray", vmin=0, vmax=1)
            axes[row, column].set_axis_off()
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")


def _is_batch_wise(node: Callable[..., Any]) -> bool:
    return "labels" in inspect.signature(node).parameters


def _handing_out(numbers: tf.Tensor) -> Draw:
    """`draw` that gives the columns of [B, n] in turn."""
    given = 0

    def draw(count: int) -> tf.Tensor:
        nonlocal given
        given += count
        return numbers[:, given - count : given]

    return draw
