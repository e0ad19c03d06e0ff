"""Losses that compare layers without weights of their own: AT, SP, RKD, PKT.

A feature is a map [B, H, W, C] or a vector [B, C]. What compares the images of a batch gives the
mean of each row of the comparison, so that the batch mean is the published number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from kd_cli.distillation.interface import Outputs, requires
from kd_cli.errors import ConfigError

Pairs = Sequence[Sequence[str]]
_TINY = 1e-12
_ROUNDING = 1e-6  # of a square in float32: what is smaller than this part of it is noise


def attention_map(feature: tf.Tensor) -> tf.Tensor:
    """[B, H, W, C] -> [B, H, W]: the mean square over the channels, of length 1 over the pixels."""
    return _of_length_1(tf.reduce_mean(tf.square(feature), axis=-1))


def _of_length_1(maps: tf.Tensor) -> tf.Tensor:
    square = tf.reduce_sum(tf.square(maps), axis=[1, 2], keepdims=True)
    return maps / tf.sqrt(square + _TINY**2)


@requires(
    head=False,
    teacher_part=attention_map,
    words="sum over stages of the mean square distance of the normalised attention maps",
)
def attention(
    labels: tf.Tensor | None, student: Outputs, teacher: Outputs, *, pairs: Pairs
) -> dict[str, tf.Tensor]:
    """Sum over the pairs of mean((n(mean_c f_s^2) - n(mean_c f_t^2))^2), n = length 1 over pixels.

    Of maps of two resolutions the finer one is averaged down: the student's features, or the
    teacher's attention map. (RepDistiller averages the teacher's features; the map is what is
    stored.)

    Source: Zagoruyko, Komodakis 2017, "Paying more attention to attention", section 3.1; agrees
    with the authors' code and RepDistiller (the paper writes the norm in place of its mean square).

    Raises:
        ConfigError: A layer is no map.
    """
    found = []
    for ours, theirs in pairs:
        feature, wanted = student["features"][ours], teacher["features"][theirs]
        if len(feature.shape) != 4 or len(wanted.shape) != 3:
            raise ConfigError(f"pair [{ours},{theirs}]: attention needs maps [H, W, C], as stage1")
        sides = [min(two) for two in zip(feature.shape[1:3], wanted.shape[1:3], strict=True)]
        if sides != feature.shape[1:3]:
            feature = averaged(feature, *sides)
        if sides != wanted.shape[1:3]:
            wanted = _of_length_1(averaged(wanted[..., None], *sides)[..., 0])
        found.append(tf.reduce_mean(tf.square(attention_map(feature) - wanted), axis=[1, 2]))
    return {"attention": tf.add_n(found)}


def averaged(feature: tf.Tensor, rows: int, columns: int) -> tf.Tensor:
    """[B, H, W, C] -> [B, rows, columns, C]: means of parts that are as equal as can be.

    Part i of n goes from floor(i H / n) to ceil((i + 1) H / n), as in PyTorch's adaptive pooling.
    """

    def shares(side: int, parts: int) -> np.ndarray:
        made = np.zeros([parts, side], np.float32)
        for part in range(parts):
            first, end = part * side // parts, -(-(part + 1) * side // parts)
            made[part, first:end] = 1 / (end - first)
        return made

    height, width = feature.shape[1:3]
    return tf.einsum("ih,bhwc,jw->bijc", shares(height, rows), feature, shares(width, columns))


@requires(head=False, relations=True, words="square distance of the batch's similarity matrices")
def similarity(
    labels: tf.Tensor | None, student: Outputs, teacher: Outputs, *, pairs: Pairs
) -> dict[str, tf.Tensor]:
    """Sum over the pairs of |n(F_t F_t') - n(F_s F_s')|^2 / B^2, n = rows of length 1.

    Source: Tung, Mori 2019, "Similarity-preserving knowledge distillation", equations 1 to 4;
    agrees with RepDistiller and mdistiller.
    """

    def matrix(feature: tf.Tensor) -> tf.Tensor:
        flat = _vectors(feature)
        return tf.math.l2_normalize(tf.matmul(flat, flat, transpose_b=True), axis=1, epsilon=1e-24)

    found = [
        tf.reduce_mean(
            tf.square(matrix(teacher["features"][theirs]) - matrix(student["features"][ours])),
            axis=1,
        )
        for ours, theirs in pairs
    ]
    return {"similarity": tf.add_n(found)}


@requires(
    head=False,
    relations=True,
    words="distance * huber(distances) + angle * huber(angles) of the examples of a batch",
)
def relational(
    labels: tf.Tensor | None,
    student: Outputs,
    teacher: Outputs,
    *,
    pairs: Pairs,
    distance: float = 25.0,
    angle: float = 50.0,
) -> dict[str, tf.Tensor]:
    """Huber distances of the batch's relative distances, and of the cosines in its triples.

    Distances are divided by their mean over the batch. The vectors are not normalised.
    Source: Park et al. 2019, "Relational knowledge distillation", equations 5 to 10; agrees with
    RepDistiller, torchdistill and mdistiller.
    """
    lengths, corners = [], []
    for ours, theirs in pairs:
        pair = [_vectors(x) for x in (student["features"][ours], teacher["features"][theirs])]
        lengths.append(tf.reduce_mean(huber(*map(_distances, pair)), axis=1))
        corners.append(tf.reduce_mean(huber(*map(_cosines, pair)), axis=[1, 2]))
    return {"distance": distance * tf.add_n(lengths), "angle": angle * tf.add_n(corners)}


def _vectors(feature: tf.Tensor) -> tf.Tensor:
    return tf.reshape(feature, [tf.shape(feature)[0], -1])


def _distances(vectors: tf.Tensor) -> tf.Tensor:
    """[B, B] Euclidean distances over their mean; the diagonal is 0."""
    squares = tf.reduce_sum(tf.square(vectors), axis=1)
    product = tf.matmul(vectors, vectors, transpose_b=True)
    between = tf.maximum(squares[:, None] + squares[None] - 2 * product, _TINY)
    away = 1 - tf.eye(tf.shape(vectors)[0])
    found = tf.sqrt(between) * away
    return found / tf.maximum(tf.reduce_sum(found) / tf.maximum(tf.reduce_sum(away), 1), _TINY)


def _cosines(vectors: tf.Tensor) -> tf.Tensor:
    """[B, B, B] cosine of the angle at image i between images j and k; 0 where two are the same.

    It comes from the products of the vectors: their differences are [B, B, C], and cost twice as
    much. The mean cancels in differences, and with it digits would.
    """
    centred = vectors - tf.reduce_mean(vectors, axis=0)
    products = tf.matmul(centred, centred, transpose_b=True)
    squares = tf.linalg.diag_part(products)
    both = squares[:, None] + squares[None]
    between = both - 2 * products
    apart = between > _ROUNDING * both
    inverse = tf.where(apart, tf.math.rsqrt(tf.maximum(between, _TINY)), 0)
    # (x_j - x_i)(x_k - x_i) = x_j x_k - (x_i x_j - x_i x_i / 2) - (x_i x_k - x_i x_i / 2)
    own = products - 0.5 * squares[:, None]
    corner = products[None] - own[:, :, None] - own[:, None, :]
    return corner * inverse[:, :, None] * inverse[:, None, :]


def huber(ours: tf.Tensor, theirs: tf.Tensor) -> tf.Tensor:
    """Half the square of a distance below 1, the distance less a half above."""
    size = tf.abs(ours - theirs)
    return tf.where(size < 1, 0.5 * tf.square(size), size - 0.5)


@requires(head=False, relations=True, words="KL of the batch's cosine similarities, as shares")
def pkt(
    labels: tf.Tensor | None, student: Outputs, teacher: Outputs, *, pairs: Pairs
) -> dict[str, tf.Tensor]:
    """Mean over B^2 of P_t log(P_t / P_s), P = (cos + 1) / 2 of the images, rows summing to 1.

    Source: Passalis, Tefas 2018, "Learning deep representations with probabilistic knowledge
    transfer", equations 3 to 6; agrees with RepDistiller.
    """
    epsilon = 1e-7

    def shares(feature: tf.Tensor) -> tf.Tensor:
        vectors = _vectors(feature)
        length = tf.sqrt(tf.maximum(tf.reduce_sum(tf.square(vectors), 1, keepdims=True), 1e-24))
        units = vectors / (length + epsilon)
        close = (tf.matmul(units, units, transpose_b=True) + 1) / 2
        return close / tf.reduce_sum(close, axis=1, keepdims=True)

    found = []
    for ours, theirs in pairs:
        p, q = shares(teacher["features"][theirs]), shares(student["features"][ours])
        found.append(tf.reduce_mean(p * tf.math.log((p + epsilon) / (q + epsilon)), axis=1))
    return {"pkt": tf.add_n(found)}
