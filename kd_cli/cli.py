"""The `kd` entrypoint: a command word becomes Hydra's primary config; errors become one line.

Everything of Hydra stays: multirun, launchers, --cfg, --info, --config-dir, completion. Before it
starts, the configuration (of every point of a sweep) is composed and checked here, so that a
mistake leaves no directory behind. Nothing here imports TensorFlow.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_cli import __version__
from kd_cli.arguments import FLAGS, SHOW, arrange, is_sweep, value_of, without_links
from kd_cli.commands.help import AS_DISTILL, COMPOSED, WORDS, page
from kd_cli.commands.job import Job, RunFailed, outcome


def main(argv: list[str] | None = None) -> int:
    """Runs `kd` and returns its exit code: 0, 1 a run failed, 2 a user's mistake, 130 Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv in (["--help"], ["-h"], ["help"]):
        print(page())
        return 0
    traceback_wanted = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # A log that can't be written (a full disk) is no reason for a traceback in the terminal: what
    # the run itself can't write ends it, with one line.
    logging.raiseExceptions = traceback_wanted
    # Makes Hydra raise instead of printing, so that every error passes through here.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    from kd_cli.errors import ConfigError, failure_line

    try:
        return _main(argv)
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
    except RunFailed as error:
        if traceback_wanted:
            traceback.print_exc()
        print(f"kd: failed: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of a pipe (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if traceback_wanted:
            traceback.print_exc()
        print(f"kd: failed: {failure_line(error)}", file=sys.stderr)
        return 1
    finally:
        if not traceback_wanted:
            os.environ.pop("HYDRA_FULL_ERROR", None)


def _main(argv: list[str]) -> int:
    from kd_cli.errors import ConfigError, suggest

    if "--version" in argv:
        print(f"kd {__version__}")
        return 0
    if argv[0] == "cache":
        from kd_cli.commands import cache

        if {"--help", "-h"} & set(argv):
            print(page())
            return 0
        return cache.main(argv[1:])
    if argv[0] == "report":
        from kd_cli.commands.report import main

        return main(argv[1:])
    command, overrides, flags = arrange(argv)
    if command not in (*COMPOSED, *AS_DISTILL):
        raise ConfigError(
            f"unknown command '{command}'{suggest(command, WORDS)} "
            f"(commands: {', '.join(WORDS)}; kd --help)"
        )
    if "-sc" in flags or "--shell-completion" in flags:
        return _complete(overrides, flags)
    shown = value_of(flags, "--cfg", "-c")
    if shown not in (None, "job", "hydra", "all"):
        raise ConfigError(f"--cfg {shown}: expected job, hydra or all")
    overrides = [without_links(override) for override in overrides]
    config_dir = value_of(flags, "--config-dir", "-cd")
    # So that `_target_` reaches a user's own module beside his YAML, or in the working directory.
    for folder in (config_dir, "."):
        if folder and str(Path(folder).resolve()) not in sys.path:
            sys.path.append(str(Path(folder).resolve()))
    from kd_cli.runs.resolvers import register_resolvers

    register_resolvers()
    if SHOW & set(flags):
        if command in AS_DISTILL:
            print(f"# {command} takes the keys of distill ({AS_DISTILL[command]}; kd --help)")
        return _hydra(command if command in COMPOSED else "distill", overrides, flags)
    own = {"explain": _explain, "compare": _compare, "evaluate": _evaluate}
    if command in own:
        return own[command](overrides, flags, config_dir)
    if is_sweep(flags):
        return _sweep(_checked_sweep(command, overrides, config_dir), flags)
    return _single(command, overrides, flags, config_dir)


def _compose(command: str, overrides: list[str], config_dir: str | None) -> Any:
    """Composes, with Hydra's errors in the user's words."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from kd_cli.config.compose import compose
    from kd_cli.config.messages import explain, explain_hydra
    from kd_cli.errors import ConfigError, first_line

    try:
        return compose(command, overrides, config_dir)
    except HydraException as error:
        raise ConfigError(explain_hydra(error, _known_keys(command, overrides))) from error
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    except ValueError as error:  # Hydra's own, for student=null
        raise ConfigError(first_line(error)) from error


def _known_keys(command: str, overrides: list[str]) -> list[str]:
    """All dotted keys of the command with the groups chosen so far, to suggest one."""
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf

    from kd_cli.config.compose import compose, conf_dir
    from kd_cli.config.overrides import override_key

    groups = [p.name for p in conf_dir().iterdir() if p.is_dir()]
    try:
        cfg = compose(command, [o for o in overrides if override_key(o) in groups])
    except HydraException:
        cfg = compose(command, [])
    keys: list[str] = []

    def walk(node: DictConfig, prefix: str) -> None:
        for key in node:
            if prefix == "" and key == "hydra":
                continue
            keys.append(prefix + str(key))
            if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
                if isinstance(node[key], DictConfig):
                    walk(node[key], f"{prefix}{key}.")

    walk(cfg, "")
    return keys


def _single(command: str, overrides: list[str], flags: list[str], config_dir: str | None) -> int:
    from kd_cli.config.check import check
    from kd_cli.runs.identity import run_dir
    from kd_cli.runs.ownership import check_before_start

    plan = check(_compose(command, overrides, config_dir), overrides)
    check_before_start(plan, run_dir(plan))
    return _hydra(command, overrides, flags)


def _explain(overrides: list[str], flags: list[str], config_dir: str | None) -> int:
    """The overrides and flags are those of distill; nothing of Hydra's job is needed."""
    from kd_cli.commands.explain import explain
    from kd_cli.config.check import check
    from kd_cli.errors import ConfigError
    from kd_cli.runs.identity import run_dir
    from kd_cli.runs.ownership import check_before_start

    if is_sweep(flags):
        raise ConfigError("explain tells of one run: leave --multirun out, and type one value each")
    plan = check(_compose("distill", overrides, config_dir), overrides)
    check_before_start(plan, run_dir(plan))
    explain(plan, overrides)
    return 0


@dataclass(frozen=True)
class _Sweep:
    """A sweep whose points have all been checked: where it writes, and its points' names."""

    command: str
    overrides: list[str]
    folder: Path
    names: set[str]


def _checked_sweep(command: str, overrides: list[str], config_dir: str | None) -> _Sweep:
    from kd_cli.commands.sweep import expand
    from kd_cli.config.check import check
    from kd_cli.config.overrides import override_key
    from kd_cli.runs.identity import OUTPUTS, point_dir, sweep_id
    from kd_cli.runs.ownership import check_before_start

    if any(override_key(o) == "hydra.sweeper" for o in overrides):
        # Another sweeper reads its own ranges and finds its points as it goes.
        points, unswept = [[o for o in overrides if "(" not in o and "," not in o]], overrides
    else:
        points, swept = expand(overrides)
        unswept = [o for o in overrides if override_key(o) not in swept]
    if not any(override_key(o) == "sweep" for o in overrides):
        overrides = [*overrides, f"sweep={sweep_id(command, unswept)}"]
        points = [[*point, overrides[-1]] for point in points]
    names = set()
    for point in points:
        plan = check(_compose(command, point, config_dir), point)
        out = point_dir(plan)
        check_before_start(plan, out)
        names.add(out.name)
    return _Sweep(command, overrides, OUTPUTS / "sweeps" / plan.sweep, names)


def _sweep(sweep: _Sweep, flags: list[str], table: bool = True) -> int:
    from kd_cli.commands.sweep import finish

    try:
        code = _hydra(sweep.command, sweep.overrides, flags)
    finally:
        failed = finish(sweep.folder, sweep.names, table)
    return 1 if failed else code


def _compare(overrides: list[str], flags: list[str], config_dir: str | None) -> int:
    from kd_cli.commands import compare

    flags = flags if is_sweep(flags) else [*flags, "--multirun"]
    parts = [
        _checked_sweep(part.command, part.overrides, config_dir)
        for part in compare.sweeps(overrides)
    ]
    codes = [_sweep(part, flags, table=False) for part in parts]
    compare.conclude(parts[0].folder)
    return max(codes)


def _evaluate(overrides: list[str], flags: list[str], config_dir: str | None) -> int:
    """Composes as Hydra does, but has no job and so none of its directories."""
    from kd_cli.config.check import check, refuse_unused
    from kd_cli.config.overrides import override_key
    from kd_cli.config.schema import UNUSED
    from kd_cli.errors import ConfigError, first_line

    for flag in flags:
        if flag in FLAGS and flag not in ("--config-dir", "-cd"):
            raise ConfigError(f"evaluate has no use for {flag}: it measures one network at a time")
    # First, because Hydra does not know these keys in evaluate.yaml and would say no more.
    refuse_unused("evaluate", overrides, UNUSED["evaluate"])
    if "what" not in map(override_key, overrides):
        raise ConfigError(
            "evaluate needs the directory of a finished run or a .keras file, as in: "
            "kd evaluate outputs/latest"
        )
    plan = check(_compose("evaluate", overrides, config_dir), overrides)
    from kd_cli.commands import evaluate

    try:
        return evaluate.main(plan, overrides)
    except (ConfigError, OSError):
        raise
    except Exception as error:
        hint = "HYDRA_FULL_ERROR=1 shows the traceback"
        raise RunFailed(f"{first_line(error)} ({hint})") from error


def _hydra(command: str, overrides: list[str], flags: list[str]) -> int:
    """Hands over to Hydra, with all overrides before the flags."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from kd_cli.config.compose import conf_dir
    from kd_cli.config.messages import explain, explain_hydra
    from kd_cli.errors import ConfigError

    saved = sys.argv
    sys.argv = [saved[0] if saved else "kd", *overrides, *flags]
    try:
        outcome.clear()
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command)(Job())()
        if outcome:
            raise outcome.pop()
        return 0
    except RunFailed:
        if not is_sweep(flags):
            raise
        return 1  # the sweep's end names every failed point
    except HydraException as error:
        raise ConfigError(explain_hydra(error, _known_keys(command, overrides))) from error
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = saved


def _complete(overrides: list[str], flags: list[str]) -> int:
    """Shell completion: Hydra's, for the command that the line names."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    command = words[1] if len(words) > 1 and words[1] in WORDS else None
    typing_command = len(words) == 1 or (len(words) == 2 and not line.endswith(" "))
    if overrides == ["query=bash"] and typing_command and "=" not in words[-1]:
        prefix = words[1] if len(words) == 2 else ""
        print(" ".join(c for c in WORDS if c.startswith(prefix)))
        if len(words) == 2:
            return 0
    if command:
        line = line.replace(f" {command}", "", 1)
        if command == "evaluate":  # its path is no override; the word at the cursor may be one
            *done, last = line.split(" ")
            line = " ".join([*(w for w in done if "=" in w or w == words[0]), last])
        os.environ["COMP_LINE"] = line
    return _hydra(command if command in COMPOSED else "distill", overrides, flags)
