"""The tracker for TensorBoard, whose files lie in the run's own directory."""

from __future__ import annotations

import json
from typing import Any

from kd_cli.training.trackers import TrackedRun, numbers


class TensorBoard:
    """Scalars of every epoch for TensorBoard, and histograms of the weights when asked.

    Args:
        run: Where the event files go.
        histograms: Whether to write one histogram per weight and epoch.

    Raises:
        ValueError: `histograms` is neither true nor false.
    """

    def __init__(self, run: TrackedRun, histograms: bool = False) -> None:
        if not isinstance(histograms, bool):
            raise ValueError(f"histograms={histograms} must be true or false")
        self.folder = run.own
        self.histograms = histograms

    def begin(self, run_id: str, config: dict[str, Any], resumed_after: int) -> None:
        import tensorflow as tf

        self.writer = tf.summary.create_file_writer(str(self.folder))
        if resumed_after == 0:
            text = json.dumps(config, indent=4)
            with self.writer.as_default(step=0):
                # Markdown shows indented lines as they are.
                tf.summary.text("settings", "\n".join(f"    {s}" for s in text.splitlines()))

    def epoch(self, row: dict[str, Any], model: Any) -> None:
        import tensorflow as tf

        with self.writer.as_default(step=row["epoch"]):
            for name, value in numbers(row).items():
                tf.summary.scalar(name, value)
            if self.histograms and model is not None:
                for weight in model.weights:
                    tf.summary.histogram(weight.path, weight)
        self.writer.flush()

    def end(self, record: dict[str, Any] | None, error: str | None) -> None:
        self.writer.close()
