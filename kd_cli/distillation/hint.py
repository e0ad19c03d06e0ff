"""Hints: the student's features, projected to the teacher's width, shall be the teacher's.

One layer covers FitNets (conv, mse), the projector ensemble (ensemble, cosine), VkD (orthogonal,
smooth_l1, layer), and the plain feature losses of other programs (linear or none).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from kd_cli.distillation.feature_losses import huber
from kd_cli.distillation.interface import Outputs, requires
from kd_cli.errors import ConfigError

DISTANCES = ("mse", "cosine", "smooth_l1")
PROJECTORS = ("none", "linear", "conv", "orthogonal", "ensemble")
NORMALISE = ("none", "layer")
_EPSILON = 1e-5  # of BatchNormalization and layer normalisation, as in PyTorch


@requires(head=False, words="distance of the projected features to the teacher's")
class Hint(keras.layers.Layer):
    """Mean distance of projector(f_s) to f_t, summed over the pairs.

    Args:
        pairs: [student's layer, teacher's layer]; both maps [H, W, C], or both vectors [C].
        projector: none; linear (a matrix, at every pixel); conv (a convolution to the teacher's
            resolution, then BatchNormalization and ReLU); orthogonal (a matrix with orthonormal
            rows or columns); ensemble (mean of three matrices with ReLU).
        distance: mse over all numbers, 1 - cosine over the channels, or smooth_l1 (Huber at 1).
        normalise: layer normalises each of the teacher's vectors to mean 0 and variance 1.

    Sources: Romero et al. 2015, "FitNets" (conv and mse agree with RepDistiller's ConvReg); Chen et
    al. 2022, "Improved feature distillation via projector ensemble"; Miles, Elezi, Deng 2024,
    "VkD: improving knowledge distillation using orthogonal projections".

    Raises:
        ConfigError: An option that there is not, or shapes that don't fit.
    """

    def __init__(
        self,
        *,
        pairs: Sequence[Sequence[str]],
        projector: str = "conv",
        distance: str = "mse",
        normalise: str = "none",
    ) -> None:
        super().__init__(name="hint")
        for key, value, known in (
            ("projector", projector, PROJECTORS),
            ("distance", distance, DISTANCES),
            ("normalise", normalise, NORMALISE),
        ):
            if value not in known:
                raise ConfigError(f"{key}={value} must be {', '.join(known[:-1])} or {known[-1]}")
        self.pairs = [tuple(pair) for pair in pairs]
        self.projector = projector
        self.distance = distance
        self.normalise = normalise

    def build(self, student: Mapping[str, Any], teacher: Mapping[str, Any], labels: Any) -> None:
        self.projectors = [
            _projector(self.projector, tuple(student[ours]), tuple(teacher[theirs]),
                       f"pair [{ours},{theirs}]")
            for ours, theirs in self.pairs
        ]  # fmt: skip

    def call(self, labels: Any, student: Outputs, teacher: Outputs) -> dict[str, tf.Tensor]:
        total = []
        for (ours, theirs), projector in zip(self.pairs, self.projectors, strict=True):
            wanted = teacher["features"][theirs]
            if self.normalise == "layer":
                mean, variance = tf.nn.moments(wanted, axes=[-1], keepdims=True)
                wanted = (wanted - mean) * tf.math.rsqrt(variance + _EPSILON)
            found = projector(student["features"][ours], training=True)
            each = _DISTANCES[self.distance](found, wanted)
            total.append(tf.reduce_mean(each, axis=list(range(1, len(each.shape)))))
        return {"hint": tf.add_n(total)}


def _cosine(ours: tf.Tensor, theirs: tf.Tensor) -> tf.Tensor:
    units = (tf.math.l2_normalize(x, axis=-1, epsilon=1e-24) for x in (ours, theirs))
    return 1 - tf.reduce_sum(tf.multiply(*units), axis=-1, keepdims=True)


_DISTANCES: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "mse": tf.math.squared_difference,
    "cosine": _cosine,
    "smooth_l1": huber,
}


class Projector(keras.layers.Layer):
    """A chain of layers; each is called with `training`, where it knows the word."""

    def __init__(self, chain: Sequence[keras.layers.Layer], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.chain = list(chain)
        at: Any = (None, *shape)
        for layer in self.chain:
            layer.build(at)
            at = layer.compute_output_shape(at)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        for layer in self.chain:
            batch_norm = isinstance(layer, keras.layers.BatchNormalization)
            inputs = layer(inputs, training=training) if batch_norm else layer(inputs)
        return inputs


class Orthogonal(keras.layers.Layer):
    """x P, with P the first rows and columns of exp(A - A'): orthogonal whatever A is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def build(self, shape: Any) -> None:
        size = max(shape[-1], self.width)
        self.free = self.add_weight(shape=(size, size), initializer="glorot_uniform", name="free")
        self.rows = shape[-1]

    def compute_output_shape(self, shape: Any) -> Any:
        return (*shape[:-1], self.width)

    def call(self, inputs: Any) -> Any:
        free = tf.convert_to_tensor(self.free)
        rotation = tf.linalg.expm(free - tf.transpose(free))
        return tf.tensordot(inputs, rotation[: self.rows, : self.width], axes=1)


class Ensemble(keras.layers.Layer):
    """The mean of three projections with ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.each = [keras.layers.Dense(width, activation="relu") for _ in range(3)]

    def build(self, shape: Any) -> None:
        for one in self.each:
            one.build(shape)

    def compute_output_shape(self, shape: Any) -> Any:
        return self.each[0].compute_output_shape(shape)

    def call(self, inputs: Any) -> Any:
        return tf.add_n([one(inputs) for one in self.each]) / len(self.each)


def _projector(kind: str, ours: tuple[int, ...], theirs: tuple[int, ...], what: str) -> Projector:
    sizes = f"{what}: the student's layer is {_sides(ours)} and the teacher's {_sides(theirs)}"
    width = theirs[-1]
    if len(ours) != len(theirs):
        raise ConfigError(f"{sizes}; choose two maps, or two vectors such as pooled")
    if ours[:-1] != theirs[:-1] and kind != "conv":
        raise ConfigError(f"{sizes}; choose layers of the same height and width, or projector=conv")
    if kind == "none":
        if ours != theirs:
            raise ConfigError(f"{sizes}; type projector=linear, which maps one width to the other")
        return Projector([], ours)
    if kind == "conv":
        first = _convolution(ours, theirs, sizes) if len(ours) == 3 else keras.layers.Dense(width)
        norm = keras.layers.BatchNormalization(epsilon=_EPSILON, momentum=0.9)
        return Projector([first, norm, keras.layers.ReLU()], ours)
    made = {"linear": keras.layers.Dense, "orthogonal": Orthogonal, "ensemble": Ensemble}
    return Projector([made[kind](width)], ours)


def _convolution(ours: tuple[int, ...], theirs: tuple[int, ...], sizes: str) -> keras.layers.Layer:
    """To the teacher's channels, height and width, as RepDistiller's ConvReg chooses it."""
    width, twice = theirs[-1], [2 * side for side in ours[:-1]]
    if ours[:-1] == theirs[:-1]:
        return keras.layers.Conv2D(width, 1)
    if list(ours[:-1]) == [2 * side for side in theirs[:-1]]:
        return keras.layers.Conv2D(width, 3, strides=2, padding="same")
    if twice == list(theirs[:-1]):
        return keras.layers.Conv2DTranspose(width, 4, strides=2, padding="same")
    kernel = [1 + own - other for own, other in zip(ours[:-1], theirs[:-1], strict=True)]
    if min(kernel) < 1:
        raise ConfigError(
            f"{sizes}; choose a layer of the student that is at least as high and wide as the "
            "teacher's, or exactly half"
        )
    return keras.layers.Conv2D(width, kernel)


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
