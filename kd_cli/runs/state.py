"""The state from which a killed run continues.

(`.keras` files and `save_weights` leave out the state of dropout's seed generators, so the state
here is `model.variables`, not `model.weights`.)
"""

from __future__ import annotations

import json
import os
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

    The states of runs that train each other count together or not at all. So each is held back as
    `next.npz` until all are written (`settle`).

    Args:
        folder: `state/`.
        held: Whether `save` only writes `next.npz`, for `release`.
    """

    def __init__(self, folder: Path, held: bool = False) -> None:
        self.folder = folder
        self.path = folder / "last.npz"
        self.next = folder / "next.npz"
        self.held = held

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
        write_npz(self.next if self.held else self.path, {**arrays, "record": np.array(record)})
        if not self.held:
            self._remove_older(counters["best_epoch"])

    def release(self) -> None:
        """Makes `next.npz` the state that counts; there may be none."""
        if self.next.exists():
            os.replace(self.next, self.path)
            self._remove_older((self.counters() or {}).get("best_epoch"))

    def owner(self) -> dict[str, Any] | None:
        """Whose state this is (run id and inputs), or None without one.

        Raises:
            DamagedError: It can't be read.
        """
        found = self._read(("record",))
        return found[1] if found else None

    def counters(self, path: Path | None = None) -> dict[str, Any] | None:
        """The counters of the state, or of the one in `path`; None without it.

        Raises:
            DamagedError: It can't be read.
        """
        found = self._read(("record",), path)
        return found[2] if found else None

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
        self, names: Collection[str] | None, path: Path | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, Any]] | None:
        """Arrays, owner and counters; None without a state."""
        path = path or self.path
        arrays = read_npz(path, self._remedy, names)
        if arrays is None:
            return None
        try:
            record = json.loads(str(arrays.pop("record")))
            owner, counters = record["owner"], record["counters"]
            if isinstance(owner["run_id"], str):
                return arrays, {**owner, "inputs": {**owner["inputs"]}}, {**counters}
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise DamagedError(path, "it does not say whose it is", self._remedy)

    def _remove_older(self, best_epoch: int | None) -> None:
        for old in self.folder.glob("best-*.npz"):
            if old.name != f"best-{best_epoch}.npz":
                old.unlink()


def settle(states: list[State]) -> None:
    """Brings the states of runs that train each other to one step, after a kill between writes.

    The held states count where each run has reached their step, held or released.

    Raises:
        DamagedError: One can't be read.
        ConfigError: There is no step of which all have a state, though some have one.
    """
    last = [_step(state, state.path) for state in states]
    held = [_step(state, state.next) for state in states]
    reached = max(held)
    whole = all(reached in pair for pair in zip(last, held, strict=True))
    for state in states:
        if reached >= 0 and whole:
            state.release()
        else:
            state.next.unlink(missing_ok=True)
    steps = {_step(state, state.path) for state in states}
    if len(steps) > 1:
        folders = ", ".join(shown(state.folder.parent) for state in states)
        raise ConfigError(
            f"the students in {folders} teach each other, but their saved states are not of the "
            "same step; remove these folders, or type rerun=true"
        )


def _step(state: State, path: Path) -> int:
    """Steps done in a file of a state; -1 without it."""
    counters = state.counters(path)
    return -1 if counters is None else int(counters.get("step", -1))
