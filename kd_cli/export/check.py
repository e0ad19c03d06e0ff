"""How far an exported file is from the network that it was made of, and what to say of that."""

from __future__ import annotations

from typing import Any

import numpy as np

from kd_cli.export.tensors import Tensor
from kd_cli.runs import quality

# Below so much agreement with Keras an export fails: something was converted wrongly. A float32
# file differs by rounding alone; float16 rounds each weight to 11 binary digits.
FAILS_BELOW = {"float32": 0.999, "float16": 0.99}
# The others may lose some: below so much agreement, or with so much accuracy lost, kd warns.
WARNS_BELOW = 0.97
MOST_LOST = 0.01


def as_logits(outputs: np.ndarray, tensor: Tensor, softmax: bool) -> np.ndarray:
    """Logits [n, K] of a file's outputs.

    Those of probabilities are their logarithms. A probability of 0 counts as half a step of a
    quantised output, or as the smallest normal float32.
    """
    if not softmax:
        return outputs
    floor = tensor.scale / 2 if tensor.scale else np.finfo(np.float32).tiny
    return np.log(np.maximum(outputs, floor))


def are_probabilities(outputs: np.ndarray, tensor: Tensor) -> bool:
    """Whether outputs [n, K] are probabilities; quantised ones are off by half a step each."""
    tolerance = max(1e-2, outputs.shape[1] * (tensor.scale or 0) / 2)
    sums = outputs.astype(np.float64).sum(axis=1)
    return bool((outputs >= 0).all() and (abs(sums - 1) <= tolerance).all())


def compare(
    logits: np.ndarray, reference: np.ndarray, labels: np.ndarray, softmax: bool = False
) -> dict[str, Any]:
    """A file against the network that it was made of, on the same images.

    Args:
        logits: [n, K] of the file.
        reference: [n, K] of the network.
        labels: [n] class numbers.
        softmax: Whether the file gives probabilities.

    Returns:
        The keys of `quality.quality`;
        agreement: share of the images with the same top class;
        largest_difference: of a logit, or with `softmax` of a probability, over all images and
            classes.

    Raises:
        ValueError: As `quality.quality`.
    """
    pair = [logits, reference]
    if softmax:
        pair = [np.exp(quality.log_softmax(one)) for one in pair]
    return {
        "images": len(labels),
        **quality.quality(logits, labels),
        "agreement": float((logits.argmax(axis=1) == reference.argmax(axis=1)).mean()),
        "largest_difference": float(np.abs(pair[0].astype(np.float64) - pair[1]).max()),
    }


def failure(precision: str, test: dict[str, Any]) -> str:
    """Why an export fails; empty where it does not."""
    least = FAILS_BELOW.get(precision, 0.0)
    if test["agreement"] >= least:
        return ""
    return (
        f"it agrees with Keras on {100 * test['agreement']:.2f} % of {test['images']:,} test "
        f"images (largest difference {test['largest_difference']:.3g}); {precision} "
        f"needs {100 * least:g} %"
    )


def doubts(
    precision: str, test: dict[str, Any], accuracy: float, calibration: int | None
) -> list[str]:
    """What a user should know of a file that rounds, a line each with what to try.

    Args:
        precision: Of the file.
        test: From `compare`.
        accuracy: Of the network on the same images.
        calibration: How many images set the ranges; None where none did.
    """
    found = []
    lost = accuracy - test["accuracy"]
    if test["agreement"] < WARNS_BELOW and precision not in FAILS_BELOW:
        found.append(
            f"the file agrees with Keras on {100 * test['agreement']:.2f} % of the test images only"
        )
    if lost > MOST_LOST + 1e-9:
        found.append(f"the file loses {100 * lost:.2f} points of test accuracy")
    if found:
        found[-1] += f"; {_try(precision, calibration)}"
    return found


def _try(precision: str, calibration: int | None) -> str:
    if precision == "int8":
        more = f"calibration={10 * calibration}, or " if calibration else ""
        return f"try {more}precision=dynamic, which rounds the weights alone"
    if precision == "dynamic":
        return "try precision=float16"
    return "try precision=float32"
