"""Every network as an option of `student` and `teacher`, where no file of theirs has its name."""

from __future__ import annotations

from pathlib import Path

from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf

from kd_cli.config.compose import ROLES, networks_by_name


class NetworksByName(ConfigSource):
    """What stands behind `kd-networks://FOLDER` on the search path."""

    @staticmethod
    def scheme() -> str:
        return "kd-networks"

    def available(self) -> bool:
        return True

    def load_config(self, config_path: str) -> ConfigResult:
        name = config_path.rpartition("/")[2].removesuffix(".yaml")
        option = {"defaults": [{"/network@network": name}, "_self_"], "name": name}
        return ConfigResult(
            config=OmegaConf.create(option),
            path=f"{self.scheme()}://{self.path}",
            provider=self.provider,
            header={"package": None},
        )

    def is_group(self, config_path: str) -> bool:
        return config_path.rstrip("/") in ROLES

    def is_config(self, config_path: str) -> bool:
        group, _, name = config_path.removesuffix(".yaml").rpartition("/")
        return group in ROLES and name in networks_by_name(group, Path(self.path))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path.rstrip("/") in ROLES and results_filter != ObjectType.GROUP:
            return networks_by_name(config_path.rstrip("/"), Path(self.path))
        return [*ROLES] if config_path == "" and results_filter != ObjectType.CONFIG else []
