"""What the inputs of a dataset are: images [H, W, C], or texts as token ids [L].

Batches, caches, steps, records and reports know arrays alone. What differs between images and
texts is asked of one of the two values here: the shape, what people call one and many of them, the
keys that describe them, and which other keys make no sense.

A description is a mapping that has the keys of one kind, whatever else it has: a `dataset` node,
`dataset` of a metrics.json, and what a network's file is loaded by.

    image_shape            images: [H, W, C], pixels 0..255
    length, vocabulary     texts: L token ids, each below the vocabulary; 0 is padding, 1 unknown
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf

from kd_cli.config.overrides import is_typed
from kd_cli.errors import ConfigError

PADDING, UNKNOWN = 0, 1


@dataclass(frozen=True)
class Images:
    """Images of one shape.

    Attributes:
        shape: (H, W, C).
    """

    shape: tuple[int, ...]
    one: ClassVar[str] = "image"
    many: ClassVar[str] = "images"
    values: ClassVar[str] = "pixels"
    range: ClassVar[str] = "0..255"

    def sized(self, size: int | None) -> Images:
        """These images with both sides of `size`, as an augmentation gives them; None: as are."""
        return self if size is None else Images((size, size, self.shape[-1]))

    def description(self) -> dict[str, Any]:
        """Plain data, for `inputs_of`."""
        return {"image_shape": list(self.shape)}

    def words(self) -> str:
        """What a network takes, for a record."""
        return f"pixels 0..255, [batch, {', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Tokens:
    """Texts as token ids, cut or padded to one length.

    Attributes:
        length: L.
        vocabulary: How many ids there are, padding and unknown included.
    """

    length: int
    vocabulary: int
    one: ClassVar[str] = "text"
    many: ClassVar[str] = "texts"
    values: ClassVar[str] = "token ids"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def range(self) -> str:
        return f"0..{self.vocabulary - 1}, 0 is padding"

    def sized(self, size: int | None) -> Tokens:
        return self

    def description(self) -> dict[str, Any]:
        return {"length": self.length, "vocabulary": self.vocabulary}

    def words(self) -> str:
        return f"token ids {self.range}, int32 [batch, {self.length}]"


Inputs = Images | Tokens
KEYS = {Images: ("image_shape",), Tokens: ("length", "vocabulary")}


def inputs_of(description: Mapping[str, Any]) -> Inputs:
    """The inputs that a mapping describes.

    Raises:
        ConfigError: It has the keys of neither kind, or of both.
    """
    shape, length = description.get("image_shape"), description.get("length")
    if shape is not None and length is not None:
        raise ConfigError(
            f"dataset.image_shape={list(shape)} and dataset.length={length} exclude each other: "
            "images have the former, texts the latter; leave one of the two out"
        )
    if shape is not None:
        return Images(tuple(shape))
    if length is None:
        raise ConfigError(
            "dataset.image_shape is missing: type dataset.image_shape=[H,W,C] (or for texts "
            "dataset.length=... and dataset.vocabulary=...)"
        )
    if description.get("vocabulary") is None:
        raise ConfigError("dataset.vocabulary is missing: type dataset.vocabulary=...")
    return Tokens(length, description["vocabulary"])


def many_of(descriptions: Sequence[Mapping[str, Any]]) -> str:
    """`images` or `texts`, for a table of several datasets; `examples` where they differ."""
    kinds = {Images if one.get("length") is None else Tokens for one in descriptions}
    return kinds.pop().many if len(kinds) == 1 else "examples"


def settle(plan: DictConfig, typed: Sequence[str]) -> None:
    """Takes out of a plan the keys that make no sense for its dataset's inputs.

    Args:
        plan: With the table's types and defaults; it is changed.
        typed: The user's overrides.

    Raises:
        ConfigError: Such a key has a value, or was typed.
    """
    dataset = plan.dataset
    given = {key: dataset.get(key) for keys in KEYS.values() for key in keys}
    inputs = inputs_of(given)
    for kind, keys in KEYS.items():
        for key in () if isinstance(inputs, kind) else keys:
            if dataset.pop(key, None) is not None:
                raise ConfigError(
                    f"dataset.{key}={given[key]}: the inputs of {dataset.name} are {inputs.many}; "
                    "leave it out"
                )
    if isinstance(inputs, Images):
        return

    def refuse(key: str, why: str) -> None:
        for override in typed:
            if is_typed(key, [override]):
                raise ConfigError(f"{override}: the inputs of {dataset.name} are texts, {why}")

    for place in ("teacher.input", "student.input", "input"):
        refuse(place, "and token ids are not scaled; leave it out")
        *parents, last = place.split(".")
        node = OmegaConf.select(plan, parents[0]) if parents else plan
        if node is not None and last in node:
            node[last] = None
    for place in ("augment", "teacher.training.augment"):
        node = OmegaConf.select(plan, place)
        if node and (node.train or node.evaluate or node.size is not None or node.preview):
            raise ConfigError(
                f"{place}: its steps change images, and the inputs of {dataset.name} are texts; "
                "type augment=none"
            )
    for key in ("view", "augment_seed", "teacher.training.augment_seed"):
        refuse(key, "which are not augmented; leave it out")
