"""A teacher that gives probabilities, brought to logits.

For probabilities p = softmax(x) the logits x are known up to a number that softmax takes away
again: softmax(log p) = p. Where the softmax is the last layer of a `.keras` file, or its
activation, it is taken off, which is exact; elsewhere log(p) is taken, with a floor. A network with
one output z decides between two classes: softmax([0, z]) = [1 - sigmoid(z), sigmoid(z)].
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from kd_cli.errors import ConfigError
from kd_cli.networks.wrap import (
    check_outputs,
    ending,
    last_activation,
    last_operation,
    no_logits,
    probe,
    sums_to_one,
)

# The smallest normal float32; its logarithm is -87.3.
FLOOR = float(np.finfo(np.float32).tiny)
# How far probabilities may be off when the activation is taken off and computed again.
_TOLERANCE = 1e-3


@keras.saving.register_keras_serializable(package="kd")
class LogProbabilities(layers.Layer):
    """log(p) of probabilities p [B, K], in float32; p below `FLOOR` counts as `FLOOR`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "dtype": "float32"})

    def call(self, inputs: Any) -> Any:
        return ops.log(ops.maximum(inputs, FLOOR))


@keras.saving.register_keras_serializable(package="kd")
class TwoLogits(layers.Layer):
    """[0, z] [B, 2] of a logit z [B, 1], in float32."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "dtype": "float32"})

    def call(self, inputs: Any) -> Any:
        return ops.concatenate([ops.zeros_like(inputs), inputs], axis=-1)


@keras.saving.register_keras_serializable(package="kd")
class NoSoftmax(layers.Layer):
    """In the place of a Softmax layer that is taken off; takes the arguments of one."""

    def call(self, inputs: Any, mask: Any = None) -> Any:
        return inputs


def as_logits(model: keras.Model, classes: int, what: str) -> tuple[keras.Model, str]:
    """A teacher that ends in one logit per class, made of one that may end otherwise.

    Args:
        model: Of a file.
        classes: Of the data.
        what: For errors.

    Returns:
        The network, and in words what was done; empty for nothing.

    Raises:
        ConfigError: As `wrap.check_outputs`; a sigmoid of several outputs; one output that may be
            a logit or a probability.
    """
    if classes == 2 and getattr(model, "output_shape", None) == (None, 1):
        return _of_one_output(model, what)
    check_outputs(model, classes, what)
    found = ending(model)
    if found == "sigmoid":
        raise no_logits(found, what)
    if not found:
        return model, ""
    given = probe(model)
    bare = _without_activation(model) if last_activation(model) == "softmax" else None
    if bare is not None and _same(ops.softmax(probe(bare)), given):
        return bare, "its softmax is taken off, so that it gives logits"
    if not sums_to_one(given):
        raise no_logits(found, what)
    return (
        _followed_by(model, LogProbabilities(name="log_probabilities")),
        f"it ends in a softmax: its log-probabilities are its logits (p counts as {FLOOR:.2g} at "
        "least)",
    )


def _of_one_output(model: keras.Model, what: str) -> tuple[keras.Model, str]:
    check_outputs(model, 1, what)
    done = "its one output z gives the logits [0, z] of the two classes"
    given, activation = probe(model), last_activation(model)
    certain = activation == "linear" and isinstance(last_operation(model), layers.Dense)
    if activation == "sigmoid":
        bare = _without_activation(model)
        if bare is not None and _same(ops.sigmoid(probe(bare)), given):
            return _with_zero(bare), f"its sigmoid is taken off, and {done}"
    if not certain and ((given >= 0) & (given <= 1)).all():
        raise ConfigError(
            f"{what} has one output, which is between 0 and 1 on all images tried: a probability, "
            "it seems, and kd needs its logit; save it without the sigmoid, or with two outputs"
        )
    return _with_zero(model), done


def _with_zero(model: keras.Model) -> keras.Model:
    return _followed_by(model, TwoLogits(name="two_logits"))


def _followed_by(model: keras.Model, layer: layers.Layer) -> keras.Model:
    return keras.Model(model.inputs[0], layer(model.outputs[0]), name=model.name)


def _without_activation(model: keras.Model) -> keras.Model | None:
    """A copy whose last layer has no activation; None where it can't be copied."""
    last = last_operation(model)

    def convert(layer: layers.Layer) -> layers.Layer:
        config = layer.get_config()
        if layer is last:
            if isinstance(layer, layers.Softmax):
                return NoSoftmax(name=layer.name, dtype=layer.dtype_policy.name)
            config["activation"] = "linear"
        return layer.__class__.from_config(config)

    try:
        copy = keras.models.clone_model(model, clone_function=convert, recursive=True)
        copy.set_weights(model.get_weights())
    except Exception:  # a layer that is not made of its get_config()
        return None
    return copy


def _same(made: Any, given: Any) -> bool:
    """Whether the activation, computed again, gives the outputs of before."""
    return np.allclose(np.asarray(made), np.asarray(given), atol=_TOLERANCE, equal_nan=True)
