"""`kd report DIR`: was distilling worth it, as one HTML file, Markdown and figures."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from kd_cli.commands.table import Request
from kd_cli.errors import ConfigError, suggest
from kd_cli.files import remove_leftovers
from kd_cli.report import files_for_devices
from kd_cli.report.build import build_report, left_out, write_report
from kd_cli.report.files_for_devices import TOLERANCE, Exported, by_data, of_groups, smallest
from kd_cli.report.groups import grouped
from kd_cli.runs.finished import Found, find, unseen_teachers
from kd_cli.terminal import messages, shown

log = logging.getLogger("kd")
USAGE = """\
usage: kd report DIR [DIR ...] [--out FOLDER] [tolerance=0.5]

Finds the finished runs and sweeps below DIR, groups them by what differs, seeds aside, compares
every distilled student with its scratch student, and writes report.html (one file), report.md and
PNGs to FOLDER (DIR/report of the first DIR).

  kd report outputs
  kd report outputs/sweeps/1a2b3c4d --out my_report
  kd report outputs tolerance=1       # of exported files: the smallest that loses at most a point
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
    folders, out, tolerance = folders_of(request.words)
    with messages():
        found = find(folders)
        if not found.runs:
            others = f" ({left_out(found)})" if found.unfinished or found.unreadable else ""
            raise ConfigError(
                f"no finished run below {', '.join(map(shown, folders))}{others}; a finished run "
                "has a metrics.json (kd distill makes one)"
            )
        exported, left = files_for_devices.find(found.runs, folders)
        for line in left:
            log.warning("%s", line)
        names = [shown(folder) for folder in folders]
        blocks = build_report(found, names, exported, tolerance)
        remove_leftovers(out)
        files = write_report(out, blocks)
    print(f"{len(found.runs):,} runs: {shown(out / 'report.html')}")
    print(f"also report.md and {files} figures in {shown(out)}")
    for sentence in which_to_ship(found, exported, tolerance):
        print(sentence)
    return 0


def which_to_ship(found: Found, exported: Sequence[Exported], tolerance: float) -> list[str]:
    """A sentence for each dataset with exported files."""
    groups, _ = grouped([*found.runs, *unseen_teachers(found.runs)])
    parts = by_data(of_groups(exported, groups))
    several = len(parts) > 1
    return [
        (f"{own[0].record.dataset['name']}: " if several else "") + smallest(own, tolerance)
        for own in parts.values()
    ]


def _tolerance(words: Sequence[str]) -> tuple[list[str], float]:
    """The words without `tolerance=`, and its value."""
    given = [word for word in words if word.startswith("tolerance=")]
    if len(given) > 1:
        raise ConfigError("tolerance is typed twice: leave one out")
    rest = [word for word in words if word not in given]
    if not given:
        return rest, TOLERANCE
    text = given[0].partition("=")[2]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise ConfigError(
            f"tolerance={text} must be a number from 0 to 100: percentage points of test accuracy "
            "that a smaller file may lose, as in tolerance=0.5"
        )
    return rest, value


def folders_of(words: Sequence[str]) -> tuple[list[Path], Path, float]:
    """The folders to read, the one to write, and the points that a smaller file may lose."""
    folders: list[Path] = []
    out: Path | None = None
    rest, tolerance = _tolerance(words)
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
    return folders, out, tolerance
