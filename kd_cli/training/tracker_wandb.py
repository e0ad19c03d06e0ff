"""The tracker for Weights & Biases: files in the run's directory, unless the user goes online."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from typing import Any

from kd_cli.config.row import flat
from kd_cli.errors import ConfigError
from kd_cli.training.trackers import INTERRUPTED, TrackedRun, numbers, results

_MODES = ("offline", "online")
_SYNCED = "*.wandb.synced"  # `wandb sync` leaves it


class WandB:
    """A run of Weights & Biases for each run of kd, grouped by sweep; the epoch is the step.

    Offline, W&B writes its file in blocks, so a killed run's lacks its last epochs. Therefore a run
    that continues writes all its epochs into a new file, and removes the old one, unless that has
    been uploaded.

    Args:
        run: Where it lies.
        project: W&B's project.
        entity: The user or team; null: the account's own.
        mode: `offline` writes files, for `wandb sync`; `online` sends.
        model: Whether to send `model.keras` too, at the end.

    Raises:
        ConfigError: The package is not installed, or online nobody has logged in.
        ValueError: An option that W&B does not know.
    """

    def __init__(
        self,
        run: TrackedRun,
        project: str = "kd",
        entity: str | None = None,
        mode: str = "offline",
        model: bool = False,
    ) -> None:
        if find_spec("wandb") is None:
            raise ConfigError("it needs the package wandb; type: pip install 'wandb>=0.31,<1'")
        if mode not in _MODES:
            raise ValueError(f"mode={mode} must be {' or '.join(_MODES)}")
        if not isinstance(model, bool):
            raise ValueError(f"model={model} must be true or false")
        if mode == "online":
            import wandb

            if not wandb.login(prompt=False):  # it would ask in the middle of the training
                raise ConfigError("mode=online needs an account; type: wandb login")
        self.run = run
        self.project = project
        self.entity = entity
        self.mode = mode
        self.files = ["metrics.json", "history.jsonl", *["model.keras"] * model]

    def begin(self, run_id: str, config: dict[str, Any], resumed_after: int) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        offline = self.mode == "offline"
        if offline:
            self._remove_older()
        self.made = wandb.init(
            project=self.project,
            entity=self.entity,
            dir=str(self.run.own.absolute()),  # it is another process
            id=self.run.key(),
            name=self.run.name,
            group=self.run.sweep.name if self.run.sweep else None,
            job_type=self.run.command,
            config={**flat(config), "run_id": run_id},
            mode=self.mode,
            resume=None if offline else "allow",
            reinit="create_new",  # the students of a joint sweep have one each
            settings=wandb.Settings(console="off", silent=True),
        )
        known = 0 if offline else self.made.starting_step
        for row in self.run.rows()[:resumed_after]:
            if row["epoch"] >= known:
                self.epoch(row, None)

    def epoch(self, row: dict[str, Any], model: Any) -> None:
        self.made.log(numbers(row), step=row["epoch"])

    def end(self, record: dict[str, Any] | None, error: str | None) -> None:
        if record is not None:
            self.made.summary.update(results(record))
            for name in self.files:
                copy = shutil.copy(self.run.folder / name, self.made.dir)
                self.made.save(copy, base_path=self.made.dir, policy="now")
        else:
            self.made.summary["error"] = error
        self.made.finish(exit_code={None: 0, INTERRUPTED: 255}.get(error, 1))

    def _remove_older(self) -> None:
        for folder in self.run.own.glob("wandb/offline-run-*"):
            if not any(folder.glob(_SYNCED)):
                shutil.rmtree(folder)
