"""AdamW with a weight decay that follows the learning rate, or not; SGD as in PyTorch.

And which options of Keras do nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from kd_cli.errors import ConfigError


class AdamW(keras.optimizers.AdamW):
    """AdamW whose weight decay may ignore the learning rate (`decoupled=True`).

    A step decays each weight w before Adam's own update. `decoupled=False` is Keras's form:
    w -= rate * weight_decay * w. `decoupled=True` is that of TensorFlow Addons:
    w -= weight_decay * w, whatever the rate; at rate 0 weights still shrink.

    Loshchilov and Hutter multiply the decay by a schedule's eta_t, which the second form takes as 1
    throughout. Both decay every weight, biases and normalisation included.

    Args:
        learning_rate: Set at every step from the schedule.
        weight_decay: As above; a value for one form is some 1 / rate times that for the other. None
            is off.
        decoupled: Whether the decay leaves the learning rate out.
        **options: Keras's own, such as `clipnorm`, of each variable's gradient.

    Raises:
        ConfigError: A decay below 0, or of 1 and more a step.

    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2;
    `tfa.optimizers.AdamW`.
    """

    def __init__(
        self,
        learning_rate: float = 0.001,
        weight_decay: float | None = 0.004,
        decoupled: bool = False,
        **options: Any,
    ) -> None:
        weight_decay = 0.0 if weight_decay is None else weight_decay
        if not 0 <= weight_decay or (decoupled and weight_decay >= 1):
            bounds = "at least 0 and below 1 (a share of a weight per step)"
            raise ConfigError(
                f"optimizer.weight_decay={weight_decay} must be "
                f"{bounds if decoupled else 'at least 0'}"
            )
        super().__init__(learning_rate=learning_rate, weight_decay=weight_decay, **options)
        self.decoupled = decoupled

    def _apply_weight_decay(self, variables: list[Any]) -> None:
        if not self.decoupled:
            super()._apply_weight_decay(variables)
            return
        for variable in variables:
            if self._use_weight_decay(variable):
                variable.assign_sub(variable * self.weight_decay)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "decoupled": self.decoupled}


class TorchSGD(keras.optimizers.SGD):
    """SGD as in PyTorch: what Keras's SGD does otherwise are two things.

    The decay is a part of the gradient, g + weight_decay * w, so that the momentum sums it up, too:
    at momentum 0.9 it acts like ten times this value in Keras's SGD. And the momentum sums up
    gradients, not steps: after a change of the learning rate all of it counts at the new rate.

    Args:
        learning_rate: Set at every step from the schedule.
        momentum: Share of the momentum that remains.
        nesterov: Whether to step ahead along the momentum.
        weight_decay: As above, on every weight, biases and normalisation included; None is off.
        **options: Keras's own, such as `clipnorm`, which counts before the decay.

    Source: `torch.optim.SGD`, with dampening 0.
    """

    def _apply_weight_decay(self, variables: list[Any]) -> None:
        """Nothing: `update_step` has it."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        gradient, rate = (ops.cast(x, variable.dtype) for x in (gradient, learning_rate))
        if self.weight_decay and self._use_weight_decay(variable):
            gradient = gradient + self.weight_decay * variable
        if self.momentum:
            momentum = self.momentums[self._get_variable_index(variable)]
            self.assign(momentum, self.momentum * momentum + gradient)
            gradient = gradient + self.momentum * momentum if self.nesterov else momentum
        self.assign_sub(variable, rate * gradient)


def refuse_idle(optimizer: Any, node: Mapping[str, Any]) -> None:
    """Refuses options of Keras that would train the same weights, or none, or count other steps.

    Args:
        optimizer: A Keras optimizer.
        node: Its checked node in the configuration.

    Raises:
        ConfigError: It names the option, and what to type.
    """
    averages = "type ema=0.999 for an average of the weights that is validated and kept"
    doubts = {
        "loss_scale_factor": "kd scales the loss itself, where precision=mixed_float16 needs it",
        "name": "names are in no result",
    }
    if not optimizer.use_ema:
        doubts |= dict.fromkeys(("ema_momentum", "ema_overwrite_frequency"), averages)
    elif not optimizer.ema_overwrite_frequency:
        doubts["use_ema"] = f"the trained weights count, not their average; {averages}"
    if isinstance(optimizer, keras.optimizers.SGD) and not optimizer.momentum:
        doubts["nesterov"] = "there is no momentum; type optimizer.momentum=0.9 with it"
    together = node.get("gradient_accumulation_steps")
    if together:
        raise ConfigError(
            f"optimizer.gradient_accumulation_steps={together}: Keras would count each batch as a "
            f"step, for the schedule too; type accumulate={together}"
        )
    for key, why in doubts.items():
        if node.get(key):
            raise ConfigError(
                f"optimizer.{key}={node[key]} changes nothing: {why}; or leave it out"
            )
    for key in ("clipnorm", "clipvalue", "global_clipnorm"):
        value = node.get(key)
        if value is not None and not value > 0:
            raise ConfigError(f"optimizer.{key}={value} must be above 0, or null")
    if (node.get("weight_decay") or 0) < 0:
        raise ConfigError(f"optimizer.weight_decay={node['weight_decay']} must be at least 0")
