"""What a sweep costs beside its training: seconds and memory per point.

    python tests/benchmarks/sweeps.py            (about ten minutes on two cores)
    python tests/benchmarks/sweeps.py --points 20 --skip-twelve

First a sweep of `--points` points on digits, in one process: for each point the seconds outside
training (composing, building, tracing, validating, saving; goal: under 2 s after the first), and
the process's resident memory (goal: no growth beyond 10 % after the tenth point). Then twelve
points on data of CIFAR-10's shape with the recipe's student against single runs whose teacher
outputs are cached (goal: at most twelve of those and one pass of the teacher).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

EPOCHS = 40  # of the digits student, as by default


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "kd_cli", *words]


def run(folder: Path, *words: str) -> float:
    """Runs a command to its end and returns its seconds."""
    begun = time.monotonic()
    done = subprocess.run(command(*words), cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"kd {' '.join(words)}\n{done.stderr}")
    return time.monotonic() - begun


def resident(pid: int) -> float:
    """MiB of the process in memory now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


def follow(folder: Path, count: int, *words: str) -> list[tuple[float, float, dict]]:
    """Runs a sweep; (seconds since the start, MiB, metrics) when each point ends."""
    begun = time.monotonic()
    with open(folder / "sweep.log", "w") as log:
        process = subprocess.Popen(command(*words), cwd=folder, stdout=log, stderr=log)
        seen: dict[Path, tuple[float, float]] = {}
        while process.poll() is None:
            for path in (folder / "outputs" / "sweeps").glob("*/*/metrics.json"):
                if path not in seen:
                    seen[path] = (time.monotonic() - begun, resident(process.pid))
            time.sleep(0.02)
    if process.returncode or len(seen) < count:
        sys.exit((folder / "sweep.log").read_text()[-3000:])
    return [(*at, json.loads(path.read_text())) for path, at in seen.items()]


def digits(folder: Path, count: int) -> None:
    alphas = ",".join(f"{alpha:.4f}" for alpha in np.linspace(0, 1, -(-count // 2)))
    run(folder, "train-teacher")
    points = follow(folder, count, "--multirun", f"alpha={alphas}", "temperature=1,4")
    points.sort(key=lambda point: point[0])
    ends = [point[0] for point in points]
    training = [point[2]["timings"]["train_seconds"] for point in points]
    outside = [b - a - t for a, b, t in zip(ends, ends[1:], training[1:], strict=False)]
    memory = [point[1] for point in points]
    print(f"digits, {len(points)} points of {EPOCHS} epochs, {ends[-1]:.0f} s in all")
    print(
        f"  seconds outside training per point after the first: median "
        f"{statistics.median(outside):.2f}, largest {max(outside):.2f} (goal: under 2)"
    )
    tenth = memory[min(9, len(memory) - 1)]
    growth = max(memory[9:], default=tenth) / tenth - 1
    print(
        f"  resident memory: {tenth:.0f} MiB after point 10, {memory[-1]:.0f} MiB after the last, "
        f"at most {100 * growth:+.1f} % (goal: at most +10 %)"
    )


def twelve(folder: Path) -> None:
    generator = np.random.default_rng(0)
    arrays = {}
    for part, size in (("train", 10_000), ("test", 1_000)):
        arrays[f"x_{part}"] = generator.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = generator.integers(0, 10, size)
    np.savez(folder / "images.npz", **arrays)
    words = ["experiment=cifar10_cnn", "dataset=npz", "dataset.path=images.npz", "epochs=2"]
    run(folder, "train-teacher", *words[:3], "steps=1")
    first = run(folder, "distill", *words, "alpha=0.05")
    record = next((folder / "outputs" / "distill").rglob("metrics.json"))
    teacher = json.loads(record.read_text())["timings"]["teacher_forward_seconds"]
    singles = [run(folder, "distill", *words, f"alpha=0.0{number}") for number in (6, 7, 8)]
    single = statistics.median(singles)
    alphas = ",".join(f"0.{number}" for number in (1, 2, 3, 4, 5, 6))
    caches = folder / "outputs" / "cache" / "logits"
    for path in sorted(caches.rglob("*"), reverse=True):  # the sweep has its teacher pass to do
        path.rmdir() if path.is_dir() else path.unlink()
    swept = run(folder, "--multirun", *words, f"alpha={alphas}", "temperature=1,4")
    joint = run(
        folder,
        *("--multirun", "hydra/launcher=joint", *words),
        *(f"alpha={alphas}", "temperature=2,8"),
    )
    print(f"CIFAR-10's shape, 10,000 images, 2 epochs: a single cached run {single:.1f} s, the")
    print(f"  first one, which asks its teacher, {first:.1f} s (its pass: {teacher:.1f} s)")
    bound = 12 * single + teacher
    print(
        f"  twelve points {swept:.1f} s, {swept / bound:.2f} of the bound {bound:.1f} s (goal: 1)"
    )
    print(f"  twelve points together (hydra/launcher=joint) {joint:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--skip-twelve", action="store_true")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for task in [lambda place: digits(place, options.points)] + [twelve] * (
        not options.skip_twelve
    ):
        with tempfile.TemporaryDirectory(prefix="kd-sweeps-") as folder:
            task(Path(folder))


if __name__ == "__main__":
    main()
