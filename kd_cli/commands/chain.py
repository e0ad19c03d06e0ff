"""`kd chain`: distils step by step; each student is the teacher of the next one.

With students of falling size these are teacher assistants (Mirzadeh et al. 2020), with generations
of one student born-again networks (Furlanello et al. 2018). Each link is an ordinary run of distill
whose teacher is the run before, so finished links are not repeated, and an interrupted chain
continues.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kd_cli.commands.job import Job, is_sweep, start
from kd_cli.commands.several_students import overrides_of_each
from kd_cli.commands.table import Request
from kd_cli.config.check import check
from kd_cli.config.compose import compose
from kd_cli.config.overrides import is_typed, override_key, place_of
from kd_cli.config.quoting import quoted
from kd_cli.errors import ConfigError
from kd_cli.report.columns import In, columns
from kd_cli.runs.asked import Runs
from kd_cli.runs.finished import FinishedRun, read
from kd_cli.runs.resolvers import register_resolvers
from kd_cli.runs.session import Session
from kd_cli.terminal import print_table, shown


def run(request: Request) -> int:
    """Trains the chain's links, one after another, and prints a table of them all."""
    if is_sweep(request.flags):
        raise ConfigError("chain trains one chain; remove --multirun, and type seed=1 for another")
    parts = links(request.overrides)
    session, before, found = Session(), None, []
    register_resolvers(Runs(request.config_dir))
    for typed in parts:  # the mistakes of all, before the first is trained
        check(compose(request.command.config, typed, request.config_dir), typed)
    for typed in parts:
        overrides = typed if before is None else taught_by(typed, before)
        runs = Runs(request.config_dir)
        register_resolvers(runs)
        cfg = compose(request.command.config, overrides, request.config_dir)
        one = runs.single(cfg)
        job = Job(runs, session)
        print(f"link {len(found) + 1} of {len(parts)}: {one.plan.student.name}, {shown(one.out)}")
        asked = Request(request.command, overrides, request.flags, request.config_dir)
        start(cfg, one.out, asked, job)
        if job.failure is not None:
            raise job.failure
        before = one.out
        found.append(before)
    _conclude(found)
    return 0


def links(overrides: list[str]) -> list[list[str]]:
    """The overrides of each link, without its teacher.

    Args:
        overrides: As typed: those of distill, `student=A,B,C` or `generations=N`.

    Raises:
        ConfigError: A mistake in what was typed.
    """
    for override in overrides:
        if override_key(override) == "rerun":
            raise ConfigError(f"chain reuses finished runs; remove {override}")
    needs = (
        "chain needs students, from large to small, as in student=resnet32,resnet8; or generations "
        "of one student, as in generations=3"
    )
    return overrides_of_each(overrides, "generations", "chain trains one chain", needs)


def taught_by(typed: list[str], folder: Path) -> list[str]:
    """The overrides of a later link: its teacher is the run in `folder`."""
    kept = [o for o in typed if not is_typed("teacher", [o]) and place_of(o) != "teacher_dir"]
    return [*kept, f"teacher.checkpoint={quoted(shown(folder))}"]


def _conclude(folders: list[Path]) -> None:
    runs = [one for one in map(read, folders) if one is not None]
    rows = {f"teacher: {runs[0].record.teacher.name}": runs[0].teacher}
    rows |= {f"link {number}": one for number, one in enumerate(runs, 1)}
    measured = columns(In.RUN, list(rows.values()))
    print_table(
        f"{runs[0].record.dataset.name}: a chain of {len(runs)} students, one seed",
        ["", *[column.header for column in measured]],
        [[name, *_cells(measured, one)] for name, one in rows.items()],
    )
    for number, folder in enumerate(folders, 1):
        print(f"link {number}: {shown(folder)}")


def _cells(measured: list[Any], run: FinishedRun) -> list[str]:
    return [column.cell(column.value(run)) for column in measured]
