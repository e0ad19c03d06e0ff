"""`metrics.json`: what a finished run says of itself, defined, checked, written and read here.

`Record` is the one definition: its fields are the keys of the file, with their type and meaning.
A record that misses a key or holds a wrong type can't be made, so it can't be written. The file is
written last, when all else of a run is on the disk: where it is, the run is finished.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, get_args, get_origin, get_type_hints

from kd_cli.errors import ConfigError, first_line
from kd_cli.files import DamagedError, read_json, write_json
from kd_cli.terminal import shown

FILE = "metrics.json"
PRUNED = "pruned.json"  # of a run that a search has given up: it is not finished
SCHEMA_VERSION = 3


class RecordError(ConfigError):
    """A `metrics.json` that can't be read: damaged, of another program, or of another version."""


def says(meaning: str, **options: Any) -> Any:
    """A field with its meaning; without a default every record has it."""
    return field(metadata={"meaning": meaning}, **options)


def may_say(meaning: str) -> Any:
    """A field that is None, and in the file absent, where there is nothing to say."""
    return says(meaning, default=None)


class Part(Mapping[str, Any]):
    """A dataclass that checks its fields, and that can be read under its keys in JSON too.

    `record.test.nll` and `record["test"]["nll"]` are the same. A field of another part may be given
    as a mapping. Parts are equal to mappings with the same content.

    Raises:
        ValueError: A field is of another type than it says.
    """

    def __post_init__(self) -> None:
        for name, kind in _kinds(type(self)).items():
            value = _as(kind, getattr(self, name), name, strict=True)
            object.__setattr__(self, name, value)

    def __getitem__(self, key: str) -> Any:
        one = self.__dataclass_fields__[key]
        value = getattr(self, key)
        if value is None and one.default is None:
            raise KeyError(key)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter([key for key in self.__dataclass_fields__ if key in self])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {key: _plain(value) for key, value in self.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Score(Part):
    accuracy: float = says("share of the inputs that are right, 0 to 1")
    nll: float = says("mean negative log-likelihood, in nats")


@dataclass(frozen=True, kw_only=True, eq=False)
class EpochScore(Score):
    epoch: int = says("after which epoch, from 1")


@dataclass(frozen=True, kw_only=True, eq=False)
class Validation(Part):
    best: EpochScore = says("the chosen epoch, whose weights are in model.keras")
    last: EpochScore = says("the last epoch")


@dataclass(frozen=True, kw_only=True, eq=False)
class BySplit(Part):
    validation: dict | None = may_say("on the validation split, where there is one")
    test: dict = says("on the test split")


@dataclass(frozen=True, kw_only=True, eq=False)
class Fidelity(BySplit):
    training: dict | None = may_say("on at most 2,000 training inputs: agreement, kl, accuracy")


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetRecord(Part):
    name: str = says("name of the dataset")
    image_shape: list[int] | None = may_say("of images: [height, width, channels]")
    length: int | None = may_say("of texts: tokens of each")
    vocabulary: int | None = may_say("of texts: number of token ids; 0 is padding, 1 is unknown")
    tokenizer_sha256: str | None = may_say("of texts: SHA-256 of the run's vocabulary.json")
    class_names: list[str] = says("names of the classes in the order of their labels")
    train: int = says("training images, or texts")
    labelled: int = says("of these, those that have labels of the dataset")
    validation: int = says("validation inputs, 0 without a validation split")
    test: int = says("test inputs")
    train_per_class: list[int] | None = may_say(
        "training inputs of each class, if they have labels"
    )
    test_per_class: list[int] | None = may_say("test inputs of each class")
    fingerprint: str = says("SHA-256 of inputs, labels and class names")
    split_fingerprint: str = says("SHA-256 of the rows of each split")
    held_out_fingerprint: str = says("SHA-256 of the rows of validation and test")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_shape is None and None in (self.length, self.vocabulary):
            raise ValueError("dataset.image_shape is missing (or length and vocabulary)")


@dataclass(frozen=True, kw_only=True, eq=False)
class OnTraining(Part):
    images: int = says("training inputs that it was asked about")
    accuracy: float | None = says("share of right ones among those with a label")
    entropy: float = says("mean entropy of its probabilities, in nats")
    entropy_at_temperature: float | None = says("the same at the temperature of the loss")


@dataclass(frozen=True, kw_only=True, eq=False)
class TeacherRecord(Part):
    path: str = says("its directory or file")
    name: str = says("name of its network")
    weights_sha256: str = says("hash of its weights")
    training: str = says("how it was trained, or 'unknown'")
    labelled: int | None = may_say("labels that it learned from, where its own run says so")
    test_accuracy: float = says("its test accuracy, evaluated in this run")
    test_nll: float = says("its test negative log-likelihood, in nats")
    quality: BySplit = says("its quality through the input path of this run: quality.quality")
    parameters: int | None = may_say("its parameters; those of a file for a runtime are not known")
    outputs: str = says("cached as float32 or float16, or live and why")
    on_training: OnTraining | None = may_say("what it says of training inputs")
    precision: str = says("Keras dtype policy of its forward pass")


@dataclass(frozen=True, kw_only=True, eq=False)
class Deployed(Part):
    """The parts of a student that ends in its teacher's classifier."""

    configured: int = says("parameters of the student as configured: those of a scratch student")
    body: int = says("those of them that are in model.keras")
    projector: int = says("parameters of the projector to the teacher's last map")
    head: int = says("parameters of the teacher's head, which are not trained")

    def words(self) -> str:
        """For people."""
        return (
            f"the student's body ({self.body:,} of its {self.configured:,} parameters), a "
            f"projector ({self.projector:,}) and the teacher's head ({self.head:,}, frozen)"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class PseudoLabels(Part):
    round: int = says("the round that learned from these pseudo-labels")
    labels: str = says("hard or soft")
    threshold: float = says("only labels with more confidence count")
    unlabelled: int = says("inputs that the network of the last round labelled")
    above_threshold: list[int] = says("inputs above the threshold, by pseudo-label")
    images: int = says("inputs that were kept")
    rows: int = says("training rows of theirs, repeats included")
    per_class: list[int] = says("these rows by pseudo-label")
    accuracy: float | None = may_say("share of right ones among those whose labels are only hidden")


@dataclass(frozen=True, kw_only=True, eq=False)
class RoundRecord(Part):
    directory: str = says("its directory, below that of the run")
    labelled: int = says("of these, those that have labels of the dataset")
    pseudo_labels: PseudoLabels | None = says("what it learned from besides; null in round 0")
    validation: EpochScore | None = says("its chosen epoch; null without a validation split")
    test: Score = says("on the test split")
    weights_sha256: str = says("hash of its weights")
    seconds: float = says("seconds that it took")


@dataclass(frozen=True, kw_only=True, eq=False)
class Timings(Part):
    learners: int = says("runs that shared these seconds (1, or those of a joint sweep)")
    total_seconds: float = says("the whole run; of a resumed one at least its training")
    train_seconds: float = says("training steps alone")
    seconds_per_epoch: float = says("training steps of an epoch")
    examples_per_second: float = says("training examples per second of training steps")
    teacher_forward_seconds: float = says("computing the teacher's outputs")


@dataclass(frozen=True, kw_only=True, eq=False)
class Record(Part):
    """The content of a `metrics.json`."""

    schema_version: int = says("version of these keys", default=SCHEMA_VERSION)
    command: str = says("train-teacher, train-student, distill, mutual or self-train")
    run_id: str = says("hash of the configuration that can change the result")
    config: dict = says("that configuration, resolved")
    inputs: dict = says("SHA-256 of data, split, teacher and given files")
    seed: int = says("seed; init_seed and data_seed are in config")
    git_commit: str | None = says("commit of the working directory, or null")
    versions: dict = says("versions of kd, python, tensorflow, keras, numpy and hydra")
    device: str = says("what TensorFlow ran on")
    precision: str = says("Keras dtype policy of the trained network")
    dataset: DatasetRecord = says("the data")
    input: str = says("what model.keras takes")
    network: str = says("name of the trained network")
    parameters: int = says("parameters of model.keras")
    parameters_for_distilling: int | None = may_say("weights of losses, trained beside it")
    deployed: Deployed | None = may_say("what model.keras is made of, if SimKD has built it")
    loss: str = says("the loss as a formula")
    alpha: float | None = says("weight of the hard labels, null where the loss has none")
    temperature: float | None = says("temperature, null where the loss has none")
    class_weights: list[float] | None = may_say("weight of each class in the labels' term")
    epochs_done: int = says("epochs trained")
    steps_done: int = says("optimizer steps")
    stopped: str = says("finished, or early stopping")
    warnings: list[str] = says("what there is to warn about at its end")
    selection: str = says("how the epoch of model.keras was chosen; test has no say in it")
    validation: Validation | None = may_say("validation scores; absent without such a split")
    test: Score = says("test scores of the weights in model.keras")
    test_last: Score = says("test scores of the weights after the last epoch")
    quality: BySplit = says("top-1, NLL, Brier, calibration, classes: quality.quality")
    fidelity: Fidelity | None = may_say("agreement with the teacher and KL: quality.fidelity")
    gradients: dict | None = may_say("at the first step: shares of the loss's terms, cosine")
    weights_sha256: str = says("hash of the weights in model.keras")
    teacher: TeacherRecord | None = may_say("who taught; present for distill")
    pseudo_labels: PseudoLabels | None = may_say("what a round of self-training learned from")
    rounds: list[RoundRecord] | None = may_say("the rounds of self-training")
    best_round: int | None = may_say("the best on validation; model.keras is the last round's")
    timings: Timings = says("seconds")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {self.schema_version}, expected {SCHEMA_VERSION}")
        if self.command == "distill" and self.teacher is None:
            raise ValueError("teacher is missing")
        for name, kind in _OF_CONFIG.items():
            if name in self.config:
                _as(kind, self.config[name], f"config.{name}", strict=True)
        for name, value in self.inputs.items():
            _as(str, value, f"inputs.{name}", strict=True)

    def write(self, folder: Path) -> None:
        """Writes `metrics.json`, atomically: from now on the run in `folder` is finished."""
        write_json(folder / FILE, self.to_json())

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The record of the run in a folder; None where no run has finished there.

        Keys that this version does not know are left out.

        Raises:
            RecordError: There is a `metrics.json`, but it is damaged, not written by kd, or of
                another version of kd.
        """
        path = folder / FILE
        try:
            content = read_json(path, "")
        except DamagedError as error:
            raise _damaged(path, error.why) from error
        if content is None:
            return None
        version = content.get("schema_version")
        if not isinstance(version, int):
            raise _damaged(path, "no schema_version")
        if version != SCHEMA_VERSION:
            raise RecordError(
                f"{shown(path)} is of schema version {version}, this kd reads {SCHEMA_VERSION}: "
                "another version of kd wrote it; move the directory away, or type rerun=true"
            )
        try:
            return part(cls, content)
        except ValueError as error:
            raise _damaged(path, first_line(error)) from error


# Of `config`, which may hold anything, what every reader of a record relies on.
_OF_CONFIG = {
    "init_seed": int,
    "data_seed": int,
    "loss": dict | None,
    "dataset": dict,
    "teacher": dict,
    "student": dict,
    "augment": dict,
}


def _damaged(path: Path, why: str) -> RecordError:
    return RecordError(
        f"{shown(path)} is damaged, or not written by kd ({why}); if it belongs to a run of kd, "
        "remove this file and type the run's command again: it finishes from its saved state"
    )


@functools.cache
def _kinds(part: type[Part]) -> dict[str, Any]:
    """The type of each field."""
    return get_type_hints(part)


def part(kind: type[Part], content: Mapping[str, Any], name: str = "", strict: bool = False) -> Any:
    """A part from a mapping; with `strict` an unknown key is an error, else it is left out."""
    prefix, given = f"{name}." if name else "", {}
    for one in dataclasses.fields(kind):
        if one.name in content:
            path = f"{prefix}{one.name}"
            given[one.name] = _as(_kinds(kind)[one.name], content[one.name], path, strict)
        elif one.default is dataclasses.MISSING:
            raise ValueError(f"{prefix}{one.name} is missing")
    unknown = sorted(set(content) - set(_kinds(kind)))
    if unknown and strict:
        raise ValueError(f"{prefix}{unknown[0]} is no key of a record")
    return kind(**given)


def _as(kind: Any, value: Any, name: str, strict: bool) -> Any:
    """`value` of a field's type; mappings become parts.

    Raises:
        ValueError: It is of another type, or no finite number.
    """
    expected = _without_none(kind)
    if value is None and expected is not kind:
        return None
    if get_origin(expected) is list:
        (each,) = get_args(expected)
        if isinstance(value, list):
            return [_as(each, one, f"{name}.{n}", strict) for n, one in enumerate(value)]
    elif issubclass(expected, Part):
        if isinstance(value, expected):
            return value
        if isinstance(value, Mapping):
            return part(expected, value, name, strict)
    elif isinstance(value, bool) and expected is not bool:  # an int to Python
        pass
    elif expected is float and isinstance(value, int | float):
        if math.isfinite(value):
            return value
        raise ValueError(f"{name} is {value}, expected a finite number")
    elif isinstance(value, expected):
        return value
    wanted = expected if get_origin(expected) else expected.__name__
    raise ValueError(f"{name} is {type(value).__name__}, expected {wanted}")


def _without_none(kind: Any) -> Any:
    """X of `X | None`, and of X."""
    if isinstance(kind, types.UnionType):
        (kind,) = [option for option in get_args(kind) if option is not types.NoneType]
    return kind


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return value.to_json()
    return [_plain(one) for one in value] if isinstance(value, list) else value


def schema(part: type[Part] = Record) -> dict[str, tuple[str, str]]:
    """Type and meaning of every key of `metrics.json`, dotted.

    `rounds.*.seconds` is a key of each of the rounds. A type that ends in `?` may be absent.
    """
    found: dict[str, tuple[str, str]] = {}
    for one in dataclasses.fields(part):
        kind = _without_none(_kinds(part)[one.name])
        written = one.type.removesuffix(" | None") + "?" if one.default is None else one.type
        found[one.name] = written, one.metadata["meaning"]
        each = get_args(kind)[0] if get_origin(kind) is list else kind
        if issubclass(each, Part):
            star = "*." if each is not kind else ""
            found |= {f"{one.name}.{star}{key}": row for key, row in schema(each).items()}
    return found
