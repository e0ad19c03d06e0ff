"""Sources that need no file of the user: the digits of the package, and tensorflow-datasets.

A source is a function that returns `Arrays`; its arguments are the keys of `dataset.source` in the
YAML. A user's own function stands on the same footing. TensorFlow is imported only to decode.
"""

from __future__ import annotations

import contextlib
import io
import logging
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from kd_cli.data.arrays import Arrays, decoded, stamp

# The YAML names `kd_cli.data.image_folder`, which counts in the ids of runs.
from kd_cli.device import import_tensorflow
from kd_cli.errors import ConfigError
from kd_cli.files import open_npz
from kd_cli.terminal import CountProgress

log = logging.getLogger("kd")


def digits() -> Arrays:
    """1,797 handwritten digits, 8x8, pixels 0..16 brought to 0..255, out of `digits.npz`.

    Every fifth image of each class, in the file's order, is the test split (the file names none).
    The same images in the same order as scikit-learn's `load_digits`.

    Source: E. Alpaydin and C. Kaynak 1998, Optical Recognition of Handwritten Digits (its test
    images), UCI Machine Learning Repository, doi:10.24432/C50P49, CC BY 4.0.
    """
    with open_npz(Path(__file__).with_name("digits.npz")) as archive:
        images = np.round(archive["images"] * (255 / 16)).astype(np.uint8)[..., None]
        labels = archive["labels"].astype(np.int64)
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
        ConfigError: When the set is not there and can't be fetched, has no `image` and `label`, or
            lacks a split.
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
    if not {"image", "label"} <= set(builder.info.features):  # before gigabytes are fetched
        raise ConfigError(
            f"{name} of tensorflow-datasets has {', '.join(builder.info.features)}; expected image "
            "and label"
        )
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

    known = builder.info.splits
    for split in ("train", "test", validation_split):
        if split is not None and known and split not in known:
            raise ConfigError(
                f"{name} of tensorflow-datasets has no split '{split}' (it has {', '.join(known)})"
            )
    height, width, channels = image_shape

    def decode(example: dict[str, Any]) -> tuple[Any, Any]:
        image = example["image"]
        if builder.info.features["image"].shape[:2] != (height, width):
            image = tf.image.resize(image, (height, width), antialias=True)
            image = tf.cast(tf.round(image), tf.uint8)
        return image, example["label"]

    def read(split: str) -> tuple[np.ndarray, np.ndarray]:
        data = builder.as_dataset(split=split, shuffle_files=False)
        data = data.map(decode, num_parallel_calls=2, deterministic=True)
        batches, done, total = [], 0, max(int(data.cardinality()), 0)
        with CountProgress(f"decoding {name}, {split}", total, slow=True) as progress:
            for batch in data.batch(1000).as_numpy_iterator():
                batches.append(batch)
                done += len(batch[1])
                progress.done(done)
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
