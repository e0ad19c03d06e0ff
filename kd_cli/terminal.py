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

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from kd_cli.streams import encodable

log = logging.getLogger("kd")
epoch_log = logging.getLogger("kd.epoch")
console = Console(stderr=True, highlight=False)
_LONG = 5.0  # seconds without a word
_BAR = 20  # columns of a progress bar, where there is room
_GAP = 3  # columns between those of a table
_PIPE = 200  # columns of a table that goes into a pipe, if they do
_TIME = 7  # columns of the time left: 1:23:45


def is_live() -> bool:
    """Whether stderr shows a line that changes: a terminal that can go back in its line."""
    return console.is_terminal and not console.is_dumb_terminal


class ConsoleHandler(logging.Handler):
    """Prints messages through the console of the live progress line, to break neither.

    Epoch lines are left to the progress on a terminal.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "kd.epoch" and is_live():
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
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    return handler


class TrainingProgress:
    """Progress of one training: call `step` after each chunk and `epoch` after each epoch."""

    def __init__(self, label: str, epochs: int, examples_per_epoch: int, done: int) -> None:
        self.label = label
        self.epochs = epochs
        self.examples = examples_per_epoch
        self.bar = BarColumn(bar_width=_BAR)
        self.live = Progress(
            TextColumn("{task.description}", markup=False),
            self.bar,
            TextColumn("{task.fields[detail]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not is_live(),
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
        count = f"{epoch}/{self.epochs}"
        detail = f"{_values(values)}{self.validation}  {speed:,.0f}/s"
        label, self.bar.bar_width, detail = fit(self.label, count, detail, console.width)
        done = (epoch - 1) * self.examples + examples
        self.live.update(self.task, completed=done, description=label, detail=detail)

    def epoch(self, label: str, row: dict[str, Any], epochs: int, out: Path | None) -> None:
        """After one of the `epochs` of the run in `out`: `row` is its line in the history.

        Without `out` it is the mean over runs that train together, for the terminal alone.
        """
        if row["validation"]:
            self.validation = f"  val {_values(row['validation'])}"
        text = f"{_values(row['train'])}{self.validation}  {row['examples_per_second']:,.0f}/s"
        count = f"{row['epoch']}/{self.epochs}"
        shown_label, self.bar.bar_width, detail = fit(self.label, count, text, console.width)
        done = row["epoch"] * self.examples
        self.live.update(self.task, completed=done, description=shown_label, detail=detail)
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


def fit(label: str, count: str, detail: str, width: int) -> tuple[str, int, str]:
    """What of a live line has room beside the time left: epoch before bar before details.

    Args:
        label: Whose progress it is.
        count: The epoch, as in `3/40`.
        detail: Losses and speed, the first of them the most important.
        width: Of the terminal, in columns.

    Returns:
        Label with epoch, width of the bar, details.
    """
    room = width - _TIME - 3  # three gaps of one column
    head = f"{label[: max(0, room - len(count) - 2)]} {count}".strip()
    bar = max(1, min(_BAR, room - len(head)))
    left = room - len(head) - bar
    return head, bar, detail if len(detail) <= left else f"{detail[: max(0, left - 1)]}…"[:left]


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
            BarColumn(bar_width=_BAR),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not is_live(),
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
    """A table on stdout, or where a terminal is too narrow for it, a paragraph for each row.

    No value is broken over lines: where stdout is no terminal, the table has the width it needs.

    Args:
        title: Above the table.
        columns: Headings; the first column stands left, the others right.
        rows: Of as many cells.
    """
    out = Console(highlight=False, markup=False, emoji=False)  # [8] in a cell is a value, no markup

    def cell(text: str) -> str:
        return encodable(text, out.encoding)

    columns, rows = [cell(text) for text in columns], [[cell(text) for text in row] for row in rows]
    widths = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
    least = []
    for n, column in enumerate(columns):
        values = [row[n] for row in rows]
        # Headings and the rows' names may be broken between their words, values never.
        whole = [*column.split(), *(values if n else " ".join(values).split())]
        least.append(max([1, *map(cell_len, whole)]))
    excess = sum(widths) + _GAP * len(widths) - (out.width if out.is_terminal else _PIPE)
    for n in sorted(range(len(widths)), key=lambda n: least[n] - widths[n]):
        spared = max(0, min(excess, widths[n] - least[n]))
        widths[n] -= spared
        excess -= spared
    if out.is_terminal and excess > 0:
        _print_paragraphs(out, title, columns, rows)
        return
    padding = (0, _GAP, 0, 0)
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=padding)
    for n, column in enumerate(columns):
        table.add_column(column, justify="right" if n else "left", width=widths[n])
    for row in rows:
        table.add_row(*row)
    if not out.is_terminal:
        out.width = _PIPE + max(0, excess)
    out.print(table)


def _print_paragraphs(
    out: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    out.print(title, soft_wrap=True)
    for first, *others in rows:
        out.print(first or "-", soft_wrap=True)
        for column, value in zip(columns[1:], others, strict=True):
            if value:
                out.print(f"  {column}: {value}", soft_wrap=True)


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
