"""First the last layer of a network alone is trained, then all of it with a smaller rate.

The new layer's first gradients are large and have no direction yet: they would spoil features that
other data have made. So the features stay as they are until it is trained. As in Keras's guide to
transfer learning, they are computed as in evaluation throughout: BatchNormalization keeps the
statistics of its own data, and dropout inside the features is off.

Source: https://keras.io/guides/transfer_learning/
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from kd_cli.errors import ConfigError
from kd_cli.networks.taps import Graph


class HeadFirst:
    """What is trained in the first steps of a training, and by which optimizer.

    The optimizer of all weights begins anew after these steps: its moments know nothing of them.

    Args:
        graph: Of the network.
        optimizer: For these steps alone; not the one of all weights.
        until: First step in which all weights are trained.
        rest: What to say of the steps from there on.

    Attributes:
        still: Number of the place in the graph up to which all is computed as in evaluation.

    Raises:
        ConfigError: The network does not end in one layer that can be trained.
    """

    def __init__(self, graph: Graph, optimizer: Any, until: int, rest: str) -> None:
        self.optimizer = optimizer
        self.until = until
        self.rest = rest
        self.still = graph.features()
        behind = [place.operation for place in graph.places[self.still + 1 :]]
        self.variables = [v for one in behind for v in getattr(one, "trainable_variables", ())]
        if not self.variables:
            raise ConfigError(
                f"freeze_epochs: the last layer of the {graph.what} is frozen, so nothing would be "
                "trained; leave freeze_epochs out"
            )
        self._all = sum(v.shape.num_elements() for v in graph.model.trainable_variables)

    def words(self) -> str:
        """What is trained when."""
        trained = sum(v.shape.num_elements() for v in self.variables)
        return (
            f"the last layer alone at first ({trained:,} of {self._all:,} weights), the features "
            f"as in evaluation; {self.rest}"
        )

    def build(self, more: Sequence[Any]) -> list[Any]:
        """Makes the optimizer's variables, for weights of losses as well, and returns them."""
        self.variables = [*self.variables, *more]
        self.optimizer.build(self.variables)
        return self.optimizer.variables

    def scale_loss(self, loss: tf.Tensor, step: tf.Tensor, whole: Any) -> tf.Tensor:
        """The loss as the optimizer of a step wants it; `whole` is that of all weights."""
        mine, later = self.optimizer.scale_loss(loss), whole.scale_loss(loss)
        return tf.where(step < self.until, mine, later)

    def choose(self, step: tf.Tensor, head: Callable[[], Any], whole: Callable[[], Any]) -> None:
        """Does what a step is for."""

        def done(act: Callable[[], Any]) -> Callable[[], tf.Tensor]:
            def do() -> tf.Tensor:
                act()
                return tf.zeros([])

            return do

        tf.cond(step < self.until, done(head), done(whole))
