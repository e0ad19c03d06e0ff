"""The requested runs; each is composed, checked and given a directory once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from kd_cli.config.check import check
from kd_cli.config.quoting import no_reference
from kd_cli.errors import ConfigError
from kd_cli.runs.identity import beside, run_dir, run_name
from kd_cli.runs.ownership import check_before_start, check_given_files

# What conf/base.yaml says of the directories that kd finds itself.
_OURS = "${kd.run_dir:}"


@dataclass(frozen=True)
class Run:
    """A requested run.

    Attributes:
        plan: Its checked configuration, from `config.check`.
        out: Its directory.
        typed: The overrides that the user typed.
        config_dir: The user's `--config-dir`, for commands that are printed to be typed.
        configuration: What `.hydra/` is to hold, by its files.
    """

    plan: DictConfig
    out: Path
    typed: list[str]
    config_dir: str | None = None
    configuration: Mapping[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> Mapping[str, Any]:
        """What `.hydra/` holds; of a run inside another one its plan."""
        return self.configuration or {"config.yaml": self.plan, "overrides.yaml": self.typed}


@dataclass
class Runs:
    """The checked runs of one command, by their overrides.

    Hydra composes a run again when it starts it; its plan and its directory are taken from here.

    Attributes:
        config_dir: The user's `--config-dir`.
        plans: Of the runs.
        names: Of their directories.
    """

    config_dir: str | None = None
    plans: dict[tuple[str, ...], DictConfig] = field(default_factory=dict)
    names: dict[tuple[str, ...], str] = field(default_factory=dict)

    def plan(self, cfg: DictConfig, typed: Sequence[str]) -> DictConfig:
        """The plan of a composed configuration; checked when it is new.

        Raises:
            ConfigError: A mistake in the configuration, or a given file that is not there.
        """
        key = tuple(typed)
        if key not in self.plans:
            plan = check(cfg, key)
            check_given_files(plan)
            self.plans[key] = plan
        return self.plans[key]

    def single(self, cfg: DictConfig) -> Run:
        """A run by itself, in Hydra's `hydra.run.dir` where that was chosen, else in its own place.

        Raises:
            ConfigError: A mistake in the configuration, or a directory that it can't have.
        """
        _refuse_chdir(cfg)
        if cfg.hydra.mode == RunMode.MULTIRUN:
            raise ConfigError("hydra.mode=MULTIRUN: leave it out, and type --multirun for a sweep")
        typed = typed_for(cfg.hydra)
        plan = self.plan(cfg, typed)
        chosen = OmegaConf.to_container(cfg.hydra.run)["dir"] != _OURS
        _refuse_empty(cfg, "run.dir" if chosen else "")
        out = Path(cfg.hydra.run.dir) if chosen else run_dir(plan)
        return _checked(Run(plan, out, typed, self.config_dir))

    def point(self, cfg: DictConfig, number: int) -> Run:
        """A point of a sweep, in the directory that Hydra will give it.

        Raises:
            ConfigError: As `single`.
        """
        _refuse_chdir(cfg)
        typed = typed_for(cfg.hydra)
        plan = self.plan(cfg, typed)
        _refuse_empty(cfg, "sweep.dir", "sweep.subdir")
        with open_dict(cfg):
            cfg.hydra.job.num, cfg.hydra.job.id = number, str(number)
        out = Path(cfg.hydra.sweep.dir) / str(cfg.hydra.sweep.subdir)
        return _checked(Run(plan, out, typed, self.config_dir))

    def name(self, cfg: DictConfig) -> str:
        """The name of a point's directory, for `hydra.sweep.subdir`."""
        typed = tuple(typed_for(cfg.hydra))
        if typed not in self.names:
            plan = self.plan(cfg, typed)
            folder = Path(cfg.hydra.sweep.dir) / run_name(plan)
            self.names[typed] = beside(folder, plan.rerun).name
        return self.names[typed]


def typed_for(hydra: DictConfig) -> list[str]:
    """The overrides of a run as they were typed: a reference in one of them is its own text."""
    return OmegaConf.to_container(hydra.overrides.task, resolve=False)


def _checked(run: Run) -> Run:
    if "${" in str(run.out.absolute()):  # Hydra records the path, and reads it again
        raise ConfigError(no_reference(run.out.absolute()))
    check_before_start(run.plan, run.out, run.typed, run.config_dir)
    return run


def _refuse_empty(cfg: DictConfig, *places: str) -> None:
    for place in filter(None, places):
        if not str(OmegaConf.select(cfg.hydra, place, throw_on_resolution_failure=False)).strip():
            raise ConfigError(f"hydra.{place}= is empty; name a folder, or leave it out")


def _refuse_chdir(cfg: DictConfig) -> None:
    if cfg.hydra.job.chdir:
        raise ConfigError(
            "hydra.job.chdir=true: kd stays in the folder where you type, so that relative paths "
            "keep their meaning; leave it out"
        )
