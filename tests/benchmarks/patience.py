"""Draws what patience brings: test accuracy over epochs, from finished runs of one teacher.

    python tests/benchmarks/patience.py FOLDER ... --png FILE

Prints a table (mean and standard deviation over runs of one kind and length, top-1 agreement with
the teacher and KL(teacher || student) in nats on the test images) and draws the curve. The runs:

    F=fashion_mnist_function_matching
    J="--multirun hydra/launcher=joint init_seed=0,1,2 experiment=$F"
    E=epochs=30,100,300
    kd distill $J $E
    kd distill $J $E augment=none
    kd train-student $J $E
    kd train-student $J $E augment=none
    kd train-student $J $E augment=none label_smoothing=0.1
    kd distill $J epochs=300 augment=flip_crop view=consistent cache.views=16
    kd distill $J epochs=300 augment=flip_crop view=independent,fixed_teacher
    kd distill experiment=$F epochs=1000

and of the pretrained teacher:

    J="--multirun hydra/launcher=joint init_seed=0,1,2 experiment=flowers12_pretrained"
    D="dataset.path=FOLDER epochs=10,30,100,300"
    kd distill $J $D
    kd train-student $J $D
    kd train-student $J $D augment=inception_mixup
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from kd_cli.runs.quality import log_softmax


def kind(record: dict[str, Any]) -> str:
    """What distinguishes a run beside its length and seed, in words."""
    config = record["config"]
    nodes = [
        node["_target_"].rsplit(".", 1)[-1].replace("pad_and_crop", "crops").replace("_", " ")
        for node in config.get("augment", {}).get("train", [])
    ]
    pixels = ", ".join(nodes) or "plain images"
    if record["command"] == "distill":
        kept = config.get("cache", {}).get("views")
        view = config.get("view", "consistent").replace("_", " ")
        view = "" if view == "consistent" else f"{view}, "
        return f"distilled, {view}{pixels}" + (f", {kept} views kept" if kept else "")
    smoothing = config["loss"].get("label_smoothing")
    return f"scratch, {pixels}" + (", label smoothing" if smoothing else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("outputs", type=Path, nargs="+", help="folders with runs below them")
    parser.add_argument("--png", type=Path)
    arguments = parser.parse_args()
    runs: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    teacher: dict[str, Any] = {}
    for path in sorted(
        file for folder in arguments.outputs for file in folder.rglob("metrics.json")
    ):
        record = json.loads(path.read_text())
        if record["command"] not in ("distill", "train-student"):
            continue
        arrays = np.load(path.with_name("predictions.npz"))
        if "teacher_logits" in arrays:
            teacher = {"accuracy": record["teacher"]["test_accuracy"]}
            teacher["logits"] = arrays["teacher_logits"]
        record["logits"] = arrays["student_logits"]
        runs[kind(record), record["epochs_done"]].append(record)
    log_p = log_softmax(teacher["logits"])
    curves: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    print("| student | epochs | seeds | test, best epoch | test, last epoch | agreement | KL |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for (name, epochs), records in sorted(runs.items()):
        best = [100 * record["test"]["accuracy"] for record in records]
        last = [100 * record["test_last"]["accuracy"] for record in records]
        same, distance = [], []
        for record in records:
            log_q = log_softmax(record["logits"])
            same.append(100 * (log_q.argmax(-1) == log_p.argmax(-1)).mean())
            distance.append((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())
        curves[name].append((epochs, statistics.mean(best), spread(best)))
        print(
            f"| {name} | {epochs:,} | {len(records)} | {shown(best)} | {shown(last)} "
            f"| {statistics.mean(same):.2f} | {statistics.mean(distance):.3f} |"
        )
    print(f"\nteacher: {100 * teacher['accuracy']:.2f}")
    if arguments.png:
        draw(curves, 100 * teacher["accuracy"], arguments.png)
    return 0


def spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def shown(values: list[float]) -> str:
    deviation = f" ± {spread(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def draw(curves: dict[str, list[tuple[int, float, float]]], teacher: float, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 5.6), layout="constrained", facecolor="white")
    axes = figure.subplots()
    styles = zip("osD^vP*X<>", ["-", "--", "-.", ":"] * 3, strict=False)
    for number, ((name, points), (marker, line)) in enumerate(
        zip(sorted(curves.items()), styles, strict=False)
    ):
        epochs, means, deviations = zip(*points, strict=True)
        beside = 1.025 ** (number - len(curves) / 2)  # bars of one length do not hide each other
        epochs = [beside * one for one in epochs]
        axes.errorbar(
            epochs, means, deviations, marker=marker, linestyle=line, capsize=3, label=name
        )
    axes.axhline(teacher, color="black", linewidth=1, label="teacher")
    axes.set_xscale("log")
    ticks = sorted({epochs for points in curves.values() for epochs, *_ in points})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=13)
    axes.tick_params(axis="y", labelsize=13)
    axes.minorticks_off()
    axes.set_xlabel("epochs of training (logarithmic)", fontsize=14)
    axes.set_ylabel("test accuracy [%], mean ± sd", fontsize=14)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=1 if len(curves) < 5 else 2, fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    raise SystemExit(main())
