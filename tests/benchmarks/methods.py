"""Measures what each method's training step costs, beside that of plain distilling.

    python tests/benchmarks/methods.py               # resnet8, CIFAR-like images, about ten minutes
    python tests/benchmarks/methods.py --rounds 3

All steps are taken in one process, in turns; a figure is the median over the rounds of a method's
seconds over those of `hinton` in the same round. With stored parts the goal is at most 1.15 for AT,
RKD, PKT, DIST and DKD. A live teacher costs its forward pass, and no second one of the student.
The images are random: speed does not depend on them. GPUs are hidden.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

IMAGES, BATCH, STEPS = 640, 64, 10
GOAL = {"at": 1.15, "rkd": 1.15, "pkt": 1.15, "dist": 1.15, "dkd": 1.15}
METHODS = {
    "hinton": [],
    "dkd": ["loss=dkd"],
    "dist": ["loss=dist"],
    "nkd": ["loss=nkd"],
    **{name: [f"loss=[hinton,{name}]"] for name in ("at", "sp", "rkd", "pkt", "hint", "reviewkd")},
    "crd, 1,024 negatives": ["loss=[hinton,crd]", "loss.crd.negatives=1024"],
    "simkd": ["loss=simkd"],
}
BASE = (
    "dataset=npz", "dataset.path=random.npz", "student=resnet8", "teacher=resnet20",
    f"batch_size={BATCH}", "dataset.validation_fraction=0", "optimizer=sgd",
)  # fmt: skip


def engine(typed: list[str], live: bool) -> Any:
    """An engine as the run has it, with an untrained teacher."""
    from kd_cli.config.check import check
    from kd_cli.config.compose import compose
    from kd_cli.data.dataset import load_dataset
    from kd_cli.distillation.teacher_features import Features, wanted_by
    from kd_cli.distillation.teacher_outputs import Outputs, planned
    from kd_cli.runs.session import Session
    from kd_cli.training import assembly

    plan = check(compose("distill", typed), typed)
    dataset, session = load_dataset(plan.dataset), Session()
    teacher = assembly.parts(plan, dataset, "teacher").model
    features = Features(teacher, wanted_by([plan]))
    outputs = planned(None, features, plan, dataset, None, 1, session).outputs
    if live:
        outputs = Outputs("live", "live", {}, features, features, None, 0.0)
    made = assembly.engine_for([plan], dataset, "student", outputs, session)
    made.start_epoch(1)
    made.run(0, 0, 1)  # traces
    return made


def write_images(classes: int) -> None:
    """random.npz in the working folder: images of 32x32x3."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(IMAGES) % classes
    np.savez("random.npz", x_train=images, y_train=labels, x_test=images[:50],
             y_test=labels[:50])  # fmt: skip


def ready() -> None:
    """kd can be imported and composes; GPUs are hidden."""
    os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from kd_cli.runs.resolvers import register_resolvers

    register_resolvers()


def seconds(made: Any) -> float:
    begun = time.perf_counter()
    made.run(0, 0, STEPS)
    made.learners[0].first_broken()  # it waits until the steps are done
    return (time.perf_counter() - begun) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    ready()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_images(10)
        sides = {
            (n, live): engine([*BASE, *w], live)
            for n, w in METHODS.items()
            for live in (False, True)
        }
        times: dict[Any, list[float]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side, made in sides.items():
                times[side].append(seconds(made))
    print(f"{'method':<24}{'stored':>8}{'live':>8}   step over hinton's with stored logits")
    for name in METHODS:
        ratios = []
        for live in (False, True):
            pairs = zip(times[name, live], times["hinton", False], strict=True)
            ratios.append(statistics.median(mine / plain for mine, plain in pairs))
        goal = GOAL.get(name)
        told = f"   goal {goal}: {'yes' if ratios[0] <= goal else 'no'}" if goal else ""
        print(f"{name:<24}{ratios[0]:>8.2f}{ratios[1]:>8.2f}{told}")
    plain = statistics.median(times["hinton", False])
    print(f"hinton with stored logits: {1e3 * plain:.1f} ms a step of {BATCH} images")


if __name__ == "__main__":
    main()
