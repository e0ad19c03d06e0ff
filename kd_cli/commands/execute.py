"""The commands, from data to result; runs that share data and teacher train together."""

from __future__ import annotations

import contextlib
import logging
import time

from kd_cli.commands.result_table import print_result, print_rounds
from kd_cli.commands.table import COMMANDS, load
from kd_cli.data.dataset import load_dataset
from kd_cli.device import request
from kd_cli.errors import ConfigError
from kd_cli.runs.asked import Run
from kd_cli.runs.ownership import inputs, lock, refuse_other_inputs
from kd_cli.runs.record import Record
from kd_cli.terminal import shown
from kd_cli.training import assembly
from kd_cli.training.train import Result, Results

log = logging.getLogger("kd")


def execute(run: Run, table: bool = True) -> Record:
    """Runs a checked configuration, or answers with its finished result.

    Args:
        run: Its directory exists.
        table: Whether to print the result (a sweep prints one table at its end).

    Returns:
        Its record.
    """
    (result,) = execute_together([run])
    if isinstance(result, Exception):
        raise result
    if table and "rounds" in result:
        print_rounds(result, run.out)
    elif table:
        print_result(result, run.plan, run.out, run.typed)
    return result


def execute_together(runs: list[Run]) -> list[Result]:
    """Runs configurations that share data, batches and teacher, in one graph.

    Returns:
        Their results in order. A run that fails for itself (another process holds its directory,
        its loss is not finite) leaves the others alone; what concerns all is raised.
    """
    started = time.monotonic()
    request(runs[0].plan.device)
    dataset = load_dataset(runs[0].plan.dataset)
    results: Results = {}
    with contextlib.ExitStack() as locks:
        unfinished = []
        for run in {run.out: run for run in runs}.values():  # two points may be the same run
            try:
                locks.enter_context(lock(run.out))
                record = finished(run)
                if record is None:
                    assembly.check_labels(run.plan, dataset)
                    unfinished.append(run)
                else:
                    refuse_other_inputs(record["inputs"], inputs(run.plan, dataset), run.out)
                    log.info("%s is finished; rerun=true makes a new run beside it", shown(run.out))
                    results[run.out] = record
            except ConfigError as error:
                results[run.out] = error
        if unfinished:
            train = load(COMMANDS[unfinished[0].plan.command].trains)
            results |= train(unfinished, dataset, started)
    return [results[run.out] for run in runs]


def finished(run: Run) -> Record | None:
    """The record of a finished run; None while there is something to do."""
    record = Record.read(run.out)
    if record is not None and len(record.get("rounds", ())) <= run.plan.get("rounds", -1):
        return None  # more rounds are wanted than were
    return record
