"""How long `kd report` takes on 1,000 runs (goal: under 10 s).

    python tests/benchmarks/report.py [--runs 1000] [--keep FOLDER]

Makes runs of a sweep over alpha, temperature and ten seeds, with ten scratch runs, each with what
a run leaves and a report reads: metrics.json, history.jsonl of 20 epochs, predictions.npz of 1,000
test and 500 validation images in ten classes. Then it types the command in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from kd_cli.runs import quality
from kd_cli.runs.record import (
    DatasetRecord,
    EpochScore,
    Record,
    Score,
    TeacherRecord,
    Timings,
    Validation,
)

SEEDS, EPOCHS, CLASSES = 10, 20, 10
SPLITS = {"": 1000, "validation_": 500}


def make(root: Path, count: int) -> None:
    """Writes `count` runs below `root`; the scratch runs are the first ten."""
    generator = np.random.default_rng(0)
    labels = {prefix: generator.integers(0, CLASSES, n) for prefix, n in SPLITS.items()}
    teacher = {prefix: logits(generator, labels[prefix], 3.0) for prefix in SPLITS}
    known = quality.of_splits(arrays(labels, teacher=teacher), "teacher")
    for number in range(count):
        point, seed = divmod(number, SEEDS)
        alpha, temperature = (point - 1) % 11 / 10, 1 + (point - 1) // 11
        strength = 1.5 if point == 0 else 1.5 + 0.1 * (1 - alpha)
        student = {prefix: logits(generator, labels[prefix], strength) for prefix in SPLITS}
        held = arrays(labels, student=student, **({"teacher": teacher} if point else {}))
        folder = root / f"point{point}_seed{seed}"
        (folder / ".hydra").mkdir(parents=True)
        np.savez(folder / "predictions.npz", **held)
        of_student = quality.of_splits(held, "student")
        kept = {
            split: Score(**{k: own[k] for k in ("accuracy", "nll")})
            for split, own in of_student.items()
        }
        best = EpochScore(epoch=EPOCHS, **kept["validation"])
        taught = TeacherRecord(
            path="outputs/teachers/synthetic-cnn",
            name="cnn",
            weights_sha256="t",
            training="20 epochs, seed 0",
            test_accuracy=known["test"]["accuracy"],
            test_nll=known["test"]["nll"],
            quality=known,
            parameters=421642,
            outputs="cached as float32",
            precision="float32",
        )
        Record(
            command="distill" if point else "train-student",
            run_id=f"{number:010x}",
            seed=seed,
            config=config(seed, (alpha, temperature) if point else None),
            inputs={"data": "d" * 64, "split": "s" * 64} | ({"teacher": "t"} if point else {}),
            git_commit=None,
            versions={},
            device="CPU",
            precision="float32",
            dataset=DatasetRecord(
                name="synthetic",
                image_shape=[28, 28, 1],
                class_names=list("abcdefghij"),
                train=9000,
                labelled=9000,
                validation=500,
                test=1000,
                fingerprint="d" * 64,
                split_fingerprint="s" * 64,
            ),
            input="pixels 0..255, [batch, 28, 28, 1]",
            network="mlp",
            parameters=101770,
            loss="",
            alpha=alpha if point else None,
            temperature=temperature if point else None,
            epochs_done=EPOCHS,
            steps_done=36 * EPOCHS,
            stopped="finished",
            warnings=[],
            selection="the best epoch by validation accuracy",
            validation=Validation(best=best, last=best),
            test=kept["test"],
            test_last=kept["test"],
            quality=of_student,
            fidelity=quality.fidelity_of_splits(held, float(temperature)) if point else None,
            weights_sha256=f"{number:064x}",
            teacher=taught if point else None,
            timings=Timings(
                learners=1,
                total_seconds=60.0,
                train_seconds=50.0,
                seconds_per_epoch=2.5,
                examples_per_second=3600.0,
                teacher_forward_seconds=0.0,
            ),
        ).write(folder)
        rows = []
        for epoch in range(1, EPOCHS + 1):
            accuracy = best.accuracy * (1 - 0.5 / epoch)
            part = {"accuracy": accuracy, "nll": 1 / epoch}
            rows.append({"epoch": epoch, "train": part, "validation": part})
        (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def config(seed: int, point: tuple[float, float] | None) -> dict:
    """A run's configuration: about as many keys as a real one."""
    network = {"_target_": "kd_cli.networks.mlp", "units": [128], "num_classes": CLASSES}
    shared = {
        "epochs": EPOCHS,
        "batch_size": 256,
        "learning_rate": 0.003,
        "init_seed": seed,
        "data_seed": seed,
        "early_stopping": {"patience": None, "monitor": "accuracy"},
        "precision": "float32",
        "dataset": {"name": "synthetic", "num_classes": CLASSES, "split_seed": 0},
        "student": {"network": network, "input": {"size": None, "scale": 1 / 255}},
        "schedule": {"_target_": "kd_cli.training.constant", "learning_rate": 0.003},
        "optimizer": {"_target_": "keras.optimizers.Adam", "amsgrad": False},
    }
    if point is None:
        loss = {"_target_": "kd_cli.distillation.cross_entropy", "label_smoothing": 0.0}
        return {**shared, "command": "train-student", "loss": loss}
    loss = {"_target_": "kd_cli.distillation.hinton", "alpha": point[0], "temperature": point[1]}
    return {**shared, "command": "distill", "loss": loss, "teacher": {"network": network}}


def logits(generator: np.random.Generator, labels: np.ndarray, strength: float) -> np.ndarray:
    """Noise with the right class `strength` higher [n, CLASSES]."""
    noise = generator.normal(0, 1, (len(labels), CLASSES))
    return (noise + strength * np.eye(CLASSES)[labels]).astype(np.float32)


def arrays(labels: dict, **networks: dict) -> dict[str, np.ndarray]:
    """As in `predictions.npz`."""
    held = {f"{prefix}labels": values for prefix, values in labels.items()}
    for name, splits in networks.items():
        held |= {f"{prefix}{name}_logits": values for prefix, values in splits.items()}
    return held


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--keep", type=Path, help="a new folder for the runs and the report")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.keep or Path(temporary) / "runs"
        make(root, options.runs)
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "kd_cli", "report", str(root)], capture_output=True, text=True
        )
        seconds = time.monotonic() - begun
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = used.ru_utime + used.ru_stime
        print(done.stdout + done.stderr, end="")
        size = (root / "report" / "report.html").stat().st_size / 2**20
        print(f"{options.runs} runs: {seconds:.1f} s, {cpu:.1f} s of CPU (goal: 10 s)")
        print(f"report.html: {size:.1f} MiB")


if __name__ == "__main__":
    main()
