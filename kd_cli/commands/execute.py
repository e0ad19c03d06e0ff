"""The commands, from data to result; runs that share data and teacher train together."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from kd_cli.commands.result_table import print_result, print_rounds
from kd_cli.commands.table import COMMANDS, load
from kd_cli.config.plans import has_rounds
from kd_cli.data.dataset import load_dataset
from kd_cli.runs.asked import Run
from kd_cli.runs.directory import at_work, finished
from kd_cli.runs.ownership import inputs, refuse_other_inputs
from kd_cli.runs.record import Record
from kd_cli.runs.session import Session
from kd_cli.terminal import shown
from kd_cli.training import assembly, checkpoints
from kd_cli.training.trackers import conclude, tell_of_finished, trackers_of
from kd_cli.training.train import Result, Results

log = logging.getLogger("kd")


def execute(
    run: Run, session: Session, table: bool = True, alone: bool = False, wait: bool = False
) -> Record:
    """Runs a checked configuration, or answers with its finished result.

    Args:
        run: Its directory is made where it is missing.
        session: Of the command.
        table: Whether to print the result (a sweep prints one table at its end).
        alone: As `directory.at_work`.
        wait: Whether to wait for another process that holds the directory.

    Returns:
        Its record.

    Raises:
        Busy: Without `wait`, when another process holds the directory.
    """
    (result,) = execute_together([run], session, alone, wait)
    if isinstance(result, Exception):
        raise result
    if table and "rounds" in result:
        print_rounds(result, run.out)
    elif table:
        print_result(result, run)
    return result


def execute_together(
    runs: list[Run], session: Session, alone: bool = False, wait: bool = False
) -> list[Result]:
    """Runs configurations that share data, batches and teacher, in one graph.

    Args:
        runs: Of a sweep, or one by itself.
        session: Of the command.
        alone: As `directory.at_work`.
        wait: Whether to wait for another process that holds a directory; for one run at a time.

    Returns:
        Their results in order. A run that fails for itself (another process holds its directory,
        its loss is not finite) leaves the others alone; what concerns all is the result of all.
    """
    started = time.monotonic()
    results: Results = {}
    with contextlib.ExitStack() as held:
        found: dict[Path, tuple[Run, Record | None]] = {}
        for run in {run.out: run for run in runs}.values():  # two points may be the same run
            with _failing_alone(run, results):
                record = finished(run)
                if record is None:
                    held.enter_context(at_work(run, runs, results, alone, wait))
                    record = finished(run)
                if record is None:
                    trackers_of(run, session)  # their mistakes, before the data are read
                found[run.out] = run, record
        try:
            if found:
                results |= _results(found, started, session)
        except Exception as error:
            for out in found:
                results.setdefault(out, error)  # in place: what holds the directories reads it
        finally:
            for run, _ in found.values():
                conclude(run, session, results.get(run.out), alone)
    return [results[run.out] for run in runs]


def _results(
    found: dict[Path, tuple[Run, Record | None]], started: float, session: Session
) -> Results:
    """The results of runs that are finished, or held by this process."""
    results: Results = {}
    first, _ = next(iter(found.values()))
    dataset = load_dataset(first.plan.dataset, first.plan.device)
    unfinished = []
    for run, record in found.values():
        with _failing_alone(run, results):
            if record is None:
                assembly.check_labels(run.plan, dataset)
                unfinished.append(run)
            else:
                refuse_other_inputs(record["inputs"], inputs(run.plan, dataset), run.out)
                log.info("%s is finished; rerun=true makes a new run beside it", shown(run.out))
                tell_of_finished(run)
                if not has_rounds(run.plan):  # (each round has its own)
                    done = record["epochs_done"]
                    checkpoints.tell_of_missing(run.out, run.plan.checkpoint.every, done)
                results[run.out] = record
    if unfinished:
        train = load(COMMANDS[unfinished[0].plan.command].trains)
        results |= train(unfinished, dataset, started, session)
    return results


@contextlib.contextmanager
def _failing_alone(run: Run, results: Results) -> Iterator[None]:
    """What fails in one run becomes its result, and leaves the others alone."""
    try:
        yield
    except Exception as error:
        results[run.out] = error
