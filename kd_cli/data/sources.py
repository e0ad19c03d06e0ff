"""Sources that need no file of the user: the digits of the package, and tensorflow-datasets.

A source is a function that returns `Arrays`; its arguments are the keys of `dataset.source` in the
YAML. A user's own function stands on the same footing. TensorFlow is imported only to decode.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kd_cli.data.arrays import Arrays, decoded, stamp
from kd_cli.data.pixels import to_bytes
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


@dataclass(frozen=True)
class _Wanted:
    """What is read of a set of tensorflow-datasets: its splits, by our names, and its features."""

    splits: Mapping[str, str]
    image_key: str
    label_key: str
    image_shape: Sequence[int]


def tfds(
    name: str,
    data_dir: str | None,
    cache_dir: str,
    image_shape: list[int],
    validation_split: str | None = None,
    train_split: str = "train",
    test_split: str = "test",
    image_key: str = "image",
    label_key: str = "label",
    scale: float | None = None,
    offset: float = 0.0,
) -> Arrays:
    """A tensorflow-datasets image classification set.

    Args:
        name: Name of the set, `cifar10` or `cifar10:3.0.2`.
        data_dir: Folder of the prepared sets; None is tensorflow-datasets' own default.
        cache_dir: Where the decoded arrays are kept.
        image_shape: [H, W, C]; images of another size are resized.
        validation_split: An official validation split, or a part: `train[80%:]`.
        train_split, test_split: Splits, parts and sums of them: `train[:80%]+extra`.
        image_key, label_key: Features of the set; a slash leads into a nested one.
        scale, offset: Pixels become scale * pixel + offset. None for the scale: their type and
            range decide (see `pixels.to_bytes`).

    Raises:
        ConfigError: When the set is not there and can't be fetched, lacks a feature or a split, or
            two splits share images.
    """
    folder = Path(data_dir or "~/tensorflow_datasets").expanduser()
    splits = {"train": train_split, "test": test_split}
    if validation_split is not None:
        splits["validation"] = validation_split
    wanted = _Wanted(splits, image_key, label_key, image_shape)

    def decode() -> Arrays:
        arrays = _decode_tfds(name, folder, wanted)
        arrays, doubt = to_bytes(replace(arrays, scale=scale, offset=offset), name, keys=True)
        return replace(arrays, notice=doubt)

    prepared = sorted((folder / name.split(":")[0]).glob("*/dataset_info.json"))
    if not prepared:
        return decode()
    files = [p for info in prepared for p in sorted(info.parent.iterdir()) if p.is_file()]
    key = {
        "tfds": name,
        "shape": list(image_shape),
        "validation": validation_split,
        "read": [train_split, test_split, image_key, label_key, scale, offset],
        "files": stamp(files, folder),
    }
    return replace(decoded(Path(cache_dir), key, decode), scale=1.0)


def _decode_tfds(name: str, folder: Path, wanted: _Wanted) -> Arrays:
    log.info("reading %s from %s", name, folder)
    tf = import_tensorflow()
    import tensorflow_datasets

    try:
        builder = tensorflow_datasets.builder(name, data_dir=str(folder))
    except tensorflow_datasets.core.DatasetNotFoundError as error:
        raise ConfigError(f"tensorflow-datasets knows no dataset '{name}'") from error
    # Before gigabytes are fetched.
    image = _feature(builder.info.features, wanted.image_key, name, "image_key")
    label = _feature(builder.info.features, wanted.label_key, name, "label_key")
    if len(getattr(image, "shape", None) or ()) not in (2, 3):
        raise ConfigError(
            f"{name}: {wanted.image_key} has shape {image.shape}; expected an image, [H, W, C] "
            "(dataset.source.image_key=...)"
        )
    if getattr(label, "shape", None) != () or np.dtype(label.np_dtype).kind not in "biu":
        raise ConfigError(
            f"{name}: {wanted.label_key} has shape {label.shape} of {label.np_dtype}; expected one "
            "class number for each image (dataset.source.label_key=...)"
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
    if builder.info.splits:
        _check_splits(wanted.splits, builder.info.splits, name)
    height, width, _ = wanted.image_shape

    def value(example: Any, key: str) -> Any:
        for part in key.split("/"):
            example = example[part]
        return example

    def decode(example: dict[str, Any]) -> tuple[Any, Any]:
        pixels = value(example, wanted.image_key)
        if len(image.shape) == 2:
            pixels = pixels[..., None]
        if image.shape[:2] != (height, width):
            kind = pixels.dtype
            pixels = pixels if kind == tf.uint8 else tf.cast(pixels, tf.float32)
            pixels = tf.image.resize(pixels, (height, width), antialias=True)
            if kind.is_integer:
                pixels = tf.cast(tf.round(pixels), kind)
        return pixels, tf.cast(value(example, wanted.label_key), tf.int64)

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
            np.concatenate([labels for _, labels in batches]),
        )

    splits = {part: read(split) for part, split in wanted.splits.items()}
    return Arrays(**splits, class_names=tuple(getattr(label, "names", None) or ()))


def _feature(features: Any, key: str, name: str, keyword: str) -> Any:
    """The feature of a set under a key, whose slashes lead into nested ones."""
    for part in key.split("/"):
        try:
            features = features[part]
        except (KeyError, TypeError, AttributeError) as error:
            known = ", ".join(features) if hasattr(features, "keys") else "no features inside"
            raise ConfigError(
                f"{name} of tensorflow-datasets has {known}; expected {part} "
                f"(dataset.source.{keyword}={key})"
            ) from error
    return features


def _check_splits(wanted: Mapping[str, str], known: Mapping[str, Any], name: str) -> None:
    """Refuses splits that are not there, and images that are in two of them, or twice in one."""
    from tensorflow_datasets.core import ReadInstruction

    sizes = ", ".join(f"{split} ({info.num_examples:,})" for split, info in known.items())
    taken: dict[str, list[tuple[int, int, str]]] = {}
    for part, spec in wanted.items():
        key = f"dataset.source.{part}_split"
        # (tfds tells an unknown split by a list of all splits, and a wrong slice in several lines.)
        strange = [
            one for one in re.split(r"\s*\+\s*", str(spec)) if one.split("[")[0] not in known
        ]
        if strange and spec != "all":
            raise ConfigError(
                f"{name} of tensorflow-datasets has no split '{strange[0]}' (it has "
                f"{', '.join(known)}); type {key}=..., such as '{next(iter(known))}[80%:]'"
            )
        try:
            ranges = ReadInstruction.from_spec(str(spec)).to_absolute(known)
        except Exception as error:  # ValueError, AssertionError, and what tfds makes of them
            raise ConfigError(
                f"{key}={spec} can't be read as a split of {name} ({sizes}); expected a name, or a "
                "part such as 'train[:80%]' or 'train[1000:]', or a sum with +"
            ) from error
        for one in ranges:
            begin, end = one.from_ or 0, known[one.splitname].num_examples
            end = end if one.to is None else one.to
            if begin >= end:
                raise ConfigError(f"{key}={spec} of {name} is empty ({sizes})")
            for first, last, other in taken.setdefault(one.splitname, []):
                shared = min(end, last) - max(begin, first)
                if shared > 0:
                    whose = (
                        "takes" if other == part else f"shares with dataset.source.{other}_split"
                    )
                    raise ConfigError(
                        f"{key}={spec} {whose} {shared:,} images"
                        + (" twice" if other == part else f" ({wanted[other]})")
                        + f" of {name} ({sizes}); choose parts that do not overlap"
                    )
            taken[one.splitname].append((begin, end, part))


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
