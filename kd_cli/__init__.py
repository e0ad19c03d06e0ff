"""kd: knowledge distillation from the command line.

A sub-package imports only those that stand below it:

    cli.py                runs the command that you typed; exit codes
    plugins/              Hydra's joint launcher; Hydra looks for plugins under this name
    commands/             one file for each command
    training/             the training step, the loop around it, schedules, optimizers, trackers
    distillation/         losses, and the teacher with its stored outputs
    report/               groups of runs, their statistics, tables, figures and page
    export/               files for other runtimes, and their checks
    networks/             networks, how they are read from files and how their logits are computed
    runs/                 a run on the disk: its identity, files, record and state
    data/                 datasets, splits, augmentation, batches
    config/               from overrides to a checked configuration, which is called a plan
    errors.py files.py streams.py terminal.py device.py

As well as code there are

    guide/                the pages of `kd guide`
    ../conf/              the shipped YAML, a folder for each group; in a wheel it is inside kd_cli/

Each sub-package's docstring says how to add one thing to it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

__version__ = "0.5.0.dev0"


def public_names(package: str, files: Mapping[str, str]) -> Callable[[str], Any]:
    """A sub-package's `__getattr__` for the names that YAML uses: imports their files on demand.

    So `kd_cli.networks.cnn` works, and importing the sub-package alone does not import TensorFlow.

    Args:
        package: The sub-package's `__name__`.
        files: The file of each public name.
    """

    def find(name: str) -> Any:
        if name not in files:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{files[name]}"), name)

    return find
