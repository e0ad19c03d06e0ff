"""The table of keys: type, default, help, range, which commands use it, and what it counts for.

Every key of ours is a field here, once. Types, the sentences about keys that a command has no use
for, the run id, the graph variables and `--help` come out of this table. (Nodes that are built,
such as `optimizer`, have the keys of the function that their `_target_` names.)
"""

# OmegaConf reads the annotations at run time, so they must not be strings.
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import II, MISSING

from kd_cli.config.reasons import (
    FOR_DISTILLING,
    NO_TEACHER,
    OF_EVALUATE,
    OF_LOSS,
    OF_ROUNDS,
    OF_TEACHER,
    TRAINS_NOTHING,
)
from kd_cli.config.row import CLASS_WEIGHTS, IMAGE_SHAPE, SEED, SHARE, above, at_least, key, one_of

VIEWS = ("consistent", "independent", "fixed_teacher")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclass
class Input:
    size: int | None = key(
        None, "images are resized to this side; null leaves them", at_least(1, ", or null")
    )
    scale: float = key(1.0 / 255.0, "pixels 0..255 are multiplied by this")
    offset: float = key(0.0, "and shifted by this")


@dataclass
class EarlyStopping:
    patience: int | None = key(
        None,
        "epochs without a better validation value before it stops; null trains to the end",
        at_least(1, ", or null to train to the end"),
    )
    monitor: str = key(
        "accuracy",
        "accuracy or nll of validation; also chooses the epoch",
        one_of("accuracy", "nll"),
    )


@dataclass
class Training:
    """How a network is trained: the student's at the root, the teacher's at teacher.training."""

    epochs: int = key(10, "passes over the training images", at_least(1), unused=TRAINS_NOTHING)
    steps: int | None = key(
        None,
        "optimizer steps in all, in place of epochs",
        at_least(1, ", or null to use epochs"),
        unused=TRAINS_NOTHING,
    )
    batch_size: int = key(64, "images per step", at_least(1), unused=TRAINS_NOTHING)
    learning_rate: float = key(
        0.001, "that the schedule starts from", above(0), unused=TRAINS_NOTHING, short=True
    )
    label_smoothing: float = key(
        0.0,
        "of the cross-entropy to the labels",
        SHARE,
        unused={
            "distill": "it belongs to the cross-entropy of train-teacher and train-student",
            **TRAINS_NOTHING,
        },
        short=True,
    )
    class_weights: Any = key(
        None,
        "of the labels' term: balanced, or a weight for each class",
        CLASS_WEIGHTS,
        unused={"self-train": "pseudo.balance makes every class count alike", **TRAINS_NOTHING},
        variable=True,
        short=True,
    )
    seed: int = key(0, "sets the seeds below", SEED, unused=TRAINS_NOTHING)
    init_seed: int = key(II(".seed"), "of initial weights and dropout", SEED, unused=TRAINS_NOTHING)
    data_seed: int = key(II(".seed"), "of the batches' order", SEED, unused=TRAINS_NOTHING)
    augment_seed: int = key(II(".data_seed"), "of the augmentation", SEED, unused=TRAINS_NOTHING)
    early_stopping: EarlyStopping = key(EarlyStopping, unused=TRAINS_NOTHING)
    precision: str = key(
        "float32", " or ".join(PRECISIONS), one_of(*PRECISIONS), unused=TRAINS_NOTHING
    )
    schedule: Any = key(None, "learning rate by step", unused=TRAINS_NOTHING)
    optimizer: Any = key(None, "takes its rate from the schedule", unused=TRAINS_NOTHING)
    augment: Any = key(None, "random crops, flips, mixup")


@dataclass
class Augment:
    train: list[Any] = key([], "nodes in order; batch-wise ones (mixup) come last")
    evaluate: list[Any] = key([], "nodes for evaluation, without chance")
    size: int | None = key(
        None,
        "side of what the networks get, where it is not the dataset's",
        at_least(1, ", or null for the dataset's"),
    )
    preview: bool = key(False, "true draws augment.png into the run's directory", place=True)


@dataclass
class TeacherTraining(Training):
    augment: Augment = key(Augment)


@dataclass
class Network:
    name: str = key(MISSING, "in tables and directories")
    checkpoint: str | None = key(None, "a .keras file")
    input: Input = key(Input)
    network: Any = key(MISSING, "the function that builds it")


@dataclass
class Student(Network):
    checkpoint: str | None = key(None, "a .keras file whose weights it starts from")


@dataclass
class Teacher(Network):
    checkpoint: str | None = key(
        None, "a .keras file or SavedModel directory to take as it is", unused=FOR_DISTILLING
    )
    weights: str | None = key(None, "an .npz file with published weights of BiT")
    train_if_missing: bool = key(
        True, "false makes a missing teacher an error", unused=FOR_DISTILLING
    )
    precision: str | None = key(
        None,
        "of its forward pass; null: in which it was trained",
        one_of(*PRECISIONS, more=", or null for the precision that it was trained in"),
        unused={
            "train-teacher": "it is of the teacher's forward pass in distill; see "
            "teacher.training.precision"
        },
    )
    training: TeacherTraining = key(TeacherTraining)


@dataclass
class Dataset:
    name: str = key(MISSING, "in tables and directories")
    image_shape: list[int] = key(
        MISSING,
        "[height, width, channels]",
        IMAGE_SHAPE,
    )
    num_classes: int = key(MISSING, "number of classes", at_least(2))
    validation_fraction: float = key(
        0.1, "of the training images, held out; unused where there is an official split", SHARE
    )
    labelled_fraction: float = key(
        1.0,
        "share of the training images whose labels are used",
        (
            lambda value: 0 < value <= 1,
            "above 0 and at most 1 (the share of the training images whose labels are used)",
        ),
    )
    split_seed: int = key(0, "of validation, labelled images and limit", SEED)
    limit: int | None = key(
        None, "images of each split; null for all", at_least(1, ", or null for all images")
    )
    source: Any = key(MISSING, "the function that reads it")


@dataclass
class Cache:
    views: int | None = key(
        None,
        "K keeps the teacher's logits of K views of each image; null asks about new views",
        at_least(1, ", or null for a new view in every epoch"),
        unused={"self-train": "the last round's network labels each image once, as in evaluation"},
    )
    logits: str = key(
        "float32",
        "float32 or float16 on the disk; none asks the teacher at every step",
        one_of("float32", "float16", "none", more=" (the teacher is asked at every step)"),
    )


@dataclass
class Checkpoint:
    minutes: float = key(
        10.0, "the state is kept after every epoch, and so often inside a long one", above(0)
    )


@dataclass
class Pseudo:
    labels: str = key(
        "soft", "soft: the last round's probabilities; hard: its decisions", one_of("hard", "soft")
    )
    threshold: float = key(0.3, "images labelled with less confidence are left out", SHARE)
    balance: bool = key(True, "every class counts alike")
    per_class: int | None = key(
        None, "rows of each class; null shares those above the threshold", at_least(1, ", or null")
    )
    epochs: int | None = key(
        None,
        "of the rounds above 0; null: as round 0",
        at_least(1, ", or null for the epochs or steps of round 0"),
    )


@dataclass
class Keys(Training):
    """The root keys of the commands that train."""

    alpha: float | None = key(
        None,
        "weight of the hard labels; 1 - alpha weighs the teacher",
        (lambda value: 0 <= value <= 1, "between 0 and 1 (the weight of the hard labels)"),
        unused={**OF_LOSS, "self-train": "labels and pseudo-labels count alike"},
        variable=True,
        short=True,
    )
    temperature: float | None = key(
        None,
        "softens both networks' outputs before they are compared",
        above(0),
        unused=OF_LOSS,
        variable=True,
        short=True,
    )
    t_squared: bool | None = key(
        None,
        "whether the softened term is multiplied by temperature squared",
        unused=OF_LOSS,
        variable=True,
        short=True,
    )
    view: str = key(
        "consistent",
        "which view of an augmented image the teacher gets",
        one_of(*VIEWS),
        unused={
            **NO_TEACHER,
            "self-train": "the last round's network labels each image once, as in evaluation",
        },
    )
    cache: Cache = key(Cache, unused=NO_TEACHER)
    rounds: int = key(
        3,
        "after round 0, which learns from the labels alone; more of them continue",
        at_least(1),
        unused=OF_ROUNDS,
        place=True,
    )
    pseudo: Pseudo = key(Pseudo, unused=OF_ROUNDS)
    checkpoint: Checkpoint = key(Checkpoint, unused=TRAINS_NOTHING, place=True)
    memory_gib: float = key(
        4.0,
        "images and logits up to this size are held in memory",
        at_least(0),
        unused=TRAINS_NOTHING,
        place=True,
    )
    device: str = key(
        "auto",
        "auto, cpu, gpu or gpu:N",
        (
            lambda value: re.fullmatch(r"auto|cpu|gpu(:\d+)?", value) is not None,
            "auto, cpu, gpu or gpu:N",
        ),
        place=True,
    )
    outputs: str = key("outputs", "the folder that kd writes to", place=True)
    rerun: bool = key(
        False, "true makes a new run beside a finished one", unused=TRAINS_NOTHING, place=True
    )
    data_dir: str | None = key(
        "${oc.env:TFDS_DATA_DIR,null}", "where tensorflow-datasets keeps its data", place=True
    )
    cache_dir: str = key(
        "${oc.env:KD_CACHE_DIR,${outputs}/cache}", "decoded images, teachers' logits", place=True
    )
    teacher_dir: str | None = key(
        None,
        "a finished teacher to take as it is (train-teacher: where it writes)",
        unused=OF_TEACHER,
        place=True,
    )
    sweep: str | None = key(
        None,
        "name of a sweep's folder; null takes a hash of the unswept overrides",
        unused=TRAINS_NOTHING,
        place=True,
    )


@dataclass
class Config(Keys):
    """All of a checked configuration. A node that is built (`Any`) has its own signature."""

    command: str = key(MISSING)
    dataset: Dataset = key(Dataset)
    teacher: Teacher = key(Teacher, unused=OF_TEACHER)
    student: Student = key(
        Student,
        unused={
            "train-teacher": "it trains the teacher",
            "evaluate": "the run or file to evaluate is the word after it",
        },
    )
    loss: Any = key(
        None,
        "what the student learns from",
        unused={
            "train-teacher": "its loss is the cross-entropy (see label_smoothing)",
            "train-student": "its loss is the cross-entropy (see label_smoothing)",
            "self-train": "its loss is the cross-entropy (see pseudo.labels)",
            **TRAINS_NOTHING,
        },
    )
    augment: Augment = key(Augment)
    tracker: Any = key(None, "who gets every epoch's row", unused=TRAINS_NOTHING, place=True)
    experiment: Any = key(
        None,
        "a recipe: options and keys of all of the above",
        unused={"evaluate": "the data are chosen by dataset=OPTION"},
        place=True,
    )
    debug: Any = key(None, "smoke: few images, one epoch", unused=TRAINS_NOTHING, place=True)
    what: str | None = key(None, "the run or file to evaluate", unused=OF_EVALUATE)
    input: Input = key(Input, "of a .keras file of another program", unused=OF_EVALUATE)


Field = dataclasses.Field[Any]


def walk(table: type = Config, prefix: str = "") -> Iterator[tuple[str, Field]]:
    """Every key of a table with its row, dotted, groups before their keys."""
    for field in dataclasses.fields(table):
        yield prefix + field.name, field
        if dataclasses.is_dataclass(field.type):
            yield from walk(field.type, f"{prefix}{field.name}.")


def _root_keys(what: str) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(Config) if field.metadata[what])


# Root keys that say where or how to run, and not what comes out.
PLACES = _root_keys("place")
# Keys of losses that are variables of the graph.
VARIABLES = _root_keys("variable")
# Named by their last word in reports.
SHORT_NAMES = _root_keys("short")
# Keys of how a network is trained: at the root the student's, in teacher.training the teacher's.
TRAINING = tuple(field.name for field in dataclasses.fields(Training))
# Why a command has no use for a key; a recipe may set it all the same, because it is for all.
UNUSED: dict[str, dict[str, str]] = {
    command: {
        name: field.metadata["unused"][command]
        for name, field in walk()
        if command in field.metadata["unused"] and not name.startswith("teacher.training.")
    }
    for command in {*OF_LOSS, *OF_ROUNDS}
}


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping under dotted keys."""
    found: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
