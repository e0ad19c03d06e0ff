"""What the runs of one command share in memory: the last of each object that is slow to make.

The points of a sweep that differ in alpha, temperature or seeds put their values into the last
training step instead of tracing it again, and use the teacher that is loaded already.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


# Is told the epoch, of how many, and the best validation result so far, when all is saved. It may
# raise `Pruned`, which ends the training.
Judge = Callable[[int, int, Mapping[str, float]], None]


class Last:
    """A one-entry cache: keeps the last object and the key it was made from."""

    def __init__(self) -> None:
        self.key: str | None = None
        self.made: Any = None

    def get(self, key: str) -> Any:
        """The last one if it has this key, else None."""
        return self.made if self.key == key else None

    def keep(self, key: str, made: Any) -> Any:
        self.key, self.made = key, made
        return made

    def drop(self) -> None:
        self.key = self.made = None

    def obtain(self, key: str, make: Callable[[], Any]) -> Any:
        """The last one if it has this key; else a new one, made when the old one is gone."""
        if self.key != key:
            self.drop()
            self.keep(key, make())
        return self.made


class Session:
    """Made once per command, and passed to every function that stores or finds something in it.

    Pickled it is empty: a launcher that runs points in other processes gives each a new one.

    Attributes:
        engine: The last traced training step (`training.step.Engine`).
        views: The last augmentation (`data.views.Views`).
        teacher: The last teacher (`distillation.teacher.Teacher`).
        logits: [n, K] logits of that teacher by data and split, if none are stored on the disk.
        checked: Stored logits whose checksum was right: file, size and time of its last change.
        trackers: Of the runs in training (`training.trackers.Trackers`), by their directories.
        judges: Of the runs of a search, by their directories.
    """

    def __init__(self) -> None:
        self.engine = Last()
        self.views = Last()
        self.teacher = Last()
        self.logits: dict[str, np.ndarray] = {}
        self.checked: set[tuple[str, int, int]] = set()
        self.trackers: dict[Path, Any] = {}
        self.judges: dict[Path, Judge] = {}

    def __reduce__(self) -> tuple[type[Session], tuple[()]]:
        return Session, ()

    def drop_teacher(self) -> None:
        """Frees the teacher's memory, before another is read: a large one may not fit in twice."""
        self.teacher.drop()
        self.logits.clear()
        self.engine.drop()  # its step may ask the teacher
        gc.collect()  # a Keras model is a cycle
