"""What a user typed, taken apart: the command word, Hydra's overrides and flags, in any order."""

from __future__ import annotations

from pathlib import Path

from kd_cli.commands.table import COMMANDS, DEFAULT, Request
from kd_cli.errors import ConfigError, suggest

# Hydra's flags, with whether they take a value.
FLAGS = {
    "--help": False,
    "-h": False,
    "--hydra-help": False,
    "--version": False,
    "--multirun": False,
    "-m": False,
    "--run": False,
    "-r": False,
    "--resolve": False,
    "--shell-completion": False,
    "-sc": False,
    "--cfg": True,
    "-c": True,
    "--package": True,
    "-p": True,
    "--config-dir": True,
    "-cd": True,
    "--info": False,
    "-i": False,
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
SHOW = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "-sc", "--shell-completion"}


def arrange(argv: list[str]) -> Request:
    """The command, the overrides and the flags, wherever each stands.

    Hydra 1.3 refuses overrides on both sides of a flag, so they are handed over apart.

    Raises:
        ConfigError: An unknown command or flag, or a word that is neither.
    """
    if argv and argv[0] in COMMANDS and not COMMANDS[argv[0]].config:
        return Request(COMMANDS[argv[0]], words=argv[1:])
    words: list[str] = []
    overrides: list[str] = []
    flags: list[str] = []
    config_dir: str | None = None
    rest = list(reversed(argv))
    while rest:
        word = rest.pop()
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            path = word.startswith(("/", "./", "../"))  # which may hold a =
            plain = path or (not equals and word[:1] not in ("+", "~"))
            (words if plain else overrides).append(word)
            continue
        if name in REFUSED:
            raise ConfigError(f"kd has no use for {name}: {REFUSED[name]}")
        if name not in FLAGS:
            raise ConfigError(f"unknown flag '{name}'{suggest(name, FLAGS)} (see kd --help)")
        if not equals and FLAGS[name]:
            if not rest:
                raise ConfigError(f"{name} needs a value")
            value = rest.pop()
        if name in ("--config-dir", "-cd"):
            config_dir = value
            continue
        flags += [name, value] if equals or FLAGS[name] else [name]
        if name in ("--info", "-i") and not equals and rest and rest[-1] in INFO:
            flags.append(rest.pop())
    if words[:1] == ["evaluate"] and len(words) > 1:
        quoted = words.pop(1).replace("'", "\\'")
        overrides.insert(0, f"what='{quoted}'")
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
    overrides = [_quoted(_without_link(override)) for override in overrides]
    if word == "train-teacher":
        from kd_cli.config.overrides import for_teacher

        overrides = for_teacher(overrides)
    return Request(COMMANDS[word], overrides, flags, config_dir, argv)


def _without_link(override: str) -> str:
    """A given file's real path: `outputs/latest` moves while a command runs."""
    key, equals, value = override.partition("=")
    files = ("teacher.checkpoint", "teacher.weights", "student.checkpoint", "teacher_dir")
    if key in files and equals and Path(value).exists():
        return f"{key}={Path(value).resolve()}"
    return override


def _quoted(override: str) -> str:
    """`train_split=train[:80%]` with the quotes that Hydra wants and that a shell takes away."""
    key, equals, value = override.partition("=")
    if not (equals and key.endswith("_split") and "[" in value and value[0] not in "'\"["):
        return override
    return key + "=" + ",".join(f"'{one.strip()}'" for one in value.split(","))
