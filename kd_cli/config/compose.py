"""Composes configurations from the shipped YAML, the user's and the overrides."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kd_cli.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def conf_dir() -> Path:
    """The folder of the shipped YAML: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


# Hydra finds launchers in the package `hydra_plugins`, wherever on the path its folders lie.
_PLUGINS = str(Path(__file__).resolve().parent.parent / "plugins")
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
        cfg = hydra.compose(command, overrides, return_hydra_config=True)
    for group, option in cfg.hydra.runtime.choices.items():
        if str(option).startswith("_"):
            raise ConfigError(
                f"no option '{option}' in group '{group}': a name that begins with _ is for other "
                "options to extend (defaults: in their YAML)"
            )
    return cfg
