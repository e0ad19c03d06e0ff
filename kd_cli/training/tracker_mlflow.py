"""The tracker for MLflow: a SQLite file beside the runs, or a server that the user names."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from kd_cli.config.row import flat
from kd_cli.errors import ConfigError
from kd_cli.files import locked
from kd_cli.training.trackers import INTERRUPTED, TrackedRun, lasting_key, numbers, results

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_BATCH = 100  # parameters, the most that MLflow takes at once (of metrics it takes 1000)
_LONGEST = 6000  # characters of a parameter's value


class MLflow:
    """A run of MLflow for each run of kd, and one above those of a sweep.

    Parameters are the run's configuration. Metrics have the epoch as their step. A run that
    continues, or is told of later, sends the epochs that MLflow lacks.

    Args:
        run: Where it lies.
        uri: Of the tracking server or store; null: the file `mlflow.db` in `outputs`.
        experiment: The name of MLflow's experiment.
        model: Whether to send `model.keras` too, at the end.

    Raises:
        ConfigError: MLflow is not installed.
        ValueError: An option of the wrong type.
    """

    def __init__(
        self, run: TrackedRun, uri: str | None = None, experiment: str = "kd", model: bool = False
    ) -> None:
        if find_spec("mlflow") is None:
            raise ConfigError("it needs the package mlflow; type: pip install 'mlflow>=3.17,<4'")
        if not isinstance(experiment, str) or not experiment.strip():
            raise ValueError(f"experiment={experiment} must be a name")
        if not isinstance(model, bool):
            raise ValueError(f"model={model} must be true or false")
        outputs = run.outputs.absolute()
        self.run = run
        self.uri = uri or f"sqlite:///{outputs / 'mlflow.db'}"
        # MLflow's own default is ./mlruns, whatever the store. Hidden, because a report takes each
        # metrics.json that it finds for a run.
        self.artifacts = None if uri else (outputs / ".mlflow-artifacts").as_uri()
        self.experiment = experiment
        self.model = model
        self.files = ["metrics.json", "history.jsonl", *["model.keras"] * model]

    def begin(self, run_id: str, config: dict[str, Any], resumed_after: int) -> None:
        self.client = _client(self.uri)
        # One process at a time makes the tables, the experiment and the sweep's run.
        with locked(self.run.outputs / "mlflow", "writes to MLflow"):
            found = self.client.get_experiment_by_name(self.experiment)
            self.at = (
                found.experiment_id
                if found is not None
                else self.client.create_experiment(self.experiment, self.artifacts)
            )
            self.above = self._sweep()
        tags = {
            "mlflow.source.name": f"kd {self.run.command}",
            "mlflow.source.type": "LOCAL",
            "kd.run_id": run_id,
            "kd.folder": str(self.run.folder.absolute()),
        }
        if self.above:
            tags["mlflow.parentRunId"] = self.above
        mine = self._obtain(self.run.key(), self.run.name, tags)
        self.id = mine.info.run_id
        for tag in {"kd.error", "mlflow.note.content"} & mine.data.tags.keys():
            self.client.delete_tag(self.id, tag)  # of a failure before
        self._parameters(config, mine.data.params)
        for row in self._lacking(resumed_after):
            self.epoch(row, None)

    def epoch(self, row: dict[str, Any], model: Any) -> None:
        self._send(numbers(row), row["epoch"])

    def end(self, record: dict[str, Any] | None, error: str | None) -> None:
        if record is not None:
            self._send(results(record), record["epochs_done"])
            for name in self.files:
                self.client.log_artifact(self.id, str(self.run.folder / name))
            status = "FINISHED"
        else:
            self.client.set_tag(self.id, "kd.error", error)
            self.client.set_tag(self.id, "mlflow.note.content", error)  # its page shows it
            status = "KILLED" if error == INTERRUPTED else "FAILED"
        self.client.set_terminated(self.id, status)
        if self.above:
            with locked(self.run.outputs / "mlflow", "writes to MLflow"):
                going = f"tags.mlflow.parentRunId = '{self.above}' and status = 'RUNNING'"
                if not self.client.search_runs([self.at], going, max_results=1):
                    self.client.set_terminated(self.above, "FINISHED")

    def _sweep(self) -> str | None:
        """The id of the run above those of a sweep's points; None for a run by itself."""
        folder = self.run.sweep
        if folder is None:
            return None
        tags = {"mlflow.source.name": "kd --multirun", "kd.folder": str(folder.absolute())}
        return self._obtain(lasting_key(folder / ".mlflow-key"), folder.name, tags).info.run_id

    def _obtain(self, key: str, name: str, tags: Mapping[str, str]) -> Run:
        """The run of that key, going on; made where there is none."""
        found = self.client.search_runs([self.at], f"tags.`kd.key` = '{key}'", max_results=1)
        if found:
            self.client.update_run(found[0].info.run_id, status="RUNNING")
            return found[0]
        return self.client.create_run(self.at, tags={**tags, "kd.key": key}, run_name=name)

    def _parameters(self, config: Mapping[str, Any], known: Mapping[str, str]) -> None:
        """Those that MLflow lacks: it refuses another value for one that it has."""
        from mlflow.entities import Param

        words = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in flat(config).items()
        }
        found = [Param(k, v[:_LONGEST]) for k, v in words.items() if k not in known]
        for start in range(0, len(found), _BATCH):
            self.client.log_batch(self.id, params=found[start : start + _BATCH])

    def _lacking(self, resumed_after: int) -> list[dict[str, Any]]:
        """The rows of finished epochs that MLflow does not have."""
        rows = self.run.rows()[:resumed_after]
        if not rows:
            return []
        known = {one.step for one in self.client.get_metric_history(self.id, "learning_rate")}
        return [row for row in rows if row["epoch"] not in known]

    def _send(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, float(value), now, step) for name, value in values.items()]
        self.client.log_batch(self.id, metrics=metrics)


def _client(uri: str) -> MlflowClient:
    """A client that keeps quiet, and sends nothing anywhere else."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri)
