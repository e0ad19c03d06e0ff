"""The state from which a killed run continues.

(`.keras` files and `save_weights` leave out the state of dropout's seed generators, so the state
here is `model.variables`, not `model.weights`.)
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from kd_cli.errors import ConfigError
from kd_cli.files import DamagedError, read_npz, write_npz
from kd_cli.terminal import shown


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
        self._remove_older(counters["best_epoch"])

    def owner(self) -> dict[str, Any] | None:
        """Whose state this is (run id and inputs), or None without one.

        Raises:
            DamagedError: It can't be read.
        """
        found = self._read(("record",))
        return found[1] if found else None

    def load(self, variables: list[Any]) -> dict[str, Any] | None:
        """Puts the saved values into `variables`; returns the counters, or None without a state.

        Files that a later state has replaced are removed.

        Raises:
            DamagedError: It can't be read.
            ConfigError: It is of other variables.
        """
        found = self._read(None)
        if found is None:
            return None
        arrays, _, counters = found
        saved = [arrays[name] for name in sorted(arrays)]
        if [array.shape for array in saved] != [tuple(one.shape) for one in variables]:
            raise self.of_another_version()
        for variable, array in zip(variables, saved, strict=True):
            variable.assign(array)
        self._remove_older(counters.get("best_epoch"))
        return counters

    def of_another_version(self) -> ConfigError:
        return ConfigError(
            f"{shown(self.path)} was written by another version of kd; remove its directory, or "
            "type rerun=true"
        )

    def best_weights(self, epoch: int) -> list[np.ndarray]:
        """The weights after an epoch, the best one, whose state was loaded.

        Raises:
            DamagedError: They can't be read.
        """
        path = self.folder / f"best-{epoch}.npz"
        arrays = read_npz(path, self._remedy)
        if arrays is None:
            raise DamagedError(path, "it is gone", self._remedy)
        return [arrays[name] for name in sorted(arrays)]

    @property
    def _remedy(self) -> str:
        return (
            f"remove {shown(self.folder)} and type the command again: the training starts from its "
            "beginning"
        )

    def _read(
        self, names: Collection[str] | None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, Any]] | None:
        """Arrays, owner and counters; None without a state."""
        arrays = read_npz(self.path, self._remedy, names)
        if arrays is None:
            return None
        try:
            record = json.loads(str(arrays.pop("record")))
            owner, counters = record["owner"], record["counters"]
            if isinstance(owner["run_id"], str):
                return arrays, {**owner, "inputs": {**owner["inputs"]}}, {**counters}
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise DamagedError(self.path, "it does not say whose it is", self._remedy)

    def _remove_older(self, best_epoch: int | None) -> None:
        for old in self.folder.glob("best-*.npz"):
            if old.name != f"best-{best_epoch}.npz":
                old.unlink()
