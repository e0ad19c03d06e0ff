"""`.npz` files with x_train, y_train, x_test, y_test as a data set."""

from __future__ import annotations

import dataclasses
import functools
import zipfile
from pathlib import Path

import numpy as np

from kd_cli.data.arrays import Arrays, fingerprint, stamp
from kd_cli.data.labels import count_classes

# The YAML names `kd_cli.data.image_folder`, which counts in the ids of runs.
from kd_cli.data.sources import log
from kd_cli.errors import ConfigError
from kd_cli.files import open_npz


def npz_header(path: Path, member: str) -> tuple[int, ...]:
    """The shape of one array of an `.npz` file, without reading the array."""
    _check_npz(path)
    with zipfile.ZipFile(path) as archive, archive.open(f"{member}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        return tuple(read(file)[0])


def npz_num_classes(path: Path) -> int:
    _check_npz(path)
    try:
        with open_npz(path) as archive:
            labels = {name: archive[name] for name in ("y_train", "y_test")}
    except ValueError as error:  # an array of objects would have to be unpickled
        raise ConfigError(f"{path}: {error}") from error
    return count_classes(labels, str(path))


_NPZ_MEMBERS = ("x_train", "y_train", "x_test", "y_test")


def _check_npz(path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"dataset.path={path} is not a file; expected an .npz file")
    if not zipfile.is_zipfile(path):
        raise ConfigError(f"{path} is not an .npz file (np.savez writes one)")
    with zipfile.ZipFile(path) as archive:
        missing = [name for name in _NPZ_MEMBERS if f"{name}.npy" not in archive.namelist()]
    if missing:
        raise ConfigError(
            f"{path} lacks {', '.join(missing)}; expected the arrays {', '.join(_NPZ_MEMBERS)}"
        )


def npz(path: str, scale: float | None = None) -> Arrays:
    """An `.npz` file with x_train, y_train, x_test, y_test.

    Args:
        path: The file.
        scale: Float pixels are multiplied by this. None multiplies by 255 when all lie in 0..1,
            because every network takes pixels 0..255.

    Raises:
        ConfigError: When arrays are missing, have other shapes, or labels are no class numbers.
    """
    file = Path(path).expanduser()
    _check_npz(file)
    return _read_npz(file, scale, stamp([file], file.parent))


@functools.lru_cache(maxsize=1)  # the points of a sweep share the arrays and their fingerprint
def _read_npz(file: Path, scale: float | None, changed: str) -> Arrays:
    try:
        with open_npz(file) as archive:
            arrays = {name: archive[name] for name in _NPZ_MEMBERS}
    except ValueError as error:  # an array of objects would have to be unpickled
        raise ConfigError(f"{file}: {error}") from error
    splits = []
    for part in ("train", "test"):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if images.ndim == 3:
            images = images[..., None]
        if labels.ndim == 2 and labels.shape[1] == 1:  # as keras.datasets gives CIFAR's
            labels = labels[:, 0]
        if images.ndim != 4 or labels.shape != (len(images),):
            raise ConfigError(
                f"{file}: x_{part} has shape {arrays[f'x_{part}'].shape} and y_{part} "
                f"{arrays[f'y_{part}'].shape}; expected [N, H, W] or [N, H, W, C], and [N]"
            )
        if not np.issubdtype(labels.dtype, np.integer):
            raise ConfigError(f"{file}: y_{part} is {labels.dtype}; expected whole class numbers")
        splits.append((images, labels.astype(np.int64)))
    floats = [images for images, _ in splits if images.dtype != np.uint8]
    if floats:
        inside = all(0 <= images.min() and images.max() <= 1 for images in floats if images.size)
        factor = (255.0 if inside else 1.0) if scale is None else scale
        if scale is None and inside:
            log.info("%s: pixels lie in 0..1, multiplied by 255", file.name)
        splits = [
            (
                images.astype(np.float32) * np.float32(factor if images.dtype != np.uint8 else 1),
                labels,
            )
            for images, labels in splits
        ]
    arrays = Arrays(splits[0], splits[1])
    return dataclasses.replace(arrays, fingerprint=fingerprint(arrays))
