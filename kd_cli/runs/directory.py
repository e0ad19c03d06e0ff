"""The directory of an unfinished run while this process works in it, and no other does.

Everything that is written there is written while the directory is held: the run's configuration and
log, its files, and what a failure or a search that gives it up leaves. A finished run is only read.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from omegaconf import OmegaConf

from kd_cli.errors import ConfigError, Pruned
from kd_cli.files import atomic, remove_leftovers, write_json
from kd_cli.runs.asked import Run
from kd_cli.runs.ownership import lock
from kd_cli.runs.record import PRUNED, Record
from kd_cli.terminal import log_file

log = logging.getLogger("kd")


def finished(run: Run) -> Record | None:
    """The record of a finished run; None while there is something to do."""
    record = Record.read(run.out)
    if record is not None and len(record.get("rounds", ())) <= run.plan.get("rounds", -1):
        return None  # more rounds are wanted than were
    return record


@contextlib.contextmanager
def at_work(
    run: Run,
    others: Collection[Run],
    results: Mapping[Path, Record | Exception],
    alone: bool,
    wait: bool,
) -> Iterator[None]:
    """Holds a run's directory, with its configuration and its log, until the run has ended.

    Args:
        run: Unfinished. When another process finishes it before the directory is held, nothing is
            written.
        others: Runs at work at the same time: where there are any, the log has this one's epochs
            alone.
        results: Tells at the end how the run ended, under its directory. A failure is recorded.
        alone: Whether a mistake of the user's in a new directory removes it again, as in a run by
            itself; in a sweep it is recorded too.
        wait: Whether to wait for another process that holds the directory.

    Raises:
        Busy: Without `wait`, when another process holds it.
    """
    with lock(run.out, wait):
        if finished(run) is not None:
            yield
            return
        fresh = {path.name for path in run.out.iterdir()} <= {".lock"}
        for folder in (run.out, run.out / ".hydra"):
            remove_leftovers(folder)
        for name in ("error.json", PRUNED):
            (run.out / name).unlink(missing_ok=True)
        write_configuration(run)
        handler = log_file(run.out / "kd.log")
        if len({one.out for one in others} | {run.out}) > 1:
            own = os.path.abspath(run.out)
            handler.addFilter(lambda entry: os.path.abspath(getattr(entry, "out", own)) == own)
        logger = logging.getLogger() if log.propagate else log
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            handler.close()
        error = results.get(run.out)
        if isinstance(error, ConfigError) and alone:
            # Finished rounds of a self-training are kept.
            if fresh and not any(run.out.glob("*/metrics.json")):
                _remove(run.out)
        elif isinstance(error, Pruned):
            write_json(run.out / PRUNED, error.record)
        elif isinstance(error, Exception):
            _record(run.out, error)


def write_configuration(run: Run) -> None:
    """Leaves a run's configuration in `.hydra/`, as Hydra would."""
    for name, content in run.left.items():
        with atomic(run.out / ".hydra" / name) as temporary:
            temporary.write_text(OmegaConf.to_yaml(content), encoding="utf-8")


def _record(out: Path, error: Exception) -> None:
    """The traceback into the run's log, and `error.json`; a full disk must not hide the cause."""
    message, text = str(error).strip() or type(error).__name__, ""
    if not isinstance(error, ConfigError):
        text = "".join(traceback.format_exception(error))
    try:
        with open(out / "kd.log", "a", encoding="utf-8") as file:
            file.write(text or f"{message}\n")
        write_json(
            out / "error.json",
            {"error": type(error).__name__, "message": message, "traceback": text},
        )
    except OSError as problem:
        print(f"kd: could not write {out}/error.json: {problem}", file=sys.stderr)


def _remove(out: Path) -> None:
    """Removes a directory, and the parents that are empty without it."""
    shutil.rmtree(out, ignore_errors=True)
    for parent in out.parents:
        if parent == Path.cwd() or not parent.is_relative_to(Path.cwd()):
            return
        try:
            parent.rmdir()
        except OSError:  # not empty
            return
