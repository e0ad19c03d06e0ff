"""`kd report`: groups, pairs and verdicts of hand-made runs, and the page that shows them."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from kd_cli.commands.report import USAGE
from kd_cli.report import build, figures, groups, page, plots, tables
from kd_cli.report.groups import DISTILLED, PLAIN, SCRATCH, SELF, TEACHER
from kd_cli.report.page import Bullets
from kd_cli.runs import finished
from kd_cli.runs.finished import FinishedRun
from tests.conftest import assert_refused
from tests.records import TEACHER as TEACHER_RECORD
from tests.records import content

CLASSES = ["cat", "dog", "<script>alert(1)</script>"]
# Test accuracies by seed. Distilled minus scratch: 0.02, 0.03, 0.04, so the mean is 0.03 and the
# 95 % interval 0.03 -+ 4.3027 * 0.01 / sqrt(3) = 0.0052 to 0.0548 (t table, 2 degrees of freedom).
SCRATCH_TEST = (0.80, 0.81, 0.79)
BETTER_TEST = (0.82, 0.84, 0.83)
# Differences 0.02, -0.02, 0.00: nothing.
LIKE_TEST = (0.82, 0.79, 0.79)


def config(seed, loss, *, epochs=5, **more):
    settings = {
        "epochs": epochs,
        "batch_size": 32,
        "learning_rate": 0.001,
        "init_seed": seed,
        "data_seed": seed,
        "dataset": {"name": "pets", "validation_fraction": 0.1, "split_seed": 0},
        "student": {"network": {"_target_": "kd_cli.networks.mlp", "units": [8]}},
        "optimizer": {"_target_": "keras.optimizers.Adam"},
        "schedule": {"_target_": "kd_cli.training.constant", "learning_rate": 0.001},
        "loss": {"_target_": f"kd_cli.distillation.{loss[0]}", **loss[1]},
    }
    return settings | more


def record(command, seed, test, *, validation=None, loss=None, teacher="t" * 64, **more):
    """A record that differs in what a report reads."""
    default = ("hinton", {"alpha": 0.1, "temperature": 4.0, "t_squared": True})
    if command != "distill":
        default = ("cross_entropy", {"label_smoothing": 0.0})
    loss = loss or default
    made = content(
        command=command,
        run_id=f"{command}{seed}{loss}",
        seed=seed,
        inputs={"data": "d" * 64, "split": "s" * 64},
        dataset={"name": "pets", "class_names": CLASSES},
        alpha=loss[1].get("alpha"),
        temperature=loss[1].get("temperature"),
        test={"accuracy": test, "nll": 0.5},
        quality={"test": {"accuracy": test, "nll": 0.5, "brier": 0.25, "ece": 0.125}},
        weights_sha256=f"{command}{seed}",
    )
    made["config"] = config(seed, loss, **more) | {"command": command}
    if validation is not None:
        best = {"epoch": 3, "accuracy": validation, "nll": 0.4}
        made["validation"] = {"best": best, "last": best}
        made["quality"]["test"]["ece_scaled"] = 0.0625
    if command == "distill":
        made["inputs"]["teacher"] = teacher
        made["config"]["teacher"] = {"network": {"_target_": "kd_cli.networks.cnn"}}
        made["fidelity"] = {"test": {"agreement": 0.75}}
        known = {"weights_sha256": teacher, "test_accuracy": 0.9, "test_nll": 0.3}
        made["teacher"] = TEACHER_RECORD | known
    return made


def runs(command, tests, **options):
    return [FinishedRun(record(command, seed, test, **options)) for seed, test in enumerate(tests)]


def by_name(made):
    found, _ = groups.grouped(made)
    return {group.name: group for group in found}


def leave(folder: Path, made: dict, epochs: int = 4) -> Path:
    """A run's directory with that record, a history, and predictions of the record's accuracy."""
    (folder / ".hydra").mkdir(parents=True)
    generator = np.random.default_rng(made["seed"])
    labels = np.arange(30) % 3
    wrong = np.arange(30) >= round(30 * made["test"]["accuracy"])
    student = 3.0 * np.eye(3)[(labels + wrong) % 3] + generator.normal(0, 0.2, (30, 3))
    arrays = {"labels": labels, "student_logits": student}
    if made["command"] == "distill":
        arrays["teacher_logits"] = 4.0 * np.eye(3)[labels] + generator.normal(0, 0.2, (30, 3))
    np.savez(folder / "predictions.npz", **arrays)
    best = made.get("validation", {}).get("best", {}).get("accuracy")
    rows = []
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "train": {"loss": 1 / epoch, "accuracy": 0.5 + 0.1 * epoch}}
        rows.append({**row, "validation": {"accuracy": best * epoch / epochs} if best else None})
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "metrics.json").write_text(json.dumps(made))
    return folder


@pytest.fixture
def outputs(work):
    """A sweep of two alphas and two temperatures, scratch, smoothed scratch; three seeds each."""
    root = work / "outputs"
    for seed in range(3):
        scratch = record("train-student", seed, SCRATCH_TEST[seed], validation=0.8)
        leave(root / "scratch" / f"seed{seed}", scratch)
        smooth = ("cross_entropy", {"label_smoothing": 0.1})
        made = record("train-student", seed, LIKE_TEST[seed], validation=0.79, loss=smooth)
        leave(root / "smooth" / f"seed{seed}", made)
        for alpha in (0.1, 0.9):
            for temperature in (1.0, 4.0):
                loss = ("hinton", {"alpha": alpha, "temperature": temperature})
                tests, validation = LIKE_TEST, 0.7
                if (alpha, temperature) == (0.1, 4.0):
                    tests, validation = BETTER_TEST, 0.83
                made = record("distill", seed, tests[seed], validation=validation, loss=loss)
                leave(root / "sweep" / f"a{alpha}t{temperature}s{seed}", made)
    return root


def test_groups_are_what_differs_in_more_than_seeds():
    smooth = ("cross_entropy", {"label_smoothing": 0.1})
    other = ("hinton", {"alpha": 0.1, "temperature": 1, "t_squared": True})
    made = [
        *runs("distill", BETTER_TEST),
        *runs("train-student", SCRATCH_TEST),
        *runs("train-student", LIKE_TEST, loss=smooth),
        *runs("distill", LIKE_TEST, loss=other),
        *runs("train-student", (0.5,), epochs=9),
    ]
    found, repeats = groups.grouped(made)
    assert repeats == 0
    assert [(g.kind, g.family_name, g.name, len(g.runs)) for g in found] == [
        (PLAIN, "mlp epochs=5", "scratch", 3),
        (SCRATCH, "mlp epochs=5", "scratch label_smoothing=0.1", 3),
        (DISTILLED, "mlp epochs=5", "hinton alpha=0.1 temperature=4", 3),
        (DISTILLED, "mlp epochs=5", "hinton alpha=0.1 temperature=1", 3),
        (PLAIN, "mlp epochs=9", "scratch", 1),
    ]


def test_a_group_ignores_order_number_type_and_teacher_dir():
    made = runs("distill", BETTER_TEST)
    made[1].record["config"]["loss"]["temperature"] = 4  # and 4.0 elsewhere
    made[2].record["config"]["teacher_dir"] = "/elsewhere"
    (group,) = by_name(made[::-1]).values()
    assert [run.seeds for run in group.runs] == [(0, 0), (1, 1), (2, 2)]
    assert group.summary(finished.test_accuracy).mean == pytest.approx(0.83)
    assert group.summary(finished.test_accuracy).sd == pytest.approx(0.01)
    assert group.summary(finished.validation_accuracy) is None


def test_another_teacher_makes_another_group():
    made = [*runs("distill", BETTER_TEST), *runs("distill", LIKE_TEST, teacher="u" * 64)]
    names = list(by_name(made))
    assert len(names) == 2 and all("teacher.weights" in name for name in names)


def test_repeats_are_no_further_seeds():
    made = runs("distill", BETTER_TEST)
    found, repeats = groups.grouped([*made, *made[:2]])
    assert repeats == 2 and len(found[0].runs) == 3


def test_verdicts_are_paired_by_seed():
    scratch = runs("train-student", SCRATCH_TEST)
    found = by_name([*runs("distill", BETTER_TEST), *scratch[::-1]])
    comparison = groups.compared([*found.values()])
    assert len(comparison) == 1
    (one,) = comparison.values()
    assert one.baseline.kind == PLAIN and one.verdict == "better"
    assert [(a.seeds, b.seeds) for a, b in one.pairs] == [((s, s), (s, s)) for s in range(3)]
    assert one.result.differences == pytest.approx((0.02, 0.03, 0.04))
    assert one.result.interval == pytest.approx((0.0052, 0.0548), abs=5e-5)
    assert one.sentence.startswith(
        "better by 3.00 percentage points (95 % interval 0.52 to 5.48, 3 seeds)"
    )


def test_points_of_one_baseline_are_corrected_together():
    other = ("hinton", {"alpha": 0.9, "temperature": 4.0, "t_squared": True})
    made = [
        *runs("distill", BETTER_TEST),
        *runs("distill", LIKE_TEST, loss=other),
        *runs("train-student", SCRATCH_TEST),
    ]
    found = by_name(made)
    comparisons = groups.compared([*found.values()])
    best = comparisons[found["hinton alpha=0.1 temperature=4"].key]
    # p = 0.0351 alone (t = 3 sqrt(3), 2 degrees of freedom), twice that with two points.
    assert best.result.p_adjusted == pytest.approx(2 * best.result.p_value)
    assert best.result.points == 2 and best.verdict == "inconclusive"
    assert "Holm's correction for 2 comparisons" in best.sentence


def test_only_the_seeds_of_both_are_paired():
    made = [*runs("distill", (*BETTER_TEST, 0.1)), *runs("train-student", SCRATCH_TEST)]
    (one,) = groups.compared(groups.grouped(made)[0]).values()
    assert len(one.pairs) == 3 and "1 of 4 seeds have no scratch run" in one.sentence
    foreign = [FinishedRun(record("train-student", seed, 0.8)) for seed in (7, 8, 9)]
    (one,) = groups.compared(groups.grouped([*runs("distill", BETTER_TEST), *foreign])[0]).values()
    assert (
        one.verdict == "no pairs" and "seeds 0, 1, 2 here, 7, 8, 9 of the scratch" in one.sentence
    )


def test_another_split_is_no_pair():
    scratch = runs("train-student", SCRATCH_TEST)
    for run in scratch:
        run.record["inputs"]["split"] = "other"
    (one,) = groups.compared(groups.grouped([*runs("distill", BETTER_TEST), *scratch])[0]).values()
    assert one.verdict == "no pairs" and one.result is None


def test_a_split_that_moves_with_the_seed_is_one_group():
    made = [*runs("distill", BETTER_TEST), *runs("train-student", SCRATCH_TEST)]
    for run in made:
        run.record["inputs"]["split"] = f"split{run.record['seed']}"
        run.record["config"]["dataset"]["split_seed"] = run.record["seed"]
    (one,) = groups.compared(groups.grouped(made)[0]).values()
    assert len(one.pairs) == 3 and one.verdict == "better"


def test_too_few_seeds_is_no_verdict():
    made = [*runs("distill", BETTER_TEST[:2]), *runs("train-student", SCRATCH_TEST)]
    (one,) = groups.compared(groups.grouped(made)[0]).values()
    assert one.verdict == "too few seeds" and one.result.interval is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"epochs": 6}, "the most similar scratch student differs in epochs 6, here 5"),
        ({"optimizer": {"_target_": "keras.optimizers.SGD"}}, "optimizer keras.optimizers.SGD"),
        ({"augment": {"train": [{"_target_": "a.flip"}]}}, "augment.train [flip], here none"),
    ],
)
def test_a_scratch_run_trained_otherwise_is_no_baseline(change, text):
    made = [*runs("distill", BETTER_TEST), *runs("train-student", SCRATCH_TEST, **change)]
    (one,) = groups.compared(groups.grouped(made)[0]).values()
    assert one.verdict == "no baseline" and one.baseline is None and text in one.sentence


def test_other_data_are_no_baseline():
    scratch = runs("train-student", SCRATCH_TEST)
    for run in scratch:
        run.record["inputs"]["data"] = "e" * 64
    (one,) = groups.compared(groups.grouped([*runs("distill", BETTER_TEST), *scratch])[0]).values()
    assert one.verdict == "no baseline" and "no scratch student on these data" in one.sentence


def test_a_smoothed_scratch_student_is_no_baseline():
    smooth = ("cross_entropy", {"label_smoothing": 0.1})
    made = [*runs("distill", BETTER_TEST), *runs("train-student", SCRATCH_TEST, loss=smooth)]
    found = groups.compared(groups.grouped(made)[0])
    assert [one.verdict for one in found.values()] == ["no baseline"] * 2


def test_what_only_a_teacher_brings_does_not_part_student_and_baseline():
    made = runs("distill", BETTER_TEST)
    for run in made:
        run.record["config"] |= {"view": "independent", "cache": {"views": 4}, "teacher_dir": "x"}
    (one,) = groups.compared(
        groups.grouped([*made, *runs("train-student", SCRATCH_TEST)])[0]
    ).values()
    assert one.verdict == "better"


def test_self_training_is_compared_with_scratch():
    made = runs("self-train", BETTER_TEST, pseudo={"labels": "soft", "threshold": 0.3})
    found = by_name([*made, *runs("train-student", SCRATCH_TEST)])
    assert found["self-train"].kind == SELF
    assert groups.compared([*found.values()])[found["self-train"].key].verdict == "better"


def test_validation_chooses_and_test_does_not():
    good_on_test = runs("distill", (0.99,) * 3, validation=0.6)
    other = ("hinton", {"alpha": 0.9, "temperature": 4.0, "t_squared": True})
    good_on_validation = runs("distill", (0.5,) * 3, validation=0.7, loss=other)
    found, _ = groups.grouped([*good_on_test, *good_on_validation])
    assert groups.chosen(found).name == "hinton alpha=0.9 temperature=4"
    without = [*runs("distill", BETTER_TEST), *runs("distill", LIKE_TEST, loss=other)]
    assert groups.chosen(groups.grouped(without)[0]) is None


def test_a_teacher_that_only_a_student_knows_has_a_row():
    made = runs("distill", BETTER_TEST)
    (teacher,) = finished.unseen_teachers(made)
    assert teacher.at("test.accuracy") == 0.9 and teacher.at("parameters") == 9000
    found, _ = groups.grouped([*made, teacher])
    assert [group.kind for group in found] == [TEACHER, DISTILLED]
    own = FinishedRun(record("train-teacher", 0, 0.9) | {"weights_sha256": "t" * 64})
    assert finished.unseen_teachers([*made, own]) == []


def test_runs_are_found(outputs):
    rounds = leave(outputs / "self", record("self-train", 0, 0.8))
    leave(rounds / "round-0", record("train-student", 0, 0.1))
    half = outputs / "self2"
    (half / ".hydra").mkdir(parents=True)
    leave(half / "round-0", record("train-student", 0, 0.1))
    (outputs / "foreign").mkdir()
    (outputs / "foreign" / "metrics.json").write_text("[1]")
    (outputs / "latest").symlink_to(rounds, target_is_directory=True)
    found = finished.find([outputs, outputs / "sweep"])
    assert len(found.runs) == 19 and found.unfinished == 1 and found.unreadable == 1
    assert not any("round-0" in str(run.folder) for run in found.runs)


class Page(HTMLParser):
    """Collects tags, texts and what a page refers to; fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.links += [value for key, value in attrs if key in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_report_of_a_sweep(kd, work, outputs):
    done = kd("report", "outputs")
    assert done.code == 0 and done.err == ""
    assert done.out.splitlines()[0] == "18 runs: outputs/report/report.html"
    folder = outputs / "report"
    pngs = {path.name for path in folder.glob("*.png")}
    kinds = ("heat-map", "learning-curves", "reliability", "confusion")
    figures_of_all = {"data-1-parameters.png", "effects.png"}
    assert pngs == {f"family-1-{kind}.png" for kind in kinds} | figures_of_all
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in folder.glob("*.png"))

    text = (folder / "report.html").read_text()
    page = Page(text)
    assert len(page.links) == 6
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"url\(|@import|https?:|<script|<link", text)
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
    assert any(attrs.get("name") == "viewport" for tag, attrs in page.tags if tag == "meta")
    assert "prefers-color-scheme: dark" in text

    markdown = (folder / "report.md").read_text()
    assert set(re.findall(r"\]\((.*?)\)", markdown)) == pngs
    (row,) = [
        x for x in markdown.splitlines() if x.startswith("| **hinton alpha=0.1 temperature=4")
    ]
    # Mean of 82, 84, 83; interval of the smallest p value of five points: 3 -+ t(0.995) sd.
    numbers = "| 3 | 1,000 | 83.00 ± 0.00 | 83.00 ± 1.00 | 0.5000 ± 0.0000 | 0.2500 ± 0.0000 | "
    assert f"{numbers}12.50 ± 0.00 | 6.25 ± 0.00 | 75.00 ± 0.00 | inconclusive: +3.00 perc" in row
    assert "(99 % interval" in row
    assert "digits" not in markdown and "teacher cnn" in markdown
    assert (
        "- Inconclusive: pets mlp epochs=5: hinton alpha=0.1 temperature=4 (chosen among 4, 83.00 %"
        in markdown
    )
    # The pair of seed 0 on 30 images: scratch has 24 right, distilled 25, one more than scratch.
    assert "both on 24, the student alone on 1, scratch alone on 0, neither on 5" in markdown


def test_nothing_of_a_file_becomes_html(kd, work):
    evil = "<img src=x onerror=alert(1)>|`x`"
    for seed in range(2):
        made = record("distill", seed, 0.8, validation=0.5)
        made["network"] = made["dataset"]["name"] = evil
        made["config"]["loss"]["_target_"] = f"my.{evil}"
        made["config"]["loss"]["mode"] = evil
        made["warnings"] = [evil]
        leave(work / evil[:8] / f"run{seed}", made)
    assert kd("report", evil[:8], "--out=out").code == 0
    page = Page((work / "out" / "report.html").read_text())
    assert [attrs["alt"] for tag, attrs in page.tags if tag == "img" and "onerror" in attrs] == []
    assert evil in "".join(page.texts)
    assert "<img" not in (work / "out" / "report.md").read_text()


def test_calibration_is_paired_by_seed():
    made = [*runs("distill", BETTER_TEST), *runs("train-student", SCRATCH_TEST)]
    # Distilled minus scratch: NLL 0.02, 0.03, 0.04; ECE in points -2, -3, -4; Brier always 0.01.
    for seed in range(3):
        for run, sign in ((made[seed], 1), (made[3 + seed], -1)):
            half = sign * (0.01 + 0.005 * seed)
            brier = 0.25 + (0.01 if sign > 0 else 0)
            quality = {"nll": 0.5 + half, "ece": 0.1 - half, "brier": brier}
            run.record["quality"]["test"] = quality
    found, _ = groups.grouped(made)
    table = tables.differences(found, groups.compared(found))
    assert list(table.columns[2:]) == ["NLL, nats", "Brier", "ECE, %", "ECE scaled, %"]
    (row,) = [row for row in table.rows if row.cells]
    # t of 2 degrees of freedom at 97.5 %: 4.3027, times 0.01 / sqrt(3): 0.0248.
    nll, ece = "+0.0300 (0.0052 to 0.0548)", "-3.00 (-5.48 to -0.52)"
    assert row.cells[1:] == ["3", nll, "+0.0100", ece, "–"]


def test_the_figure_of_all_verdicts(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "effects", lambda rows: drawn.extend(rows) or b"")
    made = [*runs("train-student", SCRATCH_TEST), *runs("distill", BETTER_TEST)]
    long = {"epochs": 9}
    made += [*runs("train-student", SCRATCH_TEST, **long), *runs("distill", LIKE_TEST, **long)]
    two = ("hinton", {"alpha": 0.5, "temperature": 4.0, "t_squared": True})
    made += runs("distill", BETTER_TEST[:2], loss=two)  # too few for an interval
    found, _ = groups.grouped(made)
    titles = {group.data: "pets" for group in found}
    assert figures.effects(found, groups.compared(found), titles).file == "effects.png"
    first, second = drawn
    assert (first.family, first.verdict) == ("pets mlp epochs=5", "better")
    assert (first.mean, *first.interval) == pytest.approx((3, 0.52, 5.48), abs=5e-3)
    # Differences 2, -2, 0: mean 0, sd 2, so 4.3027 * 2 / sqrt(3).
    assert (second.family, second.verdict) == ("pets mlp epochs=9", "inconclusive")
    assert (second.mean, *second.interval) == pytest.approx((0, -4.97, 4.97), abs=5e-3)


def test_two_pairs_have_no_interval():
    made = [*runs("distill", BETTER_TEST[:2]), *runs("train-student", SCRATCH_TEST[:2])]
    found, _ = groups.grouped(made)
    assert tables.differences(found, groups.compared(found)) is None


def test_without_validation_the_last_epoch_is_said(kd, work):
    for seed in range(3):
        for alpha in (0.1, 0.5):
            loss = ("hinton", {"alpha": alpha, "temperature": 4.0})
            made = record("distill", seed, BETTER_TEST[seed], loss=loss)
            leave(work / "runs" / f"a{alpha}s{seed}", made)
    assert kd("report", "runs").code == 0
    text = (work / "runs" / "report" / "report.md").read_text()
    assert "All groups have no validation split: their numbers are of the last epoch" in text
    assert "- Nothing chosen: pets mlp epochs=5: 2 groups without validation; on test 2 no" in text
    assert "no scratch student to be compared with" in text
    assert "training accuracy by epoch" in text


def test_what_can_not_be_read_is_counted(kd, work):
    for seed in range(3):
        leave(work / "runs" / f"seed{seed}", record("distill", seed, 0.8, validation=0.7))
    for number, old in enumerate((record("distill", 3, 0.8) | {"schema_version": 2}, {"a": 1}, [])):
        (work / "runs" / f"old{number}").mkdir()
        (work / "runs" / f"old{number}" / "metrics.json").write_text(json.dumps(old))
    assert kd("report", "runs").out.startswith("3 runs")
    text = (work / "runs" / "report" / "report.md").read_text()
    assert "3 finished runs in 1 groups of students" in text
    assert "Left out: 3 with a metrics.json that can't be read (damaged, not written by kd," in text


def test_files_beside_the_record_may_be_gone(kd, work):
    for seed in range(2):
        folder = leave(work / "runs" / f"seed{seed}", record("distill", seed, 0.8, validation=0.7))
        (folder / "predictions.npz").write_bytes(b"cut short")
        (folder / "history.jsonl").unlink()
        (folder / "evaluation.json").write_text('{"latency": 3}')
    assert kd("report", "runs").code == 0
    text = (work / "runs" / "report" / "report.md").read_text()
    assert "80.00 ± 0.00 | 0.5000 ± 0.0000" in text and "latency" not in text
    assert "The group has fewer than 3 seeds" in text


def test_latency_has_its_column_and_figure(kd, work, outputs):
    teacher = record("train-teacher", 0, 0.9, validation=0.9) | {"parameters": 9000}
    leave(outputs / "teacher", teacher | {"weights_sha256": "t" * 64})
    for folder, value in (("teacher", 8.0), ("scratch/seed0", 0.25), ("sweep/a0.1t4.0s1", 0.5)):
        latency = {"1": {"median_ms": value, "p95_ms": 2 * value}, "64": {"median_ms": 9.0}}
        (outputs / folder / "evaluation.json").write_text(json.dumps({"latency": latency}))
    assert kd("report", "outputs").code == 0
    text = (outputs / "report" / "report.md").read_text()
    assert "| latency, ms |" in text and "median" in text
    taught, teacher = (
        next(line for line in text.splitlines() if line.startswith(name)).split(" | ")
        for name in ("| **hinton alpha=0.1 temperature=4", "| teacher mlp")
    )
    assert (taught[2], taught[-2]) == ("1,000", "0.500")
    assert (teacher[2], teacher[-2]) == ("9,000", "8.000")
    assert (outputs / "report" / "data-1-latency.png").exists()


def test_an_earlier_report_s_figures_go(kd, work, outputs):
    assert kd("report", "outputs", "--out", "out").code == 0
    (work / "out" / "family-7-confusion.png").write_bytes(b"")
    (work / "out" / "mine.png").write_bytes(b"")
    assert kd("report", "outputs", "--out", "out").code == 0
    left = {path.name for path in (work / "out").iterdir()}
    assert "family-7-confusion.png" not in left and "mine.png" in left


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "needs a folder with runs: kd report outputs"),
        (["nowhere"], "nowhere does not exist"),
        (["--ou=x", "."], "unknown flag '--ou'; did you mean '--out'?"),
        ([".", "--out"], "--out needs a value"),
        (["."], "no finished run below ."),
    ],
)
def test_mistakes_are_one_line(kd, work, words, text):
    assert_refused(kd, work, ["report", *words], text)


def test_a_file_in_the_way_is_one_line(kd, work, outputs):
    (work / "file").write_text("")
    assert "file is a file; expected a folder with runs" in kd("report", "file").error
    assert "is a file; expected a folder to write to" in kd("report", ".", "--out=file/x").error


def test_help(kd):
    done = kd("report", "--help")
    assert done.code == 0 and done.out.startswith("usage: kd report DIR") and done.err == ""
    assert "report " in kd("--help").out


def test_tensorflow_and_hydra_stay_out(work, outputs):
    code = (
        "import sys; from kd_cli.cli import main; assert main(['report', 'outputs']) == 0; "
        "assert not {'tensorflow', 'keras', 'hydra'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_front_leaves_out_what_is_dearer_and_no_better():
    def point(cost, accuracy):
        return plots.Point(DISTILLED, "n", cost, accuracy, None)

    points = [point(5, 80), point(1, 70), point(2, 69), point(2, 75), point(9, 80), point(10, 81)]
    assert [(p.cost, p.accuracy) for p in plots.front(points)] == [
        (1, 70),
        (2, 75),
        (5, 80),
        (10, 81),
    ]


def test_markdown_keeps_what_is_typed():
    row = page.Row(["a|b_c *d* <e> [f]\ng"])
    text = page.to_markdown([page.Table("caption", ["x"], [row])])
    assert r"| a\|b_c \*d\* &lt;e&gt; \[f\] g |" in text


def test_the_usage_names_the_default_folder():
    assert "DIR/report" in USAGE


ONE_SEED = ("hinton", {"alpha": 0.9, "temperature": 4.0, "t_squared": True})


def test_a_lucky_single_seed_is_not_chosen_beside_groups_with_enough(tmp_path):
    """A point of one seed is the best on validation; the headline is about the three seeds."""
    made = [
        *runs("train-student", SCRATCH_TEST),
        *runs("distill", BETTER_TEST, validation=0.6),
        *runs("distill", (0.99,), validation=0.9, loss=ONE_SEED),
    ]
    found, _ = groups.grouped(made)
    best = groups.chosen(found)
    assert best.name == "hinton alpha=0.1 temperature=4" and len(groups.candidates(found)) == 1
    blocks = build.build_report(finished.Found(made, 0, 0), ["x"])
    (line,) = next(block for block in blocks if isinstance(block, Bullets)).items
    assert (
        line.startswith("Better: ") and "chosen among 1 with 3 seeds or more, 1 with fewer" in line
    )
    # Without a group of enough seeds the best single seed is named, with its verdict.
    single = [run for run in made if run.record["seed"] == 0]
    assert groups.chosen(groups.grouped(single)[0]).name == "hinton alpha=0.9 temperature=4"


def test_every_kind_of_group_is_drawn_in_the_trade_offs(monkeypatch):
    """A kind without a marker would be missing in the figure; here each has one in its legend."""
    kinds = (groups.TEACHER, groups.PLAIN, groups.SCRATCH, groups.DISTILLED, groups.SELF)
    labels = []
    genuine = plots.Figure.subplots

    def subplots(self):
        ax = genuine(self)
        draw = ax.errorbar
        ax.errorbar = lambda *a, label, **k: labels.append(label) or draw(*a, label=label, **k)
        return ax

    monkeypatch.setattr(plots.Figure, "subplots", subplots)
    points = [plots.Point(kind, kind, 10.0 + n, 50.0 + n, None) for n, kind in enumerate(kinds)]
    assert plots.trade_off(points, "parameters")[:4] == b"\x89PNG"
    assert labels == list(kinds)
