"""Hands runs over to Hydra, each checked before, and concludes each in its directory."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_cli.commands.sweep import expand, finish, without_helpers
from kd_cli.commands.table import Request
from kd_cli.config.compose import compose, initialized, known_keys
from kd_cli.config.messages import explain, explain_hydra
from kd_cli.config.overrides import is_typed, override_key
from kd_cli.errors import ConfigError, RunFailed, failure_line, first_line, was_interrupted
from kd_cli.runs.asked import Run, Runs, typed_for
from kd_cli.runs.identity import sweep_id
from kd_cli.runs.ownership import Busy
from kd_cli.runs.resolvers import register_resolvers
from kd_cli.runs.session import Session
from kd_cli.terminal import messages
from kd_cli.training.trackers import check_options

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger("kd")


# Keys that count in a sweep alone.
_OF_SWEEPS = ("sweep", "hydra.launcher", "hydra.sweeper", "hydra.sweep.dir", "hydra.sweep.subdir")


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
        out, typed = Path(settings.runtime.output_dir), typed_for(settings)
        alone = settings.mode != RunMode.MULTIRUN
        configuration = {
            "config.yaml": cfg,
            "hydra.yaml": HydraConfig.instance().cfg,
            "overrides.yaml": typed,
        }
        run = Run(self.runs.plan(cfg, typed), out, typed, self.runs.config_dir, configuration)
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
            if was_interrupted(error):
                raise KeyboardInterrupt from error
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
    overrides = request.overrides
    refuse_sweeping(overrides, "add --multirun, or leave it out")
    runs = Runs(request.config_dir)
    register_resolvers(runs)
    cfg = compose(request.command.config, overrides, request.config_dir)
    one = runs.single(cfg)
    job = Job(runs, Session())
    start(cfg, one.out, request, job)
    if job.failure is not None:
        raise job.failure
    return 0


def refuse_sweeping(overrides: list[str], instead: str) -> None:
    """Refuses keys that count in a sweep alone, with what to type instead."""
    for override in overrides:
        if override_key(override) in _OF_SWEEPS:
            raise ConfigError(f"{override} says how to sweep: {instead}")


def is_sweep(flags: list[str]) -> bool:
    """Whether the flags ask for a sweep."""
    return "--multirun" in flags


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
    overrides = [o for o in overrides if o != "sweep=null"]  # its default
    runs = Runs(request.config_dir)
    register_resolvers(runs)
    if any(override_key(o) == "hydra.sweeper" for o in overrides):
        # Another sweeper reads its own ranges and finds its points as it goes.
        points, unswept = [[o for o in overrides if "(" not in o and "," not in o]], overrides
    else:
        overrides = without_helpers(overrides, request.config_dir)
        points, swept = expand(overrides, request.config_dir)
        hydra = compose(command.config, points[0], request.config_dir).hydra
        sweeper, most = hydra.sweeper, hydra.launcher.get("max_points", 1)
        if not isinstance(most, int) or most < 1:
            raise ConfigError(
                f"hydra.launcher.max_points={most} must be a whole number, at least 1"
            )
        batch = sweeper.get("max_batch_size")
        if batch is not None and batch < 1:
            raise ConfigError(f"hydra.sweeper.max_batch_size={batch} must be at least 1, or null")
        if sweeper.get("params"):  # of a YAML; Hydra puts them before what was typed, which wins
            params = [f"{key}={value}" for key, value in sweeper.params.items()]
            points, swept = expand([*params, *overrides], request.config_dir)
        if "sweep" in swept:
            raise ConfigError("sweep names the one folder of a sweep: type one value (in quotes)")
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
                multirun(sweep.request, job)
                code = 0
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


class _Callbacks:
    """The callbacks of `hydra.callbacks`, as Hydra's job calls them: on_job_start(...), ..."""

    def __init__(self, nodes: DictConfig | None) -> None:
        from hydra.utils import instantiate

        self._each = [instantiate(node) for node in (nodes or {}).values()]

    def __getattr__(self, event: str) -> Callable[..., None]:
        def call(**about: Any) -> None:
            for callback in self._each:
                getattr(callback, event)(**about)

        return call


def start(cfg: DictConfig, out: Path, request: Request, job: Callable[..., Any]) -> None:
    """Lets Hydra run a single job of a configuration that is composed already, in `out`.

    (`hydra.main` would compose it twice more, a quarter of a second each.)
    """
    from hydra.core.utils import configure_log, run_job
    from hydra.types import HydraContext, RunMode
    from omegaconf import read_write

    with read_write(cfg.hydra):
        cfg.hydra.mode = RunMode.RUN
        cfg.hydra.run.dir = str(out)
    with initialized(request.config_dir) as hydra:
        callbacks = _Callbacks(cfg.hydra.callbacks)
        name = request.command.config
        callbacks.on_run_start(config=cfg, config_name=name)
        try:
            configure_log(cfg.hydra.hydra_logging, cfg.hydra.verbose)
            done = run_job(
                job, cfg, "hydra.run.dir", None, HydraContext(hydra.config_loader, callbacks)
            )
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            # The job's own errors do not come this way: this is of logging's configuration.
            with contextlib.suppress(OSError):  # Hydra has made the run's folder
                for folder in (out, *([] if out.is_absolute() else out.parents)):
                    folder.rmdir()  # until one is not empty
            raise ConfigError(f"Hydra can't do this: {first_line(error)}") from error
        callbacks.on_run_end(config=cfg, config_name=name, job_return=done)
        _ = done.return_value  # raises what the job raised


def multirun(request: Request, job: Callable[..., Any]) -> None:
    """Lets Hydra run the points of a sweep, through the launcher and sweeper that were chosen."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    config, overrides = request.command.config, [*request.overrides, "hydra.mode=MULTIRUN"]
    try:
        with initialized(request.config_dir) as hydra:
            hydra.multirun(config, job, overrides)
    except HydraException as error:
        raise ConfigError(
            explain_hydra(error, known_keys(config, overrides), overrides, config)
        ) from error
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        # A job's own errors do not come this way: these are of Hydra, a sweeper or a launcher.
        raise ConfigError(f"Hydra can't do this: {first_line(error)}") from error
