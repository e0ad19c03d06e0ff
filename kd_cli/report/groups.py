"""Finished runs as groups that differ in more than their seeds, and each group's verdict.

A group is the same experiment with other seeds. A family is all groups that train the same student
on the same data in the same way, apart from what a teacher brings (loss, teacher, cache, view): in
it every group is compared with the plain scratch student, seed by seed. The runs were read by
`finished`, or have just finished: `FinishedRun(record)` is enough, nothing here reads a file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kd_cli.config.keys import SHORT_NAMES, UNUSED
from kd_cli.report import statistics
from kd_cli.runs.finished import (
    FinishedRun,
    Value,
    settings_of,
    test_accuracy,
    validation_accuracy,
)
from kd_cli.runs.identity import digest
from kd_cli.terminal import brief

TEACHER, PLAIN, SCRATCH, DISTILLED, SELF, MUTUAL = (
    "teacher",
    "scratch",
    "scratch variant",
    "distilled",
    "self-trained",
    "mutual",
)
FILE = "file"  # an exported file that no run has left
TAUGHT = (DISTILLED, SELF, MUTUAL)
# What makes a seed; augment.seed follows data_seed, and the dataset's seeds may follow too.
_SEEDS = (
    "init_seed", "data_seed", "augment.seed", "dataset.split_seed", "dataset.labelled_seed",
)  # fmt: skip
# What a scratch student has not: equal without these is equal training.
_NOT_SCRATCH = {
    *UNUSED["train-student"], "command", "label_smoothing", "round", "peers",
    "dataset.unlabelled_path",
}  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Runs that differ in seeds alone, in the order of their seeds.

    Attributes:
        key: Hash of what they share.
        kind: TEACHER, PLAIN (scratch, cross-entropy), SCRATCH (another loss), or one of TAUGHT.
        family: Hash of what they share with their scratch student; groups of one family can be
            compared. A teacher's is its own.
        data: Hash of the dataset; groups of one family have the same.
        runs: At least one.
        settings: What distinguishes the group, under the names that a user types, flat.
        name: For people: method and the settings that differ in the family.
        family_name: For people: the student and the settings that differ between the families.
    """

    key: str
    kind: str
    family: str
    data: str
    runs: tuple[FinishedRun, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    family_name: str = ""

    @property
    def record(self) -> Mapping[str, Any]:
        """The record of the first run: what the group shares."""
        return self.runs[0].record

    def summary(self, value: Value) -> statistics.Summary | None:
        """Mean and spread over the seeds; None where not every run knows the value."""
        values = [value(run) for run in self.runs]
        return statistics.summary(values) if None not in values else None


@dataclass(frozen=True)
class Comparison:
    """A group against the plain scratch group of its family.

    Attributes:
        baseline: That group; None where there is none, and for it and a teacher.
        pairs: (run, scratch run) by seed.
        result: None where there is no pair.
        verdict: `better`, `worse`, `inconclusive`, `too few seeds`, `no baseline`, `no pairs`.
        sentence: The same for people, with numbers.
    """

    baseline: Group | None
    pairs: tuple[tuple[FinishedRun, FinishedRun], ...]
    result: statistics.Paired | None
    verdict: str
    sentence: str


def grouped(runs: Sequence[FinishedRun]) -> tuple[list[Group], int]:
    """Groups with their names, and how many runs were left out as repeats.

    A repeat has the settings and seeds of a run before it (a run found in two sweeps, `rerun`): it
    is no further seed. Families come in the order of their first run; in a family first the plain
    scratch group, then the other scratch groups, then the best validation accuracy.
    """
    parts: dict[str, dict[tuple, FinishedRun]] = {}
    repeats = 0
    for run in runs:
        seen = parts.setdefault(_group_key(run.record), {})
        repeats += run.pair in seen
        seen.setdefault(run.pair, run)
    groups = []
    for key, by_seed in parts.items():
        own = tuple(by_seed[pair] for pair in sorted(by_seed))
        record = own[0].record
        kind = _kind(record)
        family = key if kind == TEACHER else digest(_shared(record))
        groups.append(Group(key, kind, family, str(record["inputs"].get("data")), own))
    order = list(dict.fromkeys(group.family for group in groups))
    place = {family: number for number, family in enumerate(order)}
    kinds = (TEACHER, PLAIN, SCRATCH, *TAUGHT)

    def rank(group: Group) -> tuple:
        best = group.summary(validation_accuracy)
        by_kind = min(kinds.index(group.kind), kinds.index(DISTILLED))
        return group.kind != TEACHER, place[group.family], by_kind, -(best.mean if best else 0)

    groups.sort(key=rank)
    return _named(groups), repeats


def compared(
    groups: Sequence[Group], value: Value = test_accuracy, level: float = 0.95
) -> dict[str, Comparison]:
    """Each group's comparison with the plain scratch group of its family, by the group's key.

    Groups that share a baseline are corrected together (Holm). Teachers and baselines have none.

    Args:
        groups: Of `grouped`.
        value: What is compared, a share of which more is better.
        level: Of the verdicts.
    """
    found: dict[str, Comparison] = {}
    for family in families(groups):
        baseline = next((group for group in family if group.kind == PLAIN), None)
        others = [group for group in family if group.kind not in (TEACHER, PLAIN)]
        if baseline is None:
            for group in others:
                sentence = f"no baseline: {_nearest(group, groups)}"
                found[group.key] = Comparison(None, (), None, "no baseline", sentence)
            continue
        pairs = {group.key: paired_runs(group, baseline) for group in others}
        numbers = {
            key: ([value(a) for a, _ in own], [value(b) for _, b in own])
            for key, own in pairs.items()
            if own and None not in [value(run) for pair in own for run in pair]
        }
        results = statistics.several(numbers, level) if numbers else {}
        for group in others:
            result, own = results.get(group.key), pairs[group.key]
            verdict = result.verdict if result else "no pairs"
            sentence = statistics.in_words(result) if result else _unpaired(group, baseline)
            left = len(group.runs) - len(own)
            if result and left:
                sentence += f"; {left} of {len(group.runs)} seeds have no scratch run"
            found[group.key] = Comparison(baseline, own, result, verdict, sentence)
    return found


def paired_runs(group: Group, baseline: Group) -> tuple[tuple[FinishedRun, FinishedRun], ...]:
    """(run, baseline run) for each pair of seeds and split that both groups have."""
    scratch = {run.pair: run for run in baseline.runs}
    return tuple((run, scratch[run.pair]) for run in group.runs if run.pair in scratch)


def families(groups: Sequence[Group]) -> list[list[Group]]:
    """The groups by family, in their order; every teacher group is one of its own."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.family, []).append(group)
    return list(found.values())


def candidates(family: Sequence[Group]) -> list[Group]:
    """The groups of taught students that one may be chosen from.

    Those with enough seeds for a verdict, where there are any: the best of many single seeds is
    chosen for its luck.
    """
    taught = [group for group in family if group.kind in TAUGHT]
    enough = [group for group in taught if len(group.runs) >= statistics.MIN_SEEDS]
    return enough or taught


def chosen(family: Sequence[Group]) -> Group | None:
    """Of the candidates the one with the best mean validation accuracy.

    Test accuracy chooses nothing: without validation it is None unless there is one group only.
    """
    among = candidates(family)
    means = [(group.summary(validation_accuracy), group) for group in among]
    known = [(one.mean, group) for one, group in means if one]
    if len(among) == 1:
        return among[0]
    return max(known, key=lambda pair: pair[0])[1] if len(known) == len(among) > 0 else None


def _without_seeds(config: Mapping[str, Any]) -> dict[str, Any]:
    settings = {key: value for key, value in settings_of(config).items() if key not in _SEEDS}
    settings.pop("teacher_dir", None)  # the teacher's weights are known by their hash
    settings.pop("dataset.source.unlabelled_path", None)  # it is dataset.unlabelled_path
    return settings


def _group_key(record: Mapping[str, Any]) -> str:
    inputs = {key: value for key, value in record["inputs"].items() if key != "split"}
    return digest([record["command"], _without_seeds(record["config"]), inputs], 16)


def _shared(record: Mapping[str, Any]) -> list[Any]:
    """What a run has in common with its scratch student."""
    return [
        {k: v for k, v in _without_seeds(record["config"]).items() if not _is_taught(k)},
        {k: v for k, v in record["inputs"].items() if k not in ("split", "teacher", "unlabelled")},
    ]


def _is_taught(key: str) -> bool:
    return bool({key, key.split(".")[0]} & _NOT_SCRATCH)


def _kind(record: Mapping[str, Any]) -> str:
    command = record["command"]
    if command == "train-teacher":
        return TEACHER
    taught = {"distill": DISTILLED, "self-train": SELF, "mutual": MUTUAL}
    if command in taught:
        return taught[command]
    loss = record["config"].get("loss") or {}
    plain = loss.get("_target_") in (None, "kd_cli.distillation.cross_entropy")
    return PLAIN if plain and not loss.get("label_smoothing") else SCRATCH


def _named(groups: list[Group]) -> list[Group]:
    """The groups with settings and names; names are unique in a family."""
    named: dict[str, Group] = {}
    of_data: dict[str, list[list[Group]]] = {}
    for family in families([group for group in groups if group.kind != TEACHER]):
        of_data.setdefault(family[0].data, []).append(family)
        own = [{k: v for k, v in _settings(group).items() if _is_taught(k)} for group in family]
        for group, settings in zip(family, own, strict=True):
            rivals = [s for s, g in zip(own, family, strict=True) if _method(g) == _method(group)]
            words = _words(settings, rivals, always=LOSS_SETTINGS)
            name = " ".join([_method(group), *words])
            named[group.key] = replace(group, settings=_short(settings), name=name)
    for siblings in of_data.values():
        shared = [
            {k: v for k, v in _settings(family[0]).items() if not _is_taught(k)}
            for family in siblings
        ]
        students = {
            json.dumps([v for k, v in s.items() if k.startswith("student.")]) for s in shared
        }
        if len(students) == len({family[0].record["network"] for family in siblings}):
            shared = [{k: v for k, v in s.items() if not k.startswith("student.")} for s in shared]
        for family, settings in zip(siblings, shared, strict=True):
            network = family[0].record["network"]
            length = [key for key in ("steps", "epochs") if settings.get(key)][:1]
            words = [network, *_words(settings, shared, always=length)]
            for group in family:
                group = named[group.key]
                everything = {**_short(settings), **group.settings}
                named[group.key] = replace(group, settings=everything, family_name=" ".join(words))
    teachers = [group for group in groups if group.kind == TEACHER]
    settings = [_settings(group) for group in teachers]
    for group, own in zip(teachers, settings, strict=True):
        rivals = [s for s, g in zip(settings, teachers, strict=True) if g.data == group.data]
        words = [f"teacher {group.record['network']}", *_words(own, rivals)]
        named[group.key] = replace(group, settings=_short(own), name=" ".join(words))
    return _unique([named[group.key] for group in groups])


LOSS_SETTINGS = ("loss.alpha", "loss.temperature", "loss.label_smoothing")


def _method(group: Group) -> str:
    if group.kind == DISTILLED:
        return str(_settings(group).get("loss", "distilled"))
    return {SELF: "self-train", MUTUAL: "mutual"}.get(group.kind, "scratch")


def _settings(group: Group) -> dict[str, Any]:
    settings = _without_seeds(group.record["config"])
    weights = group.record["inputs"].get("teacher")
    return settings | ({"teacher.weights": str(weights)[:8]} if weights else {})


def _words(
    settings: Mapping[str, Any], rivals: Sequence[Mapping[str, Any]], always: Iterable[str] = ()
) -> list[str]:
    """`alpha=0.1` for each setting that differs between the rivals, after those of `always`."""
    keys = sorted({key for one in rivals for key in one})
    differing = [key for key in keys if len({_plain(one.get(key)) for one in rivals}) > 1]
    # What is off or empty goes without saying.
    untold = ("_partial_", "peers.settings.")  # of the latter the names are enough
    told = {k: settings.get(k) for k in [*always, *differing] if not any(u in k for u in untold)}
    if not told.get("loss.label_smoothing"):
        told.pop("loss.label_smoothing", None)
    kept = _short({key: value for key, value in told.items() if value not in (None, [], {})})
    words = [f"{key}={brief(value)}" for key, value in kept.items()]
    return words if len(words) <= 8 else [*words[:7], f"and {len(words) - 7} more"]


def _short(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under the names that a user types: the root's where they go there."""
    short: dict[str, Any] = {}
    for key, value in settings.items():
        name = key.removesuffix("._target_")
        if name != key:
            value = str(value).rsplit(".", 1)[-1]
        last = name.rsplit(".", 1)[-1]
        if last in SHORT_NAMES and short.get(last, value) == value:
            name = last
        short[name] = value
    return short


def _plain(value: Any) -> str:
    """Equal for equal values: 10 and 10.0 are."""
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)


def _unique(groups: list[Group]) -> list[Group]:
    """Names that two groups of a family share get the start of the group's hash."""

    def place(group: Group) -> tuple[str, str]:
        return group.data if group.kind == TEACHER else group.family, group.name

    count = Counter(map(place, groups))
    return [
        replace(group, name=f"{group.name} ({group.key[:6]})") if count[place(group)] > 1 else group
        for group in groups
    ]


def _nearest(group: Group, groups: Sequence[Group]) -> str:
    """Why there is no baseline: in what the nearest plain scratch group differs."""
    mine = _told(group)
    best: list[str] | None = None
    for other in groups:
        if other.kind != PLAIN or other.data != group.data:
            continue
        theirs = _told(other)
        keys = sorted(
            key for key in {*mine, *theirs} if _plain(mine.get(key)) != _plain(theirs.get(key))
        )
        if best is None or len(keys) < len(best):
            best = [
                f"{key.removesuffix('._target_')} {brief(theirs.get(key, 'none'))}, "
                f"here {brief(mine.get(key, 'none'))}"
                for key in keys
            ]
    if best is None:
        return "no scratch student on these data was found (kd train-student)"
    more = f" and {len(best) - 3} more" if len(best) > 3 else ""
    return f"the most similar scratch student differs in {'; '.join(best[:3]) or 'its files'}{more}"


def _told(group: Group) -> dict[str, Any]:
    """What a scratch student must share with a group, without what is off or empty."""
    return {k: v for k, v in _shared(group.record)[0].items() if v not in (None, [], {})}


def _unpaired(group: Group, baseline: Group) -> str:
    def seeds(one: Group) -> str:
        return ", ".join(str(a) if a == b else f"{a}/{b}" for a, b, _ in (r.pair for r in one.runs))

    return (
        f"no pairs: seeds {seeds(group)} here, {seeds(baseline)} of the scratch student; "
        "a pair has the same init_seed, data_seed and split"
    )
