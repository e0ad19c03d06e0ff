"""`kd report DIR`: was distilling worth it, as one HTML file, Markdown and figures.

It reads what runs left and trains nothing: no TensorFlow here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kd_cli.files import atomic
from kd_cli.report.columns import NONE
from kd_cli.report.files_for_devices import (
    TOLERANCE,
    Exported,
    Files,
    by_data,
    of_groups,
    pictures,
    smallest,
    table,
)
from kd_cli.report.groups import (
    DISTILLED,
    PLAIN,
    TAUGHT,
    TEACHER,
    Comparison,
    Group,
    candidates,
    chosen,
    compared,
    families,
    grouped,
)
from kd_cli.report.page import Bullets, Heading, Picture, Table, Text, to_html, to_markdown
from kd_cli.report.reasons import reasons
from kd_cli.report.statistics import MIN_SEEDS
from kd_cli.report.tables import differences, results
from kd_cli.runs.finished import Found, unseen_teachers
from kd_cli.runs.finished import validation_accuracy as on_validation
from kd_cli.runs.record import Deployed

MAX_SUMMARY = 12
# Figures that an earlier report may have left in the folder.
_OURS = re.compile(r"effects\.png|(family|data)-\d+-[a-z0-9-]+\.png")
Block = Heading | Text | Bullets | Table | Picture


def write_report(out: Path, blocks: Sequence[Block]) -> int:
    """Writes `report.html`, `report.md` and the figures; returns the number of figures."""
    pictures = [block for block in blocks if isinstance(block, Picture)]
    for picture in pictures:
        with atomic(out / picture.file) as temporary:
            temporary.write_bytes(picture.png)
    title = next(block.text for block in blocks if isinstance(block, Heading))
    pages = {"report.md": to_markdown(blocks), "report.html": to_html(title, blocks)}
    for name, text in pages.items():
        with atomic(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for old in out.glob("*.png"):
        if _OURS.fullmatch(old.name) and old.name not in {picture.file for picture in pictures}:
            old.unlink(missing_ok=True)  # another report at the same time may have removed it
    return len(pictures)


def build_report(
    found: Found,
    folders: Sequence[str],
    exported: Sequence[Exported] = (),
    tolerance: float = TOLERANCE,
) -> list[Block]:
    """The report's content.

    Args:
        found: Of `finished.find`, with at least one run.
        folders: Names of the folders, for the title.
        exported: Files that were made of these runs, and others.
        tolerance: Points that a smaller file may lose.
    """
    from kd_cli.report import figures

    groups, repeats = grouped([*found.runs, *unseen_teachers(found.runs)])
    files = by_data(of_groups(exported, groups))
    comparisons = compared(groups)
    blocks: list[Block] = [Heading(1, f"Was distilling worth it? {', '.join(folders)}")]
    students = [group for group in groups if group.kind != TEACHER]
    blocks.append(Text(_counts(found, groups, repeats), small=True))
    sections = _sections(groups)
    titles = {group.data: section.title for section in sections for group in section.groups}
    blocks.append(Bullets(_summary(families(students), comparisons, titles), lead=True))
    effects = figures.effects(groups, comparisons, titles)
    blocks += [effects] if effects else []
    drawn = figures.drawn_families(groups)
    number = 0
    for place, section in enumerate(sections, start=1):
        blocks += [Heading(2, section.title), Text(section.sizes, small=True)]
        blocks.append(results(section.groups, comparisons))
        notes = _notes(section.groups, comparisons)
        if notes:
            blocks.append(Bullets(notes))
        beyond = differences(section.groups, comparisons)
        if beyond:
            blocks += [Heading(3, "Beyond accuracy: student minus scratch"), beyond]
        if place <= figures.MAX_FAMILIES:
            blocks += figures.trade_offs(section.groups, f"data-{place}")
        blocks += _files(files.get(section.groups[0].data, []), f"data-{place}", tolerance)
        own = families([group for group in section.groups if group.kind != TEACHER])
        kept = [family for family in own if family[0].family in {one[0].family for one in drawn}]
        for family in own:
            best = chosen(family)
            why = reasons(best, comparisons[best.key]) if best and best.kind == DISTILLED else []
            if why:
                blocks += [Heading(3, f"Why? {best.family_name}: {best.name}"), Bullets(why)]
        for family in kept:
            number += 1
            example = figures.example(family, comparisons)
            pictures = figures.of_family(family, comparisons, example, f"family-{number}")
            pair = figures.one_pair(example) if example else None
            if pictures:
                blocks += [Heading(3, f"Figures: {family[0].family_name}"), *pictures]
            if pair:
                blocks += [Heading(3, f"One pair: {family[0].family_name}"), pair]
                blocks.append(Text(ONE_PAIR, small=True))
        if len(kept) < len(own):
            left = f"{len(own) - len(kept)} of {len(own)} experiments have no figures of their own"
            blocks.append(
                Text(f"{left}: drawn are the {len(drawn)} with the most to compare.", small=True)
            )
    others = [own for data, own in files.items() if data not in titles]
    for place, own in enumerate(others, start=len(sections) + 1):
        blocks.append(Heading(2, own[0].record.dataset["name"]))
        blocks += _files(own, f"data-{place}", tolerance)
    return [*blocks, Heading(2, "How to read this"), Bullets(HOW_TO_READ, lead=True)]


def _files(files: Sequence[Files], prefix: str, tolerance: float) -> list[Block]:
    """Which file to ship; nothing where nothing was exported."""
    if not files:
        return []
    blocks: list[Block] = [Heading(3, "Files for devices"), table(files)]
    blocks.append(Bullets([f"{smallest(files, tolerance)}."], lead=True))
    return [*blocks, *pictures(files, prefix)]


ONE_PAIR = (
    "This describes two trained networks, not the method: another seed gives other networks. "
    "Test examples are the same in every seed and are never pooled over seeds; the verdicts in the "
    "table rest on seeds alone."
)
HOW_TO_READ = (
    "Chosen on validation: the epoch whose weights each run kept, the temperature of the scaled "
    "ECE, and the group in bold (the best mean validation accuracy of its experiment, among the "
    f"groups with at least {MIN_SEEDS} seeds where there are any).",
    "Read from test: the test accuracy and all scores to the right of it. Each run read its test "
    "split once, at its end; test chose nothing.",
    "Without a validation split (dataset.validation_fraction=0): the numbers are those of the last "
    "epoch, no group is chosen and ECE is not scaled, because choosing by test accuracy would "
    "report the luck of the choice.",
    "Verdicts: test accuracy of student minus scratch student with the same init_seed, data_seed "
    "and split; paired t interval over these differences; Holm's correction where several groups "
    f"are compared with the same scratch student. Fewer than {MIN_SEEDS} seeds give no verdict.",
    "The scratch student: the plain cross-entropy run (kd train-student) with the same data, "
    "network, optimizer, schedule, epochs, batch size and augmentation; only teacher, loss, cache "
    "and view may differ.",
    "Numbers: mean ± standard deviation (n - 1) over seeds; NLL in nats; Brier between 0 and 2; "
    "ECE over 15 bins of equal width; agreement is the share of test examples on which student and "
    "teacher have the same top class. "
    + NONE
    + " means not known: no teacher, or no validation split.",
)


def _counts(found: Found, groups: Sequence[Group], repeats: int) -> str:
    students = [group for group in groups if group.kind != TEACHER]
    text = f"{len(found.runs):,} finished runs in {len(students):,} groups of students"
    teachers = len(groups) - len(students)
    text += f" and {teachers:,} of teachers." if teachers else "."
    if repeats:
        text += f" {repeats:,} runs repeat the settings and seeds of another and are left out."
    if found.unfinished or found.unreadable:
        text += f" Left out: {left_out(found)}."
    return text


def left_out(found: Found) -> str:
    """How many folders with runs are left out, and why."""
    words = []
    if found.unfinished:
        words.append(f"{found.unfinished:,} unfinished or failed")
    if found.unreadable:
        words.append(
            f"{found.unreadable:,} with a metrics.json that can't be read (damaged, not written by "
            "kd, or of another version of kd)"
        )
    return ", ".join(words)


def _summary(
    own: Sequence[Sequence[Group]], comparisons: Mapping[str, Comparison], titles: Mapping[str, str]
) -> list[str]:
    """A sentence for each family with distilled students; `titles` names the data."""
    lines = []
    alone = [family for family in own if all(group.kind != PLAIN for group in family)]
    for family in [*[family for family in own if family not in alone], *alone]:
        taught = [group for group in family if group.kind in TAUGHT]
        if not taught:
            continue
        where = f"{titles[family[0].data]} {family[0].family_name}"
        best = chosen(family)
        if best is None:
            verdicts = Counter(comparisons[group.key].verdict for group in taught)
            count = ", ".join(f"{number} {verdict}" for verdict, number in verdicts.items())
            head = "Nothing chosen"
            text = f"{where}: {len(taught)} groups without validation; on test {count}"
        else:
            comparison, accuracy = comparisons[best.key], best.summary(on_validation)
            head = comparison.verdict.capitalize()
            text = f"{where}: {best.name}"
            if len(taught) > 1 and accuracy:
                among, mean = len(candidates(family)), f"{100 * accuracy.mean:.2f} % on validation"
                few = len(taught) - among
                left = f" with {MIN_SEEDS} seeds or more, {few} with fewer" if few else ""
                text += f" (chosen among {among}{left}, {mean})"
            sentence = comparison.sentence.removeprefix(f"{comparison.verdict}: ")
            against = " against the scratch student on test" if comparison.baseline else ""
            text += f"{against}: {sentence}"
        lines.append(f"{head}: {text}.")
    if not lines:
        return ["No distilled student: there is nothing to compare (kd distill makes one)."]
    left = len(lines) - MAX_SUMMARY
    if left > 0:
        lines = [*lines[:MAX_SUMMARY], f"{left} more experiments are in the tables below."]
    return lines


@dataclass(frozen=True)
class _Section:
    title: str
    sizes: str
    groups: list[Group]


def _sections(groups: Sequence[Group]) -> list[_Section]:
    """The groups by dataset; two of one name are told apart by their fingerprints."""
    by_data: dict[str, list[Group]] = {}
    for group in groups:
        by_data.setdefault(group.data, []).append(group)
    names = [own[0].record["dataset"]["name"] for own in by_data.values()]
    sections = []
    for (data, own), name in zip(by_data.items(), names, strict=True):
        sizes = own[-1].record["dataset"]
        kinds = ("train", "labelled", "validation", "test")
        known = [f"{sizes[kind]:,} {kind}" for kind in kinds]
        title = f"{name} ({data[:8]})" if names.count(name) > 1 else name
        sections.append(_Section(title, f"Images: {', '.join(known)}.", own))
    return sections


def _notes(groups: Sequence[Group], comparisons: Mapping[str, Comparison]) -> list[str]:
    """What a reader must know before he trusts the table."""
    notes = []
    students = [group for group in groups if group.kind != TEACHER]
    without = [group for group in students if group.summary(on_validation) is None]
    if without:
        notes.append(
            f"{_some(without, students)} no validation split: their numbers are of the last epoch "
            "(nothing else may choose one), and none of them is chosen."
        )
    few = [group for group in students if len(group.runs) < MIN_SEEDS]
    if few:
        notes.append(
            f"{_some(few, students)} fewer than {MIN_SEEDS} seeds: no verdict about them or "
            f"against them (seed={','.join(map(str, range(MIN_SEEDS)))})."
        )
    alone = [g for g in students if g.key in comparisons and comparisons[g.key].baseline is None]
    if alone:
        notes.append(
            f"{_some(alone, students)} no scratch student to be compared with (kd train-student)."
        )
    for group in students:
        one = comparisons.get(group.key)
        if one is None or one.baseline is None:
            continue
        ours, theirs = group.record["dataset"], one.baseline.record["dataset"]
        if ours["train"] != theirs["train"]:
            notes.append(
                f"{group.name} was trained on {ours['train']:,} examples, {ours['labelled']:,} of "
                f"them with a label; its scratch student on the {theirs['train']:,} that have one."
            )
            steps = [run["steps_done"] for run in (group.record, one.baseline.record)]
            if steps[0] != steps[1]:
                notes.append(
                    f"{group.name} took {steps[0]:,} optimizer steps, its scratch student "
                    f"{steps[1]:,}: steps=N makes them equal."
                )
        labels = (group.record.get("teacher") or {}).get("labelled")
        if labels is not None and labels != ours["labelled"]:
            notes.append(
                f"The teacher of {group.name} learned from {labels:,} labels, the student has "
                f"{ours['labelled']:,}."
            )
    for group in students:
        if group.record.get("deployed"):
            parts = Deployed(**group.record["deployed"])
            sizes = f"{group.record['parameters']:,} in all; its scratch student has"
            notes.append(f"{group.name} is {parts.words()}: {sizes} {parts.configured:,}.")
    for key in ("device", "precision"):
        mixed = {
            group.name
            for group in students
            if group.key in comparisons
            for run, scratch in comparisons[group.key].pairs
            if run.record.get(key) != scratch.record.get(key)
        }
        if mixed:
            notes.append(f"Pairs differ in {key}: {', '.join(sorted(mixed)[:3])}.")
    warned = [g for g in groups if any(run.record.get("warnings") for run in g.runs)]
    for group in warned[:3]:
        run = next(run for run in group.runs if run.record.get("warnings"))
        name = f"{group.name} ({group.family_name})" if group.family_name else group.name
        notes.append(f"{name} was warned about: {run.record['warnings'][0]}")
    if len(warned) > 3:
        notes.append(f"{len(warned) - 3} more groups have warnings in their metrics.json.")
    return notes


def _some(part: Sequence[Group], students: Sequence[Group]) -> str:
    if len(part) == len(students):
        return "All groups have" if len(part) > 1 else "The group has"
    return f"{len(part)} of {len(students)} groups {'have' if len(part) > 1 else 'has'}"
