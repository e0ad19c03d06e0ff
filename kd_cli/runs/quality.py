"""What a network's logits are worth beyond accuracy, and how close a student is to its teacher.

Everything is computed in float64 from logits, so that logits of any size stay finite. Means are
over examples, logarithms natural. Where two logits are equal the first class wins, as in NumPy's
argmax; confidence is the probability of that class.

Sources: Guo et al. 2017, "On calibration of modern neural networks" (ECE, temperature scaling);
Nixon et al. 2019, "Measuring calibration in deep learning" (bins of equal mass); Brier 1950,
"Verification of forecasts expressed in terms of probability"; Stanton et al. 2021, "Does knowledge
distillation really work?" (fidelity to the teacher).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

BINS = 15
TOP5_ABOVE = 10  # top-5 of ten classes or fewer says little: chance alone gives half or more
TEMPERATURES = (1e-2, 1e4)
# An accuracy at chance says nothing of a network that has just begun: only after so many steps.
STEPS_TO_LEARN = 50


def score(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`accuracy`, the share of the examples that are right, and `nll`, in nats.

    Args:
        logits: [n, K].
        labels: [n] class numbers.

    Raises:
        ValueError: As `quality`, which gives the same two numbers among others.
    """
    logits, labels = _checked(logits, labels)
    return _score(logits, log_softmax(logits), labels)


def chance(labels: np.ndarray) -> tuple[float, float]:
    """The accuracy of always naming the most frequent class, and the highest that is no better.

    An accuracy up to two standard errors above it may be luck.

    Args:
        labels: [n] class numbers.
    """
    share = float(np.bincount(labels).max() / len(labels))
    return share, share + 2 * math.sqrt(share * (1 - share) / len(labels))


def quality(
    logits: np.ndarray, labels: np.ndarray, temperature: float | None = None
) -> dict[str, Any]:
    """Quality of one network on one split.

    Args:
        logits: [n, K].
        labels: [n] class numbers.
        temperature: Of `fit_temperature` on validation; adds the scaled values.

    Returns:
        accuracy, nll;
        balanced_accuracy: mean of the accuracies on the examples of each class that has any;
        top5 (above ten classes only);
        brier: sum over the classes of (probability - one-hot)^2, so 0..2;
        ece: sum over 15 bins of equal width of share * |accuracy - mean confidence|, with the
            confidence of the top class, bins open on the left: (0, 1/15], (1/15, 2/15], ...;
        ece_equal_mass: the same over 15 bins of as many examples each, in order of confidence.
            Equal confidences stay together, in the bin where the first of them falls, so the
            order of the examples does not matter; without ties bins differ by at most one;
        per_class: accuracy on the examples of each class, None for a class without examples;
        temperature, nll_scaled, ece_scaled (equal width): of logits / temperature.

    Raises:
        ValueError: The shapes do not fit, there are no examples, a logit is not finite, a label
            is not a class number, or the temperature is not positive.
    """
    logits, labels = _checked(logits, labels)
    n, classes = logits.shape
    rows, log_p = np.arange(n), log_softmax(logits)
    ahead = _ahead(logits, labels)
    right, confidence = ahead == 0, np.exp(log_p.max(axis=1))
    result: dict[str, Any] = _score(logits, log_p, labels)
    if classes > TOP5_ABOVE:
        result["top5"] = float((ahead < 5).mean())
    count = np.bincount(labels, minlength=classes)
    hits = np.bincount(labels[right], minlength=classes)
    result |= {
        "balanced_accuracy": float((hits[count > 0] / count[count > 0]).mean()),
        "brier": _brier(log_p, labels),
        "ece": _ece(confidence, right, _equal_width(confidence, BINS), BINS),
        "ece_equal_mass": _ece(confidence, right, _equal_mass(confidence, BINS), BINS),
        "per_class": [float(h / c) if c else None for h, c in zip(hits, count, strict=True)],
    }
    if temperature is not None:
        log_p = log_softmax(logits / _positive(temperature))
        confidence = np.exp(log_p.max(axis=1))
        result |= {
            "temperature": float(temperature),
            "nll_scaled": float(-log_p[rows, labels].mean()),
            "ece_scaled": _ece(confidence, right, _equal_width(confidence, BINS), BINS),
        }
    return result


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T that minimises the NLL of logits / T: on validation, never on test.

    The NLL is convex in 1 / T, so it has one valley in log T, which is searched from 0.01 to
    10,000. It has its lowest point at the lower end where every example is right, and at the upper
    end where the logits are no better than chance: the answer then is near that end.

    Args:
        logits: [n, K] on validation.
        labels: [n] class numbers.

    Raises:
        ValueError: As `quality`.

    Source: Guo et al. 2017, "On calibration of modern neural networks", section 4.2.
    """
    from scipy.optimize import minimize_scalar

    logits, labels = _checked(logits, labels)
    rows = np.arange(len(labels))

    def nll(log_t: float) -> float:
        return -float(log_softmax(logits / np.exp(log_t))[rows, labels].mean())

    found = minimize_scalar(
        nll, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(found.x))


def reliability(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> dict[str, np.ndarray]:
    """A reliability diagram: bins of equal width over the confidence of the top class.

    Args:
        logits: [n, K].
        labels: [n] class numbers.
        bins: Number of bins.

    Returns:
        edges [bins + 1]; count [bins]; confidence and accuracy [bins], means over the bin's
        examples, NaN in an empty bin.

    Raises:
        ValueError: As `quality`.
    """
    logits, labels = _checked(logits, labels)
    confidence = np.exp(log_softmax(logits).max(axis=1))
    index = _equal_width(confidence, bins)
    count, mean, accuracy = _per_bin(confidence, _ahead(logits, labels) == 0, index, bins)
    return {
        "edges": np.linspace(0, 1, bins + 1),
        "count": count,
        "confidence": mean,
        "accuracy": accuracy,
    }


def fidelity(
    student_logits: np.ndarray,
    teacher_logits: np.ndarray,
    labels: np.ndarray,
    temperature: float | None = None,
) -> dict[str, float | None]:
    """How close a student is to its teacher on one split.

    Args:
        student_logits: [n, K].
        teacher_logits: [n, K], the same examples.
        labels: [n] class numbers.
        temperature: T of the training; None where the loss has none.

    Returns:
        agreement: share of examples with the same top class;
        kl: mean of KL(teacher || student) in nats at T = 1;
        kl_at_temperature: the same of logits / T, without the factor T^2; None without T;
        temperature: T;
        agreement_teacher_wrong: agreement where the teacher is wrong; None where it never is.

    Raises:
        ValueError: As `quality`, of either network, or their shapes differ.
    """
    student, labels = _checked(student_logits, labels)
    teacher, labels = _checked(teacher_logits, labels)
    if student.shape != teacher.shape:
        raise ValueError(f"student {student.shape} and teacher {teacher.shape} differ in shape")
    top = teacher.argmax(axis=1)
    same, wrong = student.argmax(axis=1) == top, top != labels
    return {
        "agreement": float(same.mean()),
        "kl": _kl(teacher, student, 1.0),
        "kl_at_temperature": (
            None if temperature is None else _kl(teacher, student, _positive(temperature))
        ),
        "temperature": None if temperature is None else float(temperature),
        "agreement_teacher_wrong": float(same[wrong].mean()) if wrong.any() else None,
    }


def fidelity_on_training(
    student: np.ndarray, teacher: np.ndarray, labels: np.ndarray
) -> dict[str, float | int | None] | None:
    """How close a student is to its teacher on images that it was trained on.

    Args:
        student: Its logits [n, K], as in evaluation.
        teacher: Logits [n, K] of the same images.
        labels: [n] class numbers, -1 where none is known.

    Returns:
        images: n;
        agreement: share of images with the same top class;
        kl: mean of KL(teacher || student) in nats at T = 1;
        accuracy: the student's among images with a label; None where none has one.
        None where a logit is not finite.
    """
    if not (np.isfinite(student).all() and np.isfinite(teacher).all()):
        return None
    known, top = labels >= 0, student.argmax(axis=1)
    return {
        "images": len(labels),
        "agreement": float((top == teacher.argmax(axis=1)).mean()),
        "kl": _kl(teacher, student, 1.0),
        "accuracy": float((top == labels)[known].mean()) if known.any() else None,
    }


def certainty(
    logits: np.ndarray, labels: np.ndarray, temperature: float | None = None
) -> dict[str, float | int | None]:
    """How much a teacher says beyond the labels: on images that a student is trained on.

    Args:
        logits: [n, K].
        labels: [n] class numbers, -1 where none is known.
        temperature: T of the training; None where the loss has none.

    Returns:
        images: n;
        accuracy: share of right images among those with a label; None where none has one;
        entropy: mean entropy of its probabilities, in nats;
        entropy_at_temperature: the same of logits / T; None without T.
    """
    known = labels >= 0
    right = logits[known].argmax(axis=1) == labels[known]
    return {
        "images": len(labels),
        "accuracy": float(right.mean()) if known.any() else None,
        "entropy": _entropy(logits),
        "entropy_at_temperature": (
            None if temperature is None else _entropy(logits / _positive(temperature))
        ),
    }


def _entropy(logits: np.ndarray) -> float:
    log_p = log_softmax(logits)
    return float(-(np.exp(log_p) * log_p).sum(axis=1).mean())


def of_splits(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, dict[str, Any]]:
    """Quality of one network on `validation` (where there is one) and `test`.

    Args:
        arrays: As in `predictions.npz`: `labels` and `{name}_logits` of test, and with a validation
            split `validation_labels` and `validation_{name}_logits`, which the temperature of
            both splits' scaled values is fitted on.
        name: `student` or `teacher`.
    """
    found, temperature = {}, None
    if f"validation_{name}_logits" in arrays:
        held = arrays[f"validation_{name}_logits"], arrays["validation_labels"]
        temperature = fit_temperature(*held)
        found["validation"] = quality(*held, temperature)
    return found | {"test": quality(arrays[f"{name}_logits"], arrays["labels"], temperature)}


def fidelity_of_splits(
    arrays: Mapping[str, np.ndarray], temperature: float | None
) -> dict[str, dict[str, Any]]:
    """Fidelity of `student` to `teacher` on `validation` (where there is one) and `test`.

    Args:
        arrays: As in `predictions.npz`.
        temperature: T of the training; None where the loss has none.
    """
    return {
        split: fidelity(
            arrays[f"{prefix}student_logits"],
            arrays[f"{prefix}teacher_logits"],
            arrays[f"{prefix}labels"],
            temperature,
        )
        for split, prefix in (("validation", "validation_"), ("test", ""))
        if {f"{prefix}student_logits", f"{prefix}teacher_logits"} <= set(arrays)
    }


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of the probabilities [n, K] in float64; finite for finite logits."""
    shifted = logits.astype(np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _score(logits: np.ndarray, log_p: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Of logits and their `log_softmax`, where two that are nearly equal can become equal."""
    return {
        "accuracy": float((logits.argmax(axis=1) == labels).mean()),
        "nll": float(-log_p[np.arange(len(labels)), labels].mean()),
    }


def _kl(teacher: np.ndarray, student: np.ndarray, temperature: float) -> float:
    log_p, log_q = log_softmax(teacher / temperature), log_softmax(student / temperature)
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())


def _brier(log_p: np.ndarray, labels: np.ndarray) -> float:
    error = np.exp(log_p)
    error[np.arange(len(labels)), labels] -= 1
    return float((error**2).sum(axis=1).mean())


def _ahead(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before the label [n]: larger logits, and equal ones further left."""
    own = logits[np.arange(len(labels)), labels][:, None]
    left = np.arange(logits.shape[1]) < labels[:, None]
    return ((logits > own) | ((logits == own) & left)).sum(axis=1)


def _equal_width(confidence: np.ndarray, bins: int) -> np.ndarray:
    """The bin (lower, upper] of each example [n]."""
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")


def _equal_mass(confidence: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each example [n], by its rank; equal confidences have the rank of the first."""
    first = np.searchsorted(np.sort(confidence), confidence, side="left")
    return first * bins // len(confidence)


def _per_bin(
    confidence: np.ndarray, right: np.ndarray, index: np.ndarray, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Examples, mean confidence and accuracy of each bin, NaN where it is empty."""
    count = np.bincount(index, minlength=bins)
    size = np.where(count, count, np.nan)
    mean = np.bincount(index, weights=confidence, minlength=bins) / size
    return count, mean, np.bincount(index, weights=right, minlength=bins) / size


def _ece(confidence: np.ndarray, right: np.ndarray, index: np.ndarray, bins: int) -> float:
    count, mean, accuracy = _per_bin(confidence, right, index, bins)
    return float(np.nansum(count * abs(accuracy - mean)) / count.sum())


def _positive(temperature: float) -> float:
    if not (np.isfinite(temperature) and temperature > 0):
        raise ValueError(f"a temperature must be positive, got {temperature}")
    return float(temperature)


def _checked(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays, the logits in float64."""
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if logits.ndim != 2 or not logits.size or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"expected logits [n, K] and labels [n], got {logits.shape} and {labels.shape}"
        )
    if not np.isfinite(logits).all():
        raise ValueError("logits must be finite")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be class numbers, got {labels.dtype}")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"labels must lie within 0..{logits.shape[1] - 1}, got {labels.min()} to {labels.max()}"
        )
    return logits, labels
