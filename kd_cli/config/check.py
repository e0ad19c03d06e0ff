"""Composes and checks configurations; `build` is the only caller of Hydra's `instantiate`.

Nothing here imports TensorFlow: a mistake in the configuration is told before it is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kd_cli.config.keys import LOSS_KEYS
from kd_cli.config.messages import explain
from kd_cli.config.overrides import override_key
from kd_cli.config.schema import UNUSED, Config, check_ranges
from kd_cli.errors import ConfigError


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
    try:
        schema = OmegaConf.structured(Config)
        for group in ("dataset", "teacher", "student", "augment"):
            OmegaConf.set_struct(schema[group], False)  # an option may add keys of its own
        plan = OmegaConf.merge(schema, OmegaConf.create(resolved))
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, Config.__dataclass_fields__)) from error
    check_ranges(plan)
    if "teacher_dir" in resolved and plan.teacher_dir is None:
        raise ConfigError("teacher_dir=null: leave it out, or type teacher_dir=FOLDER")
    typed = OmegaConf.to_container(plan)
    plan = OmegaConf.create({key: typed[key] for key in resolved})
    OmegaConf.set_readonly(plan, True)
    return plan


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
        key = override_key(override)
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
