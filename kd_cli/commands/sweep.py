"""A sweep's points before it starts, and its table, `sweep.csv` and `sweep.json` at its end."""

from __future__ import annotations

import csv
import itertools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_cli.config.compose import main_dir, register
from kd_cli.config.keys import SHORT_NAMES
from kd_cli.config.messages import explain_hydra
from kd_cli.errors import ConfigError
from kd_cli.files import (
    DamagedError,
    atomic,
    read_json,
    remove_leftovers,
    where_possible,
    write_json,
)
from kd_cli.report.columns import NONE, In, columns
from kd_cli.runs import finished
from kd_cli.runs.record import RecordError
from kd_cli.terminal import console, print_table, shown

log = logging.getLogger("kd")


def expand(overrides: list[str], config_dir: str | None = None) -> tuple[list[list[str]], set[str]]:
    """All points of a sweep as overrides, in the order in which Hydra runs them; the swept keys.

    Args:
        overrides: As typed; those of Hydra itself are in every point.
        config_dir: The user's `--config-dir`, for `glob(*)` over a group's options.

    Raises:
        ConfigError: When an override can't be read.
    """
    chosen: dict[str, list[str]] = {}  # of a key that is typed twice the last counts, as in Hydra
    swept = set()
    for override in parsed(overrides, config_dir):
        key = override.get_key_element()
        if not override.is_sweep_override():
            values = [override.get_value_element_as_str()]
        elif override.is_discrete_sweep():
            values = list(override.sweep_string_iterator())
        else:
            raise ConfigError(
                f"{override.input_line} is a range, and kd sweeps over values; type "
                f"{key}=a,b,c or {key}=range(1,4)"
            )
        if not values:
            raise ConfigError(f"{override.input_line} gives no value to sweep over")
        bare = override.is_delete() and override.value() is None
        chosen[key] = [key if bare else f"{key}={value}" for value in values]
        name = str(override.key_or_group)
        (swept.add if override.is_sweep_override() else swept.discard)(name)
    return [list(point) for point in itertools.product(*chosen.values())], swept


def refuse_lists(overrides: list[str], why: str) -> None:
    """Refuses `seed=1,2` for a command that can't sweep.

    Args:
        overrides: As typed.
        why: What the command does instead.

    Raises:
        ConfigError: An override is a list of values, or can't be read.
    """
    for override in parsed(overrides, None):
        if override.is_sweep_override():
            raise ConfigError(
                f"{override.input_line} is a list of values, and {why}; type one of them, or one "
                "list in brackets"
            )


def without_helpers(overrides: list[str], config_dir: str | None = None) -> list[str]:
    """Overrides whose `group=glob(*)` leaves out options that begin with _, for others to extend.

    Raises:
        ConfigError: When an override can't be read.
    """
    from hydra.core.override_parser.types import Glob

    kept = []
    for override in parsed(overrides, config_dir):
        text = override.input_line
        if isinstance(override.value(), Glob):
            names = [name for name in override.sweep_string_iterator() if not name.startswith("_")]
            text = f"{override.get_key_element()}={','.join(names)}" if names else text
        kept.append(text)
    return kept


def parsed(overrides: list[str], config_dir: str | None) -> list[Any]:
    """Overrides as Hydra reads them; a group's options are known to them for glob(*)."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    register()
    try:
        with hydra.initialize_config_dir(main_dir(config_dir), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            return OverridesParser.create(loader).parse_overrides(overrides)
    except HydraException as error:
        raise ConfigError(explain_hydra(error, [])) from error


def finish(
    folder: Path, names: set[str], table: bool = True, failed: Mapping[str, str] | None = None
) -> int:
    """Prints the sweep's table, best validation accuracy first, and writes it beside the points.

    Args:
        folder: The sweep's directory, with the points of earlier commands too.
        names: The points of this command.
        table: Whether to print the table.
        failed: Why points of this command failed, as far as it is known already.

    Returns:
        How many points of this command failed.
    """
    if not folder.is_dir():
        return 0
    remove_leftovers(folder)
    runs, failures, foreign = [], dict(failed or {}), []
    for directory in sorted(p for p in folder.iterdir() if p.is_dir()):
        name = directory.name
        own = name in names or (directory / ".hydra").is_dir()
        try:
            run = finished.read(directory)
            error = None if run else read_json(directory / "error.json", "type the command again")
        except DamagedError as damaged:
            run, error = None, {"message": str(damaged)}
        except RecordError as unreadable:
            run, error = None, {"message": str(unreadable)}
        if name in failures:
            continue
        if run is not None:
            runs.append(run)
        elif error is not None and own:
            failures[name] = str(error.get("message", "")).strip() or "failed"
        elif error is not None:
            foreign.append(name)
    if foreign:
        log.warning(
            "left out of the table, because no run of kd wrote them: %s", ", ".join(foreign)
        )
    runs.sort(key=_rank)
    settings = _varying(
        [{"seed": run.record.seed, **finished.settings_of(run.record.config)} for run in runs]
    )
    names_of_settings = list(dict.fromkeys(key for one in settings for key in one))
    measured = columns(In.SWEEP, runs)
    rows = [
        {
            **{key: one.get(key) for key in names_of_settings},  # a folder may mix commands
            **{column.key: column.value(run) for column in measured},
            "directory": run.folder.name,
        }
        for one, run in zip(settings, runs, strict=True)
    ]
    told = [{"directory": name, "message": failures[name]} for name in sorted(failures)]
    with where_possible(folder):
        write_json(folder / "sweep.json", {"points": rows, "failures": told})
        if rows:
            with atomic(folder / "sweep.csv") as temporary, open(temporary, "w", newline="") as f:
                writer = csv.DictWriter(f, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
    if rows:
        order = "sorted by validation accuracy"
        if finished.validation_accuracy(runs[0]) is None:  # test must not choose a point
            order = "not sorted: there is no validation split, each reports its last epoch"
        if table:
            print_table(
                f"{shown(folder)}: {len(rows)} point{'s'[: len(rows) > 1]}, {order}",
                [*names_of_settings, *[column.header for column in measured]],
                list(
                    zip(
                        *(_cells([row[key] for row in rows]) for key in names_of_settings),
                        *([one.cell(row[one.key]) for row in rows] for one in measured),
                        strict=True,
                    )
                ),
            )
    for one in told:
        console.print(
            f"kd: failed: {one['directory']}: {one['message'].splitlines()[0]}",
            style="red",
            markup=False,
            soft_wrap=True,
        )
    return len(names & set(failures))


def _rank(run: finished.FinishedRun) -> tuple[bool, float]:
    """The best validation accuracy first; last what has no validation split."""
    accuracy = finished.validation_accuracy(run)
    return accuracy is None, -(accuracy or 0)


def _varying(settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The settings that differ between the points, under the names that a user types."""
    keys = sorted({key for one in settings for key in one})

    def values(key: str) -> set[str]:
        # (The column `loss` tells which points have a loss, so its keys count among those.)
        return {str(one.get(key)) for one in settings if key in one or not key.startswith("loss.")}

    differing = [key for key in keys if len(values(key)) > 1]
    # seed implies both of these; a root learning_rate reappears in the nodes that use it.
    if "seed" in differing:
        differing = [key for key in differing if key not in ("init_seed", "data_seed")]
    short = {key: key.rsplit(".", 1)[-1] for key in differing}
    names = {key: name if name in SHORT_NAMES else key for key, name in short.items()}
    return [{names[key]: one.get(key) for key in differing} for one in settings]


def _cells(values: list[Any]) -> list[str]:
    """A column for people; lists of nodes are named by their functions where these differ."""
    names = [
        ", ".join(str(node["_target_"]).rsplit(".", 1)[-1] for node in value)
        if _is_nodes(value)
        else _cell(value)
        for value in values
    ]
    return names if len(set(names)) == len({*map(str, values)}) else [_cell(one) for one in values]


def _is_nodes(value: Any) -> bool:
    listed = isinstance(value, list) and value
    return bool(listed) and all(isinstance(one, dict) and "_target_" in one for one in value)


def _cell(value: Any) -> str:
    if value is None:
        return NONE
    return f"{value:.4g}" if isinstance(value, float) else str(value)
