"""The networks of chosen epochs, which a run keeps beside the best one: `checkpoint.every`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from kd_cli.files import save_model
from kd_cli.terminal import shown

log = logging.getLogger("kd")


def file_of(out: Path, epoch: int) -> Path:
    """Where a run keeps the network of an epoch."""
    return out / "checkpoints" / f"epoch-{epoch}.keras"


def keep(model: Any, out: Path, every: int | None, epoch: int) -> None:
    """Saves the network after an epoch that `every` divides."""
    if every is not None and epoch % every == 0:
        save_model(file_of(out, epoch), model)


def tell_of_missing(out: Path, every: int | None, done: int) -> None:
    """Warns of networks that were not kept, because `every` was not asked for at that time.

    Args:
        out: The run's directory.
        every: As now asked for; None for none.
        done: Finished epochs.
    """
    wanted = range(every, done + 1, every) if every is not None else ()
    missing = [file_of(out, epoch) for epoch in wanted if not file_of(out, epoch).exists()]
    if missing:
        log.warning(
            "%s has no %s: it was trained without checkpoint.every=%d; rerun=true trains it again",
            shown(out / "checkpoints"),
            ", ".join(path.name for path in missing[:3]) + ", ..." * (len(missing) > 3),
            every,
        )
