"""What a student minimises: the sum of its losses, each with a weight, and what they need.

    loss = sum of weight * term over the entries below `loss` in the configuration

The weights are tensors, so another weight builds no new training step. A weight may be a ramp,
`{start, stop, epochs}`: it goes from `start` to `stop` in a straight line over the first `epochs`.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kd_cli.config.keys import VARIABLES
from kd_cli.distillation.interface import Needs, needs_of
from kd_cli.distillation.losses import formula
from kd_cli.distillation.several import combined, confidence
from kd_cli.distillation.teacher_features import OF_MEMBERS, Wanted, function_of
from kd_cli.errors import ConfigError
from kd_cli.networks.ensemble import MEMBERS

Shape = tuple[int | None, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Ramp:
    """A weight that goes from `start` to `stop` within `steps`; a fixed one does not move."""

    start: float
    stop: float
    steps: int = 1


class Part:
    """One loss of an objective.

    Args:
        name: Of its entry below `loss`.
        target: The dotted name of its function or class.
        loss: A function, or a layer with weights of its own.
        keywords: Of a function. Those of the table's graph variables become variables.
        weight: Of all its terms.
        student_taps: Names of the student's layers whose outputs it gets.
        wanted: What it gets of the teacher's layers.
    """

    def __init__(
        self,
        name: str,
        target: str,
        loss: Callable[..., Any],
        keywords: Mapping[str, Any],
        weight: Ramp = Ramp(1.0, 1.0),  # noqa: B008 - it is frozen
        student_taps: Sequence[str] = (),
        wanted: Wanted | None = None,
    ) -> None:
        self.name = name
        self.target = target
        self.loss = loss
        self.plain = dict(keywords)
        self.weight = weight
        self.student_taps = tuple(student_taps)
        self.wanted = wanted
        self.layer = loss if isinstance(loss, keras.layers.Layer) else None
        # Only those whose losses are known to take tensors: a user's loss may want a plain number.
        self.keywords = {
            key: tf.Variable(value, dtype=tf.bool if isinstance(value, bool) else tf.float32)
            if key in VARIABLES
            else value
            for key, value in keywords.items()
        }
        self._ramp = [
            tf.Variable(value, dtype=tf.float32, trainable=False)
            for value in (weight.start, weight.stop, weight.steps)
        ]

    @property
    def needs(self) -> Needs:
        return needs_of(self.loss)

    def begin_again(self, other: Part) -> None:
        """Takes over the keywords and the weight of a part like it."""
        self.plain, self.weight = other.plain, other.weight
        for key in self.keywords.keys() & set(VARIABLES):
            self.keywords[key].assign(other.plain[key])
        for mine, theirs in zip(self._ramp, other._ramp, strict=True):
            mine.assign(theirs)

    def factor(self, step: tf.Tensor | None) -> tf.Tensor:
        """The weight at a step (from 0); at the end of its ramp without one."""
        start, stop, steps = self._ramp
        if step is None:
            return tf.convert_to_tensor(stop)
        done = tf.minimum(tf.cast(step, tf.float32) / steps, 1.0)
        return start + (stop - start) * done

    def evaluate(
        self, labels: Any, student: Mapping[str, Any], teacher: Mapping[str, Any] | None
    ) -> dict[str, tf.Tensor]:
        """Its terms [B], unweighted; `student` has the features of all parts."""
        if self.student_taps:
            found = {tap: student["features"][tap] for tap in self.student_taps}
            student = {**student, "features": found}
        if self.wanted is not None and teacher is not None:
            teacher = {"logits": teacher["logits"], "features": teacher[self.wanted.key]}
        with _named(self.name):
            if self.layer is not None:
                value = self.layer.call(labels, student, teacher)
            else:
                value = self.loss(labels, student, teacher, **self.keywords)
        return dict(value) if isinstance(value, Mapping) else {"loss": value}

    def words(self) -> str:
        """Its formula for people, with the weight."""
        text = formula(self.target, self.plain, self.needs.words)
        ramp = self.weight
        if ramp.start == ramp.stop == 1:
            return text
        number = f"{ramp.stop:g}"
        if ramp.start != ramp.stop:
            number = f"({ramp.start:g} to {ramp.stop:g} in {ramp.steps:,} steps)"
        return f"{number} * {text}" if " + " not in text else f"{number} * ({text})"


class Objective:
    """The parts of a loss, and the names of their terms.

    With one part a term has the name that its loss gives it; with several it is `at`, or
    `rkd.distance` where a loss has more than one.

    Of several teachers each part gets one, made at the part's temperature; `combine` says how, as
    the key `teacher.combine`.
    """

    def __init__(self, parts: Sequence[Part], combine: str = "mean") -> None:
        self.parts = list(parts)
        self.combine = combine
        self.teacher_shapes: dict[str, Shapes] = {}
        self.student_shapes: Shapes = {}

    @classmethod
    def of(cls, loss: Callable[..., Any], **keywords: Any) -> Objective:
        """One loss with weight 1."""
        return cls([Part("loss", f"{loss.__module__}.{loss.__qualname__}", loss, keywords)])

    @property
    def student_taps(self) -> list[str]:
        """Names of the student's taps, each once."""
        return list(dict.fromkeys(tap for part in self.parts for tap in part.student_taps))

    @property
    def layers(self) -> list[keras.layers.Layer]:
        return [part.layer for part in self.parts if part.layer is not None]

    @property
    def variables(self) -> list[Any]:
        return [variable for layer in self.layers for variable in layer.variables]

    @property
    def trainable_variables(self) -> list[Any]:
        return [variable for layer in self.layers for variable in layer.trainable_variables]

    @property
    def non_trainable_variables(self) -> list[Any]:
        return [variable for layer in self.layers for variable in layer.non_trainable_variables]

    def count_params(self) -> int:
        """Weights of the losses, which model.keras does not have."""
        return sum(layer.count_params() for layer in self.layers)

    @property
    def hyper(self) -> dict[str, Any]:
        """The keywords of all functions."""
        return {key: value for part in self.parts for key, value in part.plain.items()}

    def build(
        self, student: Shapes, teacher: Mapping[str, Shapes], classes: int, labels: np.ndarray
    ) -> None:
        """Makes the weights of those losses that have some.

        Args:
            student: Shapes of its taps, without the batch.
            teacher: Shapes of its taps, by `Wanted.key`.
            classes: K of both networks' logits.
            labels: [n] class numbers of all training images, -1 where not known.
        """
        self.student_shapes, self.teacher_shapes = student, dict(teacher)
        for part in self.parts:
            if part.layer is not None:
                own = {tap: student[tap] for tap in part.student_taps}
                theirs = teacher[part.wanted.key] if part.wanted else {}
                shapes = {**own, "logits": (classes,)}, {**theirs, "logits": (classes,)}
                with _named(part.name):
                    part.layer.build(*shapes, labels)

    def deploy(self, network: keras.Model, teacher: keras.Model) -> keras.Model:
        """The network that is trained in the student's place; as a rule the student itself.

        Raises:
            ConfigError: A loss can't build it of these two, or two losses would.
        """
        parts = [part for part in self.parts if hasattr(part.layer, "deploy")]
        if len(parts) > 1:
            names = " and ".join(part.name for part in parts)
            raise ConfigError(f"loss: {names} each change what the student is made of; choose one")
        for part in parts:
            with _named(part.name):
                network = part.layer.deploy(network, teacher)
        return network

    @property
    def deploys(self) -> bool:
        """Whether a loss builds another network than the student."""
        return any(hasattr(layer, "deploy") for layer in self.layers)

    @property
    def deployed(self) -> Mapping[str, int] | None:
        """Parameters of the parts of what `deploy` has built; None for the student itself."""
        return next((d for one in self.layers if (d := getattr(one, "deployed", None))), None)

    def begin_again(self, other: Objective) -> None:
        """Takes over the values of an objective with the same parts."""
        for mine, theirs in zip(self.parts, other.parts, strict=True):
            mine.begin_again(theirs)

    def __call__(
        self,
        labels: Any,
        student: Mapping[str, Any],
        teacher: Mapping[str, Any] | None,
        step: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """The weighted terms [B] by name; their sum is the loss."""
        terms: dict[str, tf.Tensor] = {}
        members = (
            teacher[OF_MEMBERS.key][MEMBERS] if teacher and OF_MEMBERS.key in teacher else None
        )
        weights = None
        if members is not None and self.combine == "confidence" and labels is not None:
            weights = confidence(members, labels)
        for part in self.parts:
            if members is not None:
                logits = combined(members, part.keywords.get("temperature", 1.0), weights)
                teacher = {**teacher, "logits": logits}
            found = part.evaluate(labels, student, teacher)
            factor = part.factor(step)
            for name, value in found.items():
                if len(self.parts) > 1:
                    name = part.name if len(found) == 1 else f"{part.name}.{name}"
                terms[name] = factor * value
        return terms

    def terms(self, classes: int, labelled: bool) -> list[str]:
        """The names of the terms, found on images that are nothing.

        It traces the losses, as in training, so that a loss that only works eagerly or gets shapes
        that don't fit fails here. (It does not run them: one may remember what it has seen.)
        """
        traced = tf.function(lambda *batch: self(*batch), autograph=False)
        labels = tf.zeros([2], tf.int64) if labelled else None
        return list(traced.get_concrete_function(labels, *self._blank(classes)).structured_outputs)

    def _blank(self, classes: int) -> tuple[dict[str, Any], dict[str, Any]]:

        def zeros(shapes: Shapes) -> dict[str, tf.Tensor]:
            return {tap: tf.zeros([2, *(side or 1 for side in s)]) for tap, s in shapes.items()}

        logits = tf.zeros([2, classes])
        student = {
            "logits": logits,
            "features": zeros(self.student_shapes),
            "index": tf.zeros([2], tf.int64),
        }
        features = {key: zeros(shapes) for key, shapes in self.teacher_shapes.items()}
        return student, {"logits": logits, **features}

    def words(self) -> str:
        """The formula in one line, for people."""
        return " + ".join(part.words() for part in self.parts)


def of_plan(
    loss: Mapping[str, Mapping[str, Any]],
    steps_per_epoch: int = 1,
    class_weights: Sequence[float] | None = None,
    combine: str = "mean",
) -> Objective:
    """The objective that a checked configuration's `loss` describes.

    Args:
        loss: Its entries by name.
        steps_per_epoch: For ramps.
        class_weights: [K] for the losses that take them.
        combine: Of several teachers.
    """
    parts = []
    for name, node in loss.items():
        made = function_of(name, node)
        keywords = dict(made.keywords)
        target = made.func
        if isinstance(target, type):
            with _named(name):
                target, keywords = made(), {}
        elif class_weights is not None and takes_class_weights(target):
            keywords["class_weights"] = class_weights
        pairs = node.get("pairs") or []
        taps = [*(pair[0] for pair in pairs), *(node.get("student_taps") or [])]
        parts.append(
            Part(
                name,
                node["_target_"],
                target,
                keywords,
                _ramp(node.get("weight", 1.0), steps_per_epoch),
                list(dict.fromkeys(taps)),
                Wanted.of(node, needs_of(target)),
            )
        )
    return Objective(parts, combine)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Says which loss a mistake is about."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"loss.{name}: {error}") from error


def _ramp(weight: Any, steps_per_epoch: int) -> Ramp:
    if isinstance(weight, Mapping):
        steps = max(1, round(weight["epochs"] * steps_per_epoch))
        return Ramp(float(weight["start"]), float(weight["stop"]), steps)
    return Ramp(float(weight), float(weight))


def takes_class_weights(loss: Callable[..., Any]) -> bool:
    return "class_weights" in inspect.signature(loss).parameters
