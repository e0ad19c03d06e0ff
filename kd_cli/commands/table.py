"""The table of commands: the only list of their words.

To add a command: write its file with a function `run(request) -> int`, and add a row here. Nothing
here imports more than Python, because `kd --help` reads it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Command:
    """A row of the table.

    Attributes:
        word: What you type.
        help: What it does, in lines for `kd --help`.
        run: `file:function` in this folder: `(Request) -> int`, the exit code.
        config: Its primary configuration in conf/; empty for a command with words of its own.
        trains: `file:function` that trains its runs together; empty where it trains none itself.
        note: What `--help` of a command says that borrows the keys of another.
        takes: What stands after the word, before any keys.
        offers: `file:function` for shell completion of words of its own: from those that are typed
            already to those that may come next.
    """

    word: str
    help: tuple[str, ...]
    run: str
    config: str = ""
    trains: str = ""
    note: str = ""
    takes: str = ""
    offers: str = ""


@dataclass(frozen=True)
class Request:
    """What you typed after the command's word.

    Attributes:
        command: The row of its word.
        overrides: `key=value`.
        flags: Hydra's, with their values.
        config_dir: Of `--config-dir`, which is not among the flags.
        words: As typed, for a command with words of its own.
    """

    command: Command
    overrides: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    config_dir: str | None = None
    words: list[str] = field(default_factory=list)


TABLE = (
    Command(
        "train-teacher",
        ("train the teacher",),
        "job:run",
        config="train-teacher",
        trains="train:train_teacher",
        note="train-teacher uses the keys of teacher.training; epochs=3 sets its epochs",
    ),
    Command(
        "train-student",
        ("train the student without a teacher: the scratch student",),
        "job:run",
        config="train-student",
        trains="train:train_student",
    ),
    Command(
        "distill",
        ("distil the teacher into the student; a missing teacher is trained first",),
        "job:run",
        config="distill",
        trains="distill:distill",
    ),
    Command(
        "compare",
        ("train distilled and scratch students with seeds 0 to 4 (seeds=N), and give a verdict",),
        "compare:run",
        config="distill",
        note="compare takes the keys of distill, seeds=5 and controls=label_smoothing",
    ),
    Command(
        "tune",
        (
            "search for the best values of some keys (alpha='interval(0.05,0.95)'); --compare",
            "searches as long for the scratch student, and compares the two winners",
        ),
        "tune:run",
        config="distill",
        note="tune takes the keys of distill, with a value or a space, trials=20, prune=median, "
        "objective=nll, minutes=60; --compare takes seeds=5 and scratch.KEY=... too",
    ),
    Command(
        "chain",
        ("distil step by step: each student teaches the next one, or its own next generation",),
        "chain:run",
        config="distill",
        note="chain takes the keys of distill, and student=A,B,C or generations=3",
    ),
    Command(
        "mutual",
        ("train students that teach each other, without a teacher",),
        "mutual:run",
        config="mutual",
        trains="mutual:train_together",
        note="mutual takes the keys of train-student, student=A,B,C or peers=2, and baseline=true",
    ),
    Command(
        "self-train",
        ("train the student on labels that it has given to unlabelled examples, in rounds",),
        "job:run",
        config="self-train",
        trains="self_train:self_train",
    ),
    Command(
        "explain",
        (
            "show what kd distill would do with the same overrides: loss, schedule, data,",
            "how long it takes, and how large each term's gradient is; it keeps nothing",
        ),
        "explain:run",
        config="distill",
        note="explain takes the keys of distill, and keeps nothing that it trains",
    ),
    Command(
        "evaluate",
        ("measure a finished run or a .keras file: quality, size, FLOPs, latency",),
        "evaluate:run",
        config="evaluate",
        takes="WHAT",
    ),
    Command(
        "predict",
        ("print what a finished run's network, and its teacher, say of texts or image files",),
        "predict:run",
    ),
    Command(
        "export",
        (
            "write a finished run or a .keras file for another runtime (precision=int8), and",
            "check there what it gets on the test images",
        ),
        "export:run",
        config="export",
        takes="WHAT",
    ),
    Command(
        "logits",
        ("write what a finished run or any network file says of all images, for teacher.logits",),
        "logits:run",
        config="logits",
        takes="WHAT",
    ),
    Command(
        "report",
        ("write tables, verdicts and figures of the runs below a folder (kd report outputs)",),
        "report:run",
    ),
    Command(
        "cache",
        ("list, verify or prune the stored outputs of teachers (kd cache list)",),
        "cache:run",
        offers="cache:offers",
    ),
    Command(
        "guide",
        ("show the manual: kd guide lists its pages",),
        "guide:run",
        offers="guide:offers",
    ),
    Command("help", ("show this page",), "help:run"),
)
COMMANDS = {command.word: command for command in TABLE}
DEFAULT = "distill"


def load(place: str) -> Callable[..., Any]:
    """The function that a row names as `file:function`."""
    file, _, function = place.partition(":")
    return getattr(importlib.import_module(f"kd_cli.commands.{file}"), function)
