"""`build`, the only caller of Hydra's `instantiate`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

from omegaconf import OmegaConf

import kd_cli
from kd_cli.errors import DISK, ConfigError, first_line


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
        raise ConfigError(
            f"{what}: {target} failed: {first_line(cause or error)}{_public_name(target)}"
        ) from error
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


def _public_name(target: str) -> str:
    """`; did you mean kd_cli.networks.cnn?` for a name of kd's under another room."""
    name = target.rsplit(".", 1)[-1]
    if target.startswith("kd_cli."):
        for _, room, is_room in pkgutil.iter_modules(kd_cli.__path__):
            public = (
                getattr(importlib.import_module(f"kd_cli.{room}"), "PUBLIC", ()) if is_room else ()
            )
            if name in public and target != f"kd_cli.{room}.{name}":
                return f"; did you mean kd_cli.{room}.{name}?"
    return ""
