"""Composes and checks configurations; `build` is the only caller of Hydra's `instantiate`.

Nothing here imports TensorFlow: a mistake in the configuration is told before it is loaded.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kd_cli.errors import DISK, LOSS_KEYS, ConfigError, explain, first_line
from kd_cli.manual import conf_dir
from kd_cli.schema import UNUSED, Config, check_ranges

# Hydra finds launchers in the package `hydra_plugins`, wherever on the path its folders lie.
_PLUGINS = str(Path(__file__).resolve().parent / "plugins")
if _PLUGINS not in sys.path:
    sys.path.append(_PLUGINS)


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


def scratch_overrides(typed: list[str]) -> list[str]:
    """Of a distill run's overrides those with which `kd train-student` trains its baseline."""
    unused = (*UNUSED["train-student"], "rerun")
    return [override for override in typed if override_key(override).split(".")[0] not in unused]


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
            "_target_": "kd_cli.losses.cross_entropy",
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
