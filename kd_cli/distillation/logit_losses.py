"""Losses of logits beyond Hinton's: DKD, DIST, NKD, DeiT's distillation token, mutual learning.

Images without a label count in DKD and NKD under the class that the teacher decides for; mixed
images under the class with the largest share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from kd_cli.distillation.interface import Outputs, requires
from kd_cli.distillation.losses import cross_entropy, standardised

_FAR = -1e30  # in the place of a logit: its probability is 0, and no difference of two is infinite


@requires(words="target * KL(label or not) + nontarget * KL(the other classes), times T^2")
def dkd(
    labels: tf.Tensor | None,
    student: Outputs,
    teacher: Outputs,
    *,
    temperature: Any,
    target: float = 1.0,
    nontarget: float = 8.0,
    standardise: bool = False,
) -> dict[str, tf.Tensor]:
    """Decoupled KD: T^2 [target * KL of (p_y, 1 - p_y) + nontarget * KL within the other classes].

    From log-sum-exp, so that logits of any size stay finite; of two classes the second term is 0.
    Source: Zhao et al. 2022, "Decoupled knowledge distillation", equation 7; agrees with
    mdistiller's DKD.py.
    """
    temperature = tf.cast(temperature, tf.float32)
    ours, theirs = (z / temperature for z in _logits(student, teacher, standardise))
    mask = tf.one_hot(_classes(labels, teacher), ours.shape[-1], on_value=True, off_value=False)

    def split(z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """log of (p_y, 1 - p_y) [B, 2], and the log-probabilities within the rest [B, K]."""
        rest = tf.where(mask, _FAR, z)
        both = tf.stack(
            [
                tf.reduce_sum(tf.where(mask, z, 0.0), axis=-1),
                tf.reduce_logsumexp(rest, axis=-1),
            ],
            axis=-1,
        )
        return tf.nn.log_softmax(both), tf.nn.log_softmax(rest)

    (log_q, rest_q), (log_p, rest_p) = split(ours), split(theirs)
    square = temperature * temperature
    return {
        "target": target * square * _divergence(log_p, log_q),
        "nontarget": nontarget * square * _divergence(rest_p, rest_q),
    }


@requires(relations=True, words="beta * (1 - r of each example) + gamma * (1 - r of each class)")
def dist(
    labels: tf.Tensor | None,
    student: Outputs,
    teacher: Outputs,
    *,
    temperature: Any,
    beta: float = 1.0,
    gamma: float = 1.0,
    standardise: bool = False,
) -> dict[str, tf.Tensor]:
    """T^2 [beta (1 - r per row) + gamma (1 - r per column)] of the probabilities [B, K] at T.

    r is Pearson's correlation: of an image's probabilities, and of a class's over the batch.
    Source: Huang et al. 2022, "Knowledge distillation from a stronger teacher", equation 10; agrees
    with the authors' dist_kd.py.
    """
    temperature = tf.cast(temperature, tf.float32)
    q, p = (tf.nn.softmax(z / temperature) for z in _logits(student, teacher, standardise))

    def unlike(axis: int) -> tf.Tensor:
        ours, theirs = (x - tf.reduce_mean(x, axis=axis, keepdims=True) for x in (q, p))
        return 1 - tf.reduce_sum(_unit(ours, axis) * _unit(theirs, axis), axis=axis)

    square = temperature * temperature
    columns = tf.fill(tf.shape(q)[:1], tf.reduce_mean(unlike(0)))
    alone = tf.shape(q)[0] == 1  # the last batch of an epoch may be one image
    return {
        "rows": beta * square * unlike(-1),
        "columns": gamma * square * tf.where(alone, tf.zeros_like(columns), columns),
    }


@requires(words="-p_y log q_y - gamma * T^2 * sum of p log q of the other classes")
def nkd(
    labels: tf.Tensor | None,
    student: Outputs,
    teacher: Outputs,
    *,
    temperature: Any,
    gamma: float = 1.5,
    standardise: bool = False,
) -> dict[str, tf.Tensor]:
    """-p_y log q_y - gamma T^2 sum of p' log q' over the other classes, which sum to 1 again.

    p_y and q_y are at T = 1. A cross-entropy: it is not 0 where the student equals the teacher.
    Source: Yang et al. 2023, "From knowledge distillation to self-knowledge distillation: a unified
    approach with normalized loss", equation 9; agrees with the authors' nkd.py.
    """
    temperature = tf.cast(temperature, tf.float32)
    ours, theirs = _logits(student, teacher, standardise)
    mask = tf.one_hot(_classes(labels, teacher), ours.shape[-1], on_value=True, off_value=False)
    log_q, p = tf.nn.log_softmax(ours), tf.nn.softmax(theirs)
    target = -tf.reduce_sum(tf.where(mask, p * log_q, 0.0), axis=-1)
    rest_q = tf.nn.log_softmax(tf.where(mask, _FAR, ours / temperature))
    rest_p = tf.nn.softmax(tf.where(mask, _FAR, theirs / temperature))
    others = -tf.reduce_sum(rest_p * tf.where(mask, 0.0, rest_q), axis=-1)
    return {"target": target, "nontarget": gamma * temperature * temperature * others}


@requires(words="(CE(labels, class head) + CE(argmax teacher, token head)) / 2")
def deit(
    labels: tf.Tensor | None,
    student: Outputs,
    teacher: Outputs,
    *,
    student_taps: Sequence[str],
) -> dict[str, tf.Tensor]:
    """(CE(labels, class head) + CE(arg-max of the teacher, token head)) / 2.

    `student_taps` name the two heads, whose outputs are logits [B, K].
    Source: Touvron et al. 2021, "Training data-efficient image transformers", equation 3.
    """
    by_label, by_teacher = (student["features"][tap] for tap in student_taps)
    decision = tf.argmax(teacher["logits"], axis=-1)
    hard = 0.0 * by_label[:, 0]
    if labels is not None:
        hard = cross_entropy(labels, {"logits": by_label}, None)["hard"]
    told = cross_entropy(decision, {"logits": by_teacher}, None)["hard"]
    return {"hard": 0.5 * hard, "teacher": 0.5 * told}


@requires(words="mean over the other students of KL(other || student)")
def mutual(labels: tf.Tensor | None, student: Outputs, teacher: Outputs) -> dict[str, tf.Tensor]:
    """Mean over the n other students of KL(p_j || p), at T = 1; labels are not used.

    `teacher` has the logits of the others at this step, [B, n, K], or of one alone [B, K]. No
    gradient flows into them: each student learns by its own weights only.
    Source: Zhang et al. 2018, "Deep mutual learning", equations 2 to 8; agrees with the authors'
    code but for the 1e-8 inside its logarithms.
    """
    theirs = tf.stop_gradient(teacher["logits"])
    theirs = theirs if len(theirs.shape) == 3 else theirs[:, None]
    log_q = tf.nn.log_softmax(student["logits"])[:, None]
    return {"mutual": tf.reduce_mean(_divergence(tf.nn.log_softmax(theirs), log_q), axis=1)}


def _logits(student: Outputs, teacher: Outputs, standardise: bool) -> tuple[tf.Tensor, tf.Tensor]:
    both = student["logits"], teacher["logits"]
    return tuple(map(standardised, both)) if standardise else both


def _classes(labels: tf.Tensor | None, teacher: Outputs) -> tf.Tensor:
    """[B] the class of each image: its label, of a mixed one the largest, else the teacher's."""
    decision = tf.argmax(teacher["logits"], axis=-1)
    if labels is None:
        return decision
    labels = tf.convert_to_tensor(labels)
    if len(labels.shape) == 2:
        known = tf.reduce_sum(labels, axis=-1) > 0
        return tf.where(known, tf.argmax(labels, axis=-1), decision)
    return tf.where(labels >= 0, tf.cast(labels, decision.dtype), decision)


def _divergence(log_p: tf.Tensor, log_q: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1)


def _unit(vectors: tf.Tensor, axis: int) -> tf.Tensor:
    """Of length 1; of a constant class, which has no direction, 0 and not NaN."""
    return tf.math.l2_normalize(vectors, axis=axis, epsilon=1e-16)
