"""Trackers: objects that are called after every epoch.

Each entry of `tracker` is a node whose `_target_` makes a `Tracker`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig, OmegaConf

from kd_cli.config.instantiate import build
from kd_cli.errors import ConfigError, first_line
from kd_cli.runs.asked import Run
from kd_cli.runs.identity import digest, run_spec
from kd_cli.runs.session import Session
from kd_cli.terminal import shown

log = logging.getLogger("kd")


class Tracker(Protocol):
    """What a `_target_` of the group `tracker` makes.

    The file of such an option begins with the line `# @package tracker.NAME`. The `_target_` is
    called with the options of its node and two more:

        folder: a `Path` inside the run's directory that is the tracker's own; it exists from
            `start` on.
        settings: the run's configuration that can change its result, as plain data.

    It is made before the data are read, so that a mistake in its options, for which it may raise
    anything, ends the run at once. Keep the options then, and open files or connections in `start`.

    Besides `epoch` it may have

        start(record): before the first epoch, and again when a stopped run continues; `record` has
            `run_id`, and `epoch`, the number of finished epochs.
        finish(record): at the end of a training that did not fail; `record` is the content of its
            `metrics.json`.

    A tracker that raises in one of these is left out from then on, and the training goes on.
    """

    def epoch(self, row: dict[str, Any], model: Any) -> None:
        """Called once after each epoch, when its state is saved.

        Args:
            row: The epoch's line in `history.jsonl`.
            model: The Keras model in training, with this epoch's weights.
        """


class Trackers:
    """The trackers of one training.

    Args:
        plan: The run's checked configuration; its `tracker` holds a node for each, by its name.
        out: The run's directory.

    Raises:
        ConfigError: A tracker that refuses its options, or has no `epoch`.
    """

    def __init__(self, plan: DictConfig, out: Path) -> None:
        self.out = out
        self._active: dict[str, Tracker] = {}
        for name, node in (plan.get("tracker") or {}).items():
            what = f"tracker.{name}: {node['_target_']}"
            make = build({**node, "_partial_": True}, f"tracker.{name}")
            try:  # not by Hydra, which would build the nodes among the settings
                made = make(folder=self._folder(name), settings=run_spec(plan))
            except Exception as error:
                raise ConfigError(f"{what} failed: {first_line(error)}") from error
            if not callable(getattr(made, "epoch", None)):
                raise ConfigError(
                    f"{what} made a {type(made).__name__} without a method epoch(row, model)"
                )
            self._active[name] = made

    def _folder(self, name: str) -> Path:
        return self.out / "trackers" / name

    def start(self, record: dict[str, Any]) -> None:
        self._tell("start", record)

    def epoch(self, row: dict[str, Any], model: Any) -> None:
        self._tell("epoch", row, model)

    def finish(self, record: dict[str, Any]) -> None:
        self._tell("finish", record)

    def _tell(self, what: str, *args: Any) -> None:
        for name, tracker in list(self._active.items()):
            try:
                if what == "start":
                    self._folder(name).mkdir(parents=True, exist_ok=True)
                act = getattr(tracker, what, None)
                if act is not None:
                    act(*args)
            except Exception as error:  # whatever a tracker meets, the training is worth more
                del self._active[name]
                log.warning(
                    "tracker.%s failed (%s: %s), %s goes on without it",
                    name,
                    type(error).__name__,
                    first_line(error),
                    shown(self.out),
                )


def trackers_of(run: Run, session: Session) -> Trackers:
    """The trackers of a run; made when first asked for.

    Raises:
        ConfigError: For one that can't be made.
    """
    if run.out not in session.trackers:
        session.trackers[run.out] = Trackers(run.plan, run.out)
    return session.trackers[run.out]


def check_options(plans: Iterable[DictConfig]) -> None:
    """Makes each different tracker of some plans once, before any of them begins.

    Raises:
        ConfigError: For one that refuses its options.
    """
    seen = set()
    for plan in plans:
        key = digest(OmegaConf.to_container(plan).get("tracker"))
        if key not in seen:
            Trackers(plan, Path(plan.outputs))
        seen.add(key)


def tell_of_unused(run: Run) -> None:
    """Says which trackers of a finished run were not there when it was trained."""
    folder = run.out / "trackers"
    names = [name for name in run.plan.get("tracker") or {} if not (folder / name).is_dir()]
    if names:
        log.warning(
            "%s was trained without tracker=%s, and a finished run tells no tracker anything; "
            "rerun=true trains it again, with it",
            shown(run.out),
            ",".join(names),
        )


class TensorBoard:
    """Scalars of every epoch for TensorBoard, and histograms of the weights when asked.

    Args:
        folder: Where the event files go.
        settings: Shown as text.
        histograms: Whether to write one histogram per weight and epoch.

    Raises:
        ValueError: `histograms` is neither true nor false.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], histograms: bool = False) -> None:
        if not isinstance(histograms, bool):
            raise ValueError(f"histograms={histograms} must be true or false")
        self.folder = folder
        self.settings = settings
        self.histograms = histograms

    def start(self, record: dict[str, Any]) -> None:
        import tensorflow as tf

        self.writer = tf.summary.create_file_writer(str(self.folder))
        if record["epoch"] == 0:
            text = json.dumps(self.settings, indent=4)
            with self.writer.as_default(step=0):
                # Markdown shows indented lines as they are.
                tf.summary.text("settings", "\n".join(f"    {s}" for s in text.splitlines()))

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

    def finish(self, record: dict[str, Any]) -> None:
        self.writer.close()
