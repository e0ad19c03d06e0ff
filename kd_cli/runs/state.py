"""The state from which a killed run continues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from kd_cli.errors import ConfigError
from kd_cli.files import open_npz, write_npz


class State:
    """`state/` of a run: variables and counters after an epoch or inside it, the best weights.

    `last.npz` is the only file that counts. It names the file of the best weights, which is written
    before it and never changed, so a kill between the two writes leaves the older pair intact.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "last.npz"

    def save(
        self,
        variables: list[Any],
        owner: dict[str, Any],
        counters: dict[str, Any],
        best: list[np.ndarray] | None,
    ) -> None:
        """Writes the state; `best` holds the weights when an epoch has just become the best."""
        if best is not None:
            write_npz(
                self.folder / f"best-{counters['best_epoch']}.npz",
                {f"{number:05d}": array for number, array in enumerate(best)},
            )
        arrays = {f"{n:05d}": variable.numpy() for n, variable in enumerate(variables)}
        record = json.dumps({"owner": owner, "counters": counters})
        write_npz(self.path, {**arrays, "record": np.array(record)})
        for old in self.folder.glob("best-*.npz"):
            if old.name != f"best-{counters['best_epoch']}.npz":
                old.unlink()

    def owner(self) -> dict[str, Any] | None:
        """Whose state this is (run id and inputs), or None without one."""
        if not self.path.exists():
            return None
        with open_npz(self.path) as archive:
            return json.loads(str(archive["record"]))["owner"]

    def load(self, variables: list[Any]) -> dict[str, Any] | None:
        """Puts the saved values into `variables`; returns the counters, or None without a state."""
        if not self.path.exists():
            return None
        with open_npz(self.path) as archive:
            if len(archive.files) != len(variables) + 1:
                raise ConfigError(
                    f"{self.path} was written by another version of kd; remove its directory, or "
                    "type rerun=true"
                )
            for number, variable in enumerate(variables):
                variable.assign(archive[f"{number:05d}"])
            return json.loads(str(archive["record"]))["counters"]

    def best_weights(self, epoch: int) -> list[np.ndarray]:
        with open_npz(self.folder / f"best-{epoch}.npz") as archive:
            return [archive[name] for name in sorted(archive.files)]
