"""Folders of images as a source: one folder per class, decoded once and resized.

The training images may lie in train/ without class folders: they have no labels then.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from kd_cli.data.arrays import Arrays, decoded, stamp
from kd_cli.data.splits import stratified
from kd_cli.device import import_tensorflow
from kd_cli.errors import ConfigError, suggest

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")


def class_folders(path: Path) -> list[str]:
    """Names of the class folders, sorted.

    Of `path/train` where that exists, or of `path/test` where train/ has images instead of class
    folders; else of `path`.
    """
    if not path.is_dir():
        raise ConfigError(f"dataset.path={path} is not a folder; expected a folder of images")
    root = path / "train" if (path / "train").is_dir() else path
    if _is_bare(path):
        root = path / "test"
        if not root.is_dir():
            raise ConfigError(
                f"{path} has images without class folders in train/ but no test/; expected "
                "test/<class>/, or class folders in train/"
            )
    names = _folders(root)
    if len(names) < 2:
        raise ConfigError(
            f"{root} holds {len(names)} class folders; expected at least 2, one per class"
        )
    return names


def _folders(root: Path) -> list[str]:
    with os.scandir(root) as entries:  # asks nothing more of each of a million images
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in _SUFFIXES and not file.name.startswith(".")


def _is_bare(path: Path) -> bool:
    """Whether `path/train` holds images instead of class folders."""
    root = path / "train"
    return root.is_dir() and not _folders(root) and any(map(_is_image, root.iterdir()))


def image_folder(
    path: str,
    image_shape: list[int],
    cache_dir: str,
    test_fraction: float = 0.2,
    test_seed: int = 0,
    unreadable: str = "error",
) -> Arrays:
    """Images in one folder per class, under train/ and test/ or under one folder that is split.

    Beside train/, validation/ is the official validation split. With images in train/ itself, not
    in class folders, the training images have no labels and test/ names the classes.

    Args:
        path: The folder.
        image_shape: [H, W, C] to which every image is resized; C is 1 for grey, 3 for colour.
        cache_dir: Where the decoded arrays are kept.
        test_fraction: Share of each class that becomes the test split, without train/ and test/.
        test_seed: Draws that split. Nothing else moves it, so no seed of a run brings test images
            into the training split of another.
        unreadable: `error` names a file that can't be decoded, `skip` leaves such files out.

    Raises:
        ConfigError: For a missing folder, differing classes, or an unreadable file.
    """
    if unreadable not in ("error", "skip"):
        raise ConfigError(f"dataset.source.unreadable={unreadable} must be error or skip")
    if image_shape[-1] not in (1, 3):
        raise ConfigError(
            f"dataset.image_shape={list(image_shape)}: images of a folder have 1 (grey) or 3 "
            "(colour) channels; put others into an .npz file"
        )
    root = Path(path).expanduser()
    classes = class_folders(root)
    if (root / "train").is_dir():
        if not (root / "test").is_dir():
            raise ConfigError(f"{root} has train/ but no test/; expected both, or class folders")
        bare = _is_bare(root)
        files = {"train": _class_files(root / "train", classes)}
        if bare:
            images = (file for file in (root / "train").iterdir() if _is_image(file))
            files["train"] = [(file, -1) for file in sorted(images)]
        for part in ("test", "validation"):
            if part == "validation" and not (root / part).is_dir():
                continue
            for name in _folders(root / part):
                if name not in classes:
                    named = root / ("test" if bare else "train")
                    raise ConfigError(
                        f"{root / part / name} is no class of {named}{suggest(name, classes)}"
                    )
            files[part] = _class_files(root / part, classes)
    else:
        files = _split_files(_class_files(root, classes), test_fraction, test_seed)
    for part, listed in files.items():
        if not listed:
            raise ConfigError(f"{root}: no images for the {part} split ({', '.join(_SUFFIXES)})")
    everything = [file for part in files.values() for file, _ in part]
    key = {
        "image_folder": classes,
        "shape": list(image_shape),
        "files": stamp(everything, root),
        "split": [len(files["train"]), test_fraction, test_seed],
        "unreadable": unreadable,
    }
    if "validation" in files:
        key["validation"] = len(files["validation"])
    return decoded(
        Path(cache_dir), key, lambda: _decode_folder(files, classes, image_shape, unreadable)
    )


def _class_files(root: Path, classes: list[str]) -> list[tuple[Path, int]]:
    return [
        (file, label)
        for label, name in enumerate(classes)
        if (root / name).is_dir()
        for file in sorted((root / name).rglob("*"))
        if _is_image(file)
        and not any(part.startswith(".") for part in file.relative_to(root).parts)
    ]


def _split_files(
    files: list[tuple[Path, int]], fraction: float, seed: int
) -> dict[str, list[tuple[Path, int]]]:
    if not 0 < fraction < 1:
        raise ConfigError(f"dataset.source.test_fraction={fraction} must be between 0 and 1")
    labels = np.array([label for _, label in files], dtype=np.int64)
    test = set(stratified(labels, fraction, seed).tolist())
    return {
        "train": [item for number, item in enumerate(files) if number not in test],
        "test": [item for number, item in enumerate(files) if number in test],
    }


def _decode_folder(
    files: dict[str, list[tuple[Path, int]]],
    classes: list[str],
    image_shape: list[int],
    unreadable: str,
) -> Arrays:
    tf = import_tensorflow()
    height, width, channels = image_shape
    skipped: list[Path] = []

    def read(part: str) -> tuple[np.ndarray, np.ndarray]:
        images, labels = [], []
        for file, label in files[part]:
            try:
                # TensorFlow decodes these two to colour only.
                colour = file.suffix.lower() in (".bmp", ".gif")
                image = tf.io.decode_image(
                    file.read_bytes(), 3 if colour else channels, expand_animations=False
                )
                if colour and channels == 1:
                    image = tf.image.rgb_to_grayscale(image)
            except tf.errors.InvalidArgumentError as error:
                if unreadable == "error":
                    raise ConfigError(
                        f"{file} can't be decoded as an image; remove it, or leave such files out "
                        "with dataset.source.unreadable=skip"
                    ) from error
                skipped.append(file)
                continue
            if image.shape[:2] != (height, width):
                image = tf.round(tf.image.resize(image, (height, width), antialias=True))
            images.append(tf.cast(image, tf.uint8).numpy())
            labels.append(label)
        if not images:
            raise ConfigError(f"no readable image in the {part} split")
        return np.stack(images), np.array(labels, dtype=np.int64)

    splits = {part: read(part) for part in files}
    notice = (
        f"left out {len(skipped)} unreadable images, the first: {skipped[0]}" if skipped else ""
    )
    return Arrays(**splits, class_names=tuple(classes), notice=notice)
