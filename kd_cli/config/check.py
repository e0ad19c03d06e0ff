"""Composes and checks configurations; `build` is the only caller of Hydra's `instantiate`.

Nothing here imports TensorFlow: a mistake in the configuration is told before it is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kd_cli.config.debug import WHERE_PRESENT, smaller
from kd_cli.config.keys import LOSS_KEYS
from kd_cli.config.messages import GLOBAL, explain
from kd_cli.config.overrides import override_key, place_of
from kd_cli.config.schema import UNUSED, Config, check_ranges
from kd_cli.errors import ConfigError

# Where each group names the function that is called.
_BUILT = {
    "dataset": "dataset.source",
    "teacher": "teacher.network",
    "student": "student.network",
    "loss": "loss",
    "schedule": "schedule",
    "optimizer": "optimizer",
}


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
    for group in _BUILT:
        if group not in unused:
            _require_node(cfg, group, command)
    _refuse_unread_files(cfg)
    if command == "distill":
        loss_text = OmegaConf.to_yaml(cfg.loss)
        for key in LOSS_KEYS:
            if not re.search(r"\$\{" + key + r"\}", loss_text):
                unused[key] = f"loss={_loss_name(cfg)} does not use it"
    refuse_unused(command, overrides, unused)
    keys = [key for key in cfg if key not in ("hydra", "experiment") and key not in unused]
    plain = OmegaConf.to_container(cfg)
    missing = _missing({key: plain[key] for key in keys})
    if missing:
        raise ConfigError(f"{missing} is missing: type {missing}=...")
    resolved = {key: _resolve(cfg, key) for key in keys}
    if "label_smoothing" in resolved:
        resolved["loss"] = {
            "_target_": "kd_cli.distillation.cross_entropy",
            "_partial_": True,
            "label_smoothing": resolved["label_smoothing"],
        }
    _fill_partial(resolved)
    smaller(resolved, overrides)
    try:
        schema = OmegaConf.structured(Config)
        for group in ("dataset", "teacher", "student", "augment"):
            OmegaConf.set_struct(schema[group], False)  # an option may add keys of its own
        plan = OmegaConf.merge(schema, OmegaConf.create(resolved))
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, Config.__dataclass_fields__)) from error
    typed = OmegaConf.to_container(plan)
    missing = _missing({key: typed[key] for key in resolved})
    if missing:  # a key that was taken away, as in ~dataset.name
        raise ConfigError(f"{missing} is missing: type +{missing}=...")
    check_ranges(plan)
    if "teacher_dir" in resolved and plan.teacher_dir is None:
        raise ConfigError("teacher_dir=null: leave it out, or type teacher_dir=FOLDER")
    plan = OmegaConf.create({key: typed[key] for key in resolved})
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
    # (base.yaml holds what all options have, so `~student` leaves a node without a name.)
    if not isinstance(node, DictConfig) or ("." in place and built is None and _nameless(node)):
        raise ConfigError(f"{command} needs a {group}: type {group}=OPTION (see kd --help)")
    if not isinstance(built, DictConfig) or "_target_" not in built:
        raise ConfigError(f"{place} must name its function: {place}._target_=...")


def _nameless(node: DictConfig) -> bool:
    return "name" not in node or OmegaConf.is_missing(node, "name")


def _refuse_unread_files(cfg: DictConfig) -> None:
    """Keys of an experiment or of debug that stay in that group are no keys of kd."""
    for group in ("experiment", "debug"):
        node = cfg.get(group)
        if not isinstance(node, DictConfig):
            continue
        stray = [str(key) for key in node if (group, key) != ("debug", WHERE_PRESENT)]
        if stray:
            option = OmegaConf.select(cfg, f"hydra.runtime.choices.{group}") or "..."
            raise ConfigError(f"{group}={option}: {stray[0]} is no key there; {GLOBAL}")


def _fill_partial(resolved: dict[str, Any]) -> None:
    """Losses, schedules and augmentation nodes are called later, whether or not they say so."""
    augment = resolved.get("augment") or {}
    nodes = [resolved.get("loss"), resolved.get("schedule")]
    nodes += [node for part in ("train", "evaluate") for node in augment.get(part) or []]
    for node in nodes:
        if isinstance(node, dict) and "_target_" in node:
            node.setdefault("_partial_", True)


def refuse_unused(
    command: str, overrides: list[str] | tuple[str, ...], unused: Mapping[str, str]
) -> None:
    """Raises ConfigError for a typed key that the command has no use for.

    Args:
        command: Its word.
        overrides: What the user typed.
        unused: Keys and why they are of no use, such as `schema.UNUSED[command]`.
    """
    for override in overrides:
        key = place_of(override)
        why = unused.get(key) or unused.get(key.split(".")[0])
        if why:
            trains = command not in ("distill", "evaluate")
            hint = f"kd distill {override}" if trains and key in LOSS_KEYS else ""
            raise ConfigError(
                f"{command} has no use for '{key}' ({override}): {why}; leave it out"
                + (f", or type: {hint}" if hint else "")
            )


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
