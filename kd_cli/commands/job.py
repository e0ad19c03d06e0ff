"""Hands runs over to Hydra, each checked before, and concludes each in its directory."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_cli.commands.sweep import expand, finish, without_helpers
from kd_cli.commands.table import Request
from kd_cli.config.compose import compose, known_keys, main_dir, register
from kd_cli.config.messages import explain, explain_hydra
from kd_cli.config.overrides import is_typed, override_key
from kd_cli.config.quoting import quoted
from kd_cli.errors import ConfigError, RunFailed, failure_line, first_line
from kd_cli.files import write_json
from kd_cli.runs.asked import Run, Runs
from kd_cli.runs.identity import sweep_id
from kd_cli.runs.ownership import lock
from kd_cli.runs.resolvers import register_resolvers
from kd_cli.runs.session import Session

log = logging.getLogger("kd")


# Keys that count in a sweep alone.
_OF_SWEEPS = ("sweep", "hydra.launcher", "hydra.sweeper", "hydra.sweep.dir", "hydra.sweep.subdir")


class Job:
    """One run, called by Hydra in its directory; in a sweep maybe in a launcher's process.

    Attributes:
        runs: Those that were checked before Hydra began.
        session: What they share in memory; empty in a launcher's process.
        failure: Why a single run ended. (Raised through Hydra, its own words would come first.)
    """

    def __init__(self, runs: Runs, session: Session) -> None:
        self.runs = runs
        self.session = session
        self.failure: Exception | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        register_resolvers(self.runs)  # a launcher's process has not been through `run`

    def __call__(self, cfg: Any) -> dict[str, Any] | None:
        return self.conclude(lambda: self._run(cfg))

    def _run(self, cfg: Any) -> dict[str, Any]:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from kd_cli.commands.execute import execute

        settings = HydraConfig.get()
        out, typed = Path(settings.runtime.output_dir), list(settings.overrides.task)
        sweeping = settings.mode == RunMode.MULTIRUN
        plan = self.runs.plan(cfg, typed)
        if sweeping:
            log.info("point %s", out.name)
        run = Run(plan, out, typed, self.runs.config_dir)
        return execute(run, self.session, table=not sweeping)

    def conclude(self, produce: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """What `produce` returns; its failure is recorded in the directory of Hydra's job."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

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
            finished = [*out.glob("metrics.json"), *out.glob("*/metrics.json")]  # a round's too
            if fresh and not finished:
                _remove_fresh(out)
            self.failure = error
        except Exception as error:
            _record_failure(out, error, traceback.format_exc())
            failure = RunFailed(f"{failure_line(error)} (traceback: {os.path.relpath(out)}/kd.log)")
            traceback.clear_frames(error.__traceback__)  # they hold the engine, and Hydra the error
            failure.__cause__ = error
            if sweeping:
                raise failure from error
            self.failure = failure
        return None


def run(request: Request) -> int:
    """Trains what the command names: a single run, or with --multirun every point of a sweep."""
    if is_sweep(request.flags):
        return train(prepare(request), Session())
    overrides = request.overrides
    for override in overrides:
        if override_key(override) in _OF_SWEEPS:
            raise ConfigError(f"{override} says how to sweep: add --multirun, or leave it out")
    runs = Runs(request.config_dir)
    register_resolvers(runs)
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
    return "--multirun" in flags


@dataclass(frozen=True)
class Sweep:
    """A sweep whose points have all been checked.

    Attributes:
        request: Its overrides name the sweep.
        runs: With a plan for each point.
        points: Their directories.
    """

    request: Request
    runs: Runs
    points: list[Path]


def prepare(request: Request) -> Sweep:
    """Checks every point of a sweep before the first one starts.

    Raises:
        ConfigError: A mistake in any of them, or two points that would write to one directory.
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
        sweeper = compose(command.config, points[0], request.config_dir).hydra.sweeper
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
    request = Request(command, overrides, request.flags, request.config_dir, request.words)
    return Sweep(request, runs, list(found))


def train(sweep: Sweep, session: Session, table: bool = True) -> int:
    """Trains a sweep's points and prints its table; 1 when one failed."""
    code = 1
    try:
        code = hand_over(sweep.request, sweep.request.overrides, Job(sweep.runs, session))
    except RunFailed:
        code = 1  # the sweep's end names every failed point
    finally:
        failed = 0
        for folder in dict.fromkeys(out.parent for out in sweep.points):
            names = {out.name for out in sweep.points if out.parent == folder}
            failed += finish(folder, names, table)
    return 1 if failed else code


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
        raise ConfigError(explain_hydra(error, known_keys(config, overrides), overrides)) from error
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    except SystemExit as stop:
        return int(stop.code or 0)
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        # A job's own errors do not come this way: these are of Hydra, a sweeper or a launcher.
        raise ConfigError(f"Hydra can't do this: {first_line(error)}") from error
    finally:
        sys.argv = saved


def _record_failure(out: Path, error: Exception, text: str) -> None:
    """The traceback into the run's log, and `error.json`; a full disk must not hide the cause."""
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
