"""Joint sweeps: the points that can share one graph train together, the others one after another.

One pass over the data and one teacher serve all points of a group. Each point leaves what a single
run leaves; Hydra's own `run_job` then hands over the finished result, so `.hydra/` and failures
are those of any sweep (callbacks see each job after its training).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.utils import JobReturn, configure_log, run_job, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from kd_cli.commands.execute import execute_together
from kd_cli.commands.job import Job
from kd_cli.config.plans import has_rounds
from kd_cli.runs.asked import Run
from kd_cli.runs.directory import finished
from kd_cli.runs.identity import digest, run_id, run_spec
from kd_cli.runs.session import Session
from kd_cli.terminal import ConsoleHandler
from kd_cli.training.train import Result

log = logging.getLogger("kd")


@dataclass(frozen=True)
class Point:
    number: int
    config: DictConfig
    run: Run


def launch(
    context: HydraContext,
    config: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    first: int,
    max_points: int,
    job: Job,
) -> list[JobReturn]:
    """Trains all points, group by group; returns what Hydra expects of a launcher, in order."""
    setup_globals()
    points = [
        _point(context, config, overrides, first + number, job)
        for number, overrides in enumerate(job_overrides)
    ]
    returned: dict[int, JobReturn] = {}
    for group in groups([point.run for point in points], max_points):
        members = [points[number] for number in group]
        configure_log(config.hydra.hydra_logging, config.hydra.verbose)
        results = _train([member.run for member in members], job.session)
        for number, member, result in zip(group, members, results, strict=True):
            returned[number] = run_job(
                hydra_context=context,
                task_function=_handing_over(result, job, member.run),
                config=member.config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    return [returned[number] for number in range(len(points))]


def groups(runs: list[Run], max_points: int) -> list[list[int]]:
    """Numbers of the runs that can train together, in groups of at most `max_points`."""
    found: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        found.setdefault(_shared(run.plan), []).append(number)
    return [
        group[start : start + max_points]
        for group in found.values()
        for start in range(0, len(group), max_points)
    ]


def _shared(plan: DictConfig) -> str:
    """Equal for runs that see the same batches and the same teacher, with the same kind of step.

    They may differ in initial weights, loss with its options, class weights, learning rate, epochs
    and the average of the weights.
    """
    if has_rounds(plan):
        return run_id(plan)  # its rounds are trainings of their own
    spec = run_spec(plan)
    spec["schedule"].pop("learning_rate", None)
    for key in ("init_seed", "loss", "class_weights", "learning_rate", "epochs", "ema"):
        spec.pop(key, None)
    return digest([spec, plan.device, plan.memory_gib], 32)


def _point(
    context: HydraContext, config: DictConfig, overrides: Sequence[str], number: int, job: Job
) -> Point:
    composed = context.config_loader.load_sweep_config(config, list(overrides))
    run = job.runs.point(composed, number)
    with open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = number
        composed.hydra.runtime.output_dir = os.path.abspath(run.out)
    configuration = {
        "config.yaml": OmegaConf.masked_copy(composed, [k for k in composed if k != "hydra"]),
        "hydra.yaml": OmegaConf.masked_copy(composed, "hydra"),
        "overrides.yaml": run.typed,
    }
    return Point(number, composed, dataclasses.replace(run, configuration=configuration))


def _train(runs: list[Run], session: Session) -> list[Result]:
    unfinished = {run.out for run in runs if finished(run) is None}
    with _messages(len(unfinished)):
        if len(unfinished) > 1:
            log.info("%d points train together", len(unfinished))
        return execute_together(runs, session)


def _handing_over(result: Result, job: Job, run: Run) -> Any:
    def produce() -> dict[str, Any]:
        if isinstance(result, Exception):
            raise result
        return result

    return lambda cfg: job.conclude(produce, run)


@contextlib.contextmanager
def _messages(points: int) -> Iterator[None]:
    """Messages go to the terminal; of several points' epochs only their mean does."""
    console = ConsoleHandler()
    if points > 1:
        console.addFilter(lambda record: not getattr(record, "out", None))
    level, log.propagate = log.level, False
    log.setLevel(logging.INFO)
    log.addHandler(console)
    try:
        yield
    finally:
        log.removeHandler(console)
        log.setLevel(level)
        log.propagate = True
