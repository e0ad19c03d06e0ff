"""Checks a composed configuration: types, ranges, unused keys. Errors become ConfigError.

The result is called a plan. Nothing here imports TensorFlow, so an error appears at once.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kd_cli.config.adapter import check_adapter
from kd_cli.config.debug import WHERE_PRESENT, smaller
from kd_cli.config.head_first import check_head_first
from kd_cli.config.idle import count_typed_epochs, refuse_idle, refuse_unread
from kd_cli.config.instantiate import build
from kd_cli.config.keys import UNUSED, VARIABLES, Config, walk
from kd_cli.config.losses import (
    check_entries,
    loss_name,
    refuse_below_loss,
    require_entries,
    unused_by_loss,
)
from kd_cli.config.messages import GLOBAL, explain, unknown_key
from kd_cli.config.overrides import is_typed, override_key, place_of
from kd_cli.config.plans import (
    cross_entropy,
    given_by,
    has_rounds,
    is_taught,
    teacher_augment_follows,
    teacher_plan,
    trains_teacher,
    unlabelled_left_out,
    view_shape,
)
from kd_cli.config.row import NAME, flat
from kd_cli.config.unused import TRAINS_NOTHING
from kd_cli.errors import ConfigError
from kd_cli.terminal import brief

# Groups whose options set keys of others.
RECIPES = ("experiment", "pair", "debug")
# Where each group names the function that is called.
_BUILT = {
    "dataset": "dataset.source",
    "teacher": "teacher.network",
    "student": "student.network",
    "schedule": "schedule",
    "optimizer": "optimizer",
}


def check(cfg: DictConfig, overrides: list[str] | tuple[str, ...] = ()) -> DictConfig:
    """Returns what the command uses of a configuration, resolved and typed.

    Args:
        cfg: The composed configuration; a `hydra` node in it is left out.
        overrides: What the user typed, to tell a key that was typed from one that a recipe set.

    Returns:
        A new configuration without interpolations, read-only. Its root says how the network that
        the command trains is trained: of train-teacher these are the keys of teacher.training.

    Raises:
        ConfigError: With what was received, what was expected and what to type.
    """
    command = str(cfg.command)
    for override in overrides:
        if override_key(override) == "command":
            raise ConfigError(f"{override}: the command is a word, as in: kd train-student")
    unused = dict(UNUSED[command])
    for group in _BUILT:
        if group not in unused:
            _require_node(cfg, group, command)
    if "loss" not in unused:
        require_entries(cfg, command, overrides)
        unused |= unused_by_loss(cfg)
    _refuse_unread_files(cfg)
    refuse_unused(command, overrides, unused)
    if "loss" not in unused:
        refuse_below_loss(cfg, overrides)
    for override in overrides:
        key = override_key(override)
        if override.startswith("~") and key in Config.__dataclass_fields__ and key not in RECIPES:
            raise ConfigError(
                f"{override}: {command} needs this key; leave it out, or type a value"
            )
    for key in cfg:
        if key not in Config.__dataclass_fields__ and key != "hydra":
            known = [name for name in Config.__dataclass_fields__ if name not in unused]
            raise ConfigError(unknown_key(str(key), known, command=command))
    keys = [key for key in cfg if key not in unused and key not in ("hydra", *RECIPES)]
    refuse_unread(cfg, keys, overrides)
    plain = OmegaConf.to_container(cfg)
    missing = _missing({key: plain[key] for key in keys})
    if missing:
        raise ConfigError(f"{missing} is missing: type {missing}=...")
    resolved = {key: _resolve(cfg, key) for key in keys}
    if "loss" in unused and command not in TRAINS_NOTHING:
        resolved["loss"] = cross_entropy(resolved["label_smoothing"])
    for node in resolved.get("loss", {}).values():  # it gets what they come to on the data
        node.pop("class_weights", None)
    for key in VARIABLES:
        if key in resolved and resolved[key] is None and key != "class_weights":
            raise ConfigError(
                f"{key}=null: loss={loss_name(cfg.loss)} needs a value; type {key}=..."
            )
    if resolved.get("outputs"):
        resolved["outputs"] = os.path.expanduser(str(resolved["outputs"]))
    _fill_partial(resolved)
    smaller(resolved, OmegaConf.to_container(cfg).get("debug"), overrides)
    plan = _typed(resolved)
    missing = _missing(OmegaConf.to_container(plan))
    if missing:  # a key that was taken away, as in ~dataset.name
        raise ConfigError(f"{missing} is missing: type +{missing}=...")
    check_ranges(plan)
    check_entries(OmegaConf.to_container(plan).get("loss") or {})
    if is_taught(plan) and given_by(plan) and is_typed("teacher.training", overrides):
        one = next(o for o in overrides if is_typed("teacher.training", [o]))
        raise ConfigError(
            f"{one}: the teacher is given by {given_by(plan)} and not trained; leave one of the "
            "two out"
        )
    count_typed_epochs(plan, overrides)
    refuse_idle(plan, overrides)
    check_head_first(plan, overrides)
    every = plan.dataset.labelled_fraction == 1 and not is_typed("dataset.unlabelled", overrides)
    if every or not is_taught(plan):
        plan.dataset.unlabelled = "leave_out"
    if not is_taught(plan) and not has_rounds(plan):
        plan.dataset.update(unlabelled_left_out(plan.dataset))
    if trains_teacher(plan):
        _refuse_ignored_augment(plan, overrides)
        plan = teacher_plan(plan)
    OmegaConf.set_readonly(plan, True)
    return plan


def _require_node(cfg: DictConfig, group: str, command: str) -> None:
    """Refuses a group without an option, and an option that names no function."""
    place = _BUILT[group]
    try:
        node = OmegaConf.select(cfg, group)
        built = OmegaConf.select(cfg, place)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    # (The table has the keys of all options, so `~student` leaves a node without a name.)
    if not isinstance(node, DictConfig) or ("." in place and built is None and _nameless(node)):
        raise ConfigError(f"{command} needs a {group}: type {group}=OPTION (see kd --help)")
    if not isinstance(built, DictConfig) or "_target_" not in built:
        raise ConfigError(f"{place} must name its function: {place}._target_=...")


def _nameless(node: DictConfig) -> bool:
    return "name" not in node or OmegaConf.is_missing(node, "name")


def _refuse_unread_files(cfg: DictConfig) -> None:
    """Refuses keys of an experiment or of debug that stay inside that group: nothing reads them."""
    for group in RECIPES:
        node = cfg.get(group)
        if not isinstance(node, DictConfig):
            continue
        stray = [str(key) for key in node if (group, key) != ("debug", WHERE_PRESENT)]
        if stray:
            option = OmegaConf.select(cfg, f"hydra.runtime.choices.{group}") or "..."
            raise ConfigError(f"{group}={option}: {stray[0]} is not a key of this group; {GLOBAL}")


def _fill_partial(resolved: dict[str, Any]) -> None:
    """Losses, schedules and augmentation nodes are called later, whether or not they say so."""
    training = (resolved.get("teacher") or {}).get("training") or {}
    nodes = list((resolved.get("loss") or {}).values())
    for place in (resolved, training):
        augment = place.get("augment") or {}
        nodes.append(place.get("schedule"))
        nodes += [node for part in ("train", "evaluate") for node in augment.get(part) or []]
    for node in nodes:
        if isinstance(node, dict) and "_target_" in node:
            node.setdefault("_partial_", True)


def _refuse_ignored_augment(plan: DictConfig, overrides: list[str] | tuple[str, ...]) -> None:
    """The teacher is augmented as the root says, unless a recipe gives it its own augmentation."""
    typed = [override for override in overrides if is_typed("augment", [override])]
    own = is_typed("teacher.training.augment", overrides)
    if typed and not own and not teacher_augment_follows(plan):
        raise ConfigError(
            f"{typed[0]}: the recipe gives the teacher an augmentation of its own; type "
            "augment@teacher.training.augment=OPTION"
        )


@functools.cache
def _schema() -> DictConfig:
    """The table's types and defaults; to be merged with, which copies it."""
    schema = OmegaConf.structured(Config)
    for group in ("dataset", "teacher", "student", "augment", "teacher.training.augment"):
        # An option may add keys of its own.
        OmegaConf.set_struct(OmegaConf.select(schema, group), False)
    return schema


def _typed(resolved: dict[str, Any]) -> DictConfig:
    """The keys with the types and defaults of the table."""
    try:
        typed = OmegaConf.to_container(OmegaConf.merge(_schema(), OmegaConf.create(resolved)))
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, [name for name, _ in walk()])) from error
    return OmegaConf.create({key: typed[key] for key in resolved})


def refuse_unused(
    command: str, overrides: list[str] | tuple[str, ...], unused: Mapping[str, str]
) -> None:
    """Raises ConfigError for a typed key that the command does not use.

    Args:
        command: Its word.
        overrides: What the user typed.
        unused: Keys and why the command does not use them, such as `keys.UNUSED[command]`.
    """
    for override in overrides:
        key = place_of(override)
        why = unused.get(key) or unused.get(key.split(".")[0])
        if why:
            trains = command not in ("distill", *TRAINS_NOTHING)
            hint = f"kd distill {override}" if trains and key in VARIABLES else ""
            raise ConfigError(
                f"{command} does not use {key}: {why}; remove {override}"
                + (f", or type: {hint}" if hint else "")
            )


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


def check_ranges(plan: DictConfig) -> None:
    """Refuses values out of the ranges of the table, and keys that contradict each other."""
    values = flat(OmegaConf.to_container(plan))
    for name, row in walk():
        value = values.get(name)
        must = row.metadata["must_of"].get(plan.get("command"), row.metadata["must"])
        if must is None or value is None:
            continue
        ok, expected = must
        if not ok(value):
            text = brief(value) if isinstance(value, str) else str(value)
            text = text if text.isprintable() else ascii(text)
            raise ConfigError(f"{name}={text} must be {expected}")

    def require(ok: bool, key: str, expected: str) -> None:
        if not ok:
            raise ConfigError(f"{key}={OmegaConf.select(plan, key)} must be {expected}")

    _check_trackers(plan.get("tracker"))
    for place in ("augment", "teacher.training.augment"):
        augment = OmegaConf.select(plan, place)
        _check_nodes(augment, place, plan.dataset.image_shape)
        channels = plan.dataset.image_shape[-1]
        require(
            augment is None or not augment.get("preview") or channels in (1, 3),
            f"{place}.preview",
            f"false (or left out): it draws images of 1 or 3 channels, not {channels}",
        )
    for place in ("teacher.input", "student.input", "input"):
        check_adapter(plan, place)
    if is_taught(plan):
        require(
            plan.teacher.checkpoint is None or plan.teacher.weights is None,
            "teacher.weights",
            "null with teacher.checkpoint: the file has its own (leave one of the two out)",
        )
        require(
            plan.teacher.logits is None
            or (plan.teacher.checkpoint is None and plan.teacher.weights is None),
            "teacher.logits",
            f"null with {given_by(plan)}: a teacher is a network or a file of logits (leave one "
            "of the two out)",
        )
        require(
            plan.teacher.members == 1 or not given_by(plan),
            "teacher.members",
            f"1 with {given_by(plan)}: these teachers are trained (leave one of the two out)",
        )
        require(
            plan.teacher.module is None or plan.teacher.checkpoint is not None,
            "teacher.module",
            "null without teacher.checkpoint: kd finds the layers of its own runs",
        )
    if "pseudo" in plan:
        require(
            plan.pseudo.per_class is None or plan.pseudo.balance,
            "pseudo.per_class",
            "null with pseudo.balance=false",
        )
    for place in ("", "teacher.training."):
        training = OmegaConf.select(plan, place.rstrip(".")) if place else plan
        if training is None or training.get("epochs") is None:
            continue
        # (An official validation split comes with validation_fraction at its default.)
        require(
            training.early_stopping.patience is None or plan.dataset.validation_fraction > 0,
            f"{place}early_stopping.patience",
            "null with dataset.validation_fraction=0: there is nothing to watch",
        )
        _check_warmup(training, place, require)
        weights = training.get("class_weights")
        require(
            weights in (None, "balanced")
            or (OmegaConf.is_list(weights) and len(weights) == plan.dataset.num_classes),
            f"{place}class_weights",
            f"a list of {plan.dataset.num_classes} numbers, one for each class",
        )


def _check_trackers(trackers: DictConfig | None) -> None:
    for name, node in (trackers or {}).items():
        ok, expected = NAME
        if not ok(str(name)):  # it becomes a folder in the run's directory
            raise ConfigError(f"tracker.{ascii(str(name))[1:-1]}: it must have {expected}")
        if not isinstance(node, DictConfig):
            raise ConfigError(
                f"tracker.{name}={node}: expected a mapping with _target_; "
                "start the tracker's YAML with `# @package tracker.NAME`"
            )
        # Imported, and its options compared with what it takes; it is made when the run begins.
        plain = OmegaConf.to_container(node)
        build({**plain, "_partial_": True, "_recursive_": False}, f"tracker.{name}")


def _check_nodes(augment: DictConfig | None, place: str, image_shape: Sequence[int]) -> None:
    size = (augment or {}).get("size")
    if size is not None and not augment.get("train") and not augment.get("evaluate"):
        group = "augment" if place == "augment" else f"augment@{place}"
        if view_shape(size, image_shape) != tuple(image_shape):
            raise ConfigError(
                f"{place}.size={size}: no augmentation step resizes or crops images to this size; "
                f"choose e.g. {group}=inception, or leave it out"
            )
    for part in ("train", "evaluate"):
        for number, node in enumerate((augment or {}).get(part, [])):
            if not isinstance(node, DictConfig) or not node.get("_partial_"):
                raise ConfigError(
                    f"{place}.{part}[{number}]={node} must be a node such as "
                    "{_target_: kd_cli.data.horizontal_flip, _partial_: true}"
                )


def _check_warmup(training: DictConfig, place: str, require: Any) -> None:
    """(Epochs against steps are compared by the schedule, which knows an epoch's length.)"""
    warmup, steps = (training.schedule.get(f"warmup_{unit}") for unit in ("epochs", "steps"))
    if steps is not None and training.steps is not None:
        require(
            0 <= steps < training.steps,
            f"{place}schedule.warmup_steps",
            f"at least 0 and below {place}steps={training.steps}, because the warm-up counts "
            "inside it",
        )
    if warmup is not None and steps is None and training.steps is None:
        require(
            0 <= warmup < training.epochs,
            f"{place}schedule.warmup_epochs",
            f"at least 0 and below {place}epochs={training.epochs}, because the warm-up counts "
            "inside it",
        )
