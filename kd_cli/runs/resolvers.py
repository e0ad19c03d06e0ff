"""Values in YAML that only code can give. They see the whole configuration as `_root_`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from kd_cli.config.check import check
from kd_cli.config.schema import view_shape
from kd_cli.errors import ConfigError
from kd_cli.runs.identity import default_teacher_dir, point_dir, run_dir


# Resolvers: values in YAML that only code can give. They see the whole configuration as `_root_`.
def _typed(root: DictConfig) -> list[str]:
    overrides = OmegaConf.select(root, "hydra.overrides.task")
    return list(overrides) if overrides else []


def _teacher_dir(*, _root_: DictConfig) -> str:
    parts = {
        key: OmegaConf.to_container(_root_[key], resolve=True) for key in ("dataset", "teacher")
    }
    return default_teacher_dir(OmegaConf.create(parts))


def _run_dir(*, _root_: DictConfig) -> str:
    return str(run_dir(check(_root_, _typed(_root_))))


def _run_name(*, _root_: DictConfig) -> str:
    return point_dir(check(_root_, _typed(_root_))).name


def _input_shape(image_shape: Any, size: int | None, *, _root_: DictConfig) -> ListConfig:
    """The shape a network gets: `input.size` squared, or that of the augmentation, or the data."""
    if not isinstance(image_shape, Sequence) or len(image_shape) != 3:
        raise ConfigError(
            f"dataset.image_shape={image_shape} must be [height, width, channels], as in [32,32,3]"
        )
    size = OmegaConf.select(_root_, "augment.size") if size is None else size
    return OmegaConf.create(list(view_shape(size, image_shape)))


def _folder_num_classes(path: str) -> int:
    from kd_cli.data.folders import class_folders

    return len(class_folders(Path(path).expanduser()))


def _npz_header(path: str, member: str) -> Any:
    from kd_cli.data.npz_file import npz_header

    return npz_header(Path(path).expanduser(), member)


def _npz_image_shape(path: str) -> ListConfig:
    shape = _npz_header(path, "x_train")
    if len(shape) not in (3, 4):
        raise ConfigError(f"{path}: x_train has shape {shape}; expected [N, H, W] or [N, H, W, C]")
    return OmegaConf.create([*shape[1:3], shape[3] if len(shape) == 4 else 1])


def _npz_num_classes(path: str) -> int:
    from kd_cli.data.npz_file import npz_num_classes

    return npz_num_classes(Path(path).expanduser())


def register_resolvers() -> None:
    """Makes `${kd.*:}` known to OmegaConf; calling it again changes nothing."""
    for name, resolver in {
        "kd.teacher_dir": _teacher_dir,
        "kd.run_dir": _run_dir,
        "kd.run_name": _run_name,
        "kd.input_shape": _input_shape,
        "kd.folder_num_classes": _folder_num_classes,
        "kd.npz_image_shape": _npz_image_shape,
        "kd.npz_num_classes": _npz_num_classes,
    }.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
