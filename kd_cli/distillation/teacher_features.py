"""What losses get of a teacher's layers: which layers, what of them, and how it is stored.

A loss names taps of the teacher (`networks.taps`). What it reads of them, the whole output or its
`teacher_part`, is asked in the same forward pass as the logits. Stored, it is one row per image:
the parts of all taps, flattened, one behind the other.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
from omegaconf import DictConfig

from kd_cli.config.instantiate import build
from kd_cli.config.losses import teacher_taps
from kd_cli.config.plans import member_plans
from kd_cli.config.row import is_number
from kd_cli.distillation.interface import Needs, needs_of
from kd_cli.errors import ConfigError
from kd_cli.networks.ensemble import MEMBERS
from kd_cli.networks.inputs import spec_of
from kd_cli.networks.taps import Graph

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Wanted:
    """What a loss wants of a teacher's layers.

    Attributes:
        taps: Their names, each once.
        part: feature [B, ...] -> what the loss reads of it; None for the whole.
    """

    taps: tuple[str, ...]
    part: Callable[[Any], Any] | None

    @classmethod
    def of(cls, node: Mapping[str, Any], needs: Needs) -> Wanted | None:
        """Of an entry below `loss`; None for one that names no layer of the teacher."""
        taps = teacher_taps({"": node})
        return cls(tuple(dict.fromkeys(taps)), needs.teacher_part) if taps else None

    @property
    def key(self) -> str:
        """Equal for equal wishes; a part whose code has changed is another."""
        return f"{self.what} {self._code}".strip()

    @property
    def what(self) -> str:
        """For people: `attention_map of stage1, stage2`."""
        taps = ", ".join(self.taps)
        return f"{getattr(self.part, '__name__', 'part')} of {taps}" if self.part else taps

    @property
    def _code(self) -> str:
        if self.part is None:
            return ""
        try:
            text = inspect.getsource(self.part)
        except (OSError, TypeError):
            text = f"{self.part.__module__}.{self.part.__qualname__}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def function_of(name: str, node: Mapping[str, Any]) -> functools.partial[Any]:
    """The function or class of an entry below `loss`, with its keywords.

    Raises:
        ConfigError: A key that it doesn't take, a value of another kind than it is annotated, or
            a negative one for a loss of `kd`.
    """
    plain = {key: value for key, value in node.items() if key != "weight"}
    made = build({**plain, "_partial_": True}, f"loss.{name}")
    for key, parameter in inspect.signature(made.func).parameters.items():
        kind = getattr(parameter.annotation, "__name__", parameter.annotation)
        fits, expected = _KINDS.get(str(kind), (None, ""))
        value = made.keywords.get(key)
        if fits and key in made.keywords and not fits(value):
            raise ConfigError(f"loss.{name}.{key}={value} must be {expected}")
        # (Factors, temperatures, sizes: below 0 ours would teach the opposite.)
        if made.func.__module__.startswith("kd_cli.") and is_number(value) and value < 0:
            raise ConfigError(f"loss.{name}.{key}={value} must be at least 0")
    return made


# Values of a loss's keys, by how its function annotates them.
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "int": (lambda value: is_number(value) and isinstance(value, int), "a whole number"),
    "float": (is_number, "a number"),
}


# Of several teachers the losses want the logits of each, because they are averaged at the
# temperature of the loss.
OF_MEMBERS = Wanted((MEMBERS,), None)


def wanted_by(plans: Sequence[DictConfig]) -> list[Wanted]:
    """What the losses of several runs with one teacher want, each wish once."""
    found: dict[str, Wanted] = {}
    if len(member_plans(plans[0])) > 1:
        found[OF_MEMBERS.key] = OF_MEMBERS
    for plan in plans:
        for name, node in plan.loss.items():
            # (A node that names no layer imports nothing.)
            if not teacher_taps({name: node}):
                continue
            one = Wanted.of(node, needs_of(function_of(name, node).func))
            if one is not None:
                found[one.key] = one
    return list(found.values())


class Features:
    """A teacher asked for its logits and for what losses want of its layers, in one pass.

    Args:
        model: Of the teacher: raw pixels or token ids to logits.
        wanted: By the losses.

    Attributes:
        shapes: Of each wish's parts without the batch, by its key and the tap.

    Raises:
        ConfigError: The teacher has no such layer, or shows none.
    """

    def __init__(self, model: keras.Model, wanted: Sequence[Wanted]) -> None:
        self.model = model
        self.wanted = list(wanted)
        self.taps = list(dict.fromkeys(tap for one in wanted for tap in one.taps))
        self._network = Graph(model, "teacher").with_taps(self.taps) if wanted else model
        self.shapes: dict[str, dict[str, Shape]] = {}
        if wanted:
            images = spec_of(model, 2, 32)
            traced = tf.function(self.__call__, autograph=False).get_concrete_function(images)
            self.shapes = {
                one.key: {
                    tap: tuple(part.shape[1:])
                    for tap, part in traced.structured_outputs[one.key].items()
                }
                for one in wanted
            }

    def __call__(self, images: tf.Tensor) -> dict[str, Any]:
        """`logits` [B, K], and by each wish's key its parts by tap; all in float32."""
        if not self.wanted:
            return {"logits": tf.cast(self.model(images, training=False), tf.float32)}
        logits, *features = self._network(images, training=False)
        by_tap = {
            tap: tf.cast(feature, tf.float32)
            for tap, feature in zip(self.taps, features, strict=True)
        }
        found: dict[str, Any] = {"logits": tf.cast(logits, tf.float32)}
        for one in self.wanted:
            part = one.part or tf.identity
            found[one.key] = {tap: part(by_tap[tap]) for tap in one.taps}
        return found

    def width(self, one: Wanted) -> int:
        """How many numbers an image's row has."""
        return sum(math.prod(shape) for shape in self.shapes[one.key].values())

    def rows(self, one: Wanted) -> Callable[[tf.Tensor], tf.Tensor]:
        """A traced function images -> [B, width]: what is stored for a wish."""

        @tf.function(
            input_signature=[spec_of(self.model, None)],
            autograph=False,
        )
        def row(images: tf.Tensor) -> tf.Tensor:
            parts = self(images)[one.key].values()
            count = tf.shape(images)[0]
            return tf.concat([tf.reshape(part, [count, -1]) for part in parts], axis=1)

        return row


def unpacked(
    rows: Mapping[str, tf.Tensor], shapes: Mapping[str, Mapping[str, Shape]]
) -> dict[str, Any]:
    """Stored rows of a batch as a live teacher would give them: `logits`, and parts by tap."""
    found: dict[str, Any] = {"logits": rows["logits"]}
    for key, by_tap in shapes.items():
        sizes = [math.prod(shape) for shape in by_tap.values()]
        parts = tf.split(rows[key], sizes, axis=1)
        found[key] = {
            tap: tf.reshape(part, [-1, *shape])
            for (tap, shape), part in zip(by_tap.items(), parts, strict=True)
        }
    return found
