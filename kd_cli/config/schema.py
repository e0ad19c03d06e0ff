"""Which keys a configuration has, their types and ranges, and which command uses them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from kd_cli.config.instantiate import build
from kd_cli.config.keys import ROUND_KEYS
from kd_cli.errors import ConfigError

VIEWS = ("consistent", "independent", "fixed_teacher")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
_OF_ROUNDS = {key: "it belongs to self-train" for key in ROUND_KEYS}
# The root keys that each command has no use for, and why. A recipe may set them all the same,
# because it serves all commands; typed on the command line they are refused.
UNUSED = {
    "train-teacher": {
        "alpha": "it learns from the labels alone",
        "temperature": "it learns from the labels alone",
        "t_squared": "it learns from the labels alone",
        "loss": "its loss is the cross-entropy (see label_smoothing)",
        "student": "it trains the teacher",
        "teacher.checkpoint": "it trains the teacher",
        "teacher.train_if_missing": "it trains the teacher",
        "teacher.precision": "it is of the teacher's forward pass in distill; see precision",
        "cache": "it asks no teacher",
        "view": "it asks no teacher",
        **_OF_ROUNDS,
    },
    "train-student": {
        "alpha": "it trains without a teacher",
        "temperature": "it trains without a teacher",
        "t_squared": "it trains without a teacher",
        "loss": "its loss is the cross-entropy (see label_smoothing)",
        "teacher": "it trains without a teacher",
        "teacher_dir": "it trains without a teacher",
        "cache": "it asks no teacher",
        "view": "it asks no teacher",
        **_OF_ROUNDS,
    },
    "distill": {
        "label_smoothing": "it belongs to the cross-entropy of train-teacher and train-student",
        **_OF_ROUNDS,
    },
    "self-train": {
        "alpha": "labels and pseudo-labels count alike",
        "temperature": "a pseudo-label is what the last round's network says",
        "t_squared": "a pseudo-label is what the last round's network says",
        "loss": "its loss is the cross-entropy (see pseudo.labels)",
        "teacher": "each round's network is the next one's teacher",
        "teacher_dir": "each round's network is the next one's teacher",
        "cache.views": "the last round's network labels each image once, as in evaluation",
        "view": "the last round's network labels each image once, as in evaluation",
    },
    "evaluate": {
        key: "it trains nothing"
        for key in (
            *("alpha", "temperature", "t_squared", "loss", "label_smoothing", "schedule"),
            *("optimizer", "tracker", "recipe", "epochs", "steps", "batch_size", "learning_rate"),
            *("seed", "init_seed", "data_seed", "early_stopping", "checkpoint", "memory_gib"),
            *("precision", "rerun", "sweep", "view", "cache", *ROUND_KEYS),
        )
    }
    | {
        "teacher": "the run or file to evaluate is the word after it",
        "student": "the run or file to evaluate is the word after it",
        "teacher_dir": "the run or file to evaluate is the word after it",
        "experiment": "the data are chosen by dataset=OPTION",
    },
}


@dataclass
class Input:
    size: int | None = None
    scale: float = 1.0 / 255.0
    offset: float = 0.0


@dataclass
class Network:
    name: str = MISSING
    checkpoint: str | None = None
    input: Input = field(default_factory=Input)
    network: Any = MISSING


@dataclass
class Teacher(Network):
    weights: str | None = None
    train_if_missing: bool = True
    precision: str | None = None


@dataclass
class Dataset:
    name: str = MISSING
    image_shape: list[int] = MISSING
    num_classes: int = MISSING
    validation_fraction: float = 0.1
    labelled_fraction: float = 1.0
    split_seed: int = 0
    limit: int | None = None
    source: Any = MISSING


@dataclass
class EarlyStopping:
    patience: int | None = None
    monitor: str = "accuracy"


@dataclass
class Augment:
    train: list[Any] = field(default_factory=list)
    evaluate: list[Any] = field(default_factory=list)
    size: int | None = None
    seed: int = 0
    preview: bool = False


@dataclass
class Cache:
    logits: str = "float32"
    views: int | None = None


@dataclass
class Checkpoint:
    minutes: float = 10.0


@dataclass
class Pseudo:
    labels: str = "soft"
    threshold: float = 0.3
    balance: bool = True
    per_class: int | None = None
    epochs: int | None = None


@dataclass
class Config:
    """The root of a checked configuration. A node that is built (`Any`) has its own signature."""

    command: str = MISSING
    role: str = MISSING
    dataset: Dataset = field(default_factory=Dataset)
    teacher: Teacher = field(default_factory=Teacher)
    student: Network = field(default_factory=Network)
    loss: Any = None
    alpha: float | None = None
    temperature: float | None = None
    t_squared: bool | None = None
    label_smoothing: float = 0.0
    schedule: Any = MISSING
    optimizer: Any = MISSING
    augment: Augment = field(default_factory=Augment)
    view: str = "consistent"
    tracker: Any = None
    recipe: Any = None
    epochs: int = MISSING
    steps: int | None = None
    batch_size: int = MISSING
    learning_rate: float = MISSING
    seed: int = 0
    init_seed: int = 0
    data_seed: int = 0
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    cache: Cache = field(default_factory=Cache)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    memory_gib: float = 4.0
    precision: str = "float32"
    device: str = "auto"
    rerun: bool = False
    data_dir: str | None = None
    cache_dir: str = "outputs/cache"
    teacher_dir: str | None = None
    sweep: str | None = None
    rounds: int = 3
    pseudo: Pseudo = field(default_factory=Pseudo)
    what: str | None = None
    input: Input = field(default_factory=Input)


def check_ranges(plan: DictConfig) -> None:
    """Refuses values out of their ranges, as ConfigError."""

    def require(ok: bool, key: str, expected: str, value: Any = None) -> None:
        if not ok:
            received = OmegaConf.select(plan, key) if value is None else value
            raise ConfigError(f"{key}={received} must be {expected}")

    require(
        plan.command != "distill" or plan.teacher.checkpoint is None or not plan.teacher.weights,
        "teacher.weights",
        "null with teacher.checkpoint: the file has its own (leave one of the two out)",
    )
    if plan.alpha is not None:
        require(0 <= plan.alpha <= 1, "alpha", "between 0 and 1 (the weight of the hard labels)")
    if plan.temperature is not None:
        require(0 < plan.temperature < float("inf"), "temperature", "above 0")
    if plan.command != "evaluate":
        require(plan.epochs >= 1, "epochs", "at least 1")
        require(plan.steps is None or plan.steps >= 1, "steps", "at least 1, or null to use epochs")
        require(plan.batch_size >= 1, "batch_size", "at least 1")
        require(0 < plan.learning_rate < float("inf"), "learning_rate", "above 0")
    require(0 <= plan.label_smoothing < 1, "label_smoothing", "at least 0 and below 1")
    for key in ("seed", "init_seed", "data_seed", "dataset.split_seed", "augment.seed"):
        require(0 <= OmegaConf.select(plan, key) < 2**31, key, "between 0 and 2147483647")
    require(
        0 <= plan.dataset.validation_fraction < 1,
        "dataset.validation_fraction",
        "at least 0 and below 1",
    )
    require(
        0 < plan.dataset.labelled_fraction <= 1,
        "dataset.labelled_fraction",
        "above 0 and at most 1 (the share of the training images whose labels are used)",
    )
    limit = plan.dataset.limit
    require(limit is None or limit >= 1, "dataset.limit", "at least 1, or null for all images")
    require(plan.dataset.num_classes >= 2, "dataset.num_classes", "at least 2")
    shape = list(plan.dataset.image_shape)
    require(
        len(shape) == 3 and min(shape) >= 1 and shape[-1] in (1, 3),
        "dataset.image_shape",
        "[height, width, channels] with 1 or 3 channels",
    )
    stopping = plan.early_stopping
    require(
        stopping.patience is None or stopping.patience >= 1,
        "early_stopping.patience",
        "at least 1, or null to train to the end",
    )
    # (An official validation split comes with validation_fraction at its default.)
    require(
        stopping.patience is None or plan.dataset.validation_fraction > 0,
        "early_stopping.patience",
        "null with dataset.validation_fraction=0: there is nothing to watch",
    )
    require(stopping.monitor in ("accuracy", "nll"), "early_stopping.monitor", "accuracy or nll")
    require(plan.precision in PRECISIONS, "precision", " or ".join(PRECISIONS))
    require(
        plan.teacher.precision in (None, *PRECISIONS),
        "teacher.precision",
        f"{' or '.join(PRECISIONS)}, or null for the precision that it was trained in",
    )
    require(
        plan.cache.logits in ("float32", "float16", "none"),
        "cache.logits",
        "float32, float16 or none (the teacher is asked at every step)",
    )
    for part in ("train", "evaluate"):
        for number, node in enumerate(plan.augment[part]):
            if not isinstance(node, DictConfig) or not node.get("_partial_"):
                raise ConfigError(
                    f"augment.{part}[{number}]={node} must be a node such as "
                    "{_target_: kd_cli.data.horizontal_flip, _partial_: true}"
                )
    for name, node in (plan.tracker or {}).items():
        if not isinstance(node, DictConfig):
            raise ConfigError(
                f"tracker.{name}={node}: each tracker is a node under a name of its own; begin its "
                "file with the line: # @package tracker.NAME"
            )
        # Imported, and its options compared with what it takes; it is made when the run begins.
        plain = OmegaConf.to_container(node)
        build({**plain, "_partial_": True, "_recursive_": False}, f"tracker.{name}")
    size = plan.augment.size
    require(size is None or size >= 1, "augment.size", "at least 1, or null for the dataset's")
    require(plan.view in VIEWS, "view", f"{', '.join(VIEWS[:-1])} or {VIEWS[-1]}")
    require(
        plan.cache.views is None or plan.cache.views >= 1,
        "cache.views",
        "at least 1, or null for a new view in every epoch",
    )
    require(0 < plan.checkpoint.minutes < float("inf"), "checkpoint.minutes", "above 0")
    require(plan.memory_gib >= 0, "memory_gib", "at least 0")
    require(
        re.fullmatch(r"auto|cpu|gpu(:\d+)?", plan.device) is not None,
        "device",
        "auto, cpu, gpu or gpu:N",
    )
    require(plan.rounds >= 1, "rounds", "at least 1")
    pseudo = plan.pseudo
    require(pseudo.labels in ("hard", "soft"), "pseudo.labels", "hard or soft")
    require(0 <= pseudo.threshold < 1, "pseudo.threshold", "at least 0 and below 1")
    require(
        pseudo.per_class is None or (pseudo.balance and pseudo.per_class >= 1),
        "pseudo.per_class",
        "at least 1, or null; null with pseudo.balance=false",
    )
    require(
        pseudo.epochs is None or pseudo.epochs >= 1,
        "pseudo.epochs",
        "at least 1, or null for the epochs or steps of round 0",
    )
    require(plan.input.size is None or plan.input.size >= 1, "input.size", "at least 1, or null")
    if plan.command == "evaluate":
        return
    warmup, warmup_steps = (plan.schedule.get(f"warmup_{unit}") for unit in ("epochs", "steps"))
    # (Epochs against steps are compared by the schedule, which knows the length of an epoch.)
    if warmup_steps is not None and plan.steps is not None:
        require(
            0 <= warmup_steps < plan.steps,
            "schedule.warmup_steps",
            f"at least 0 and below steps={plan.steps}, because the warm-up counts inside it",
        )
    if warmup is not None and warmup_steps is None and plan.steps is None:
        require(
            0 <= warmup < plan.epochs,
            "schedule.warmup_epochs",
            f"at least 0 and below epochs={plan.epochs}, because the warm-up counts inside it",
        )


def view_shape(size: int | None, image_shape: Sequence[int]) -> tuple[int, ...]:
    """[H, W, C] of the pixels that the networks get: `augment.size` squared, or the dataset's."""
    return tuple(image_shape) if size is None else (size, size, image_shape[-1])
