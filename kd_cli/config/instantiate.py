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
    keys = [key for key in plain if not key.startswith("_")]
    for key in keys:
        if key in runtime:
            raise ConfigError(f"{what}.{key}: kd gives {target} this argument itself; leave it out")
    by_position = bool(plain.get("_partial_") or plain.get("_args_"))
    _check_arguments(target, {*keys, *runtime}, by_position, what)
    try:
        return instantiate(plain, _convert_="all", **runtime)
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


def _check_arguments(target: str, given: set[str], by_position: bool, what: str) -> None:
    """Compares the keys of a node with the signature of its function, where that can be seen.

    Hydra would take any keyword for a partial function, until it is called.

    Args:
        target: The function's dotted name.
        given: Names of the arguments.
        by_position: Whether more come by position, now or when a partial function is called.
        what: How to name the node.
    """
    try:
        parameters = inspect.signature(pkgutil.resolve_name(target)).parameters
    except Exception:  # no such function, or its module fails: Hydra tells; or it is written in C
        return
    kinds = {parameter.kind for parameter in parameters.values()}
    extra = [key for key in sorted(given) if key not in parameters]
    if extra and inspect.Parameter.VAR_KEYWORD not in kinds:
        words = ", ".join(f"'{key}'" for key in extra)
        remove = " ".join(f"~{what}.{key}" for key in extra)
        raise ConfigError(
            f"{what}: {target} takes no {words}; it takes {', '.join(parameters)} "
            f"(remove it with {remove})"
        )
    named = {inspect.Parameter.KEYWORD_ONLY}
    named |= set() if by_position else {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.kind in named and parameter.default is parameter.empty and name not in given
    ]
    if missing:
        words = ", ".join(f"'{name}'" for name in missing)
        raise ConfigError(
            f"{what}: {target} needs {words}; type +{what}.{missing[0]}=..., or write it into the "
            "option's YAML"
        )


def _public_name(target: str) -> str:
    """`; did you mean kd_cli.networks.cnn?` for a public name that stands elsewhere in kd."""
    name = target.rsplit(".", 1)[-1]
    if target.startswith("kd_cli."):
        for _, package, has_files in pkgutil.iter_modules(kd_cli.__path__):
            if not has_files:
                continue
            public = getattr(importlib.import_module(f"kd_cli.{package}"), "PUBLIC", ())
            if name in public and target != f"kd_cli.{package}.{name}":
                return f"; did you mean kd_cli.{package}.{name}?"
    return ""
