"""The page of `kd distill --help`: every key with its value, its meaning and its type."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kd_cli.commands.help import GROUPS, options
from kd_cli.commands.table import Request
from kd_cli.config.compose import compose, conf_dir
from kd_cli.config.keys import TRAINING, UNUSED, Config, walk
from kd_cli.errors import ConfigError
from kd_cli.terminal import brief

_TYPES = {int: "whole number", float: "number", bool: "true or false", str: "text"}
_WIDTH = 44  # of key=value; longer ones push their meaning to the right


def print_page(request: Request) -> None:
    """Prints the page for the options and keys that were typed."""
    command = request.command
    cfg = compose(command.config, request.overrides, request.config_dir)
    unused = UNUSED[command.config]
    print(f"kd {command.word}: {' '.join(command.help)}")
    if command.note:
        print(f"({command.note})")
    words = f"{command.word} {command.takes}".rstrip()
    print(f"\nusage: kd {words} [key=value ...] [flags]   (all commands: kd --help)\n")
    print("groups: group=option, with the option chosen here in brackets")
    chosen = OmegaConf.to_container(cfg.hydra.runtime.choices)
    # (There may be several, which Hydra does not list among its choices.)
    named = {group: list(cfg.get(group) or []) for group in ("tracker", "loss")}
    named |= {group: [] if option is None else [option] for group, option in chosen.items()}
    for group in GROUPS:
        if group in named and group not in unused:
            print(f"  {group:<11} {_options(group, named[group])}")
    comments = _comments(chosen, request.config_dir)
    for title, keys in _sections(cfg, command.config):
        used = [(k, v) for k, v in keys if k not in unused and k.split(".")[0] not in unused]
        # A loss takes them from the top level, and there they are typed.
        used = [(k, v) for k, v in used if v != f"${{{k.rpartition('.')[2]}}}"]
        if used:
            print(f"\n{title}")
        for name, value in used:
            print(_line(name, _resolved(cfg, name, value), comments))


def _resolved(cfg: DictConfig, name: str, value: Any) -> Any:
    """The value behind `${...}`, where there is one already."""
    if not isinstance(value, str) or "${" not in value:
        return value
    try:
        found = OmegaConf.select(cfg, name)
    except (OmegaConfBaseException, ConfigError):  # dataset.path is not typed yet
        return value
    return OmegaConf.to_container(found) if OmegaConf.is_config(found) else found


def _options(group: str, chosen: list[str]) -> str:
    shipped = options(group)
    names = [*(name for name in chosen if name not in shipped), *shipped]
    return " ".join(f"[{name}]" if name in chosen else name for name in names)


def _sections(cfg: DictConfig, command: str) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Titles, and dotted keys with their values, in the order in which they are read."""
    plain = OmegaConf.to_container(cfg)
    plain.pop("hydra")
    training = (plain.get("teacher") or {}).pop("training", None)
    own = {key: plain.pop(key) for key in TRAINING if key in plain}
    if command == "train-teacher":
        own, training = training, None
    yield "how it is trained", list(_leaves(own))
    learned = ("alpha", "temperature", "t_squared", "loss", "view", "cache", "rounds", "pseudo")
    yield (
        "what the student learns from",
        list(_leaves({key: plain.pop(key) for key in learned if key in plain})),
    )
    for name in ("student", "teacher", "dataset"):
        yield f"the {name}", list(_leaves({name: plain.pop(name, {})}))
        if name == "teacher" and training:
            title = "how the teacher is trained, where kd trains it"
            yield title, list(_leaves({"teacher": {"training": training}}))
    yield "everything else", [pair for pair in _leaves(plain) if pair[0] not in GROUPS]


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        elif key not in ("_partial_", "command"):
            yield f"{prefix}{key}", value


def _line(name: str, value: Any, comments: dict[str, str]) -> str:
    row = _ROWS.get(name) or _ROWS.get(name.removeprefix("teacher.training."))
    known = comments.get(name) or comments.get(name.rsplit(".", 1)[-1], "")
    text = (row.metadata["help"] if row else "") or known
    kind = _kind(row.type) if row else ""
    shown = "null" if value is None else value if isinstance(value, str) else brief(value)
    return f"  {f'{name}={shown}':<{_WIDTH}} {text}{f' ({kind})' if kind else ''}".rstrip()


_ROWS = dict(walk(Config))


def _kind(kind: Any) -> str:
    """The type of a key in words; empty where the meaning says it all."""
    if isinstance(kind, types.UnionType):
        parts = [_kind(part) for part in typing.get_args(kind) if part is not types.NoneType]
        return f"{parts[0]} or null" if parts[0] else ""
    return _TYPES.get(kind, "")


def _comments(chosen: dict[str, Any], config_dir: str | None) -> dict[str, str]:
    """What the YAML of the chosen options says behind its keys, under their last words."""
    found: dict[str, str] = {}
    folders = [Path(folder).expanduser() for folder in (config_dir,) if folder] + [conf_dir()]
    for group, option in chosen.items():
        group = group.split("@")[0]
        for folder in folders:
            file = folder / group / f"{option}.yaml"
            if file.is_file():
                for key, text in re.findall(r"^\s*(\w+):.*?\s#\s(.*)$", file.read_text(), re.M):
                    found.setdefault(key, text)
                break
    return found
