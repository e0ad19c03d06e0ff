"""What a run says: messages, the progress of training, and result tables.

Messages and progress go to stderr, results to stdout. On a terminal the progress is one live line;
elsewhere each epoch is one plain line. Both go to the run's log.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

log = logging.getLogger("kd")
epoch_log = logging.getLogger("kd.epoch")
console = Console(stderr=True, highlight=False)
_LONG = 5.0  # seconds without a word


class ConsoleHandler(logging.Handler):
    """Prints messages through the console of the live progress line, to break neither.

    Epoch lines are left to the progress on a terminal.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "kd.epoch" and console.is_terminal:
            return
        style = "yellow" if record.levelno >= logging.WARNING else None
        prefix = "kd: warning: " if record.levelno >= logging.WARNING else ""
        console.print(prefix + record.getMessage(), style=style, markup=False, soft_wrap=True)


@contextlib.contextmanager
def messages() -> Iterator[None]:
    """Messages go to the terminal, where no Hydra job has set that up."""
    handler, level, propagates = ConsoleHandler(), log.level, log.propagate
    log.propagate = False
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagates


def log_file(path: Path) -> logging.FileHandler:
    """A handler that appends to a run's log as Hydra's job logging does."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    return handler


class TrainingProgress:
    """Progress of one training: call `step` after each chunk and `epoch` after each epoch."""

    def __init__(self, label: str, epochs: int, examples_per_epoch: int, done: int) -> None:
        self.label = label
        self.epochs = epochs
        self.examples = examples_per_epoch
        self.live = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.live.add_task(
            label, total=epochs * examples_per_epoch, completed=done * examples_per_epoch, detail=""
        )
        self.first = done
        self.validation = ""  # of the last finished epoch
        self.started = time.monotonic()

    def __enter__(self) -> TrainingProgress:
        self.live.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.live.stop()

    def step(self, epoch: int, examples: int, values: dict[str, float], speed: float) -> None:
        """After a chunk: `examples` of this epoch are done, `values` are means over them."""
        self.live.update(
            self.task,
            completed=(epoch - 1) * self.examples + examples,
            description=f"{self.label} {epoch}/{self.epochs}",
            detail=f"{_values(values)}{self.validation}  {speed:,.0f}/s",
        )

    def epoch(self, label: str, row: dict[str, Any], epochs: int, out: Path | None) -> None:
        """After one of the `epochs` of the run in `out`: `row` is its line in the history.

        Without `out` it is the mean over runs that train together, for the terminal alone.
        """
        if row["validation"]:
            self.validation = f"  val {_values(row['validation'])}"
        text = f"{_values(row['train'])}{self.validation}  {row['examples_per_second']:,.0f}/s"
        self.live.update(self.task, completed=row["epoch"] * self.examples, detail=text)
        done = row["epoch"] - self.first
        left = (time.monotonic() - self.started) / max(done, 1) * (epochs - row["epoch"])
        epoch_log.info(
            "%s %d/%d  %s  %s left",
            label,
            row["epoch"],
            epochs,
            text,
            _duration(left),
            extra={"out": out or ""},
        )


def _values(values: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4f}" for name, value in values.items())


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


class CountProgress:
    """A live line for a pass over examples; silent where there is no terminal.

    With `slow`, a pass that takes long is told there in one line.
    """

    def __init__(self, label: str, total: int, slow: bool = False) -> None:
        self.label, self.total = label, total
        self.silent = console.is_terminal or not slow
        self.started = time.monotonic()
        self.live = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.task = self.live.add_task(label, total=total)

    def __enter__(self) -> CountProgress:
        self.live.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.live.stop()

    def done(self, count: int) -> None:
        self.live.update(self.task, completed=count)
        took = time.monotonic() - self.started
        if not self.silent and took > _LONG:
            self.silent = True
            left = _duration(took / count * max(self.total - count, 0))
            log.info("%s: %s of %s, %s left", self.label, f"{count:,}", f"{self.total:,}", left)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; plain and full-width where stdout is no terminal."""
    out = Console(highlight=False, markup=False)  # [8] in a cell is a value, no markup
    if not out.is_terminal:
        out = Console(highlight=False, markup=False, width=200)
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    out.print(table)


def shown(path: Path | str) -> str:
    """A path as a person would type it: relative where it lies below the working directory."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def brief(value: Any) -> str:
    """A value for people: nodes by their function, long ones cut."""
    if isinstance(value, dict) and "_target_" in value:
        options = [f"{k}={brief(v)}" for k, v in value.items() if k[0] != "_" and v is not None]
        text = str(value["_target_"]).rsplit(".", 1)[-1]
        text += f"({', '.join(options)})" if options else ""
    elif isinstance(value, list):
        text = f"[{', '.join(map(brief, value))}]"
    elif isinstance(value, float):
        text = f"{value:g}"
    else:
        text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
