"""Composes configurations from the shipped YAML, the user's and the overrides."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_cli.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Hydra finds plugins in the package `hydra_plugins`, wherever on the path its folders lie. One of
# ours puts the shipped YAML on every search path, behind the user's --config-dir.
_PLUGINS = str(Path(__file__).resolve().parent.parent / "plugins")
if _PLUGINS not in sys.path:
    sys.path.append(_PLUGINS)


ROLES = ("student", "teacher")  # a network serves as both


def conf_dir() -> Path:
    """The folder of the shipped YAML: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def networks_by_name(role: str, folder: Path | None = None) -> list[str]:
    """The networks that are options of a role without a file of their own there.

    A network that has a file in the other role, because that says more than its name (the input's
    scale), is none of them.

    Args:
        role: `student` or `teacher`.
        folder: That has the groups: the shipped YAML, or the user's --config-dir.
    """
    folder = conf_dir() if folder is None else folder
    network, *others = (
        {path.stem for path in (folder / group).glob("[!_]*.yaml")}
        for group in ("network", *(other for other in ROLES if other != role))
    )
    return sorted(network.difference(*others))


def main_dir(config_dir: str | None) -> str:
    """The folder that Hydra looks into first: the user's --config-dir, or the shipped YAML.

    Raises:
        ConfigError: When `config_dir` is not a folder.
    """
    path = conf_dir() if config_dir is None else Path(config_dir).expanduser().resolve()
    if not path.is_dir():
        raise ConfigError(f"--config-dir {config_dir} is not a folder")
    # So that `_target_` reaches modules of the user's, beside the YAML or in the working directory.
    for folder in ([] if config_dir is None else [str(path)]) + [str(Path.cwd())]:
        if folder not in sys.path:
            sys.path.append(folder)
    return str(path)


@functools.cache
def register() -> None:
    """Makes the typed keys of the table known to Hydra, as options of the group `kd`."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from kd_cli.config.keys import Dataset, Keys, Student, Teacher, TeacherKeys

    tables = {
        "keys": Keys,
        "training": TeacherKeys,
        "dataset": Dataset,
        "teacher": Teacher,
        "student": Student,
    }
    for name, table in tables.items():
        typed = OmegaConf.structured(table)
        # An open mapping of typed keys: options, and a user's own YAML, add theirs.
        nodes = {str(key): typed._get_node(key) for key in typed if key != "training"}
        ConfigStore.instance().store(group="kd", name=name, node=OmegaConf.create(nodes))


@contextlib.contextmanager
def initialized(config_dir: str | None = None) -> Iterator[Any]:
    """Hydra with our YAML and the user's, for as long as the context lasts.

    Args:
        config_dir: The user's `--config-dir`.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    register()
    with hydra.initialize_config_dir(main_dir(config_dir), version_base="1.3", job_name="kd"):
        yield GlobalHydra.instance().hydra


def compose(command: str, overrides: list[str], config_dir: str | None = None) -> DictConfig:
    """Composes a command's configuration, Hydra's own node included.

    Args:
        command: Names the primary config.
        overrides: As typed, without sweeps.
        config_dir: The user's `--config-dir`, whose options win over the shipped ones.

    Raises:
        ConfigError: For an unknown key or option, or a value of the wrong type.
    """
    import hydra
    from hydra.conf import HydraConf
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from kd_cli.config.messages import explain, explain_hydra
    from kd_cli.config.overrides import override_key
    from kd_cli.errors import first_line

    params = [o for o in overrides if override_key(o).startswith("hydra.sweeper.params")]
    if params and not any(override_key(o) == "hydra.sweeper" for o in overrides):
        raise ConfigError(  # Hydra's own sweeper fails on them
            f"{params[0]}: type the keys that you sweep over themselves, as in: "
            "kd distill --multirun seed=0,1"
        )
    try:
        with initialized(config_dir):
            cfg = hydra.compose(command, overrides, return_hydra_config=True)
    except HydraException as error:
        raise ConfigError(
            explain_hydra(error, known_keys(command, overrides), overrides, command)
        ) from error
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(first_line(error)) from error  # Hydra's own, for student=null
    for override in overrides:
        place = override_key(override).split(".")
        if override.startswith("+") and place[0] == "hydra" and "/" not in override.split("=")[0]:
            if place[1:] and place[1] not in HydraConf.__dataclass_fields__:
                raise ConfigError(
                    f"{override}: nothing uses the key hydra.{place[1]}; leave it out"
                )
    for group, option in cfg.hydra.runtime.choices.items():
        if str(option).startswith("_"):
            raise ConfigError(
                f"no option '{option}' in group '{group}': a name that begins with _ is for other "
                "options to extend (defaults: in their YAML)"
            )
    return cfg


def known_keys(command: str, overrides: list[str]) -> list[str]:
    """All dotted keys that the command uses, with the groups chosen so far, to suggest one."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf

    from kd_cli.config.keys import UNUSED
    from kd_cli.config.overrides import override_key

    groups = {p.name for p in conf_dir().iterdir() if p.is_dir()}
    chosen = [override for override in overrides if override_key(override) in groups]
    cfg: Any = None
    with initialized():
        try:
            cfg = hydra.compose(command, chosen)
        except HydraException:  # the mistake is in the choice of an option
            cfg = hydra.compose(command, [])
    keys: list[str] = []

    def walk(node: DictConfig, prefix: str) -> None:
        for key in node:
            keys.append(prefix + str(key))
            if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
                if isinstance(node[key], DictConfig):
                    walk(node[key], f"{prefix}{key}.")

    walk(cfg, "")
    refused = UNUSED[command]
    return [key for key in keys if key not in refused and key.split(".")[0] not in refused]
