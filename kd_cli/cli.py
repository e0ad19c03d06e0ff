"""The `kd` entrypoint: the command's word picks a row of the table; errors become one line.

Nothing here imports TensorFlow, and the help page not even Hydra.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback

from kd_cli import __version__
from kd_cli.commands.table import load
from kd_cli.errors import ConfigError, RunFailed, failure_line
from kd_cli.streams import patient


def main(argv: list[str] | None = None) -> int:
    """Runs `kd` and returns its exit code: 0, 1 a run failed, 2 a user's mistake, 130 Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    traceback_wanted = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # A log that can't be written (a full disk) is no reason for a traceback in the terminal: what
    # the run itself can't write ends it, with one line.
    logging.raiseExceptions = traceback_wanted
    # Makes Hydra raise instead of printing, so that every error passes through here.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with patient() as stdout:
            code = _exit_code(argv, traceback_wanted)
            stdout.flush()
            if stdout.failure and code == 0:
                print(f"kd: failed: stdout: {stdout.failure.strerror}", file=sys.stderr)
                code = 1
            return code
    finally:
        if not traceback_wanted:
            os.environ.pop("HYDRA_FULL_ERROR", None)


def _exit_code(argv: list[str], traceback_wanted: bool) -> int:
    try:
        return _run(argv)
    except ConfigError as error:
        if traceback_wanted:
            traceback.print_exc()
        print(f"kd: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "kd: interrupted; the same command continues from the last saved state",
            file=sys.stderr,
        )
        return 130
    except (RunFailed, OSError) as error:
        if traceback_wanted:
            traceback.print_exc()
        print(f"kd: failed: {failure_line(error)}", file=sys.stderr)
        return 1


def _run(argv: list[str]) -> int:
    if "--version" in argv:
        print(f"kd {__version__}")
        return 0
    if not argv or argv in (["--help"], ["-h"]):
        argv = ["help"]
    from kd_cli.commands.arguments import SHOW, arrange

    request = arrange(argv)
    if request.command.config and SHOW & set(request.flags):
        return load("show:run")(request)
    return load(request.command.run)(request)
