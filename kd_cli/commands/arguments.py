"""What a user typed, taken apart: the command word, Hydra's overrides and flags, in any order."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from kd_cli.commands.table import COMMANDS, DEFAULT, Request
from kd_cli.errors import ConfigError, suggest

# Hydra's flags and one of ours, with their long names and whether they take a value.
FLAGS = {
    "--help": ("--help", False),
    "-h": ("--help", False),
    "--hydra-help": ("--hydra-help", False),
    "--version": ("--version", False),
    "--multirun": ("--multirun", False),
    "-m": ("--multirun", False),
    "--run": ("--run", False),
    "-r": ("--run", False),
    "--resolve": ("--resolve", False),
    "--shell-completion": ("--shell-completion", False),
    "-sc": ("--shell-completion", False),
    "--cfg": ("--cfg", True),
    "-c": ("--cfg", True),
    "--package": ("--package", True),
    "-p": ("--package", True),
    "--config-dir": ("--config-dir", True),
    "-cd": ("--config-dir", True),
    "--info": ("--info", False),
    "--compare": ("--compare", False),
    "-i": ("--info", False),
}
# The command's word names the primary configuration, and nothing else may.
REFUSED = {
    **dict.fromkeys(
        ("--config-name", "-cn", "--config-path", "-cp"),
        "put YAML of your own into a folder and type --config-dir FOLDER",
    ),
    "--experimental-rerun": "the same command again continues a run, rerun=true makes a new one",
}
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
CFG = ("job", "hydra", "all")
SHOW = {"--help", "--hydra-help", "--cfg", "--info", "--shell-completion"}
# After these words stands a path.
_TAKING = [[word] for word, command in COMMANDS.items() if command.takes]
# Each says what to do, so only one of them can be done.
_ACTIONS = ("--multirun", "--run", "--cfg", "--info", "--shell-completion", "--compare")


def arrange(argv: list[str]) -> Request:
    """The command, the overrides and the flags, wherever each stands.

    Hydra 1.3 refuses overrides on both sides of a flag, so they are handed over apart.

    Raises:
        ConfigError: An unknown command or flag, or a word that is neither.
    """
    if argv and argv[0] in COMMANDS and not COMMANDS[argv[0]].config:
        return Request(COMMANDS[argv[0]], words=argv[1:])
    from kd_cli.config.quoting import quoted, understood

    words: list[str] = []
    overrides: list[str] = []
    flags: list[str] = []
    config_dir: str | None = None
    rest = list(reversed(argv))
    while rest:
        word = rest.pop()
        name, equals, value = word.partition("=")
        if words in _TAKING and os.path.exists(word):
            words.append(word)  # whatever characters it has
            continue
        if not word.startswith("-"):
            path = word.startswith(("/", "./", "../"))  # which may hold a =
            plain = path or (not equals and word[:1] not in ("+", "~"))
            (words if plain else overrides).append(word)
            continue
        if name in REFUSED:
            raise ConfigError(f"kd does not take {name}: {REFUSED[name]}")
        if name not in FLAGS:
            raise ConfigError(f"unknown flag '{name}'{suggest(name, FLAGS)} (see kd --help)")
        name, takes_value = FLAGS[name]
        if equals and not takes_value and name != "--info":
            raise ConfigError(f"{name} takes no value ({word})")
        if takes_value and not equals:
            if not rest:
                raise ConfigError(f"{name} needs a value")
            value = rest.pop()
        if takes_value and not value:
            raise ConfigError(f"{name} needs a value")
        if takes_value and (name in flags or (name == "--config-dir" and config_dir is not None)):
            raise ConfigError(f"{name} is typed twice: leave one out")
        if name == "--config-dir":
            config_dir = value
        elif name == "--info" and (equals or (rest and rest[-1] in INFO)):
            flags += [name, value if equals else rest.pop()]
        elif takes_value:
            flags += [name, value]
        elif name not in flags:
            flags.append(name)
    _check_flags(flags)
    if words and words[0] in COMMANDS and not COMMANDS[words[0]].config:
        raise ConfigError(
            f"{words[0]} does not take keys and flags of runs, and stands first: "
            f"kd {words[0]} --help"
        )
    if words[:1] in _TAKING and len(words) > 1:
        overrides.insert(0, f"what={quoted(words.pop(1))}")
    if len(words) > 1:
        raise ConfigError(
            f"'{words[1]}' is neither key=value nor a flag; expected one command "
            f"({', '.join(COMMANDS)})"
        )
    word = words[0] if words else DEFAULT
    if word not in COMMANDS:
        raise ConfigError(
            f"unknown command '{word}'{suggest(word, COMMANDS)} "
            f"(commands: {', '.join(COMMANDS)}; kd --help)"
        )
    if "--compare" in flags and word != "tune":
        raise ConfigError("--compare belongs to tune: kd tune --compare (or type: kd compare)")
    _tell_twice(overrides)
    sweeping = "--multirun" in flags or word in ("compare", "tune")
    overrides = [
        _without_link(understood(_of_splits(override), sweeping)) for override in overrides
    ]
    if word == "train-teacher":
        from kd_cli.config.overrides import for_teacher

        overrides = for_teacher(overrides)
    return Request(COMMANDS[word], overrides, flags, config_dir, argv)


def _tell_twice(overrides: list[str]) -> None:
    """Tells of a key with two values, of which Hydra takes the last and says nothing."""
    typed: dict[str, str] = {}
    for override in overrides:
        if override.startswith("~"):  # taking a key away, to add another one of that name
            continue
        key = override.lstrip("+").partition("=")[0]
        first = typed.get(key, override)
        if first != override:
            told = f"kd: warning: {first} does not count, because {override} is typed after it"
            print(told, file=sys.stderr)
        typed[key] = override


def _check_flags(flags: list[str]) -> None:
    """Refuses values that Hydra doesn't know, and flags that do nothing beside the others."""
    chosen = [name for name in _ACTIONS if name in flags]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} exclude each other: leave one out")
    for name, allowed in (("--cfg", CFG), ("--info", INFO)):
        value = flags[flags.index(name) + 1 :][:1] if name in flags else []
        if value and not value[0].startswith("--") and value[0] not in allowed:
            words = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
            raise ConfigError(f"{name} {value[0]}: expected {words}")
    for name in ("--resolve", "--package"):
        if name in flags and not {"--cfg", "--help"} & set(flags):
            raise ConfigError(f"{name} says how the configuration is shown: add --cfg job")


def _without_link(override: str) -> str:
    """A given file's real path: `outputs/latest` moves while a command runs."""
    from kd_cli.config.quoting import no_reference, quoted, text_of

    key, equals, _ = override.partition("=")
    files = (
        "teacher.checkpoint",
        "teacher.logits",
        "teacher.weights",
        "student.checkpoint",
        "teacher_dir",
    )
    if equals and key in files:
        path = Path(text_of(override)).expanduser()
        if path.exists() and "${" in str(path.resolve()):
            raise ConfigError(no_reference(path.resolve()))
        if path.exists():
            return f"{key}={quoted(path.resolve())}"
    return override


def _of_splits(override: str) -> str:
    """`train_split=train[:80%]` with the quotes that Hydra wants and that a shell takes away."""
    key, equals, value = override.partition("=")
    if not (equals and key.endswith("_split") and "[" in value and value[0] not in "'\"["):
        return override
    return key + "=" + ",".join(f"'{one.strip()}'" for one in value.split(","))
