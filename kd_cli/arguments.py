"""What a user typed, taken apart: the command word, Hydra's overrides and flags, in any order."""

from __future__ import annotations

from pathlib import Path

from kd_cli.commands.help import WORDS

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
    "--config-path": True,
    "-cp": True,
    "--config-name": True,
    "-cn": True,
    "--experimental-rerun": True,
    "--info": False,
    "-i": False,
}
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
SHOW = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "-sc", "--shell-completion"}


def arrange(argv: list[str]) -> tuple[str, list[str], list[str]]:
    """The command, the overrides and the flags, wherever each stands.

    Hydra 1.3 refuses overrides on both sides of a flag, so they are handed over apart.
    """
    from kd_cli.errors import ConfigError, suggest

    commands: list[str] = []
    overrides: list[str] = []
    flags: list[str] = []
    words = list(reversed(argv))
    while words:
        word = words.pop()
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            path = word.startswith(("/", "./", "../"))  # which may hold a =
            plain = path or (not equals and word[:1] not in ("+", "~"))
            (commands if plain else overrides).append(word)
        elif name not in FLAGS:
            raise ConfigError(f"unknown flag '{name}'{suggest(name, FLAGS)} (see kd --help)")
        elif equals:
            flags += [name, value]
        else:
            flags.append(name)
            if FLAGS[name] and not words:
                raise ConfigError(f"{name} needs a value")
            if FLAGS[name] or (name in ("--info", "-i") and words and words[-1] in INFO):
                flags.append(words.pop())
    if commands[:1] == ["evaluate"] and len(commands) > 1:
        quoted = commands.pop(1).replace("'", "\\'")
        overrides.insert(0, f"what='{quoted}'")
    if len(commands) > 1:
        raise ConfigError(
            f"'{commands[1]}' is neither key=value nor a flag; expected one command "
            f"({', '.join(WORDS)})"
        )
    return (commands or ["distill"])[0], overrides, flags


def value_of(flags: list[str], *names: str) -> str | None:
    """The value of a flag that has several names; None where it was not typed."""
    for position, flag in enumerate(flags):
        if flag in names:
            return flags[position + 1]
    return None


def without_links(override: str) -> str:
    """A given file's real path: `outputs/latest` moves while a command runs."""
    key, equals, value = override.partition("=")
    files = ("teacher.checkpoint", "teacher.weights", "student.checkpoint")
    if key in files and equals and Path(value).exists():
        return f"{key}={Path(value).resolve()}"
    return override


def is_sweep(flags: list[str]) -> bool:
    """Whether the flags ask for a sweep."""
    return "--multirun" in flags or "-m" in flags
