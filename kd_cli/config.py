"""The configuration's schema and checks, and `build`, the only caller of Hydra's `instantiate`.

Nothing here imports TensorFlow: a mistake in the configuration is told before it is loaded.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kd_cli.errors import DISK, LOSS_KEYS, ConfigError, explain, first_line
from kd_cli.manual import conf_dir

# Hydra finds launchers in the package `hydra_plugins`, wherever on the path its folders lie.
_PLUGINS = str(Path(__file__).resolve().parent / "plugins")
if _PLUGINS not in sys.path:
    sys.path.append(_PLUGINS)

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")

# The root keys that each command has no use for, and why. A recipe may set them all the same,
# because it serves all three commands; typed on the command line they are refused.
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
    },
    "train-student": {
        "alpha": "it trains without a teacher",
        "temperature": "it trains without a teacher",
        "t_squared": "it trains without a teacher",
        "loss": "its loss is the cross-entropy (see label_smoothing)",
        "teacher": "it trains without a teacher",
        "teacher_dir": "it trains without a teacher",
        "cache": "it asks no teacher",
    },
    "distill": {
        "label_smoothing": "it belongs to the cross-entropy of train-teacher and train-student"
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
    split_seed: int = 0
    limit: int | None = None
    source: Any = MISSING


@dataclass
class EarlyStopping:
    patience: int | None = None
    monitor: str = "accuracy"


@dataclass
class Cache:
    logits: str = "float32"


@dataclass
class Checkpoint:
    minutes: float = 10.0


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


def compose(command: str, overrides: list[str], config_dir: str | None = None) -> DictConfig:
    """Composes a command's configuration, inside a running Hydra job (with its search path) or not.

    Args:
        command: Names the primary config.
        overrides: As typed, without sweeps.
        config_dir: The user's `--config-dir`; inside a job Hydra knows it already.

    Raises:
        ConfigError: For an unknown key or option.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():
        return hydra.compose(command, overrides)
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="kd"):
        if config_dir is not None:
            path = Path(config_dir).expanduser().resolve()
            if not path.is_dir():
                raise ConfigError(f"--config-dir {config_dir} is not a folder")
            overrides = [*overrides, f"hydra.searchpath=[file://{path}]"]
        return hydra.compose(command, overrides, return_hydra_config=True)


def override_key(override: str) -> str:
    """The key that an override names: `+a.b=1` gives `a.b`, `~a` gives `a`, `db@x=y` gives `db`."""
    return override.lstrip("+~").split("=", 1)[0].split("@", 1)[0].replace("/", ".").strip()


def check(cfg: DictConfig, overrides: list[str] | tuple[str, ...] = ()) -> DictConfig:
    """Keeps what the command uses, resolved and typed; the user's mistakes become ConfigError.

    Args:
        cfg: The composed configuration; a `hydra` node in it is left out.
        overrides: What the user typed, to tell a key that he set from one that a recipe set.

    Returns:
        A new configuration without interpolations, read-only.

    Raises:
        ConfigError: With what was received, what was expected and what to type.
    """
    command = str(cfg.command)
    for override in overrides:
        if override_key(override) in ("command", "role"):
            raise ConfigError(f"{override}: the command is a word, as in: kd train-student")
    unused = dict(UNUSED[command])
    for group in ("dataset", "teacher", "student", "loss", "schedule", "optimizer"):
        node = cfg.get(group) if group not in unused else {}
        if not isinstance(node, Mapping | DictConfig):
            raise ConfigError(f"{command} needs a {group}: type {group}=OPTION (see kd --help)")
        if "network" in node and "_target_" not in (node["network"] or {}):
            raise ConfigError(
                f"{group}.network must name its function: {group}.network._target_=..."
            )
    if command == "distill":
        loss_text = OmegaConf.to_yaml(cfg.loss)
        for key in LOSS_KEYS:
            if not re.search(r"\$\{" + key + r"\}", loss_text):
                unused[key] = f"loss={_loss_name(cfg)} does not use it"
    for override in overrides:
        key = override_key(override)
        why = unused.get(key) or unused.get(key.split(".")[0])
        if why:
            hint = f"kd distill {override}" if command != "distill" and key in LOSS_KEYS else ""
            raise ConfigError(
                f"{command} has no use for '{key}' ({override}): {why}; leave it out"
                + (f", or type: {hint}" if hint else "")
            )
    keys = [key for key in cfg if key not in ("hydra", "experiment") and key not in unused]
    plain = OmegaConf.to_container(cfg)
    missing = _missing({key: plain[key] for key in keys})
    if missing:
        raise ConfigError(f"{missing} is missing: type {missing}=...")
    resolved = {key: _resolve(cfg, key) for key in keys}
    if command != "distill":
        resolved["loss"] = {
            "_target_": "kd_cli.losses.cross_entropy",
            "_partial_": True,
            "label_smoothing": resolved["label_smoothing"],
        }
    try:
        schema = OmegaConf.structured(Config)
        for group in ("dataset", "teacher", "student"):
            OmegaConf.set_struct(schema[group], False)  # an option may add keys of its own
        plan = OmegaConf.merge(schema, OmegaConf.create(resolved))
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, Config.__dataclass_fields__)) from error
    _check_ranges(plan)
    if "teacher_dir" in resolved and plan.teacher_dir is None:
        raise ConfigError("teacher_dir=null: leave it out, or type teacher_dir=FOLDER")
    plan = OmegaConf.create({key: OmegaConf.to_container(plan)[key] for key in resolved})
    OmegaConf.set_readonly(plan, True)
    return plan


def _loss_name(cfg: DictConfig) -> str:
    return str(cfg.loss.get("_target_", "loss")).rsplit(".", 1)[-1]


def _resolve(cfg: DictConfig, key: str) -> Any:
    """One root key without interpolations, as plain data."""
    try:
        value = cfg[key]
        if OmegaConf.is_config(value):
            return OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
        return value
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error


def _missing(plain: dict[Any, Any]) -> str | None:
    """The first key whose value is `???`, dotted."""
    for key, value in plain.items():
        inner = _missing(value) if isinstance(value, dict) else None
        if value == "???" or inner:
            return f"{key}.{inner}" if inner else str(key)
    return None


def _check_ranges(plan: DictConfig) -> None:
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
    require(plan.epochs >= 1, "epochs", "at least 1")
    require(plan.steps is None or plan.steps >= 1, "steps", "at least 1, or null to use epochs")
    require(plan.batch_size >= 1, "batch_size", "at least 1")
    require(0 < plan.learning_rate < float("inf"), "learning_rate", "above 0")
    require(0 <= plan.label_smoothing < 1, "label_smoothing", "at least 0 and below 1")
    for key in ("seed", "init_seed", "data_seed", "dataset.split_seed"):
        require(0 <= OmegaConf.select(plan, key) < 2**31, key, "between 0 and 2147483647")
    require(
        0 <= plan.dataset.validation_fraction < 1,
        "dataset.validation_fraction",
        "at least 0 and below 1",
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
    require(0 < plan.checkpoint.minutes < float("inf"), "checkpoint.minutes", "above 0")
    require(plan.memory_gib >= 0, "memory_gib", "at least 0")
    require(
        re.fullmatch(r"auto|cpu|gpu(:\d+)?", plan.device) is not None,
        "device",
        "auto, cpu, gpu or gpu:N",
    )
    warmup = plan.schedule.get("warmup_epochs")
    if warmup is not None and plan.schedule.get("warmup_steps") is None and plan.steps is None:
        require(
            0 <= warmup < plan.epochs,
            "schedule.warmup_epochs",
            f"at least 0 and below epochs={plan.epochs}, because the warm-up counts inside it",
        )


def build(node: Any, what: str, **runtime: Any) -> Any:
    """Calls a node's `_target_` with its keys and `runtime`.

    Args:
        node: A mapping with `_target_`, and `_partial_: true` for a function to be called later.
        what: How to name the node in an error (`student.network`).
        **runtime: Arguments that only the running program knows.

    Raises:
        ConfigError: When the target can't be found or refuses its arguments.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    plain = OmegaConf.to_container(node) if OmegaConf.is_config(node) else dict(node)
    if "_target_" not in plain:
        raise ConfigError(f"{what} has no _target_: name the function to call, {what}._target_=...")
    target = plain["_target_"]
    try:
        built = instantiate(plain, _convert_="all", **runtime)
    except InstantiationException as error:
        cause = error.__cause__
        while not isinstance(cause, ConfigError) and getattr(cause, "__cause__", None) is not None:
            cause = cause.__cause__
        if isinstance(cause, ConfigError):
            raise cause from None
        if isinstance(cause, OSError) and cause.errno in DISK:
            raise cause from None  # the disk's fault, not the configuration's
        raise ConfigError(f"{what}: {target} failed: {first_line(cause or error)}") from error
    if plain.get("_partial_"):
        _check_partial(built, what, target)
    return built


def _check_partial(partial: Any, what: str, target: str) -> None:
    """A partial object takes any keyword until it is called: look at the signature now."""
    parameters = inspect.signature(partial.func).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for key in partial.keywords:
        if key not in parameters:
            raise ConfigError(
                f"{what}: {target} takes no '{key}'; it takes {', '.join(parameters)} "
                f"(remove it with ~{what}.{key})"
            )
