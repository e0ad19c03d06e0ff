"""`kd tune --compare`: as long a search for the scratch student, then both winners, seed by seed.

A distilled student whose settings were searched for, beside a scratch student whose settings were
not, shows what a search does as much as what a teacher does. So the scratch student gets as many
trials, over the settings that matter to it. Then both winners are trained on seeds that neither
search has seen, and compared in pairs. The scratch student without a search is trained beside them,
for contrast: a difference to it alone proves nothing about the teacher.
"""

from __future__ import annotations

import dataclasses
import logging
import shlex
from collections.abc import Sequence

from kd_cli.commands import job
from kd_cli.commands.compare import SEED_KEYS
from kd_cli.commands.search import Search
from kd_cli.commands.search_result import fresh_seeds, show
from kd_cli.commands.spaces import Space, split
from kd_cli.commands.table import COMMANDS, Request
from kd_cli.config.inputs import Images, inputs_of
from kd_cli.config.keys import UNUSED
from kd_cli.config.overrides import is_typed, override_key, place_of, scratch_overrides
from kd_cli.errors import ConfigError
from kd_cli.files import where_possible, write_json
from kd_cli.report import statistics
from kd_cli.report.columns import NONE, PERCENT, In, columns
from kd_cli.runs.finished import FinishedRun, read, test_accuracy
from kd_cli.runs.record import RecordError
from kd_cli.terminal import messages, print_table, shown

log = logging.getLogger("kd")
_DECAYS = "choice(0,1e-4,1e-3,1e-2,0.1)"
DISTILLED, TUNED, PLAIN = "distilled, tuned", "scratch, tuned", "scratch, not tuned"


def compare(search: Search, typed: Sequence[str], trials: int, seeds: int, until: float) -> int:
    """Searches for both students, trains both winners, and gives the verdict.

    Args:
        search: Of the distilled student.
        typed: Overrides of the scratch student alone.
        trials: Of each search.
        seeds: How many fresh ones the winners get.
        until: Of `time.monotonic`: no trial of the distilled student is begun after it.

    Returns:
        The exit code.

    Raises:
        ConfigError: A mistake in the scratch student's space; nothing has been written.
        RunFailed: No trial of one of them has finished.
    """
    single, spaces = scratch_space(search, typed)
    word = COMMANDS["train-student"]
    scratch = Search(word, single, spaces, search.prune, search.config_dir, search.session)
    with messages():
        log.info("distilled student: %s", " ".join(space.text for space in search.spaces))
        log.info("scratch student: %s", " ".join(space.text for space in spaces))
        alone = [space for space in spaces if _only_scratch(space, search)]
        if alone:
            log.warning(
                "the distilled student can't choose %s, which the scratch student can; to let it, "
                "type %s",
                ", ".join(space.name for space in alone),
                shlex.join(space.text for space in alone),
            )
        failed = search.run(trials, until)
        count = min(len(search.tried()), trials)
        log.info("the scratch student gets as many trials: %d", count)
        failed += scratch.run(count)
        distilled, tuned = (show(one, count) for one in (search, scratch))
    seed = f"seed={','.join(map(str, fresh_seeds(search, seeds)))}"
    kept = [_without_seeds(one.overrides) for one in (search, scratch)]
    wanted = {
        DISTILLED: ("distill", [*kept[0], *distilled.typed]),
        TUNED: ("train-student", [*kept[1], *tuned.typed]),
        PLAIN: ("train-student", scratch_overrides(kept[0])),
    }
    parts = {
        name: job.prepare(
            Request(COMMANDS[command], [*own, seed], ["--multirun"], search.config_dir)
        )
        for name, (command, own) in wanted.items()
    }
    codes = [job.train(part, search.session, table=False) for part in parts.values()]
    conclude(search, {name: part.points for name, part in parts.items()}, count)
    return max([1 if failed else 0, *codes])


def scratch_space(search: Search, typed: Sequence[str]) -> tuple[list[str], list[Space]]:
    """The overrides and the spaces of the scratch student's search.

    It may choose all that the distilled student may and it can use, and by default its learning
    rate, label smoothing, weight decay and, of images, augmentation. What has been typed with one
    value stays.

    Args:
        search: Of the distilled student.
        typed: Overrides of the scratch student alone, which replace those.

    Raises:
        ConfigError: A mistake in `typed`, or nothing is left to choose.
    """
    taught = [*search.overrides, *(space.text for space in search.spaces)]
    own = [*scratch_overrides(taught), *typed]
    plan = search.plan
    rate = plan.learning_rate
    defaults = [
        f"learning_rate=tag(log,interval({rate / 10:.4g},{rate * 10:.4g}))",
        "label_smoothing=interval(0,0.2)",
    ]
    if "weight_decay" in plan.optimizer:
        decay = plan.optimizer.weight_decay
        found = f"tag(log,interval({decay / 100:.4g},{decay * 10:.4g}))" if decay else _DECAYS
        defaults.append(f"optimizer.weight_decay={found}")
    if isinstance(inputs_of(plan.dataset), Images) and not plan.augment.train:
        defaults.append("augment=choice(none,flip_crop)")
    added = [one for one in defaults if not is_typed(place_of(one), own)]
    single, spaces = split([*own, *added], search.config_dir)
    if not spaces:
        raise ConfigError(
            "the scratch student has nothing to search: every key of it has one value; leave "
            "learning_rate out, or type scratch.learning_rate='interval(...)'"
        )
    return single, spaces


def _only_scratch(space: Space, search: Search) -> bool:
    """Whether only the scratch student may choose a key, though the other one uses it too."""
    key = place_of(space.text)
    return key not in UNUSED["distill"] and not is_typed(key, [s.text for s in search.spaces])


def _without_seeds(overrides: Sequence[str]) -> list[str]:
    return [one for one in overrides if override_key(one) not in SEED_KEYS]


def conclude(search: Search, points: dict[str, list], trials: int) -> None:
    """Prints the table and the verdict; writes `comparison.json` in the search's folder.

    Args:
        search: Of the distilled student.
        points: The directories of the final runs, by whose they are.
        trials: Of each search.
    """
    runs = {name: _finished(folders) for name, folders in points.items()}
    results = {name: _against(runs[DISTILLED], runs[name]) for name in (TUNED, PLAIN)}
    shown_columns = columns(In.COMPARE, [run for own in runs.values() for run in own])
    rows = []
    for name, own in runs.items():
        result = results.get(name)
        gain = PERCENT.text(result.mean, sign="+") if result else NONE
        cells = [column.over(own) if own else NONE for column in shown_columns]
        rows.append([name, str(len(own)), *cells, gain, result.verdict if result else NONE])
    heads = [column.header for column in shown_columns]
    print_table(
        f"{shown(search.folder)}: winners of {trials} trials each, on fresh seeds, "
        "mean and standard deviation",
        ["", "seeds", *heads, "distilled against it, points", "verdict"],
        rows,
    )
    sentences = {
        name: statistics.in_words(one) if one else "no pair of finished runs"
        for name, one in results.items()
    }
    print(f"verdict: the distilled student against the tuned scratch student: {sentences[TUNED]}")
    print(
        f"for contrast: against the scratch student without a search of its own: {sentences[PLAIN]}"
    )
    told = {
        name: {
            "runs": [run.folder.name for run in runs[name] if run.folder],
            "sentence": sentences[name],
            **({"paired": dataclasses.asdict(one)} if one else {}),
        }
        for name, one in results.items()
    }
    with where_possible(search.place):
        write_json(
            search.place / "comparison.json",
            {
                "schema_version": 1,
                "trials": trials,
                "distilled": [run.folder.name for run in runs[DISTILLED] if run.folder],
                "against_tuned_scratch": told[TUNED],
                "against_scratch_not_tuned": told[PLAIN],
            },
        )


def _finished(folders: list) -> list[FinishedRun]:
    """The finished runs among some directories; a failed one was told already."""
    found = []
    for folder in folders:
        try:
            run = read(folder)
        except RecordError as error:
            log.warning("left out of the comparison: %s", error)
            continue
        found += [run] if run is not None else []
    return found


def _against(
    students: Sequence[FinishedRun], baselines: Sequence[FinishedRun]
) -> statistics.Paired | None:
    """The differences of test accuracy, seed by seed; None without a pair."""
    by_pair = {run.pair: run for run in baselines}
    pairs = [(one, by_pair[one.pair]) for one in students if one.pair in by_pair]
    if not pairs:
        return None
    ours, theirs = zip(*pairs, strict=True)
    return statistics.paired(list(map(test_accuracy, ours)), list(map(test_accuracy, theirs)))
