"""Measures what augmentation, teacher and student cost of a training step of the CIFAR-10 CNNs.

    python tests/benchmarks/augmentation.py               # five rounds, some minutes
    python tests/benchmarks/augmentation.py --rounds 3 --steps 20

`kd_cli` must be installed or on PYTHONPATH. Everything runs in this process on the CPU; the parts
take turns in each round, and a figure is the median over the rounds of the milliseconds per step.
The pixels are random and the teacher is untrained: speed depends on neither. Goal: augmentation
takes at most 10 % of the step. The steps are
    function matching    cifar10_cnn, flip_crop and mixup, live teacher (the step as it is run)
    kept views           flip_crop with cache.views=2: no teacher in the step
    scratch              the student alone, flip_crop
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH, IMAGES, GOAL = 64, 64 * 40, 0.10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="per part and round, at most 40")
    arguments = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        parts = build(Path(folder))
        for run in parts.values():
            run(2)  # traces
        taken: dict[str, list[float]] = {name: [] for name in parts}
        for _ in range(arguments.rounds):
            for name, run in parts.items():
                begun = time.perf_counter()
                run(arguments.steps)
                taken[name].append(1e3 * (time.perf_counter() - begun) / arguments.steps)
    report({name: statistics.median(values) for name, values in taken.items()}, taken)
    return 0


def build(folder: Path) -> dict[str, Callable[[int], None]]:
    """The parts by name: each runs so many steps."""
    import numpy as np

    from kd_cli.config.check import check
    from kd_cli.config.compose import compose
    from kd_cli.runs.resolvers import register_resolvers

    register_resolvers()
    random = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", IMAGES), ("test", 100)):
        arrays[f"x_{part}"] = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % 10
    np.savez(folder / "images.npz", **arrays)

    def plan(command: str, augment: str) -> Any:
        words = ["experiment=cifar10_cnn", "dataset=npz", f"dataset.path={folder}/images.npz"]
        words += ["dataset.validation_fraction=0", f"augment={augment}", "device=cpu"]
        return check(compose(command, words), words)

    from kd_cli.data.dataset import load_dataset

    dataset = load_dataset(plan("distill", "none").dataset, "cpu")

    import keras
    import tensorflow as tf

    from kd_cli.data.views import Views
    from kd_cli.networks.wrap import build_network
    from kd_cli.training import assembly
    from kd_cli.training.step import Engine, Learner

    made = plan("distill", "none")
    teacher = build_network(made.teacher, (32, 32, 3), 10, "float32", "teacher")

    def live(images: Any) -> dict[str, Any]:
        return {"logits": keras.ops.cast(teacher(images, training=False), "float32")}

    table = random.normal(size=(IMAGES, 10)).astype(np.float32)

    def engine(command: str, augment: str, **options: Any) -> Engine:
        settings = plan(command, augment)
        new = assembly.parts(settings, dataset, "student")
        learner = Learner(new.model, new.optimizer, new.objective, new.schedule)
        views = Views(settings.augment, "consistent", dataset, True) if augment != "none" else None
        return Engine([learner], dataset.train, BATCH, 0, views=views, **options)

    def stepping(made: Engine) -> Callable[[int], None]:
        made.start_epoch(1)
        return lambda steps: made.run(0, 0, steps)

    matching = engine("distill", "function_matching", teacher=live)
    scratch = engine("train-student", "flip_crop")
    kept = engine("distill", "flip_crop", logits=[table, table], repeats=2)
    batch = tf.cast(dataset.train.images[:BATCH], tf.float32)

    def alone(act: Callable[[Any], Any]) -> Callable[[int], None]:
        """Steps of a part alone; each result is used, so that nothing is left out."""

        @tf.function(autograph=False)
        def loop(steps: Any) -> Any:
            def body(step: Any, total: Any) -> Any:
                return step + 1, total + tf.reduce_sum(act(step)[0])

            first = tf.constant(0, tf.int64)
            return tf.while_loop(
                lambda step, total: step < steps, body, [first, 0.0], parallel_iterations=1
            )

        return lambda steps: loop(tf.constant(steps, tf.int64))[1].numpy()

    def augmenting(made: Engine) -> Callable[[Any], Any]:
        def act(step: Any) -> Any:
            images, labels, rows, _ = made.source.batch(step)
            return made.views(images, rows, labels, step)[0][:, 0]

        return act

    return {
        "function matching: step": stepping(matching),
        "function matching: augmentation": alone(augmenting(matching)),
        "function matching: teacher": alone(lambda step: live(batch + tf.cast(step, tf.float32))),
        "function matching: student": stepping(engine("distill", "none", logits=[table])),
        "kept views: step": stepping(kept),
        "kept views: augmentation": alone(augmenting(kept)),
        "kept views: the step without augmentation": stepping(
            engine("distill", "none", logits=[table])
        ),
        "scratch: step": stepping(scratch),
        "scratch: augmentation": alone(augmenting(scratch)),
        "scratch: the step without augmentation": stepping(engine("train-student", "none")),
    }


def report(medians: dict[str, float], taken: dict[str, list[float]]) -> None:
    print(f"{'ms per step of ' + str(BATCH) + ' images':<44}  median   lowest   share of the step")
    for name, value in medians.items():
        step = medians[f"{name.split(':')[0]}: step"]
        print(f"{name:<44}  {value:6.2f}   {min(taken[name]):6.2f}   {value / step:6.1%}")
    print()
    for kind in ("function matching", "kept views", "scratch"):
        share = medians[f"{kind}: augmentation"] / medians[f"{kind}: step"]
        met = "yes" if share <= GOAL else "no"
        print(f"{kind}: augmentation is {share:.1%} of the step (goal {GOAL:.0%}: {met})")


if __name__ == "__main__":
    raise SystemExit(main())
