"""The page of `kd --help`: commands, groups with their options, examples. Imports nothing heavy."""

from __future__ import annotations

from kd_cli.commands.table import TABLE, Request
from kd_cli.config.compose import ROLES, conf_dir, networks_by_name
from kd_cli.errors import ConfigError

GROUPS = (
    "dataset",
    "teacher",
    "student",
    "network",
    "loss",
    "schedule",
    "optimizer",
    "augment",
    "tracker",
    "experiment",
    "pair",
    "debug",
)
_USAGE = """\
kd trains a teacher, distils it into a small student, trains the same student from scratch, and
tells you whether distilling was worth it.

usage: kd [COMMAND] [key=value ...] [flags]

commands (without a word: distill)
{commands}

groups, chosen with group=option
{groups}

examples
  kd distill                                             a first result in a minute, no download
  kd distill dataset=cifar10 teacher=cnn student=cnn_small schedule=cosine epochs=20
  kd --multirun alpha=0.1,0.5,0.9 temperature=1,4,10     a sweep, with a table at its end
  kd compare seeds=5                                     was distilling worth it?
  kd tune alpha='interval(0.05,0.95)' trials=20          search for a good value
  kd distill teacher.checkpoint=my.keras                 a teacher of your own
  kd evaluate outputs/latest                             calibration, agreement and cost of a run

flags
  --multirun        sweep over comma-separated values    --cfg job --resolve  show the configuration
  --config-dir DIR  add your own YAML and functions      --version, --help
  kd distill --help shows every key with its meaning; kd guide shows the manual
  completion: eval "$(kd -sc install=bash)"
"""


def run(request: Request) -> int:
    """Prints the page.

    Raises:
        ConfigError: For a word: each command has a page of its own.
    """
    words = [word for word in request.words if word not in ("--help", "-h")]
    if words:
        raise ConfigError(f"help takes no '{words[0]}'; type: kd {words[0]} --help")
    print(page(), end="")
    return 0


def page() -> str:
    """The help page, with the options that the configuration folder holds."""
    commands = []
    for command in TABLE:
        for number, line in enumerate(command.help):
            commands.append(f"  {'' if number else command.word:<15} {line}")
    groups = [_wrapped(f"  {group:<11}", options(group)) for group in GROUPS if options(group)]
    return _USAGE.format(commands="\n".join(commands), groups="\n".join(groups))


def options(group: str) -> list[str]:
    """The options of a group that kd ships; files that begin with _ are parts of others."""
    names = {path.stem for path in (conf_dir() / group).glob("*.yaml")}
    names.update(networks_by_name(group) if group in ROLES else [])
    return sorted(name for name in names if not name.startswith("_"))


def _wrapped(head: str, words: list[str], width: int = 100) -> str:
    lines, line = [], head
    for word in words:
        if len(line) + len(word) + 1 > width:
            lines.append(line)
            line = " " * len(head)
        line += f" {word}"
    return "\n".join([*lines, line])
