"""`kd report DIR`: was distilling worth it, as one HTML file, Markdown and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kd_cli.commands.table import Request
from kd_cli.errors import ConfigError, suggest
from kd_cli.files import remove_leftovers
from kd_cli.report.build import build_report, left_out, write_report
from kd_cli.runs.finished import find
from kd_cli.terminal import messages, shown

USAGE = """\
usage: kd report DIR [DIR ...] [--out FOLDER]

Finds the finished runs and sweeps below DIR, groups them by what differs, seeds aside, compares
every distilled student with its scratch student, and writes report.html (one file), report.md and
PNGs to FOLDER (DIR/report of the first DIR).

  kd report outputs
  kd report outputs/sweeps/1a2b3c4d --out my_report
"""


def run(request: Request) -> int:
    """Runs `kd report DIR ... [--out FOLDER]`; returns 0.

    Raises:
        ConfigError: No folder is named, one does not exist or holds no finished run, or a flag is
            not known.
    """
    if {"--help", "-h"} & set(request.words):
        print(USAGE, end="")
        return 0
    folders, out = folders_of(request.words)
    with messages():
        found = find(folders)
        if not found.runs:
            others = f" ({left_out(found)})" if found.unfinished or found.unreadable else ""
            raise ConfigError(
                f"no finished run below {', '.join(map(shown, folders))}{others}; a finished run "
                "has a metrics.json (kd distill makes one)"
            )
        blocks = build_report(found, [shown(folder) for folder in folders])
        remove_leftovers(out)
        files = write_report(out, blocks)
    print(f"{len(found.runs):,} runs: {shown(out / 'report.html')}")
    print(f"also report.md and {files} figures in {shown(out)}")
    return 0


def folders_of(words: Sequence[str]) -> tuple[list[Path], Path]:
    """The folders to read, and the one to write."""
    folders: list[Path] = []
    out: Path | None = None
    rest = list(words)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if flag == "--out":
            if not equals and not rest:
                raise ConfigError("--out needs a value: the folder to write to")
            value = value if equals else rest.pop(0)
            if out is not None:
                raise ConfigError("--out is typed twice: leave one out")
            if not value:
                raise ConfigError("--out needs a value: the folder to write to")
            out = Path(value).expanduser()
        elif word.startswith("-"):
            known = suggest(flag, ("--out", "--help"))
            raise ConfigError(f"unknown flag '{flag}'{known} (kd report DIR [--out FOLDER])")
        elif not word:
            raise ConfigError("'' names no folder; expected a folder with runs, such as outputs")
        else:
            folders.append(Path(word).expanduser())
    if not folders:
        raise ConfigError("kd report needs a folder with runs: kd report outputs")
    for folder in folders:
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise ConfigError(f"{folder} {what}; expected a folder with runs, such as outputs")
    out = out or folders[0] / "report"
    for parent in [out, *out.parents]:
        if parent.exists() and not parent.is_dir():
            raise ConfigError(f"--out: {parent} is a file; expected a folder to write to")
    return folders, out
