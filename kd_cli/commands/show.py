"""What Hydra's flags show instead of running: --help, --cfg, --info, and shell completion."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys

from kd_cli.commands.keys_page import print_page
from kd_cli.commands.table import COMMANDS, DEFAULT, Command, Request, load
from kd_cli.config.compose import known_keys, main_dir, register
from kd_cli.config.messages import explain, explain_hydra
from kd_cli.errors import ConfigError
from kd_cli.runs.resolvers import register_resolvers


def run(request: Request) -> int:
    """Shows what the flags ask for."""
    register_resolvers()
    if "--shell-completion" in request.flags:
        return _complete(request)
    if "--help" in request.flags:
        print_page(request)
        return 0
    if request.command.note:
        print(f"# {request.command.note}")
    return _hand_over(request)


def _hand_over(request: Request) -> int:
    """Calls Hydra's own command line with all overrides before the flags; its exit code."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    register()
    config, overrides = request.command.config, request.overrides
    saved = sys.argv
    sys.argv = [saved[0] if saved else "kd", *overrides, *request.flags]
    try:
        hydra.main(
            version_base="1.3", config_path=main_dir(request.config_dir), config_name=config
        )(_nothing)()
        return 0
    except HydraException as error:
        raise ConfigError(
            explain_hydra(error, known_keys(config, overrides), overrides, config)
        ) from error
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = saved


def _nothing(cfg: object) -> None:
    """The job of a command that only shows something."""


_COMPLETION, _SHELLS = ("install", "uninstall", "query"), ("bash", "fish", "zsh")


def _complete(request: Request) -> int:
    """Shell completion: Hydra's, for the command that the line names."""
    asked = [override.partition("=") for override in request.overrides]
    if [(a in _COMPLETION, s in _SHELLS) for a, _, s in asked] != [(True, True)]:
        typed = " ".join(["-sc", *request.overrides])
        raise ConfigError(
            f"{typed}: expected one of {', '.join(_COMPLETION)} with one of the shells "
            f"{', '.join(_SHELLS)}, as in: kd -sc install=bash"
        )
    if asked[0][0] == "query" and "COMP_LINE" not in os.environ:
        raise ConfigError("-sc query=... is what a shell asks; type: kd -sc install=bash")
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    named = words[1] if len(words) > 1 and words[1] in COMMANDS else None
    typing_command = len(words) == 1 or (len(words) == 2 and not line.endswith(" "))
    if not any(override.startswith("query=") for override in request.overrides):  # install
        return _hand_over(_as(request, COMMANDS[DEFAULT]))
    if typing_command and "=" not in words[-1]:
        prefix = words[1] if len(words) == 2 else ""
        print(" ".join(word for word in COMMANDS if word.startswith(prefix)))
        if len(words) == 2:
            return 0
    command = COMMANDS[named or DEFAULT]
    if not command.config:
        prefix = "" if line.endswith(" ") else words[-1]
        before = words[2:] if line.endswith(" ") else words[2:-1]
        offered = load(command.offers)(before) if command.offers else []
        print(" ".join(word for word in offered if word.startswith(prefix)))
        return 0
    if named:
        line = line.replace(f" {named}", "", 1)
        if command.takes:  # its path is no override; the word at the cursor may be one
            *done, last = line.split(" ")
            line = " ".join([*(w for w in done if "=" in w or w == words[0]), last])
        os.environ["COMP_LINE"] = line
    found = io.StringIO()
    with contextlib.redirect_stdout(found):
        code = _hand_over(_as(request, command))
    for written in found.getvalue().splitlines():
        print(" ".join(word for word in written.split(" ") if not _HELPER.fullmatch(word)))
    return code


# An option that is for others to extend.
_HELPER = re.compile(r"[\w/@]+=_.*")


def _as(request: Request, command: Command) -> Request:
    return Request(command, request.overrides, request.flags, request.config_dir)
