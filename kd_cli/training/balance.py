"""How large the gradient of each loss term is at a training step, and where it points."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from kd_cli.training.learner import Learner


@dataclass(frozen=True)
class Balance:
    """How the terms of a loss act on a batch.

    Attributes:
        terms: Their names; a network's own losses come last, as `regularisation`.
        values: [n] means over the batch, weights included, in nats.
        norms: [n] L2 norms of each term's own gradient by all trainable weights.
        cosines: [n, n] between these gradients; NaN where one of them is 0.
        examples: In the batch.
    """

    terms: list[str]
    values: np.ndarray
    norms: np.ndarray
    cosines: np.ndarray
    examples: int

    @property
    def shares(self) -> np.ndarray:
        """[n] of the sum of the norms; NaN where all are 0 or one is not finite."""
        total = self.norms.sum()
        return self.norms / total if total > 0 else np.full(len(self.norms), np.nan)

    def to_record(self) -> dict[str, Any] | None:
        """For `metrics.json`.

        Returns:
            examples; shares: by the term's name; cosine: between the gradients of the two terms
            of a loss, None where there are others or one is 0. None where the loss has one term,
            or a gradient is not finite.
        """
        from kd_cli.training.learner import REGULARISATION

        of_loss = [name for name in self.terms if name != REGULARISATION]
        if len(of_loss) < 2 or not np.isfinite(self.shares).all():
            return None
        cosine = float(self.cosines[0, 1])
        return {
            "examples": self.examples,
            "shares": dict(zip(self.terms, self.shares.tolist(), strict=True)),
            "cosine": cosine if len(of_loss) == 2 and math.isfinite(cosine) else None,
        }


def balance(
    learner: Learner, images: Any, labels: Any, teacher: Mapping[str, Any] | None, index: Any
) -> Balance:
    """Value and gradient of each term of a loss, of a training step that is not taken.

    It leaves the learner as it was. It traces nothing, because it is needed once.

    Args:
        learner: With the weights at which the gradients are computed.
        images, labels, teacher, index: The step's batch, as `Engine.first_batch` gives it.
    """
    import tensorflow as tf

    optimizer, variables = learner.optimizer, learner.trainable_variables
    # A forward pass in training moves the seeds of dropout, the statistics of normalisation, and
    # what losses remember.
    moving = [*learner.model.non_trainable_variables, *learner.objective.non_trainable_variables]
    moved = [(variable, variable.numpy()) for variable in moving]
    with tf.GradientTape(persistent=True) as tape:
        _, means = learner.forward(images, labels, teacher, index)
        # As in training: without it a float16 network's small gradients vanish.
        scaled = [optimizer.scale_loss(mean) for mean in means]
    each = [tape.gradient(one, variables) for one in scaled]
    del tape  # it holds all activations
    for variable, value in moved:
        variable.assign(value)
    gram = np.zeros([len(each), len(each)])
    for variable, *parts in zip(variables, *each, strict=True):
        flat = [
            # None where the term does not reach the variable.
            tf.zeros([math.prod(variable.shape)]) if part is None else tf.reshape(part, [-1])
            for part in parts
        ]
        rows = tf.cast(tf.stack(flat), tf.float64)
        gram += tf.matmul(rows, rows, transpose_b=True).numpy()
    gram /= float(optimizer.scale_loss(tf.constant(1.0))) ** 2
    norms = np.sqrt(np.diag(gram))
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = gram / np.outer(norms, norms)
    values = np.array([float(mean) for mean in means])
    return Balance(list(learner.terms), values, norms, cosines, int(images.shape[0]))
