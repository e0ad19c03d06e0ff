"""The table at the end of a run: teacher, distilled and scratch student, and the files."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from kd_cli.config.overrides import scratch_overrides
from kd_cli.config.plans import is_taught, scratch_plan, trains_teacher
from kd_cli.runs import identity
from kd_cli.runs.record import read_record
from kd_cli.terminal import print_table, shown


def print_result(record: dict[str, Any], plan: DictConfig, out: Path, typed: list[str]) -> None:
    """Teacher, distilled student and scratch student side by side, and where the files are."""

    def row(name: str, run: dict[str, Any]) -> list[str]:
        best = run.get("validation", {}).get("best")
        return [
            name,
            run["network"],
            f"{run['parameters']:,}",
            f"{best['accuracy']:.4f}" if best else "-",
            f"{run['test']['accuracy']:.4f}",
            f"{run['test_last']['accuracy']:.4f}",
            f"{run['timings']['total_seconds']:.0f} s",
        ]

    columns = ["", "network", "parameters", "validation", "test", "test, last epoch", "time"]
    files = {}
    if not is_taught(plan):
        name = "teacher" if trains_teacher(plan) else "scratch student"
        rows = [row(name, record)]
        if trains_teacher(plan) and out.resolve() != identity.teacher_dir(plan).resolve():
            files["to distil from it"] = f"kd distill teacher_dir={shown(out)}"
    else:
        known = record["teacher"]
        teacher = read_record(Path(known["path"]))
        if teacher:
            rows = [row("teacher", teacher)]
        else:
            accuracy = f"{known['test_accuracy']:.4f}"
            rows = [["teacher", known["name"], f"{known['parameters']:,}", "-", accuracy, "-", "-"]]
        files["teacher"] = known["path"]
        name = "distilled student"
        rows.append(row(name, record))
        scratch_dir = identity.run_dir(scratch_plan(plan))
        scratch = read_record(scratch_dir)
        data = ("fingerprint", "split_fingerprint")
        if record["dataset"].get("labelled") == 0:  # (an older record does not say)
            files["scratch student"] = "needs labels, which the training images do not have"
        elif scratch and all(scratch["dataset"][key] == record["dataset"][key] for key in data):
            rows.append(row("scratch student", scratch))
            files["scratch student"] = shown(scratch_dir)
        else:
            command = shlex.join(["kd", "train-student", *scratch_overrides(typed)])
            files["scratch student"] = f"not trained yet: {command}"
            rows.append(["scratch student", "not trained yet", "", "", "", "", ""])
    files[name] = shown(out)
    print_table(f"{record['dataset']['name']}: accuracy", columns, rows)
    if "validation" not in record and "selection" in record:  # (an older record does not say)
        print(f"epoch:             {record['selection']}")
    for name, where in files.items():
        print(f"{name + ':':<19}{where}")


def print_rounds(record: dict[str, Any], out: Path) -> None:
    """What each round of self-training learned from, and how good its network is."""
    rows = []
    for number, one in enumerate(record["rounds"]):
        pseudo, best = one["pseudo_labels"] or {}, one["validation"]
        rows.append(
            [
                str(number),
                f"{one['labelled']:,}",
                f"{pseudo['images']:,}" if pseudo else "-",
                f"{pseudo['rows']:,}" if pseudo else "-",
                f"{pseudo['accuracy']:.4f}" if "accuracy" in pseudo else "-",
                f"{best['accuracy']:.4f}" if best else "-",
                f"{one['test']['accuracy']:.4f}",
                f"{one['seconds']:.0f} s",
            ]
        )
    columns = [
        "round",
        "labelled",
        "pseudo-labelled",
        "in rows",
        "right (hidden labels)",
        "validation",
        "test",
        "time",
    ]
    print_table(f"{record['dataset']['name']}: accuracy after each round", columns, rows)
    if "best_round" in record:
        print(f"best on validation: round {record['best_round']}")
    print(f"the last round's network: {shown(out / 'model.keras')}")
