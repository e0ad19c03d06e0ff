"""`kd cache list|verify|prune`: looks after the logits and decoded images that runs keep."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from kd_cli.commands.table import Request
from kd_cli.config.compose import main_dir
from kd_cli.data import arrays
from kd_cli.data.dataset import load_dataset
from kd_cli.device import set_up
from kd_cli.distillation import logits_cache
from kd_cli.errors import ConfigError, first_line, suggest
from kd_cli.files import file_hash, files_of, remove_leftovers
from kd_cli.runs.session import Session
from kd_cli.terminal import print_table, shown

# Action, its options with their defaults, what it does.
ACTIONS: dict[str, tuple[dict[str, str], str]] = {
    "list": ({}, "what is kept, for which teacher and data, and how big it is"),
    "verify": ({"rows": "100", "seed": "0"}, "checksums, and random rows computed again"),
    "prune": ({"days": "", "all": "false"}, "remove what can't be used, is old, or all"),
}


def run(request: Request) -> int:
    """Runs `kd cache ACTION key=value ...`; returns 0, or 1 when `verify` found a fault.

    Raises:
        ConfigError: An unknown action or key, or a value that can't be used.
    """
    if {"--help", "-h"} & set(request.words):
        for action, (options, text) in ACTIONS.items():
            keys = " ".join(
                f"{key}={value}"
                for key, value in {"cache_dir": "", "outputs": "outputs", **options}.items()
            )
            print(f"kd cache {action:<8}{text}\n{' ' * 17}{keys}")
        return 0
    action, *options = request.words or ["list"]
    config_dir = _config_dir(options) if action == "verify" else None
    if action not in ACTIONS:
        raise ConfigError(
            f"unknown action '{action}'{suggest(action, ACTIONS)} (kd cache {'|'.join(ACTIONS)})"
        )
    values = {"cache_dir": "", "outputs": "outputs", **ACTIONS[action][0]}
    typed: set[str] = set()
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or key not in values:
            raise ConfigError(
                f"kd cache {action} takes {', '.join(f'{key}=...' for key in values)}; "
                f"received '{option}'"
            )
        if key in typed:
            raise ConfigError(f"{key} is typed twice: leave one out")
        if not value:
            raise ConfigError(f"{option} needs a value")
        typed.add(key)
        values[key] = value
    beside = os.environ.get("KD_CACHE_DIR") or f"{values['outputs']}/cache"
    root = Path(values["cache_dir"] or beside).expanduser()
    if action == "verify":
        main_dir(config_dir)  # for modules of the user's own
        return _verify(root, _number(values, "rows", 1), _number(values, "seed"))
    if action == "prune":
        if values["all"] not in ("true", "false"):
            raise ConfigError(f"all={values['all']} must be true or false")
        return _prune(root, _number(values, "days") if values["days"] else None, values["all"])
    return _list(root)


def _config_dir(options: list[str]) -> str | None:
    """Takes `--config-dir FOLDER` out of the words; None where it is not there."""
    for place, word in enumerate(options):
        flag, equals, value = word.partition("=")
        if flag == "--config-dir":
            rest = [value] if equals else options[place + 1 : place + 2]
            if not rest or not rest[0]:
                raise ConfigError("--config-dir needs a value")
            del options[place : place + (1 if equals else 2)]
            return rest[0]
    return None


def offers(words: list[str]) -> list[str]:
    """The actions, and then the keys of the one that was typed, for shell completion."""
    if not words:
        return list(ACTIONS)
    return [f"{key}=" for key in ("cache_dir", *ACTIONS.get(words[0], ({}, ""))[0])]


def _number(values: dict[str, str], key: str, least: int = 0) -> int:
    if not values[key].isdecimal() or int(values[key]) < least:
        raise ConfigError(f"{key}={values[key]} must be a whole number, at least {least}")
    return int(values[key])


def _list(root: Path) -> int:
    rows = []
    for folder in logits_cache.entries(root):
        record = logits_cache.read_manifest(folder)
        if record is None:
            what = "logits, damaged" if _is_damaged(folder) else "logits, unfinished"
            rows.append([folder.name, what, "", "", _size(folder), ""])
            continue
        shape = f"{record['rows']:,} x {record['classes']:,}"
        dataset = record["origin"]["dataset"]["name"]
        what = f"{dataset}: {record['what']}"
        rows.append([folder.name, what, shape, record["dtype"], _size(folder), record["written"]])
    for folder in _decoded(root):
        manifest = arrays.read_manifest(folder)
        key = manifest["key"] if manifest else {"tfds": "unfinished"}
        name = key.get("text") or key.get("tfds", "image folder")
        what = f"decoded {'texts' if 'text' in key else 'images'}: {name}"
        rows.append([folder.name, what, "", "", _size(folder), ""])
    if not rows:
        print(f"nothing is kept in {root}")
        return 0
    print_table(str(root), ["entry", "what", "shape", "type", "size", "written"], rows)
    return 0


def _decoded(root: Path) -> list[Path]:
    """All folders of decoded images, those that can't be used too."""
    return sorted(p for p in (root / "data").glob("[!.]*") if p.is_dir())


def _is_damaged(folder: Path) -> bool:
    """Whether an entry without a manifest that can be read has one that can't."""
    return (folder / "manifest.json").exists()


def _size(folder: Path) -> str:
    size = float(sum(p.lstat().st_size for p in folder.rglob("*") if p.is_file()))
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _verify(root: Path, count: int, seed: int) -> int:
    """Checksums first; then `count` random rows of each entry against the teacher's answer now."""
    faults, session = 0, Session()
    for folder in logits_cache.entries(root):
        record = logits_cache.read_manifest(folder)
        if record is None and _is_damaged(folder):
            faults += 1
            print(f"{folder.name}: its manifest is damaged; the next run computes it again")
            continue
        if record is None:
            print(f"{folder.name}: unfinished; the next run that needs it continues")
            continue
        try:
            fault = logits_cache.fault(folder, session.checked)
            if fault is None and (part := _of_the_user(record)):
                print(f"{folder.name}: not compared; they were made by {part}, which is not kd's")
                continue
            fault = fault or _difference(folder, record, count, seed, session)
        except Exception as error:  # its origin is whatever the manifest says
            fault = f"can't be computed again ({first_line(error)})"
        faults += fault is not None
        right = f"right ({min(count, record['rows'])} random rows compared)"
        print(f"{folder.name}: {fault or right}")
    if faults:
        print(
            f"{faults} of the entries can't be used: kd cache prune removes those that are damaged "
            "or without their teacher, all=true everything"
        )
    return 1 if faults else 0


def _of_the_user(record: dict[str, Any]) -> str:
    """The user's function that made an entry; empty where kd made it.

    A manifest must not have code imported.
    """
    part = record["origin"].get("layers", {}).get("part") or ""
    return "" if part.startswith("kd_cli.") else part


def _difference(
    folder: Path, record: dict[str, Any], count: int, seed: int, session: Session
) -> str | None:
    """How the entry differs from what its teacher says now; None when it doesn't."""
    set_up("auto")
    from kd_cli.data.dataset import Split
    from kd_cli.distillation.teacher_tables import of_origin
    from kd_cli.networks.predict import predict_rows

    origin = record["origin"]
    try:
        dataset = load_dataset(OmegaConf.create(origin["dataset"]))
        teacher, predict, prepare, hashes = of_origin(origin, dataset, session)
    except ConfigError as error:
        return f"its teacher or data are gone ({error})"
    for key, value in hashes.items():
        if record["key"][key] != value:
            return f"its {key} have changed since ({record['key'][key][:12]}, now {value[:12]})"
    rows = np.sort(np.random.default_rng(seed).permutation(record["rows"])[:count])
    split = getattr(dataset, origin["part"])
    chosen = Split(split.images, split.labels, split.rows[rows])
    now = predict_rows(predict, chosen, prepare)
    table = np.load(folder / "logits.npy", mmap_mode="r", allow_pickle=False)
    kept = table[rows].astype(np.float32)
    # Another batch size or device rounds differently, in bfloat16 by some units of 2^-8; a wrong
    # row is wrong by far more.
    relative = 1e-3 if teacher.precision == "float32" else 3e-2
    tolerance = relative * max(1.0, float(np.abs(now).max())) + record["largest_rounding_error"]
    difference = float(np.abs(kept - now).max())
    if difference > tolerance:
        return f"differs from the teacher by up to {difference:.3g} in {len(rows)} random rows"
    return None


def _prune(root: Path, days: int | None, everything: str) -> int:
    removed, kept = sum(map(remove_leftovers, [root, *root.glob("*"), *root.glob("*/*")])), 0
    for folder in logits_cache.entries(root):
        old = days is not None and (time.time() - _newest(folder)) / 86400 >= days
        gone = False
        if everything == "true" or old or _is_useless(folder):
            gone = _removed(folder, logits_cache.remove)
        removed, kept = removed + gone, kept + (not gone)
    for folder in _decoded(root):
        if everything == "true" or arrays.read_manifest(folder) is None:
            removed += _removed(folder, arrays.remove)
    print(f"removed {removed}, kept {kept} in {root}")
    return 0


def _removed(folder: Path, remove: Callable[[Path], bool]) -> bool:
    """Whether an entry could be removed; where the disk does not let it, that is told."""
    try:
        return remove(folder)
    except OSError as error:
        print(f"kd: {shown(folder)} stays: {error.strerror}", file=sys.stderr)
        return False


def _is_useless(folder: Path) -> bool:
    """Whether no run can use an entry: unfinished, damaged, or its teacher is another now."""
    try:
        record = logits_cache.read_manifest(folder)
        return (
            record is None
            or not _has_its_teacher(record["origin"]["teacher"])
            or logits_cache.fault(folder, set()) is not None
        )
    except OSError:
        return True


def _has_its_teacher(origin: dict[str, Any]) -> bool:
    file = Path(origin["file"])
    return bool(files_of(file)) and file_hash(file) == origin["sha256"]


def _newest(folder: Path) -> float:
    return max((p.lstat().st_mtime for p in folder.iterdir()), default=0.0)
