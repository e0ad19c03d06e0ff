"""SimKD: the student learns the teacher's last map, and ends in the teacher's own classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from kd_cli.distillation.feature_losses import averaged
from kd_cli.distillation.interface import Outputs, requires
from kd_cli.errors import ConfigError
from kd_cli.networks.reused_head import with_reused_head


@requires(words="MSE(projected last map, teacher's last map), classified by the teacher's head")
class SimKD(keras.layers.Layer):
    """Mean square distance of the projected student's last map to the teacher's.

    Args:
        pairs: [[map, map]]: what the global pooling gets in the deployed student, which is the
            projector's output, and in the teacher.
        factor: The projector's inner convolutions have so many times fewer channels than the
            teacher's map.

    Source: Chen et al. 2022, "Knowledge distillation with the reused teacher classifier", equation
    5; agrees with the authors' code. The mean is over all numbers of an image's map.

    Raises:
        ConfigError: Other pairs, a factor that is no whole number, or networks that don't fit.
    """

    def __init__(self, *, pairs: Sequence[Sequence[str]], factor: int = 2) -> None:
        super().__init__(name="simkd")
        if [list(pair) for pair in pairs] != [["map", "map"]]:
            raise ConfigError(
                "pairs must be [[map,map]]: the student ends where the teacher's head begins"
            )
        if not isinstance(factor, int) or isinstance(factor, bool) or factor < 1:
            raise ConfigError(f"factor={factor} must be a whole number, at least 1")
        self.factor = factor
        self.deployed: dict[str, int] | None = None

    def deploy(self, network: keras.Model, teacher: keras.Model) -> keras.Model:
        """The student's body, the projector, and the teacher's head."""
        made, self.deployed = with_reused_head(network, teacher, self.factor)
        return made

    def build(self, student: Mapping[str, Any], teacher: Mapping[str, Any], labels: Any) -> None:
        """It has no weights: those of the projector are the student's."""

    def call(self, labels: Any, student: Outputs, teacher: Outputs) -> dict[str, tf.Tensor]:
        ours, theirs = student["features"]["map"], teacher["features"]["map"]
        if theirs.shape[1:3] != ours.shape[1:3]:
            theirs = averaged(theirs, *ours.shape[1:3])
        return {"simkd": tf.reduce_mean(tf.math.squared_difference(ours, theirs), axis=[1, 2, 3])}
