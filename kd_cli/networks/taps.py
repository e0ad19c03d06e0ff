"""Taps: the layers inside a network whose outputs a loss compares, and how they are named.

A tap is typed as

    block2/conv_3       a layer's name; inside nested models their names stand before it. The
                        networks around it may be left out as long as one layer fits.
    layer4, layer-2     the fifth operation from the input, the second from the end
    stage1, stage-1     where a resolution ends: see `stages`
    map                 the last map of features: what global pooling or Flatten gets
    pooled              the input of the last layer with weights, before its dropout
    head                the output of that layer

One functional model with several outputs then gives logits and taps in one forward pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import keras
from keras import tree

from kd_cli.errors import ConfigError

_MERGES = {"Add", "Concatenate"}
_ACTIVATIONS = {
    "Activation", "Celu", "ELU", "Elu", "Gelu", "HardSilu", "LeakyReLU", "LeakyRelu", "PReLU",
    "ReLU", "Relu", "Relu6", "Selu", "Silu", "Softplus", "Tanh",
}  # fmt: skip
POOLINGS = {"GlobalAveragePooling2D", "GlobalMaxPooling2D"}
_MOST_NAMES = 30  # in an error


@dataclass(frozen=True, eq=False)
class Place:
    """An operation in the graph of a network, nested models unfolded.

    Attributes:
        path: Names of the models around it and its own, from outside to inside.
        operation: A layer, or an operation such as `keras.ops.add`.
        outputs: Its symbolic outputs [batch, ...].
        inputs: Numbers of the places whose outputs it takes.
    """

    path: str
    operation: Any
    outputs: Any
    inputs: frozenset[int]

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Of its first output, without the batch."""
        return tuple(tree.flatten(self.outputs)[0].shape[1:])


class Graph:
    """A functional model, unfolded: its operations from the input to the logits.

    Args:
        model: A functional or Sequential model with one input; models inside it are unfolded.
        what: How to name it in errors (`student`).

    Attributes:
        inputs: Symbolic images, from which all outputs are computed.
        places: Every operation comes after those that it takes outputs of.
        last: Number of the place that gives the logits.

    Raises:
        ConfigError: It has no graph, as a SavedModel.
    """

    def __init__(self, model: keras.Model, what: str) -> None:
        self.model = model
        self.what = what
        self.places: list[Place] = []
        self.inputs = keras.Input(model.input_shape[1:], name="pixels")
        made = {id(self.inputs): -1}

        def record(path: str, operation: Any, args: Any, kwargs: Any) -> Any:
            outputs = operation(*args, **kwargs)
            taken = {made.get(id(x)) for x in tree.flatten((args, kwargs))} - {None}
            for output in tree.flatten(outputs):
                made[id(output)] = len(self.places)
            self.places.append(Place(path, operation, outputs, frozenset(taken)))
            return outputs

        logits = _unfold(model, "", self.inputs, record)
        self.last = made[id(logits)]
        _require_graph(model, self.places, what)

    def with_taps(self, names: Sequence[str], logits: bool = True, still: int = -1) -> Tapped:
        """images -> [logits, tap, ...]: one model with the layers and weights of the first one.

        Args:
            names: Of the taps.
            logits: False leaves them out, and all that no tap needs.
            still: Number of the place up to which all is computed as in evaluation.
        """
        numbers = [self.places.index(self.find(name)) for name in names]
        return Tapped(self, [self.last, *numbers] if logits else numbers, still)

    def features(self) -> int:
        """Number of the place `pooled`, behind which there is the last layer alone.

        Raises:
            ConfigError: There is none: the logits come from several layers.
        """
        number = self.places.index(self._head("pooled"))
        if number not in self._passed_by_all():
            raise ConfigError(
                f"the {self.what} has no single last layer that could be trained first: its logits "
                "come from several layers; leave freeze_epochs out"
            )
        return number

    def find(self, name: str) -> Place:
        """The place that a tap's name means.

        Raises:
            ConfigError: There is none, or several; it lists the names that there are.
        """
        found = re.fullmatch(r"stage(-?\d+)", name)
        if found:
            stages = self.stages()
            number = int(found[1])
            if number and -len(stages) <= number <= len(stages):
                return stages[number - 1 if number > 0 else number]
        found = re.fullmatch(r"layer(-?\d+)", name)
        if found and -len(self.places) <= int(found[1]) < len(self.places):
            return self.places[int(found[1])]
        if name in ("pooled", "head"):
            return self._head(name)
        if name == "map":
            return self._map()
        exact = [p for p in self.places if p.path == name]
        fitting = exact or [p for p in self.places if p.path.endswith(f"/{name}")]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            words = ", ".join(p.path for p in fitting[:_MOST_NAMES])
            raise ConfigError(
                f"the {self.what} has {len(fitting)} layers that '{name}' may mean: {words}; type "
                "one of these"
            )
        raise ConfigError(
            f"the {self.what} has no layer '{name}'; it has {self._names(name)}; say which with "
            "loss.NAME.pairs=[[student's layer,teacher's layer]]"
        )

    def _names(self, wanted: str) -> str:
        """All names, or those most like the wanted one."""
        words = [f"stage{number + 1}" for number in range(len(self.stages()))]
        words += ["map", "pooled", "head"]
        own = [p.path.split("/", 1)[-1] for p in self.places]
        if len(own) > _MOST_NAMES:
            like = get_close_matches(wanted, own, 6, 0.3) or own[:6]
            own = [*like, f"... ({len(own)} layers; layer0 to layer{len(own) - 1} by number)"]
        return ", ".join([*words, *own])

    def _head(self, name: str) -> Place:
        weighted = [p for p in self.places if getattr(p.operation, "weights", None)]
        if not weighted:
            raise ConfigError(f"the {self.what} has no layer with weights, so it has no '{name}'")
        head = weighted[-1]
        if name == "head":
            return head
        before = max(head.inputs)
        while before >= 0 and _kind(self.places[before]) == "Dropout":
            before = max(self.places[before].inputs)
        if before < 0:
            raise ConfigError(f"the {self.what} has one layer alone, so it has no 'pooled'")
        return self.places[before]

    def _map(self) -> Place:
        """What the last global pooling over the pixels gets; without one, what Flatten gets."""
        passed = list(self._passed_by_all())
        for kinds in (POOLINGS, {"Flatten"}):
            found = [n for n in passed if _kind(self.places[n]) in kinds]
            before = max(self.places[found[-1]].inputs) if found else -1
            shape = self.places[before].shape if before >= 0 else ()
            weighted = any(getattr(p.operation, "weights", None) for p in self.places[: before + 1])
            if len(shape) == 3 and weighted:
                return self.places[before]
        raise ConfigError(
            f"the {self.what} has no 'map': it does not end in features [height, width, channels] "
            "and a global pooling, as resnet8 and resnet20 do"
        )

    def stages(self) -> list[Place]:
        """Where each resolution ends, from the finest to the coarsest.

        Of the places that every path from the input to the logits passes, those with the same
        height and width (or length) are a stage. Its tap is the last Add or Concatenate, with the
        activation that follows it at once; where there is none, the last activation.
        """
        groups: dict[tuple[int | None, ...], list[int]] = {}
        for number in self._passed_by_all():
            shape = self.places[number].shape
            if len(shape) in (2, 3) and shape[:-1] != (1,) * (len(shape) - 1):
                groups.setdefault(shape[:-1], []).append(number)
        ends = []
        for group in groups.values():
            merges = [n for n in group if _kind(self.places[n]) in _MERGES]
            active = [n for n in group if _is_activation(self.places[n])]
            if merges:
                last = merges[-1]
                follows = [n for n in active if self.places[n].inputs == {last}]
                ends.append(follows[0] if follows else last)
            elif active:
                ends.append(active[-1])
        return [self.places[number] for number in ends]

    def _passed_by_all(self) -> Iterator[int]:
        """Numbers of the places over which no connection jumps.

        In an order in which every place comes after its inputs, a connection from before a place
        to one behind it is a path around it, and without such a connection there is none.
        """
        furthest = [-1] * (len(self.places) + 1)  # by the place (or the input, at the end)
        for number, place in enumerate(self.places):
            for source in place.inputs:
                furthest[source] = max(furthest[source], number)
        reach = furthest[-1]
        for number in range(len(self.places)):
            if reach <= number:
                yield number
            reach = max(reach, furthest[number])


class Tapped(keras.Model):
    """A network that also gives the outputs of places inside it: images -> a list.

    It is no functional model, because layers of nested models may share their names.

    Args:
        graph: Of the network, whose layers it calls.
        numbers: Of the places.
        still: Number of the place up to which all is computed as in evaluation, in training too.
    """

    def __init__(self, graph: Graph, numbers: Sequence[int], still: int = -1) -> None:
        super().__init__(name=f"{graph.what}_with_taps")
        self.network = graph.model  # so that Keras clears the losses that its layers add
        self._places = graph.places
        self._numbers = list(numbers)
        self._still = still
        self._needed: set[int] = set()
        for number in range(len(graph.places) - 1, -1, -1):
            if number in self._numbers or number in self._needed:
                self._needed |= {number, *graph.places[number].inputs}

    def call(self, inputs: Any, training: bool | None = None) -> list[Any]:
        values: list[Any] = []

        def compute(path: str, operation: Any, args: Any, kwargs: Any) -> Any:
            number = len(values)
            if number not in self._needed:  # what follows of it is not needed either
                values.append(None)
                return self._places[number].outputs
            if training is not None and "training" in getattr(operation, "_call_context_args", ()):
                kwargs = {**kwargs, "training": training and number > self._still}
            outputs = operation(*args, **kwargs)
            values.append(tree.flatten(outputs)[0])
            return outputs

        _unfold(self.network, "", inputs, compute)
        return [values[number] for number in self._numbers]


def _unfold(model: keras.Model, prefix: str, inputs: Any, act: Callable[..., Any]) -> Any:
    """Goes through a model, and the models inside it, in a fixed order; returns its output.

    Args:
        model: With a graph.
        prefix: Names of the models around it.
        inputs: Symbolic or not.
        act: (path, operation, its arguments, its keywords) -> its outputs.
    """
    graph = getattr(model, "_functional", None) or model  # a Sequential model holds one

    def calling(operation: Any) -> Callable[..., Any]:
        path = f"{prefix}{operation.name}"

        def call(*args: Any, **kwargs: Any) -> Any:
            if isinstance(operation, keras.Model) and _has_graph(operation):
                return _unfold(operation, f"{path}/", args[0], act)
            return act(path, operation, args, kwargs)

        return call

    # (Keras has no public way to walk through a graph that keeps its layers.)
    return graph._run_through_graph(inputs, operation_fn=calling)


def _kind(place: Place) -> str:
    return type(place.operation).__name__


def _is_activation(place: Place) -> bool:
    function = getattr(place.operation, "activation", None)
    linear = function is None or getattr(function, "__name__", "") == "linear"
    return _kind(place) in _ACTIVATIONS or (not linear and len(place.shape) > 1)


def _has_graph(model: Any) -> bool:
    return hasattr(getattr(model, "_functional", None) or model, "_run_through_graph")


def _require_graph(model: keras.Model, places: list[Place], what: str) -> None:
    opaque = [p.operation.opaque for p in places if hasattr(p.operation, "opaque")]
    if not _has_graph(model) or opaque:
        raise ConfigError(
            f"the {what} is {opaque[0] if opaque else 'no functional model'}, which shows no "
            "layers; a loss that names layers needs a functional model: give its .keras file, or "
            "choose a loss of logits"
        )
