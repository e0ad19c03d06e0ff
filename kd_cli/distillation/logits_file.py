"""A file of logits as a teacher, for networks that are elsewhere: behind an API, another program.

An `.npz` file has, in the data's order of rows,

    train           [N, K]   of all training images, those of the validation split that kd holds out
                             among them
    validation      [V, K]   where the data have a validation split of their own
    test            [M, K]
    fingerprint     of the data; `kd logits` writes it. Without it only the sizes can be compared
    class_names     [K]

or `train_probabilities` and so on in the place of logits. An `.npy` file is one array: the rows of
training, validation and test, one behind the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kd_cli.data.dataset import Dataset, Split
from kd_cli.errors import ConfigError, first_line
from kd_cli.networks.inputs import symbolic
from kd_cli.networks.logits import FLOOR

KEY = "teacher.logits"
_PROBABILITIES = "_probabilities"
_OTHERS = ("fingerprint", "class_names")


@dataclass(frozen=True, eq=False)
class Table:
    """Logits by part: of all rows of the data, [n, K] float32."""

    parts: dict[str, np.ndarray]

    def rows(self, dataset: Dataset, part: str) -> np.ndarray:
        """Those of a split, in its order."""
        split: Split = getattr(dataset, part)
        return self.parts[_source(dataset, part)][split.rows]


class NoNetwork(keras.layers.Layer):
    """In the place of a network that is not here: its outputs are not numbers."""

    opaque = "a file of logits"

    def __init__(self, sha256: str, classes: int) -> None:
        super().__init__(trainable=False, name="logits_file", dtype="float32")
        self._sha256 = sha256
        self._classes = classes
        self.built = True

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return (input_shape[0], self._classes)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self._sha256}

    def call(self, inputs: Any) -> Any:
        return keras.ops.full([keras.ops.shape(inputs)[0], self._classes], np.nan)


def no_network(sha256: str, shape: tuple[int, ...], classes: int) -> keras.Model:
    """A model from images (H, W, C) or texts (L,) that shows no layers and can't be asked."""
    inputs = symbolic(shape)
    return keras.Model(inputs, NoNetwork(sha256, classes)(inputs), name="logits_file")


def read(path: Path, dataset: Dataset) -> Table:
    """The file's logits, compared with the data.

    Raises:
        ConfigError: It can't be read, has no rows or others than the data, a number that is not
            finite, probabilities that are not named so, or is of other data.
    """
    arrays = _arrays(path, dataset)
    _refuse_other_data(path, arrays, dataset)
    known = {name for part in _sizes(dataset) for name in (part, part + _PROBABILITIES)}
    strange = sorted(set(arrays) - known - set(_OTHERS))
    if strange:
        raise ConfigError(
            f"{KEY}={path} holds the array {strange[0]}; expected {', '.join(_sizes(dataset))} (or "
            f"train{_PROBABILITIES} and so on), fingerprint and class_names"
        )
    return Table(
        {part: _part(path, arrays, part, n, dataset) for part, n in _sizes(dataset).items()}
    )


def _arrays(path: Path, dataset: Dataset) -> dict[str, np.ndarray]:
    try:
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.ndarray):
            with found:
                return {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise ConfigError(f"{KEY}={path} can't be read: {first_line(error)}") from error
    sizes = _sizes(dataset)
    total = sum(sizes.values())
    if found.ndim != 2 or len(found) != total:
        rows = " and ".join(f"{count:,} {part}" for part, count in sizes.items())
        raise ConfigError(
            f"{KEY}={path} has shape {list(found.shape)}; expected [{total}, "
            f"{dataset.num_classes}]: a row for each of the {rows} "
            f"{dataset.inputs.many} of {dataset.name}"
        )
    ends = np.cumsum(list(sizes.values()))[:-1]
    return dict(zip(sizes, np.split(found, ends), strict=True))


def _part(
    path: Path, arrays: dict[str, np.ndarray], part: str, count: int, dataset: Dataset
) -> np.ndarray:
    names = [name for name in (part, part + _PROBABILITIES) if name in arrays]
    if len(names) != 1:
        has = f"both {' and '.join(names)}" if names else ", ".join(arrays) or "no array"
        raise ConfigError(
            f"{KEY}={path} has {has}; expected the logits of the {count:,} {part} "
            f"{dataset.inputs.many} of {dataset.name} as {part} (or their probabilities as "
            f"{part}{_PROBABILITIES})"
        )
    (name,) = names
    rows, wanted = arrays[name], (count, dataset.num_classes)
    if rows.shape != wanted or rows.dtype.kind not in "fiu":
        raise ConfigError(
            f"{KEY}={path}: {name} is {rows.dtype} {list(rows.shape)}; expected numbers "
            f"{list(wanted)}: a row for each of the {count:,} {part} {dataset.inputs.many} of "
            f"{dataset.name}, in their order"
        )
    rows = rows.astype(np.float32)
    if not np.isfinite(rows).all():
        first = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise ConfigError(f"{KEY}={path}: row {first} of {name} is not finite")
    shares = bool((rows >= 0).all() and (abs(rows.sum(axis=1) - 1) < 1e-2).all())
    if name == part:
        if shares:
            raise ConfigError(
                f"{KEY}={path}: the rows of {part} are probabilities; name the array "
                f"{part}{_PROBABILITIES}, or store the logits"
            )
        return rows
    if not shares:
        raise ConfigError(
            f"{KEY}={path}: the rows of {name} are no probabilities (at least 0, with sum 1); name "
            f"logits {part}"
        )
    return np.log(np.maximum(rows, FLOOR))


def _refuse_other_data(path: Path, arrays: dict[str, np.ndarray], dataset: Dataset) -> None:
    ours = {"fingerprint": dataset.fingerprint, "class_names": list(dataset.class_names)}
    for name, own in ours.items():
        if name in arrays and arrays[name].tolist() != own:
            theirs = arrays[name].tolist()
            short = [str(one)[:12] if name == "fingerprint" else one for one in (theirs, own)]
            raise ConfigError(
                f"{KEY}={path} is of other data: its {name} is {short[0]}, that of {dataset.name} "
                f"is {short[1]}; write it anew: kd logits WHAT dataset={dataset.name}"
            )


def _source(dataset: Dataset, part: str) -> str:
    """The part of the data in which a split's rows are: kd holds validation out of training."""
    if part == "validation" and dataset.validation.images is not dataset.train.images:
        return "validation"
    return "test" if part == "test" else "train"


def _sizes(dataset: Dataset) -> dict[str, int]:
    """How many rows each part of the data has, in the order of an `.npy` file."""
    found = {"train": len(dataset.train.images)}
    if dataset.validation is not None and _source(dataset, "validation") == "validation":
        found["validation"] = len(dataset.validation.images)
    return {**found, "test": len(dataset.test.images)}


def parts_of(dataset: Dataset) -> dict[str, Split]:
    """All rows of each part of the data, as splits, for who writes such a file."""
    found = {}
    for part, count in _sizes(dataset).items():
        split: Split = getattr(dataset, part)
        found[part] = Split(split.images, split.labels, np.arange(count))
    return found
