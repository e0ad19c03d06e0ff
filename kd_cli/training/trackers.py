"""Trackers: what gets every epoch's row besides the history."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig


class Tracker(Protocol):
    def epoch(self, row: dict[str, Any], model: Any) -> None: ...


class NoTracker:
    def epoch(self, row: dict[str, Any], model: Any) -> None:
        """History and log are enough."""


class TensorBoard:
    """Scalars of every epoch, and histograms of the weights when asked, for TensorBoard.

    Args:
        folder: Where the event files go; events after a resumed epoch overwrite their step.
        histograms: Whether to write one histogram per weight and epoch.
    """

    def __init__(self, folder: Path, histograms: bool) -> None:
        import tensorflow as tf

        self.writer = tf.summary.create_file_writer(str(folder))
        self.histograms = histograms

    def epoch(self, row: dict[str, Any], model: Any) -> None:
        import tensorflow as tf

        with self.writer.as_default(step=row["epoch"]):
            tf.summary.scalar("learning_rate", row["learning_rate"])
            for part in ("train", "validation"):
                for name, value in (row[part] or {}).items():
                    tf.summary.scalar(f"{part}/{name}", value)
            if self.histograms:
                for weight in model.weights:
                    tf.summary.histogram(weight.path, weight)
        self.writer.flush()


def tracker(node: DictConfig | None, out: Path) -> Tracker:
    if node is None or node.name == "none":
        return NoTracker()
    return TensorBoard(out / "tensorboard", node.histograms)
