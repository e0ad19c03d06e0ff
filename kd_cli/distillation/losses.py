"""Losses: `(labels, student, teacher, *, hyper) -> {term: one weighted value per example}`.

`student` and `teacher` are mappings with `logits` [B, K] in float32. The terms sum to the loss;
their names appear in the progress line, the history and the message about a value that is not
finite. A user's own loss may return one array [B] instead. The caller takes the batch mean.
`labels` are class numbers [B], -1 for an image without one, or after mixup the classes' shares
[B, K]. They are None where no training image has a label: a loss that needs them fails or is not
finite.
`alpha`, `temperature`, `t_squared` and `class_weights` may be tensors: changing them does not trace
again.

`alpha` weights the hard labels, `1 - alpha` the teacher: always.
KL(p || q) = sum over classes of p * (log p - log q), from log-softmax, so that logits of any size
stay finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from kd_cli.distillation.interface import Outputs


def cross_entropy(
    labels: tf.Tensor,
    student: Outputs,
    teacher: Outputs | None,
    *,
    label_smoothing: Any = 0.0,
    class_weights: Any = None,
) -> dict[str, tf.Tensor]:
    """Cross-entropy to the labels; with smoothing s the target is (1 - s) * one-hot + s / K.

    It is 0 for an image without a label.
    `class_weights` [K] multiply what an example loses by its label; of shares of the classes, each
    share's part by its own class. The batch mean is over examples, not over weights.

    Source: Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7.
    """
    log_q = tf.nn.log_softmax(student["logits"])
    labels = tf.convert_to_tensor(labels)
    weight = None
    if len(labels.shape) == 2:
        shares = labels if class_weights is None else labels * class_weights
        hard = -tf.reduce_sum(shares * log_q, axis=-1)
        if class_weights is not None:
            weight = tf.reduce_sum(shares, axis=-1)
    else:
        known = tf.maximum(labels, 0)
        hard = -tf.gather(log_q, known, batch_dims=1)
        if class_weights is not None:
            weight = tf.gather(class_weights, known)
            hard = weight * hard
    even = tf.reduce_mean(log_q, axis=-1)
    even = even if weight is None else weight * even
    hard = (1 - label_smoothing) * hard - label_smoothing * even
    return {"hard": hard if len(labels.shape) == 2 else tf.where(labels >= 0, hard, 0.0)}


def soft_cross_entropy(
    labels: tf.Tensor | None, student: Outputs, teacher: Outputs
) -> dict[str, tf.Tensor]:
    """Cross-entropy to softmax(teacher): -sum p * log q. Labels are not used.

    Source: Xie et al. 2020, "Self-training with Noisy Student", algorithm 1.
    """
    p = tf.nn.softmax(teacher["logits"])
    return {"soft": -tf.reduce_sum(p * tf.nn.log_softmax(student["logits"]), axis=-1)}


def hinton(
    labels: tf.Tensor | None,
    student: Outputs,
    teacher: Outputs,
    *,
    alpha: Any,
    temperature: Any,
    t_squared: Any = True,
    class_weights: Any = None,
    standardise: bool = False,
) -> dict[str, tf.Tensor]:
    """alpha * CE(labels, student) + (1 - alpha) * T^2 * KL(teacher || student) at temperature T.

    T^2 keeps the size of the soft term's gradient as T changes; `t_squared=false` leaves it out.
    `standardise` compares standardised logits; the labels' term keeps its own.
    Source: Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network", section 2.
    """
    soft = _soft(student, teacher, temperature, t_squared, standardise)
    hard = _labels_share(alpha, labels, student, class_weights)
    return {"hard": hard, "soft": (1 - alpha) * soft}


def function_matching(
    labels: tf.Tensor | None,
    student: Outputs,
    teacher: Outputs,
    *,
    temperature: Any,
    t_squared: Any = False,
    standardise: bool = False,
) -> dict[str, tf.Tensor]:
    """KL(teacher || student) at temperature T; labels are not used and may be None.

    Source: Beyer et al. 2021, "Knowledge distillation: A good teacher is patient and consistent".
    """
    return {"soft": _soft(student, teacher, temperature, t_squared, standardise)}


def hard(
    labels: tf.Tensor | None,
    student: Outputs,
    teacher: Outputs,
    *,
    alpha: Any,
    class_weights: Any = None,
) -> dict[str, tf.Tensor]:
    """alpha * CE(labels, student) + (1 - alpha) * CE(arg-max of the teacher, student).

    Source: Touvron et al. 2021, "Training data-efficient image transformers", equation 3.
    """
    decision = tf.argmax(teacher["logits"], axis=-1)
    return {
        "hard": _labels_share(alpha, labels, student, class_weights),
        "teacher": (1 - alpha) * cross_entropy(decision, student, None)["hard"],
    }


def _labels_share(
    alpha: Any, labels: tf.Tensor | None, student: Outputs, class_weights: Any
) -> tf.Tensor:
    """alpha * CE(labels, student); without labels 0 for alpha = 0 and else NaN.

    alpha may be a variable, whose value is not known when the step is traced.
    """
    if labels is not None:
        return alpha * cross_entropy(labels, student, None, class_weights=class_weights)["hard"]
    share = tf.where(tf.cast(alpha, tf.float32) > 0, float("nan"), 0.0)
    return tf.fill(tf.shape(student["logits"])[:1], share)


def standardised(logits: tf.Tensor) -> tf.Tensor:
    """[B, K] -> (z - mean) / (std + 1e-7) of each row, with the unbiased standard deviation.

    Then only the order and the relative gaps of the teacher's logits count.
    Source: Sun et al. 2024, "Logit standardization in knowledge distillation", equation 9; agrees
    with the authors' code.
    """
    gap = logits - tf.reduce_mean(logits, axis=-1, keepdims=True)
    variance = tf.reduce_sum(tf.square(gap), axis=-1, keepdims=True) / (logits.shape[-1] - 1)
    # (The square root of 0 has no finite gradient.)
    return gap / (tf.sqrt(tf.maximum(variance, 1e-14)) + 1e-7)


def _soft(
    student: Outputs, teacher: Outputs, temperature: Any, t_squared: Any, standardise: bool
) -> tf.Tensor:
    temperature = tf.cast(temperature, tf.float32)
    ours, theirs = student["logits"], teacher["logits"]
    if standardise:
        ours, theirs = standardised(ours), standardised(theirs)
    log_p = tf.nn.log_softmax(theirs / temperature)
    log_q = tf.nn.log_softmax(ours / temperature)
    divergence = tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1)
    return divergence * tf.where(t_squared, temperature * temperature, 1.0)


def formula(target: str, hyper: Mapping[str, Any], words: str = "") -> str:
    """The loss in one line, for people: with its weights and the T^2 factor spelled out.

    Args:
        target: The dotted name of its function.
        hyper: Its keywords.
        words: What the loss says of itself (`interface.Needs`).
    """
    name = target.removeprefix("kd_cli.distillation.")
    alpha, temperature = hyper.get("alpha"), hyper.get("temperature")
    factor = "T^2 * " if hyper.get("t_squared") else ""
    degrees = "" if temperature is None else f", T = {temperature:g}"
    z = "standardised " if hyper.get("standardise") else ""
    soft = f"{factor}KL({z}teacher/T || {z}student/T){degrees}"
    weighted = hyper.get("class_weights") is not None
    labels = "w[label] * CE(labels, student)" if weighted else "CE(labels, student)"
    if name == "cross_entropy":
        smoothing = hyper.get("label_smoothing", 0)
        return labels + (f", label smoothing {smoothing:g}" if smoothing else "")
    if name == "soft_cross_entropy":
        return "CE(labels, student) where they are known, elsewhere CE(teacher, student)"
    if name == "hinton":
        return f"{alpha:g} * {labels} + {1 - alpha:g} * {soft}"
    if name == "function_matching":
        return soft
    if name == "hard":
        return f"{alpha:g} * {labels} + {1 - alpha:g} * CE(argmax teacher, student)"
    given = [
        f"{key}={'w' if key == 'class_weights' else value}"
        for key, value in hyper.items()
        if not words or (key not in ("pairs", "student_taps") and value is not False)
    ]
    told = f" ({', '.join(given)})" if given else ""
    return f"{words}{told}" if words else f"{target}({', '.join(given)})"
