"""Values in YAML that only code can give. They see the whole configuration as `_root_`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from kd_cli.config.inputs import Images, Inputs, Tokens, inputs_of
from kd_cli.config.plans import given_by
from kd_cli.errors import ConfigError
from kd_cli.runs.asked import Runs


def _input_shape(
    image_shape: Any, size: int | None, *, _root_: DictConfig, _parent_: DictConfig
) -> ListConfig:
    """The shape a network gets: `input.size` squared, or that of the augmentation, or the data."""
    if _refuse_kind(_root_, _parent_, Tokens):
        return OmegaConf.create([])  # of a network that is not built
    if not isinstance(image_shape, Sequence) or len(image_shape) != 3:
        raise ConfigError(
            f"dataset.image_shape={image_shape} must be [height, width, channels], as in [32,32,3]"
        )
    size = OmegaConf.select(_root_, "augment.size") if size is None else size
    return OmegaConf.create(list(Images(tuple(image_shape)).sized(size).shape))


def _refuse_kind(root: DictConfig, network: DictConfig, kind: type[Inputs]) -> bool:
    """Refuses a network that needs the other kind of inputs than the dataset has.

    Returns:
        Whether it does, but is not built: that of a teacher that is given.
    """
    inputs = inputs_of(root.dataset)
    if not isinstance(inputs, kind):
        return False
    wanted, one, others = {
        Tokens: ("images", "bag", "text_cnn, transformer_encoder"),
        Images: ("texts", "mlp", "cnn, resnet8"),
    }[kind]
    place = str(network._get_full_key(None))
    if place.startswith("teacher.") and given_by(root) not in ("", "teacher.weights"):
        return True
    name = str(network.get("_target_", "")).rpartition(".")[2] or "the network"
    raise ConfigError(
        f"{place}: {name} takes {wanted}, and the inputs of {root.dataset.name} are "
        f"{inputs.many}; choose another, such as {place.partition('.')[0]}={one} (or {others})"
    )


def _tokens(value: Any, *, _root_: DictConfig, _parent_: DictConfig) -> Any:
    """`dataset.length`, for a network of texts."""
    _refuse_kind(_root_, _parent_, Images)
    return value


def _text_num_classes(path: str, text_column: str, label_column: str) -> int:
    from kd_cli.data.texts import text_num_classes

    return text_num_classes(path, text_column, label_column)


def _folder_num_classes(path: str) -> int:
    from kd_cli.data.folders import class_folders

    return len(class_folders(Path(path).expanduser()))


def _npz_image_shape(path: str) -> ListConfig:
    from kd_cli.data.npz_file import npz_image_shape

    return OmegaConf.create(npz_image_shape(Path(path).expanduser()))


def _npz_num_classes(path: str) -> int:
    from kd_cli.data.npz_file import npz_num_classes

    return npz_num_classes(Path(path).expanduser())


def register_resolvers(runs: Runs | None = None) -> None:
    """Makes `${kd.*:}` known to OmegaConf; calling it again changes nothing but the runs.

    Args:
        runs: Those that this command has checked, to name their directories.
    """
    runs = Runs() if runs is None else runs

    def run_name(*, _root_: DictConfig) -> str:
        return runs.name(_root_)

    for name, resolver in {
        "kd.run_dir": lambda: "outputs",  # a mark: see `asked`
        "kd.run_name": run_name,
        "kd.home": lambda path: os.path.expanduser(str(path)),
        "kd.input_shape": _input_shape,
        "kd.tokens": _tokens,
        "kd.text_num_classes": _text_num_classes,
        "kd.folder_num_classes": _folder_num_classes,
        "kd.npz_image_shape": _npz_image_shape,
        "kd.npz_num_classes": _npz_num_classes,
    }.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
