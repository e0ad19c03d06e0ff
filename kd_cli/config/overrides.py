"""Overrides as the user typed them."""

from __future__ import annotations

from kd_cli.config.schema import UNUSED


def override_key(override: str) -> str:
    """The key that an override names: `+a.b=1` gives `a.b`, `~a` gives `a`, `db@x=y` gives `db`."""
    return override.lstrip("+~").split("=", 1)[0].split("@", 1)[0].replace("/", ".").strip()


def scratch_overrides(typed: list[str]) -> list[str]:
    """Of a distill run's overrides those with which `kd train-student` trains its baseline."""
    unused = (*UNUSED["train-student"], "rerun")
    return [override for override in typed if override_key(override).split(".")[0] not in unused]
