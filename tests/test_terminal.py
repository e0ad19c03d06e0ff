"""Streams that end no run, tables that break no number, and a live line that fits."""

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from kd_cli import terminal
from kd_cli.streams import Patient, encodable, patient
from kd_cli.terminal import fit, print_table

COLUMNS = ["", "network", "parameters", "validation, %", "test of last epoch, %", "time, s"]
ROWS = [
    ["distilled student", "mlp", "1,108", "87.50 ± 0.25", "26.67", "12.5"],
    ["scratch student", "not trained yet", "", "", "", ""],
]


def printed(monkeypatch, width):
    out = io.StringIO()
    make = lambda **options: Console(file=out, width=width, force_terminal=True, **options)  # noqa: E731
    monkeypatch.setattr(terminal, "Console", make)
    print_table("npz: accuracy", COLUMNS, ROWS)
    return out.getvalue()


@pytest.mark.parametrize("width", [*range(20, 120, 3), 200])
def test_no_value_is_broken_over_lines(monkeypatch, width):
    text = printed(monkeypatch, width)
    for value in ("1,108", "87.50 ± 0.25", "26.67", "12.5"):
        assert value in text


def test_a_narrow_table_is_a_paragraph_for_each_row(monkeypatch):
    lines = [line.rstrip() for line in printed(monkeypatch, 40).splitlines()]
    assert lines[:4] == [
        "npz: accuracy",
        "distilled student",
        "  network: mlp",
        "  parameters: 1,108",
    ]
    assert lines[-2:] == ["scratch student", "  network: not trained yet"]


def test_a_table_for_a_pipe_is_as_wide_as_it_needs(capsys):
    print_table("wide", [f"column {n}" for n in range(40)], [[f"{n},000,000" for n in range(40)]])
    title, head, row = capsys.readouterr().out.splitlines()
    assert row.split() == [f"{n},000,000" for n in range(40)]


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 200])
def test_the_live_line_fits_and_keeps_epoch_and_bar(width):
    detail = "loss 12.3095 hard 0.0979 soft 12.2116 accuracy 0.7331  val accuracy 0.7742  9,319/s"
    head, bar, shown = fit("student", "12/40", detail, width)
    assert head.endswith("12/40") and bar >= 1
    assert len(head) + bar + len(shown) + 3 + len("1:23:45") <= width
    if width >= 40:
        assert head == "student 12/40"
    if width == 80:
        assert bar == 20 and shown.startswith("loss 12.3095 hard 0.0979") and shown.endswith("…")
    if width == 200:
        assert shown == detail


def test_characters_that_a_stream_lacks():
    assert encodable("87.5 ± 0.2 – é…", "ascii") == "87.5 +- 0.2 - ?..."
    assert encodable("87.5 ± é", "utf-8") == "87.5 ± é"
    assert encodable("87.5 ± é€", "latin-1") == "87.5 ± é?"


def test_a_name_that_is_no_text_is_printed(tmp_path):
    with open(tmp_path / "out", "w", encoding="utf-8") as file:
        Patient(file).write("a\udcffb ±\n")
    assert (tmp_path / "out").read_text(encoding="utf-8") == "a?b ±\n"


def test_a_reader_that_leaves_is_no_failure():
    reader, writer = os.pipe()
    os.close(reader)
    stream = Patient(open(writer, "w"))
    stream.write("x" * 100_000)
    stream.flush()
    stream.write("more\n")
    stream.flush()
    assert stream.failure is None


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_behind_stdout_is_told_once_and_is_exit_code_1():
    code = "import sys; from kd_cli.cli import main; sys.exit(main(['--help']))"
    command = f'{sys.executable} -c "{code}" >/dev/full'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "kd: failed: stdout: No space left on device\n"


CLOSED = [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "| true"]


@pytest.mark.parametrize("how", CLOSED)
def test_closed_streams(how, tmp_path):
    """No traceback, and no file that a closed stream's number would lead to."""
    code = (
        "import sys; from kd_cli.cli import main; code = main(['help']);"
        f"open({str(tmp_path / 'code')!r}, 'w').write(str(code)); sys.exit(code)"
    )
    command = f'{sys.executable} -c "{code}" {how}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Error" not in done.stderr
    assert (tmp_path / "code").read_text() == "0"


def test_streams_are_given_back():
    before = sys.stdout, sys.stderr
    with patient() as out:
        assert sys.stdout is out and out.encoding
        out.close()
    assert (sys.stdout, sys.stderr) == before
    print("still open")


@pytest.mark.parametrize(("kind", "live"), [("dumb", False), ("xterm", True)])
def test_a_dumb_terminal_has_plain_lines(monkeypatch, kind, live):
    console = Console(force_terminal=True, _environ={"TERM": kind})
    monkeypatch.setattr(terminal, "console", console)
    assert terminal.is_live() is live
