"""Hands runs over to Hydra, each checked before, and concludes each in its directory."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_cli.commands.sweep import expand, finish
from kd_cli.commands.table import Request
from kd_cli.config.compose import compose, known_keys, main_dir, register
from kd_cli.config.messages import explain, explain_hydra
from kd_cli.config.overrides import is_typed, override_key
from kd_cli.errors import ConfigError, RunFailed, failure_line
from kd_cli.runs.asked import Run, Runs
from kd_cli.runs.identity import sweep_id
from kd_cli.runs.ownership import Busy
from kd_cli.runs.resolvers import register_resolvers
from kd_cli.runs.session import Session
from kd_cli.terminal import messages
from kd_cli.training.trackers import check_options

log = logging.getLogger("kd")


class Job:
    """One run, called by Hydra in its directory; in a sweep maybe in a launcher's process.

    Attributes:
        runs: Those that were checked before Hydra began.
        session: What they share in memory; empty in a launcher's process.
        failure: Why a single run ended. (Raised through Hydra, its own words would come first.)
        failed: Why points failed, by their directories; not those of a launcher's process.
        busy: Points that another process holds, to be looked at again.
    """

    def __init__(self, runs: Runs, session: Session) -> None:
        self.runs = runs
        self.session = session
        self.failure: Exception | None = None
        self.failed: dict[Path, str] = {}
        self.busy: list[Run] = []
        self.away = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.away = True  # in a launcher's process, which has not been through `run`
        register_resolvers(self.runs)

    def __call__(self, cfg: Any) -> dict[str, Any] | None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from kd_cli.commands.execute import execute

        settings = HydraConfig.get()
        out, typed = Path(settings.runtime.output_dir), list(settings.overrides.task)
        alone = settings.mode != RunMode.MULTIRUN
        configuration = {
            "config.yaml": cfg,
            "hydra.yaml": HydraConfig.instance().cfg,
            "overrides.yaml": typed,
        }
        run = Run(self.runs.plan(cfg, typed), out, typed, configuration)
        if not alone:
            log.info("point %s", out.name)
        # A launcher's process has but this point: it waits.
        options = {"table": alone, "alone": alone, "wait": self.away}
        return self.conclude(lambda: execute(run, self.session, **options), run, alone)

    def conclude(
        self, produce: Callable[[], dict[str, Any]], run: Run, alone: bool = False
    ) -> dict[str, Any] | None:
        """What `produce` returns; its failure as Hydra is to get it."""
        try:
            return produce()
        except Busy as error:
            if not alone:
                self.busy.append(run)
                return None
            failure: Exception = error
        except ConfigError as error:
            failure = error if alone else RunFailed(str(error))
        except Exception as error:
            text = failure_line(error)
            if (run.out / "error.json").exists():  # else the disk takes nothing
                text += f" (traceback: {os.path.relpath(run.out)}/kd.log)"
            failure = RunFailed(text)
            traceback.clear_frames(error.__traceback__)  # they hold the engine, and Hydra the error
            failure.__cause__ = error
        if not alone:
            self.failed[run.out] = str(failure)
            raise failure
        self.failure = failure
        return None

    def look_again(self) -> None:
        """Waits for the points that another process held; trains those that it did not finish."""
        from kd_cli.commands.execute import execute

        busy, self.busy = self.busy, []
        for run in busy:
            with messages(), contextlib.suppress(RunFailed):
                produce = functools.partial(execute, run, self.session, table=False, wait=True)
                self.conclude(produce, run)


def run(request: Request) -> int:
    """Trains what the command names: a single run, or with --multirun every point of a sweep."""
    if is_sweep(request.flags):
        return train(prepare(request), Session())
    runs = Runs()
    register_resolvers(runs)
    overrides = request.overrides
    one = runs.single(compose(request.command.config, overrides, request.config_dir))
    if not is_typed("hydra.run.dir", overrides):
        overrides = [*overrides, f"hydra.run.dir={quoted(one.out)}"]
    job = Job(runs, Session())
    code = hand_over(request, overrides, job)
    if job.failure is not None:
        raise job.failure
    return code


def is_sweep(flags: list[str]) -> bool:
    """Whether the flags ask for a sweep."""
    return "--multirun" in flags or "-m" in flags


def quoted(path: Path) -> str:
    """A path as the value of an override, whatever characters it has."""
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


@dataclass(frozen=True)
class Sweep:
    """A sweep whose points have all been checked.

    Attributes:
        request: Its overrides name the sweep.
        runs: With a plan for each point.
        found: The points, each directory once.
    """

    request: Request
    runs: Runs
    found: list[Run]

    @property
    def points(self) -> list[Path]:
        """Their directories."""
        return [run.out for run in self.found]


def prepare(request: Request) -> Sweep:
    """Checks every point of a sweep before the first one starts.

    Raises:
        ConfigError: A mistake in any of them, a tracker that refuses its options, or two points
            that would write to one directory.
    """
    command, overrides = request.command, request.overrides
    runs = Runs()
    register_resolvers(runs)
    if any(override_key(o) == "hydra.sweeper" for o in overrides):
        # Another sweeper reads its own ranges and finds its points as it goes.
        points, unswept = [[o for o in overrides if "(" not in o and "," not in o]], overrides
    else:
        points, swept = expand(overrides, request.config_dir)
        unswept = [o for o in overrides if override_key(o) not in swept]
    if not is_typed("sweep", overrides):
        overrides = [*overrides, f"sweep={sweep_id(command.word, unswept)}"]
        points = [[*point, overrides[-1]] for point in points]
    found: dict[Path, Run] = {}
    for number, point in enumerate(points):
        one = runs.point(compose(command.config, point, request.config_dir), number)
        other = found.setdefault(one.out, one)
        if other.plan != one.plan:
            raise ConfigError(
                f"two points of the sweep would write to {one.out} ({' '.join(other.typed)}; "
                f"{' '.join(one.typed)}); leave hydra.sweep.subdir out, or give each its own"
            )
    check_options(one.plan for one in found.values())
    request = Request(command, overrides, request.flags, request.config_dir, request.words)
    return Sweep(request, runs, list(found.values()))


def train(sweep: Sweep, session: Session, table: bool = True) -> int:
    """Trains a sweep's points and prints its table; 1 when one failed."""
    register_resolvers(sweep.runs)  # another sweep may have been prepared since
    job, code = Job(sweep.runs, session), 1
    try:
        try:
            if _takes_nothing(sweep.points[0].parent):  # Hydra would write there
                job.busy, code = sweep.found, 0
            else:
                code = hand_over(sweep.request, sweep.request.overrides, job)
        except RunFailed:
            code = 1  # the sweep's end names every failed point
        job.look_again()
    finally:
        failed = 0
        for folder in dict.fromkeys(out.parent for out in sweep.points):
            names = {out.name for out in sweep.points if out.parent == folder}
            there = folder.resolve()
            own = {o.name: why for o, why in job.failed.items() if o.parent.resolve() == there}
            with messages():
                failed += finish(folder, names, table, own)
    return 1 if failed else code


def _takes_nothing(folder: Path) -> bool:
    """Whether a folder lies on a disk that can only be read."""
    return folder.is_dir() and not os.access(folder, os.W_OK)


def hand_over(request: Request, overrides: list[str], job: Callable[..., Any]) -> int:
    """Calls Hydra with all overrides before the flags; returns its exit code."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    register()
    config = request.command.config
    saved = sys.argv
    sys.argv = [saved[0] if saved else "kd", *overrides, *request.flags]
    try:
        hydra.main(
            version_base="1.3", config_path=main_dir(request.config_dir), config_name=config
        )(job)()
        return 0
    except HydraException as error:
        raise ConfigError(explain_hydra(error, known_keys(config, overrides))) from error
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = saved
