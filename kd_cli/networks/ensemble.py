"""Several networks as one: the mean of their probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from kd_cli.networks.inputs import input_like

MEMBERS = "members"  # the layer with the logits of each, for losses at another temperature


@keras.saving.register_keras_serializable(package="kd")
class Members(layers.Layer):
    """Logits [B, K] of M networks as one tensor [B, M, K], in float32."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "dtype": "float32"})

    def call(self, inputs: Any) -> Any:
        return ops.stack([ops.cast(one, "float32") for one in inputs], axis=1)


@keras.saving.register_keras_serializable(package="kd")
class MeanProbabilities(layers.Layer):
    """Logits [B, M, K] -> log of the mean of the M networks' probabilities [B, K]."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "dtype": "float32"})

    def call(self, inputs: Any) -> Any:
        count = ops.cast(inputs.shape[1], "float32")
        return ops.logsumexp(ops.log_softmax(inputs, axis=-1), axis=1) - ops.log(count)


def together(models: Sequence[keras.Model]) -> keras.Model:
    """images -> logits of the mean of probabilities; its layer `members` has those of each model.

    Args:
        models: From the same images [B, H, W, C] or token ids [B, L] to the same K logits.
    """
    inputs = input_like(models[0])
    each = [
        # (A model's layers must have names of their own.)
        keras.Model(model.inputs[0], model.outputs[0], name=f"teacher_{number + 1}")(inputs)
        for number, model in enumerate(models)
    ]
    members = Members(name=MEMBERS)(each)
    return keras.Model(inputs, MeanProbabilities(name="mean")(members), name="teachers")
