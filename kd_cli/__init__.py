"""kd: knowledge distillation from the command line.

A room is a folder; it imports only rooms that stand below it:

    cli.py arguments.py   what you typed becomes a command; exit codes
    commands/             one file a command
    training/             the training step, the loop around it, schedules, optimizers, trackers
    distillation/         losses, and the teacher with its kept outputs
    report/               groups of runs, their statistics, tables, figures and page
    networks/             networks, and how they are read and asked
    runs/                 a run on the disk: its identity, files, record and state
    data/                 datasets, splits, augmentation, batches
    config/               from overrides to a checked plan
    errors.py files.py streams.py terminal.py device.py

Each room's docstring says how to add one thing to it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

__version__ = "0.5.0.dev0"


def public_names(room: str, files: Mapping[str, str]) -> Callable[[str], Any]:
    """A room's `__getattr__` for the names that YAML uses: their files are imported when asked.

    So `kd_cli.networks.cnn` works without that importing the room imports TensorFlow.

    Args:
        room: The room's `__name__`.
        files: The file of each public name.
    """

    def find(name: str) -> Any:
        if name not in files:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{room}.{files[name]}"), name)

    return find
