"""The commands, from data to result; runs that share data and teacher train together."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator

from kd_cli.commands.result_table import print_result, print_rounds
from kd_cli.commands.table import COMMANDS, load
from kd_cli.data.dataset import load_dataset
from kd_cli.errors import ConfigError
from kd_cli.runs.asked import Run
from kd_cli.runs.ownership import inputs, lock, refuse_other_inputs
from kd_cli.runs.record import Record
from kd_cli.runs.session import Session
from kd_cli.terminal import shown
from kd_cli.training import assembly
from kd_cli.training.trackers import trackers_of
from kd_cli.training.train import Result, Results

log = logging.getLogger("kd")


def execute(run: Run, session: Session, table: bool = True) -> Record:
    """Runs a checked configuration, or answers with its finished result.

    Args:
        run: Its directory exists.
        session: Of the command.
        table: Whether to print the result (a sweep prints one table at its end).

    Returns:
        Its record.
    """
    (result,) = execute_together([run], session)
    if isinstance(result, Exception):
        raise result
    if table and "rounds" in result:
        print_rounds(result, run.out)
    elif table:
        print_result(result, run)
    return result


def execute_together(runs: list[Run], session: Session) -> list[Result]:
    """Runs configurations that share data, batches and teacher, in one graph.

    Args:
        runs: Their directories exist.
        session: Of the command.

    Returns:
        Their results in order. A run that fails for itself (another process holds its directory,
        its loss is not finite) leaves the others alone; what concerns all is raised.
    """
    started = time.monotonic()
    results: Results = {}
    with contextlib.ExitStack() as locks:
        found = {}
        for run in {run.out: run for run in runs}.values():  # two points may be the same run
            with _failing_alone(run, results):
                locks.enter_context(lock(run.out))
                record = finished(run)
                if record is None:
                    trackers_of(run, session)  # their mistakes, before the data are read
                found[run.out] = run, record
        if not found:
            return [results[run.out] for run in runs]
        dataset = load_dataset(runs[0].plan.dataset, runs[0].plan.device)
        unfinished = []
        for run, record in found.values():
            with _failing_alone(run, results):
                if record is None:
                    assembly.check_labels(run.plan, dataset)
                    unfinished.append(run)
                else:
                    refuse_other_inputs(record["inputs"], inputs(run.plan, dataset), run.out)
                    log.info("%s is finished; rerun=true makes a new run beside it", shown(run.out))
                    for name in run.plan.get("tracker") or ():
                        log.warning("tracker.%s is told nothing of a run that is finished", name)
                    results[run.out] = record
        if unfinished:
            train = load(COMMANDS[unfinished[0].plan.command].trains)
            results |= train(unfinished, dataset, started, session)
    return [results[run.out] for run in runs]


@contextlib.contextmanager
def _failing_alone(run: Run, results: Results) -> Iterator[None]:
    """A mistake in one run becomes its result, and leaves the others alone."""
    try:
        yield
    except ConfigError as error:
        results[run.out] = error


def finished(run: Run) -> Record | None:
    """The record of a finished run; None while there is something to do."""
    record = Record.read(run.out)
    if record is not None and len(record.get("rounds", ())) <= run.plan.get("rounds", -1):
        return None  # more rounds are wanted than were
    return record
