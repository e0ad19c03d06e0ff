"""Where images come from: digits, tensorflow-datasets, `.npz` files and folders of images.

A source is a function that returns `Arrays`; its arguments are the keys of `dataset.source` in the
YAML. A user's own function stands on the same footing. TensorFlow is imported only to decode.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import logging
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from kd_cli.checkpoint import open_npz
from kd_cli.decoded import Arrays, decoded, fingerprint, stamp
from kd_cli.device import import_tensorflow
from kd_cli.errors import ConfigError, suggest
from kd_cli.splits import stratified

log = logging.getLogger("kd")


def digits() -> Arrays:
    """scikit-learn's 1,797 handwritten digits, 8x8, pixels 0..16 brought to 0..255.

    Every fifth image of each class, in the file's order, is the test split (the file names none).
    Source: E. Alpaydin and C. Kaynak, UCI Optical Recognition of Handwritten Digits.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = data.target.astype(np.int64)
    order = np.zeros(len(labels), dtype=np.int64)
    for label in range(10):
        of_class = np.flatnonzero(labels == label)
        order[of_class] = np.arange(len(of_class))
    test = order % 5 == 4
    names = tuple(str(label) for label in range(10))
    return Arrays((images[~test], labels[~test]), (images[test], labels[test]), class_names=names)


def tfds(
    name: str,
    data_dir: str | None,
    cache_dir: str,
    image_shape: list[int],
    validation_split: str | None = None,
) -> Arrays:
    """A tensorflow-datasets image classification set with the splits `train` and `test`.

    Args:
        name: Name of the set, `cifar10` or `cifar10:3.0.2`.
        data_dir: Folder of the prepared sets; None is tensorflow-datasets' own default.
        cache_dir: Where the decoded arrays are kept.
        image_shape: [H, W, C]; images of another size are resized.
        validation_split: Name of an official validation split.

    Raises:
        ConfigError: When the set is not there and can't be fetched.
    """
    folder = Path(data_dir or "~/tensorflow_datasets").expanduser()
    prepared = sorted((folder / name.split(":")[0]).glob("*/dataset_info.json"))
    if prepared:
        files = [p for info in prepared for p in sorted(info.parent.iterdir()) if p.is_file()]
        key = {
            "tfds": name,
            "shape": list(image_shape),
            "validation": validation_split,
            "files": stamp(files, folder),
        }
        return decoded(
            Path(cache_dir),
            key,
            lambda: _decode_tfds(name, folder, image_shape, validation_split),
        )
    return _decode_tfds(name, folder, image_shape, validation_split)


def _decode_tfds(
    name: str, folder: Path, image_shape: list[int], validation_split: str | None
) -> Arrays:
    log.info("reading %s from %s", name, folder)
    tf = import_tensorflow()
    import tensorflow_datasets

    try:
        builder = tensorflow_datasets.builder(name, data_dir=str(folder))
    except tensorflow_datasets.core.DatasetNotFoundError as error:
        raise ConfigError(f"tensorflow-datasets knows no dataset '{name}'") from error
    try:
        # tensorflow-datasets retries an unreachable host for minutes: look first, unless the
        # archives may lie in downloads/ already.
        if not any((folder / known).is_dir() for known in (builder.info.full_name, "downloads")):
            _look_for(list(builder.url_infos))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            builder.download_and_prepare()
    except Exception as error:
        # Whatever stopped the download (no network, a moved file, a full disk), the user needs the
        # place and the remedy; the cause stays attached for HYDRA_FULL_ERROR=1.
        raise ConfigError(
            f"{name} is not in {folder} and could not be downloaded "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); "
            "put the prepared dataset there, or type data_dir=FOLDER (or set TFDS_DATA_DIR)"
        ) from error

    height, width, channels = image_shape

    def decode(example: dict[str, Any]) -> tuple[Any, Any]:
        image = example["image"]
        if builder.info.features["image"].shape[:2] != (height, width):
            image = tf.image.resize(image, (height, width), antialias=True)
            image = tf.cast(tf.round(image), tf.uint8)
        return image, example["label"]

    def read(split: str) -> tuple[np.ndarray, np.ndarray]:
        data = builder.as_dataset(split=split, shuffle_files=False)
        data = data.map(decode, num_parallel_calls=2, deterministic=True).batch(1000)
        batches = list(data.as_numpy_iterator())
        return (
            np.concatenate([images for images, _ in batches]),
            np.concatenate([labels for _, labels in batches]).astype(np.int64),
        )

    return Arrays(
        read("train"),
        read("test"),
        read(validation_split) if validation_split else None,
        tuple(builder.info.features["label"].names),
    )


def _look_for(urls: list[str]) -> None:
    """Raises OSError when no host of the files answers; through a proxy where one is set."""
    hosts = {urllib.parse.urlsplit(url).netloc: url for url in urls}
    for url in hosts.values():
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()
            return
        except urllib.error.HTTPError:
            return  # it answers, if not to HEAD
        except OSError:
            continue
    if hosts:
        raise OSError(f"no answer from {', '.join(sorted(hosts))}")


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
    with open_npz(path) as archive:
        return int(max(archive["y_train"].max(), archive["y_test"].max())) + 1


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


_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")


def class_folders(path: Path) -> list[str]:
    """Names of the class folders, sorted: of `path/train` where that exists, else of `path`."""
    if not path.is_dir():
        raise ConfigError(f"dataset.path={path} is not a folder; expected a folder of images")
    root = path / "train" if (path / "train").is_dir() else path
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        raise ConfigError(
            f"{root} holds {len(names)} class folders; expected at least 2, one per class"
        )
    return names


def image_folder(
    path: str,
    image_shape: list[int],
    cache_dir: str,
    test_fraction: float = 0.2,
    seed: int = 0,
    unreadable: str = "error",
) -> Arrays:
    """Images in one folder per class, under train/ and test/ or under one folder that is split.

    Args:
        path: The folder.
        image_shape: [H, W, C] to which every image is resized; C is 1 for grey, 3 for colour.
        cache_dir: Where the decoded arrays are kept.
        test_fraction: Share of each class that becomes the test split, without train/ and test/.
        seed: Seed of that split.
        unreadable: `error` names a file that can't be decoded, `skip` leaves such files out.

    Raises:
        ConfigError: For a missing folder, differing classes, or an unreadable file.
    """
    if unreadable not in ("error", "skip"):
        raise ConfigError(f"dataset.source.unreadable={unreadable} must be error or skip")
    root = Path(path).expanduser()
    classes = class_folders(root)
    if (root / "train").is_dir():
        if not (root / "test").is_dir():
            raise ConfigError(f"{root} has train/ but no test/; expected both, or class folders")
        for folder in (root / "test").iterdir():
            hidden = folder.name.startswith(".")
            if folder.is_dir() and not hidden and folder.name not in classes:
                raise ConfigError(
                    f"{folder} is no class of {root / 'train'}{suggest(folder.name, classes)}"
                )
        files = {part: _class_files(root / part, classes) for part in ("train", "test")}
    else:
        files = _split_files(_class_files(root, classes), test_fraction, seed)
    for part, listed in files.items():
        if not listed:
            raise ConfigError(f"{root}: no images for the {part} split ({', '.join(_SUFFIXES)})")
    everything = [file for part in files.values() for file, _ in part]
    key = {
        "image_folder": classes,
        "shape": list(image_shape),
        "files": stamp(everything, root),
        "split": [len(files["train"]), test_fraction, seed],
        "unreadable": unreadable,
    }
    return decoded(
        Path(cache_dir), key, lambda: _decode_folder(files, classes, image_shape, unreadable)
    )


def _class_files(root: Path, classes: list[str]) -> list[tuple[Path, int]]:
    return [
        (file, label)
        for label, name in enumerate(classes)
        if (root / name).is_dir()
        for file in sorted((root / name).rglob("*"))
        if file.suffix.lower() in _SUFFIXES
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

    train, test = read("train"), read("test")
    notice = (
        f"left out {len(skipped)} unreadable images, the first: {skipped[0]}" if skipped else ""
    )
    return Arrays(train, test, class_names=tuple(classes), notice=notice)
