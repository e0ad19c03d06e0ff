"""Overrides as the user typed them."""

from __future__ import annotations

from kd_cli.config.schema import UNUSED


def override_key(override: str) -> str:
    """The key that an override names: `+a.b=1` gives `a.b`, `~a` gives `a`, `db@x=y` gives `db`."""
    return override.lstrip("+~").split("=", 1)[0].split("@", 1)[0].replace("/", ".").strip()


def place_of(override: str) -> str:
    """The key that an override changes: as `override_key`, but `db@x=y` gives `x`."""
    key = override.lstrip("+~").split("=", 1)[0].strip()
    return key.partition("@")[2].partition(":")[0] or override_key(override)


def scratch_overrides(typed: list[str]) -> list[str]:
    """Of a distill run's overrides those with which `kd train-student` trains its baseline."""
    unused = (*UNUSED["train-student"], "rerun")
    return [override for override in typed if place_of(override).split(".")[0] not in unused]
