"""Knowledge review: the student's stages, fused from deep to shallow, against the teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from kd_cli.distillation.feature_losses import averaged
from kd_cli.distillation.interface import Outputs, requires
from kd_cli.errors import ConfigError

_LEVELS = (4, 2, 1)


@requires(head=False, words="pyramid distance of the fused stages to the teacher's")
class ReviewKD(keras.layers.Layer):
    """Sum over the stages of the pyramid distance of the fused student to the teacher.

    From the deepest stage on, a stage is brought to a common width by a 1x1 convolution, mixed with
    the fused deeper one by two attention maps, and mapped to the teacher's width by a 3x3
    convolution. Vectors count as maps of 1x1.

    Args:
        pairs: [student's layer, teacher's layer] from the finest to the coarsest.
        width: Of the fused maps; at most the width of the student's deepest layer.

    The teacher's taps are outputs of its activations; the authors take those before the ReLU.
    Source: Chen et al. 2021, "Distilling knowledge via knowledge review", section 3; written after
    mdistiller's ReviewKD.py.
    """

    def __init__(self, *, pairs: Sequence[Sequence[str]], width: int = 512) -> None:
        super().__init__(name="reviewkd")
        self.pairs = [tuple(pair) for pair in pairs][::-1]
        self.width = width

    def build(self, student: Mapping[str, Any], teacher: Mapping[str, Any], labels: Any) -> None:
        ours = [_map_shape(student[name]) for name, _ in self.pairs]
        theirs = [_map_shape(teacher[name]) for _, name in self.pairs]
        width = min(self.width, ours[0][-1])
        self.narrow, self.mix, self.widen = [], [], []
        for number, (own, wanted) in enumerate(zip(ours, theirs, strict=True)):
            if number and own[0] < ours[number - 1][0]:
                raise ConfigError(
                    f"pairs must go from fine to coarse layers: {self.pairs[number][0]} is coarser "
                    f"than {self.pairs[number - 1][0]}"
                )
            self.narrow.append(_convolution(width, 1, own[-1]))
            self.widen.append(_convolution(wanted[-1], 3, width))
            if number:
                gates = keras.layers.Conv2D(2, 1, activation="sigmoid")
                gates.build((None, None, None, 2 * width))
                self.mix.append(gates)

    def call(self, labels: Any, student: Outputs, teacher: Outputs) -> dict[str, tf.Tensor]:
        total, fused = [], None
        for number, (ours, theirs) in enumerate(self.pairs):
            wanted = _as_map(teacher["features"][theirs])
            x = _apply(self.narrow[number], _as_map(student["features"][ours]))
            if fused is not None:
                above = _nearest(fused, x.shape[1:3])
                gates = self.mix[number - 1](tf.concat([x, above], axis=-1))
                x = x * gates[..., :1] + above * gates[..., 1:]
            fused = x
            found = _nearest(_apply(self.widen[number], x), wanted.shape[1:3])
            total.append(_pyramid(found, wanted))
        return {"review": tf.add_n(total)}


def _map_shape(shape: Sequence[int]) -> tuple[int, ...]:
    return (1, 1, shape[0]) if len(shape) == 1 else tuple(shape)


def _as_map(feature: tf.Tensor) -> tf.Tensor:
    return feature[:, None, None] if len(feature.shape) == 2 else feature


def _convolution(width: int, kernel: int, channels: int) -> list[keras.layers.Layer]:
    convolution = keras.layers.Conv2D(
        width, kernel, padding="same", use_bias=False, kernel_initializer="he_uniform"
    )
    norm = keras.layers.BatchNormalization(epsilon=1e-5, momentum=0.9)
    convolution.build((None, None, None, channels))
    norm.build((None, None, None, width))
    return [convolution, norm]


def _apply(layers: Sequence[keras.layers.Layer], inputs: tf.Tensor) -> tf.Tensor:
    convolution, norm = layers
    return norm(convolution(inputs), training=True)


def _nearest(feature: tf.Tensor, size: Sequence[int]) -> tf.Tensor:
    if tuple(feature.shape[1:3]) == tuple(size):
        return feature
    return tf.image.resize(feature, size, method="nearest")


def _pyramid(ours: tf.Tensor, theirs: tf.Tensor) -> tf.Tensor:
    """[B]: mean square distance, and those of 4x4, 2x2 and 1x1 averages at 1/2, 1/4 and 1/8."""
    height = ours.shape[1]
    gap = ours - theirs  # an average of a difference is the difference of the averages
    total, weight, share = tf.reduce_mean(tf.square(gap), axis=[1, 2, 3]), 1.0, 1.0
    for level in _LEVELS:
        if level >= height:
            continue
        share /= 2
        pooled = averaged(gap, level, level)
        total += share * tf.reduce_mean(tf.square(pooled), axis=[1, 2, 3])
        weight += share
    return total / weight
