"""One run under Hydra: in its directory, with its failure recorded and its mistakes cleaned up."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_cli.runs.session import Session

log = logging.getLogger("kd")


class RunFailed(Exception):
    """A run broke; its traceback is in its log and error.json."""


# The error of a single run. Raising it through Hydra would print Hydra's own words first.
outcome: list[Exception] = []


@dataclass(frozen=True)
class Job:
    """What Hydra calls for a run in its directory, in a sweep for each point.

    A launcher may pickle it for another process, where its session is empty.
    """

    session: Session = field(default_factory=Session)

    def __call__(self, cfg: Any) -> dict[str, Any] | None:
        return concluded(lambda: _run(cfg, self.session))


def concluded(produce: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """What `produce` returns; its failure is recorded in the directory of Hydra's current job."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from kd_cli.errors import ConfigError, failure_line

    settings = HydraConfig.get()
    out = Path(settings.runtime.output_dir)
    sweeping = settings.mode == RunMode.MULTIRUN
    fresh = {p.name for p in out.iterdir()} <= {".hydra", "kd.log"}
    (out / "error.json").unlink(missing_ok=True)
    try:
        return produce()
    except ConfigError as error:
        if sweeping:
            _record_failure(out, error, "")
            raise RunFailed(str(error)) from error
        if fresh and not any(out.glob("*/metrics.json")):  # a finished round stays
            _remove_fresh(out)
        outcome.append(error)
    except Exception as error:
        _record_failure(out, error, traceback.format_exc())
        failure = RunFailed(f"{failure_line(error)} (traceback: {os.path.relpath(out)}/kd.log)")
        traceback.clear_frames(error.__traceback__)  # they hold the engine, and Hydra the error
        failure.__cause__ = error
        if sweeping:
            raise failure from error
        outcome.append(failure)
    return None


def _run(cfg: Any, session: Session) -> dict[str, Any]:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from kd_cli.commands import execute
    from kd_cli.config.check import check
    from kd_cli.runs.resolvers import register_resolvers
    from kd_cli.training.train import Run

    register_resolvers()  # a launcher's process has not been through main
    settings = HydraConfig.get()
    out, typed = Path(settings.runtime.output_dir), list(settings.overrides.task)
    sweeping = settings.mode == RunMode.MULTIRUN
    plan = check(cfg, typed)
    if sweeping:
        log.info("point %s", out.name)
    return execute.execute(Run(plan, out, typed), session, table=not sweeping)


def _record_failure(out: Path, error: Exception, text: str) -> None:
    """The traceback into the run's log, and `error.json`; a full disk must not hide the cause."""
    from kd_cli.files import write_json

    message = str(error).strip() or type(error).__name__
    try:
        with open(out / "kd.log", "a") as file:
            file.write(text or f"{message}\n")
        write_json(
            out / "error.json",
            {"error": type(error).__name__, "message": message, "traceback": text},
        )
    except OSError as problem:
        print(f"kd: could not write {out}/error.json: {problem}", file=sys.stderr)


def _remove_fresh(out: Path) -> None:
    """Removes a directory that this run created, and the parents that are empty without it.

    Not when another process that was started at the same moment is at work in it.
    """
    from kd_cli.errors import ConfigError
    from kd_cli.runs.ownership import lock

    for handler in logging.root.handlers[:]:
        if isinstance(handler, logging.FileHandler):
            logging.root.removeHandler(handler)
            handler.close()
    try:
        with lock(out):
            shutil.rmtree(out, ignore_errors=True)
    except ConfigError:
        return
    for parent in out.parents:
        if parent == Path.cwd() or not parent.is_relative_to(Path.cwd()):
            return
        try:
            parent.rmdir()
        except OSError:  # not empty
            return
