"""`.npz` files as a data set: x_train, y_train, x_test, y_test; x_validation, y_validation."""

from __future__ import annotations

import dataclasses
import functools
import logging
from pathlib import Path

import numpy as np

from kd_cli.data.archives import npz_headers, read_arrays
from kd_cli.data.arrays import Arrays, fingerprint, stamp
from kd_cli.data.labels import count_classes
from kd_cli.data.pixels import to_bytes
from kd_cli.errors import ConfigError
from kd_cli.files import open_npz
from kd_cli.terminal import brief

log = logging.getLogger("kd")
_MEMBERS = ("x_train", "y_train", "x_test", "y_test")
_VALIDATION = ("x_validation", "y_validation")


def npz_image_shape(path: Path) -> list[int]:
    """[H, W, C] of the images in an `.npz` file, without reading them."""
    shape = _headers(path)["x_train"][0]
    return [*shape[1:3], shape[3] if len(shape) == 4 else 1]


def npz_num_classes(path: Path) -> int:
    """The largest label and one, of labels that have training images."""
    _headers(path)
    return count_classes(read_arrays(path, ("y_train", "y_test")), str(path))


def _headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shapes and types of the arrays, of which images and labels fit together."""
    if not path.is_file():
        raise ConfigError(f"dataset.path={path} is not a file; expected an .npz file")
    found = npz_headers(path, _MEMBERS, _VALIDATION)
    half = [name for name in _VALIDATION if name in found]
    if len(half) == 1:
        raise ConfigError(f"{path} has {half[0]} alone; expected {' and '.join(_VALIDATION)}")
    for part in [name.removeprefix("x_") for name in found if name.startswith("x_")]:
        (images, _), (labels, dtype) = found[f"x_{part}"], found[f"y_{part}"]
        if len(images) not in (3, 4) or labels not in (images[:1], (*images[:1], 1)):
            raise ConfigError(
                f"{path}: x_{part} has shape {images} and y_{part} {labels}; expected [N, H, W] or "
                "[N, H, W, C], and [N]"
            )
        if dtype.kind not in "iu":
            raise ConfigError(f"{path}: y_{part} is {dtype}; expected whole class numbers")
    return found


def npz(path: str, scale: float | None = None, offset: float = 0.0) -> Arrays:
    """An `.npz` file with x_train, y_train, x_test, y_test, and x_validation, y_validation or none.

    Args:
        path: The file.
        scale, offset: Pixels become scale * pixel + offset. None for the scale: their type and
            range decide, because every network takes pixels 0..255 (see `pixels.to_bytes`).

    Raises:
        ConfigError: When arrays are missing, have other shapes, or labels are no class numbers.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"dataset.path={path} is not a file; expected an .npz file")
    return _read_npz(file, scale, offset, stamp([file], file.parent))


@functools.lru_cache(maxsize=1)  # the points of a sweep share the arrays and their fingerprint
def _read_npz(file: Path, scale: float | None, offset: float, changed: str) -> Arrays:
    arrays = read_arrays(file, list(_headers(file)))
    with open_npz(file) as archive:
        others = [name for name in archive.files if name not in arrays]
    if others:
        log.warning(
            "%s: left out %s; the arrays of a data set are %s, and for a validation split %s",
            *(file.name, brief(others), ", ".join(_MEMBERS), ", ".join(_VALIDATION)),
        )
    splits = {}
    for part in [name.removeprefix("x_") for name in arrays if name.startswith("x_")]:
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        # A column, as keras.datasets gives CIFAR's.
        labels = labels.reshape(len(labels)).astype(np.int64)
        splits[part] = (images[..., None] if images.ndim == 3 else images, labels)
    found, doubt = to_bytes(Arrays(**splits, scale=scale, offset=offset), file.name, keys=True)
    if doubt:
        log.warning("%s", doubt)
    return dataclasses.replace(found, fingerprint=fingerprint(found))
