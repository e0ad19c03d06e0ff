"""Groups of keys inside the table in `keys`, such as those of `dataset` and `cache`."""

# OmegaConf reads the annotations at run time, so they must not be strings.
from dataclasses import dataclass
from typing import Any

from omegaconf import II, MISSING

from kd_cli.config.row import (
    IMAGE_SHAPE,
    LABELLED,
    MOST_CLASSES,
    NAMES,
    SEED,
    SHARE,
    above,
    at_least,
    between,
    key,
    one_of,
)
from kd_cli.config.unused import FROM_LABELS


@dataclass
class Dataset:
    name: str = key(MISSING, "its name in tables and directories", NAMES)
    image_shape: list[int] = key(MISSING, "[height, width, channels]", IMAGE_SHAPE)
    num_classes: int = key(MISSING, "number of classes", between(2, MOST_CLASSES))
    validation_fraction: float = key(
        0.1, "share of the training images for validation; unused with an official split", SHARE
    )
    labelled_fraction: float = key(
        1.0, "share of the training images whose labels are used", LABELLED
    )
    unlabelled: str = key(
        "leave_out",
        "images whose labels are not used: leave_out, or use them with the teacher's outputs alone",
        one_of("leave_out", "use"),
        unused=FROM_LABELS,
    )
    split_seed: int = key(0, "seed that draws validation and limit", SEED)
    labelled_seed: int = key(II(".split_seed"), "draws the images whose labels are used", SEED)
    limit: int | None = key(None, "most images of each split; null: all", at_least(1, ", or null"))
    source: Any = key(MISSING, "the function that reads it")


@dataclass
class Cache:
    views: int | None = key(
        None,
        "K: store the teacher's logits for K versions of each image; null: new versions",
        at_least(1, ", or null for a new view in every epoch"),
        unused={"self-train": "the last round's network labels each image once, as in evaluation"},
    )
    logits: str = key(
        "float32",
        "float32 or float16: how logits are stored; none: computed at every step",
        one_of("float32", "float16", "none", more=" (its outputs are computed at every step)"),
    )

    features: str = key(
        "float32",
        "float32 or float16: how a teacher's layers are stored, for losses that compare them",
        one_of("float32", "float16"),
    )
    features_gib: float = key(
        2.0, "what losses need of a teacher's layers is stored up to this size", at_least(0)
    )


@dataclass
class Checkpoint:
    minutes: float = key(10.0, "the state is saved every N minutes inside a long epoch", above(0))


@dataclass
class Pseudo:
    labels: str = key(
        "soft", "soft: the last round's probabilities; hard: its decisions", one_of("hard", "soft")
    )
    threshold: float = key(0.3, "images that are labelled with less confidence are not used", SHARE)
    balance: bool = key(True, "every class gets equally many pseudo-labels")
    per_class: int | None = key(
        None, "rows of each class; null shares those above the threshold", at_least(1, ", or null")
    )
    epochs: int | None = key(
        None,
        "epochs of the later rounds; null: those of round 0",
        at_least(1, ", or null for the epochs or steps of round 0"),
    )


@dataclass
class EarlyStopping:
    patience: int | None = key(
        None,
        "stop after so many epochs without a better validation value; null: train to the end",
        at_least(1, ", or null to train to the end"),
    )
    monitor: str = key(
        "accuracy",
        "validation accuracy or nll; it also chooses the best epoch",
        one_of("accuracy", "nll"),
    )
