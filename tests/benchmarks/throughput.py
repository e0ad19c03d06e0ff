"""Measures how fast `kd` trains, against the usual ways to train the same networks on a CPU.

    python tests/benchmarks/throughput.py --brief --json FILE    # one round on small data
    python tests/benchmarks/throughput.py --brief --rounds 5     # five rounds on small data
    python tests/benchmarks/throughput.py --json FILE            # five rounds, about an hour
    python tests/benchmarks/throughput.py --only distill_vs_usual,joint_cached

`kd_cli` must be installed or on PYTHONPATH; Linux only. Each side is a process of its own, the
sides take turns (A B C A B C ...), and a figure is the median over the rounds of a side's median
over its epochs after the first, which traces. The pixels are random: speed does not depend on
them. GPUs are hidden. A side that fails ends the benchmark with its stderr and exit code 1; a
missed goal is a "no" in the table and no failure, because a busy machine misses goals too.

How many times as fast ours is (theirs / ours):
    distill_vs_usual     distilling cifar10_cnn, against a Keras distiller with a live teacher
    distill_vs_keras     the same against keras.distillation.Distiller
    scratch_vs_fit_cnn   the student of cifar10_cnn without a teacher, against plain `fit`
    scratch_vs_fit_mlp   the student of fashion_mnist_mlp, against plain `fit`
    resnet_vs_fit        ResNet50V2 at 64x64, against plain `fit`
    teacher_pass_bf16    forward pass of the cifar10_cnn_v3 teacher, mixed_bfloat16 over float32
    teacher_train_bf16   its training, mixed_bfloat16 over float32
Which share of the other's time ours takes (ours / theirs):
    distill_vs_scratch   cifar10_cnn, a step of distilling against one without a teacher
    joint_live           eight alphas trained jointly against eight single runs, live teacher
    joint_cached         the same with the teacher's cached logits
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

POINTS = 8  # of the joint sweeps
ALPHAS = ",".join(f"0.{number}" for number in range(1, POINTS + 1))
MEMORY_GOAL, MEMORY_IMAGES = 2.0, 50_000  # GiB, of distilling on so many images of 32x32x3


@dataclass(frozen=True)
class Size:
    """How much is measured; where a step is long (live teacher, big network), fewer images."""

    rounds: int
    cifar: int
    cifar_test: int
    live: int
    mlp: int
    resnet: int
    teacher: int
    epochs: int
    long_epochs: int  # of sides with long steps
    passes: int


FULL = Size(5, MEMORY_IMAGES, 10_000, 64 * 100, 60_000, 16 * 10, 64 * 10, 4, 3, 10)
BRIEF = Size(1, 64 * 48, 100, 64 * 12, 256 * 48, 16 * 2, 64 * 2, 4, 3, 2)


@dataclass(frozen=True)
class Comparison:
    """Two sides, and what their ratio should be: at least `goal`, or as a share at most that."""

    ours: str
    theirs: str
    goal: float
    share: bool = False
    runs: int = 1  # of theirs that one of ours stands for
    needs_amx: bool = False


COMPARISONS = {
    "distill_vs_usual": Comparison("distill", "usual", 8.0),
    "distill_vs_keras": Comparison("distill", "keras", 8.0),
    "distill_vs_scratch": Comparison("distill", "scratch_cnn", 1.05, share=True),
    "scratch_vs_fit_cnn": Comparison("scratch_cnn", "fit_cnn", 1.5),
    "scratch_vs_fit_mlp": Comparison("scratch_mlp", "fit_mlp", 2.0),
    "resnet_vs_fit": Comparison("resnet", "fit_resnet", 0.98),
    "joint_live": Comparison("joint_live", "distill_live", 0.3, share=True, runs=POINTS),
    "joint_cached": Comparison("joint_cached", "distill", 0.9, share=True, runs=POINTS),
    "teacher_pass_bf16": Comparison("pass_bf16", "pass_f32", 2.5, needs_amx=True),
    "teacher_train_bf16": Comparison("train_bf16", "train_f32", 1.5, needs_amx=True),
}


def commands(folder: Path, size: Size) -> dict[str, list[str]]:
    """Each side's `kd` command, in the order of a round. A comparator takes its settings from it.

    No image is held out: only training steps are measured. The rounds share cache_dir, so that
    only the first asks the teacher for its logits.
    """
    common = ["dataset=npz", "dataset.validation_fraction=0", "early_stopping.patience=null"]
    common += [f"cache_dir={folder}/cache", "device=cpu"]
    short, long = f"epochs={size.epochs}", f"epochs={size.long_epochs}"
    cifar = ["experiment=cifar10_cnn", f"dataset.path={folder}/cifar.npz", *common]
    mlp = ["experiment=fashion_mnist_mlp", f"dataset.path={folder}/fashion.npz", *common, short]
    resnet = ["train-teacher", "teacher=resnet50v2", "batch_size=16", *common, long]
    resnet += [f"dataset.path={folder}/resnet.npz"]
    distill = ["distill", *cifar, f"teacher.checkpoint={folder}/teacher.keras"]
    live = [*distill, f"dataset.limit={size.live}", long]
    joint = ["--multirun", "hydra/launcher=joint", f"alpha={ALPHAS}"]
    teacher = ["train-teacher", *cifar, f"dataset.limit={size.teacher}", long]
    return {
        "distill": [*distill, short],
        "usual": live,
        "scratch_cnn": ["train-student", *cifar, short],
        "keras": live,
        "fit_cnn": ["train-student", *cifar, short],
        "joint_cached": [*distill, long, *joint],
        "scratch_mlp": ["train-student", *mlp],
        "fit_mlp": ["train-student", *mlp],
        "resnet": resnet,
        "fit_resnet": resnet,
        "distill_live": [*live, "cache.logits=none"],
        "joint_live": [*live, "cache.logits=none", *joint],
        "pass_f32": teacher,
        "pass_bf16": [*teacher, "precision=mixed_bfloat16"],
        "train_f32": teacher,
        "train_bf16": [*teacher, "precision=mixed_bfloat16"],
    }


# What a process of this file runs. Only this part imports TensorFlow, and only when called.


def prepare(folder: Path, size: Size) -> None:
    """Writes random images and an untrained teacher, which is as slow as a trained one."""
    import numpy as np

    random = np.random.default_rng(0)
    shapes = {
        "cifar": (size.cifar, size.cifar_test, (32, 32, 3)),
        "fashion": (size.mlp, size.cifar_test, (28, 28, 1)),
        "resnet": (size.resnet, 16, (64, 64, 3)),
    }
    for name, (train, test, shape) in shapes.items():
        arrays = {}
        for part, count in (("train", train), ("test", test)):
            arrays[f"x_{part}"] = random.integers(0, 256, (count, *shape), dtype=np.uint8)
            arrays[f"y_{part}"] = np.arange(count) % 10
        np.savez(folder / f"{name}.npz", **arrays)
    plan = checked(commands(folder, size)["train_f32"])
    network(plan, "teacher").save(folder / "teacher.keras")


def checked(command: list[str]) -> Any:
    """The configuration that `kd` would run."""
    from kd_cli.config.check import check
    from kd_cli.config.compose import compose
    from kd_cli.runs.resolvers import register_resolvers

    register_resolvers()
    return check(compose(command[0], command[1:]), command[1:])


def network(plan: Any, role: str) -> Any:
    """The same network as in `kd`, from pixels 0..255 to logits."""
    from kd_cli.networks.wrap import build_network

    shape = tuple(plan.dataset.image_shape)
    return build_network(plan[role], shape, plan.dataset.num_classes, plan.precision, role)


def timed_fit(model: Any, plan: Any) -> float:
    """Milliseconds per step of `fit` on NumPy arrays, without the progress bar's cost."""
    import keras
    import numpy as np
    from hydra.utils import instantiate

    model.compile(
        # The recipe's optimizer, at a constant rate, which costs nothing.
        optimizer=instantiate(plan.optimizer, learning_rate=float(plan.learning_rate)),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    with np.load(plan.dataset.path) as arrays:  # float32 scaled beforehand is no faster than uint8
        x, y = (arrays[name][: plan.dataset.limit] for name in ("x_train", "y_train"))
    begun: list[float] = []
    ended: list[float] = []
    clock = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda *_: begun.append(time.perf_counter()),
        on_epoch_end=lambda *_: ended.append(time.perf_counter()),
    )
    batch = plan.batch_size
    model.fit(x, y, batch_size=batch, epochs=plan.epochs, verbose=0, callbacks=[clock])
    seconds = [stop - start for start, stop in zip(begun, ended, strict=True)]
    return 1000 * statistics.median(seconds[1:]) / math.ceil(len(x) / batch)


def plain_fit(plan: Any) -> float:
    return timed_fit(network(plan, plan.role), plan)


def usual_distiller(plan: Any) -> float:
    """The distiller of Keras's tutorial (keras.io/examples/vision/knowledge_distillation)."""
    import keras

    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    divergence = keras.losses.KLDivergence()
    alpha, temperature = plan.alpha, plan.temperature

    class Distiller(keras.Model):
        def __init__(self, student: Any, teacher: Any) -> None:
            super().__init__()
            self.student, self.teacher = student, teacher

        def call(self, x: Any, training: bool | None = None) -> Any:
            return self.student(x, training=training)

        def compute_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
            asked = self.teacher(x, training=False)
            soft = divergence(
                keras.ops.softmax(asked / temperature, axis=-1),
                keras.ops.softmax(y_pred / temperature, axis=-1),
            )
            return alpha * cross_entropy(y, y_pred) + (1 - alpha) * temperature**2 * soft

    teacher = keras.saving.load_model(plan.teacher.checkpoint, compile=False)
    teacher.trainable = False  # forgotten, the teacher would be trained too: slower still
    return timed_fit(Distiller(network(plan, "student"), teacher), plan)


def keras_distiller(plan: Any) -> float:
    import keras

    distiller = keras.distillation.Distiller(
        teacher=keras.saving.load_model(plan.teacher.checkpoint, compile=False),
        student=network(plan, "student"),
        # An instance: the default, a string, applies neither softmax nor the square of T.
        distillation_losses=keras.distillation.LogitsDistillation(
            temperature=plan.temperature, loss=keras.losses.KLDivergence()
        ),
        student_loss_weight=plan.alpha,
    )
    return timed_fit(distiller, plan)


def forward_pass(plan: Any, passes: int) -> float:
    """Milliseconds per batch of 500 images, as many as `kd` gives to a teacher at once."""
    import numpy as np
    import tensorflow as tf

    model = network(plan, "teacher")
    predict = tf.function(lambda images: model(images, training=False), autograph=False)
    with np.load(plan.dataset.path) as arrays:
        images = tf.constant(arrays["x_train"][:500], tf.float32)
    seconds = []
    for _ in range(passes + 1):
        begun = time.perf_counter()
        predict(images).numpy()
        seconds.append(time.perf_counter() - begun)
    return 1000 * statistics.median(seconds[1:])


# The sides that are no command of `kd`.
OWN = {
    "usual": usual_distiller,
    "keras": keras_distiller,
    "fit_cnn": plain_fit,
    "fit_mlp": plain_fit,
    "fit_resnet": plain_fit,
    "pass_f32": forward_pass,
    "pass_bf16": forward_pass,
}


# What starts the sides. It stays small: a child's peak memory counts what it was forked from.


Results = dict[str, list[tuple[float, float]]]  # of each side: (milliseconds, GiB) per round


class SideFailed(Exception):
    """A side's process ended with an error, or left something else than was expected."""


def spawn(command: list[str], directory: Path) -> tuple[str, float]:
    """Runs Python in a new directory; returns its stdout and its peak resident memory in GiB."""
    directory.mkdir()
    paths = [str(Path(p).resolve()) for p in os.environ.get("PYTHONPATH", "").split(":") if p]
    fixed = {"PYTHONPATH": ":".join(paths), "CUDA_VISIBLE_DEVICES": "-1"}
    environment = {**os.environ, **fixed, "KERAS_BACKEND": "tensorflow"}
    out, err = directory / "stdout", directory / "stderr"
    words = [sys.executable, *command]
    with open(out, "w") as stdout, open(err, "w") as stderr:
        process = subprocess.Popen(
            words, cwd=directory, env=environment, stdout=stdout, stderr=stderr
        )
        try:
            # Unlike RUSAGE_CHILDREN this is of one child, not the greatest of all so far.
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        text = f"{' '.join(words)}\n{out.read_text()}{err.read_text()}"
        raise SideFailed(f"exit code {process.returncode} of {text}")
    return out.read_text(), usage.ru_maxrss / 2**20


def measure(side: str, directory: Path, folder: Path, brief: bool) -> tuple[float, float]:
    """One process of a side: milliseconds per step, peak memory in GiB."""
    if side in OWN or side == "prepare":
        command = [str(Path(__file__).resolve()), "--side", side, "--folder", str(folder)]
        output, memory = spawn([*command, *(["--brief"] if brief else [])], directory)
        milliseconds = float(output.splitlines()[-1]) if side in OWN else 0.0
    else:
        command = commands(folder, BRIEF if brief else FULL)[side]
        _, memory = spawn(["-m", "kd_cli", *command], directory)
        milliseconds = read_history(directory, POINTS if "--multirun" in command else 1)
    shutil.rmtree(directory)
    return milliseconds, memory


def read_history(directory: Path, runs: int) -> float:
    """Milliseconds per step from the run's `history.jsonl`, or from those of a joint sweep."""
    files = sorted(directory.glob("outputs/**/history.jsonl"))
    if len(files) != runs:
        raise SideFailed(f"{len(files)} runs left a history.jsonl, expected {runs}")
    histories = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    for rows in zip(*histories, strict=True):
        seconds = [row["seconds"] for row in rows]
        # Trained one after another, the points would look eight times as fast as they are.
        if max(seconds) > 1.001 * min(seconds):
            raise SideFailed(f"the points did not share their epochs: seconds {seconds}")
    return statistics.median(
        1000 * row["seconds"] / (row["step"] - before["step"])
        for before, row in itertools.pairwise(histories[0])
    )


def compare(names: list[str], brief: bool, rounds: int | None) -> dict[str, Any]:
    """Runs the sides of the named comparisons in turns; returns what `--json` writes."""
    begun = time.monotonic()
    size = BRIEF if brief else FULL
    size = replace(size, rounds=rounds or size.rounds)
    needed = {side for n in names for side in (COMPARISONS[n].ours, COMPARISONS[n].theirs)}
    results: Results = {side: [] for side in needed}
    with tempfile.TemporaryDirectory(prefix="kd-throughput-") as temporary:
        folder = Path(temporary)
        turns = [side for side in commands(folder, size) if side in needed]
        sides = itertools.product(range(1, size.rounds + 1), turns)
        for number, side in [(0, "prepare"), *sides]:
            started = time.monotonic()
            try:
                result = measure(side, folder / f"{number}-{side}", folder, brief)
            except SideFailed as error:
                raise SystemExit(f"throughput: side {side} failed: {error}") from None
            text = f"round {number} of {size.rounds}: {side}, {time.monotonic() - started:.0f} s"
            if side in needed:
                results[side].append(result)
                text += f", {result[0]:.2f} ms per step, {result[1]:.2f} GiB"
            print(text, file=sys.stderr, flush=True)
    record = report(names, results, size)
    print(f"{time.monotonic() - begun:.0f} s in all")
    return record


def report(names: list[str], results: Results, size: Size) -> dict[str, Any]:
    """Prints the table; returns the ratios by name and what they were made from."""
    info = Path("/proc/cpuinfo").read_text()
    machine = {
        "cpu": next((s.split(":")[1].strip() for s in info.splitlines() if "model name" in s), "?"),
        "cores": len(os.sched_getaffinity(0)),
        "amx_bf16": "amx_bf16" in info,
        "tensorflow": importlib.metadata.version("tensorflow"),
        "repetitions": size.rounds,
    }
    medians = {side: statistics.median(ms for ms, _ in runs) for side, runs in results.items()}
    table = [["comparison", "ours", "theirs", "ratio", "goal", "reached"]]
    ratios = {}
    for name in names:
        one = COMPARISONS[name]
        ours, theirs = medians[one.ours], one.runs * medians[one.theirs]
        ratio = ratios[name] = ours / theirs if one.share else theirs / ours
        reached = "yes" if (ratio <= one.goal if one.share else ratio >= one.goal) else "no"
        if one.needs_amx and not machine["amx_bf16"]:
            reached = "no AMX here: reported only"
        goal = f"{'at most' if one.share else 'at least'} {one.goal:g}"
        table.append([name, f"{ours:.2f}", f"{theirs:.2f}", f"{ratio:.3f}", goal, reached])
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print("ours, theirs: milliseconds per step, medians. A joint step trains all eight points,")
    print("theirs is that of eight single runs; a step of teacher_pass is a batch of 500 images.")
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    record: dict[str, Any] = {**ratios, "milliseconds": medians, "machine": machine}
    if "distill" in results:
        memory = max(memory for _, memory in results["distill"])
        reached = "yes" if memory < MEMORY_GOAL else "no"
        if size.cifar < MEMORY_IMAGES:
            reached = f"the goal is for {MEMORY_IMAGES:,} images: reported only"
        print(f"peak resident memory of distilling on {size.cifar:,} images: {memory:.2f} GiB,")
        print(f"goal under {MEMORY_GOAL:.1f} GiB, reached: {reached}")
        record["distill_peak_memory"] = {"gib": memory, "images": size.cifar}
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--brief", action="store_true", help="one round on small data")
    parser.add_argument("--rounds", type=int, help="instead of 1 with --brief, and of 5 without")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the ratios there")
    parser.add_argument("--only", metavar="NAME[,NAME]", help=", ".join(COMPARISONS))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        size = BRIEF if arguments.brief else FULL
        if arguments.side == "prepare":
            prepare(arguments.folder, size)
            return
        plan = checked(commands(arguments.folder, size)[arguments.side])
        measured = OWN[arguments.side]
        # Its last line is what the benchmark reads.
        print(measured(plan, size.passes) if measured is forward_pass else measured(plan))
        return
    names = arguments.only.split(",") if arguments.only else list(COMPARISONS)
    unknown = [name for name in names if name not in COMPARISONS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; expected some of {', '.join(COMPARISONS)}")
    record = compare(names, arguments.brief, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
