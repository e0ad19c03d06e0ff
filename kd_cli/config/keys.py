"""The table of keys: type, default, help, range, which commands use it, and what it counts for.

Every key of kd is one field here. Types, the sentences about keys that a command does not use, the
run id, the graph variables and `--help` come from this table. (Nodes that are built, such as
`optimizer`, have the keys of the function that their `_target_` names.)
"""

# OmegaConf reads the annotations at run time, so they must not be strings.
import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import II, MISSING

from kd_cli.config.nodes import Cache, Checkpoint, Dataset, Pseudo
from kd_cli.config.row import (
    CHANNELS,
    CLASS_WEIGHTS,
    DEVICE,
    FILES,
    LABELLED,
    MODULE,
    MOMENTUM,
    NAME,
    NAMES,
    PLACE,
    SEED,
    SHARE,
    above,
    at_least,
    key,
    one_of,
)
from kd_cli.config.unused import (
    FOR_DISTILLING,
    NO_TEACHER,
    OF_EVALUATE,
    OF_EXPORT,
    OF_LOSS,
    OF_ROUNDS,
    OF_TEACHER,
    OF_WHAT,
    TRAINS_NOTHING,
)

VIEWS = ("consistent", "independent", "fixed_teacher")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
# Of a file that is exported, and its formats.
FILE_PRECISIONS = ("float32", "float16", "dynamic", "int8")
FORMATS = ("litert", "onnx", "saved_model", "page")


@dataclass
class Input:
    size: int | None = key(
        None, "images are resized to this side; null leaves them", at_least(1, ", or null")
    )
    scale: Any = key(
        1.0 / 255.0,
        "pixels 0..255 are multiplied by this; or a list of one for each channel",
        CHANNELS,
    )
    offset: Any = key(0.0, "added after scaling; or a list of one for each channel", CHANNELS)


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


@dataclass
class Training:
    """How a network is trained: the student's at the root, the teacher's at teacher.training."""

    epochs: int = key(10, "passes over the training examples", at_least(1), unused=TRAINS_NOTHING)
    steps: int | None = key(
        None,
        "optimizer steps in all; replaces epochs",
        at_least(1, ", or null to use epochs"),
        unused=TRAINS_NOTHING,
    )
    batch_size: int = key(64, "examples per step", at_least(1), unused=TRAINS_NOTHING)
    accumulate: int = key(
        1, "a step sums up the gradients of so many batches", at_least(1), unused=TRAINS_NOTHING
    )
    learning_rate: float = key(
        0.001, "initial learning rate", above(0), unused=TRAINS_NOTHING, short=True
    )
    label_smoothing: float = key(
        0.0,
        "label smoothing of the cross-entropy",
        SHARE,
        unused={
            "distill": "it belongs to the cross-entropy of train-teacher and train-student",
            **TRAINS_NOTHING,
        },
        short=True,
    )
    seed: int = key(
        0,
        "sets init_seed and data_seed",
        SEED,
        unused={key: TRAINS_NOTHING[key] for key in ("evaluate", "logits")},
    )
    init_seed: int = key(
        II(".seed"), "seed of the initial weights and dropout", SEED, unused=TRAINS_NOTHING
    )
    data_seed: int = key(II(".seed"), "seed of the batches' order", SEED, unused=TRAINS_NOTHING)
    augment_seed: int = key(II(".data_seed"), "seed of augmentation", SEED, unused=TRAINS_NOTHING)
    class_weights: Any = key(
        None,
        "weights of the classes in the labels' term: balanced, or a list",
        CLASS_WEIGHTS,
        unused={"self-train": "pseudo.balance makes every class count alike", **TRAINS_NOTHING},
        variable=True,
        short=True,
    )
    ema: float | None = key(
        None,
        "momentum of an average of the weights, as in ema=0.999; it is validated and kept",
        MOMENTUM,
        unused=TRAINS_NOTHING,
    )
    early_stopping: EarlyStopping = key(EarlyStopping, unused=TRAINS_NOTHING)
    precision: str = key(
        "float32",
        " or ".join(PRECISIONS),
        one_of(*PRECISIONS),
        must_of={"export": one_of(*FILE_PRECISIONS)},
        unused={key: TRAINS_NOTHING[key] for key in ("evaluate", "logits")},
    )
    schedule: Any = key(None, "how the learning rate changes", unused=TRAINS_NOTHING)
    optimizer: Any = key(None, "gets its learning rate from the schedule", unused=TRAINS_NOTHING)
    augment: Any = key(None, "random crops, flips, mixup")


@dataclass
class Augment:
    train: list[Any] = key([], "steps in order; mixup must be the last")
    evaluate: list[Any] = key([], "steps for evaluation, which are not random")
    size: int | None = key(
        None,
        "side of the images that the networks get; null: the dataset's",
        at_least(1, ", or null for the dataset's"),
    )
    preview: bool = key(False, "true draws augment.png into the run's directory", place=True)


@dataclass
class TeacherKeys(Training):
    labelled_fraction: float | None = key(
        None, "share of the labels that the teacher learns from; null: the dataset's", LABELLED
    )


@dataclass
class TeacherTraining(TeacherKeys):
    augment: Augment = key(Augment)


@dataclass
class Network:
    name: str = key(MISSING, "its name in tables and directories", NAME)
    checkpoint: str | None = key(None, "a .keras file")
    input: Input = key(Input)
    network: Any = key(MISSING, "the function that builds it")


@dataclass
class Student(Network):
    checkpoint: str | None = key(None, "a .keras file or run's folder whose weights it starts from")


@dataclass
class Teacher(Network):
    checkpoint: Any = key(
        None,
        "a finished teacher: a .keras, .onnx or .tflite file, SavedModel, run's folder; or a list",
        FILES,
        unused=FOR_DISTILLING,
    )
    members: int = key(
        1,
        "teachers of so many seeds are trained, and teach together",
        at_least(1),
        unused=FOR_DISTILLING,
    )
    combine: str = key(
        "mean",
        "of several teachers: mean of the probabilities, or weighted by confidence in the label",
        one_of("mean", "confidence"),
        unused=FOR_DISTILLING,
    )
    module: str | None = key(
        None,
        "the module with the own layers of that .keras file; it is imported",
        MODULE,
        unused=FOR_DISTILLING,
    )
    logits: str | None = key(
        None, "a file with the logits of a teacher that is elsewhere", unused=FOR_DISTILLING
    )
    weights: str | None = key(None, "an .npz file with published weights of BiT")
    train_if_missing: bool = key(
        True, "false makes a missing teacher an error", unused=FOR_DISTILLING
    )
    precision: str | None = key(
        None,
        "precision of the teacher's forward pass; null: as trained",
        one_of(*PRECISIONS, more=", or null for the precision that it was trained in"),
        unused={
            "train-teacher": "it is of the teacher's forward pass in distill; see "
            "teacher.training.precision"
        },
    )
    training: TeacherTraining = key(TeacherTraining)


@dataclass
class Keys(Training):
    """The root keys of the commands that train."""

    alpha: float | None = key(
        None,
        "weight of the hard labels; 1 - alpha is that of the teacher",
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
        "which version of an augmented image the teacher gets",
        one_of(*VIEWS),
        unused={
            **NO_TEACHER,
            "self-train": "the last round's network labels each image once, as in evaluation",
        },
    )
    cache: Cache = key(Cache, unused=NO_TEACHER)
    rounds: int = key(
        3,
        "rounds after round 0, which learns from the labels alone; more rounds continue",
        at_least(1),
        unused=OF_ROUNDS,
        place=True,
    )
    pseudo: Pseudo = key(Pseudo, unused=OF_ROUNDS)
    checkpoint: Checkpoint = key(Checkpoint, unused=TRAINS_NOTHING, place=True)
    memory_gib: float = key(
        4.0,
        "data and logits up to this size stay in memory",
        at_least(0),
        unused=TRAINS_NOTHING,
        place=True,
    )
    device: str = key("auto", "auto, cpu, gpu or gpu:N", DEVICE, place=True)
    outputs: str = key("outputs", "the folder that kd writes to", PLACE, place=True)
    rerun: bool = key(
        False, "true: a new run next to a finished one", unused=TRAINS_NOTHING, place=True
    )
    data_dir: str | None = key(
        "${oc.env:TFDS_DATA_DIR,null}",
        "where tensorflow-datasets stores its data",
        PLACE,
        place=True,
    )
    cache_dir: str = key(
        "${oc.env:KD_CACHE_DIR,${outputs}/cache}",
        "decoded data, teachers' logits",
        PLACE,
        place=True,
    )
    teacher_dir: str | None = key(
        None,
        "the folder of a finished teacher to use (train-teacher: where it writes)",
        unused=OF_TEACHER,
        place=True,
    )
    sweep: str | None = key(
        None,
        "name of a sweep's folder; null: a hash of the unswept overrides",
        NAMES,
        unused=TRAINS_NOTHING,
        place=True,
    )


@dataclass
class Config(Keys):
    """A whole checked configuration. A node that is built (`Any`) has its function's arguments."""

    command: str = key(MISSING)
    dataset: Dataset = key(Dataset)
    teacher: Teacher = key(Teacher, unused=OF_TEACHER)
    student: Student = key(
        Student,
        unused={
            "train-teacher": "it trains the teacher",
            **OF_WHAT,
        },
    )
    loss: Any = key(
        None,
        "what the student learns from",
        unused={
            "train-teacher": "its loss is the cross-entropy (see label_smoothing)",
            "train-student": "its loss is the cross-entropy (see label_smoothing)",
            "mutual": OF_LOSS["mutual"],
            "self-train": "its loss is the cross-entropy (see pseudo.labels)",
            **TRAINS_NOTHING,
        },
    )
    augment: Augment = key(Augment)
    tracker: Any = key(None, "called after every epoch", unused=TRAINS_NOTHING, place=True)
    experiment: Any = key(
        None,
        "a recipe: options and keys of other groups",
        unused=dict.fromkeys(TRAINS_NOTHING, "the data are chosen by dataset=OPTION"),
        place=True,
    )
    pair: Any = key(None, "a teacher and a student of the CIFAR tables", unused=OF_WHAT, place=True)
    debug: Any = key(None, "smoke: few examples, one epoch", unused=TRAINS_NOTHING, place=True)
    what: str | None = key(None, "the run or file to evaluate, export or ask", unused=OF_EVALUATE)
    input: Input = key(Input, "input of a .keras file of another program", unused=OF_EVALUATE)
    module: str | None = key(
        None, "the module with the own layers of a .keras file", MODULE, unused=OF_EVALUATE
    )
    format: str = key("litert", "of the exported file", one_of(*FORMATS), unused=OF_EXPORT)
    calibration: int = key(
        1000,
        "training images that set the ranges of int8 numbers",
        at_least(1),
        unused=OF_EXPORT,
    )
    softmax: bool = key(
        False, "true: the exported file gives probabilities, not logits", unused=OF_EXPORT
    )


Field = dataclasses.Field[Any]


def walk(table: type = Config, prefix: str = "") -> Iterator[tuple[str, Field]]:
    """Every key of a table with its row, dotted, groups before their keys."""
    for field in dataclasses.fields(table):
        yield prefix + field.name, field
        if dataclasses.is_dataclass(field.type):
            yield from walk(field.type, f"{prefix}{field.name}.")


def _root_keys(what: str) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(Config) if field.metadata[what])


# Root keys that say where or how to run, and do not change the result.
PLACES = _root_keys("place")
# Keys of losses that are variables of the graph.
VARIABLES = _root_keys("variable")
# Named by their last word in reports.
SHORT_NAMES = _root_keys("short")
# Keys of how a network is trained: at the root the student's, in teacher.training the teacher's.
TRAINING = tuple(field.name for field in dataclasses.fields(Training))
# Why a command does not use a key; a recipe may set it all the same, because it serves all.
UNUSED: dict[str, dict[str, str]] = defaultdict(dict)  # a new command may use every key
for _name, _field in walk():
    for _command, _why in _field.metadata["unused"].items():
        if not _name.startswith("teacher.training."):
            UNUSED[_command][_name] = _why
for _command, _why in TRAINS_NOTHING.items():
    UNUSED[_command]["dataset.unlabelled_path"] = _why  # no row: an option's
