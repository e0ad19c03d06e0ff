"""From files to checked splits: sampling, sources, the decoded cache, and what is refused."""

import hashlib
import io
import logging
import os
import socket
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets
from omegaconf import OmegaConf
from sklearn.datasets import load_digits

from kd_cli import data, folders, sources
from kd_cli.config import check, compose
from kd_cli.decoded import Arrays, fingerprint
from kd_cli.errors import ConfigError
from kd_cli.identity import register_resolvers
from kd_cli.splits import labelled, limited, stratified

# --- samples of rows ---

LABELS = np.repeat([0, 1, 2], [100, 40, 10])
SHUFFLED = np.random.default_rng(0).permutation(LABELS)


def counts(labels: np.ndarray, rows: np.ndarray, classes: int = 3) -> list[int]:
    return np.bincount(labels[rows], minlength=classes).tolist()


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.1, [10, 4, 1]),
        (0.25, [25, 10, 2]),
        (0.5, [50, 20, 5]),
        (0, [0, 0, 0]),
        (1, [100, 40, 10]),
    ],
)
def test_stratified_takes_the_same_share_of_each_class(fraction, expected):
    rows = stratified(SHUFFLED, fraction, 0)
    assert counts(SHUFFLED, rows) == expected
    assert (np.diff(rows) > 0).all()


def test_stratified_takes_one_of_a_small_class_and_leaves_one():
    labels = np.array([0, 0, 1, 1, 1, 2])
    assert counts(labels, stratified(labels, 0.01, 0)) == [1, 1, 0]
    assert counts(labels, stratified(labels, 0.99, 0)) == [1, 2, 1]


def test_stratified_is_a_function_of_the_seed():
    first = stratified(SHUFFLED, 0.1, 3)
    np.testing.assert_array_equal(first, stratified(SHUFFLED.copy(), 0.1, 3))
    assert set(first) != set(stratified(SHUFFLED, 0.1, 4))


def test_stratified_draws_at_random():
    # 1,000 seeds take each of a class's ten rows 300 times, give or take 4 standard deviations.
    taken = np.zeros(10)
    for seed in range(1000):
        taken[stratified(np.zeros(10, int), 0.3, seed)] += 1
    assert np.abs(taken - 300).max() < 4 * np.sqrt(1000 * 0.3 * 0.7)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(8, [5, 2, 1]), (15, [10, 4, 1]), (30, [20, 8, 2]), (75, [50, 20, 5]), (1, [1, 0, 0])],
)
def test_limited_keeps_the_shares(limit, expected):
    rows = limited(SHUFFLED, limit, 0)
    assert counts(SHUFFLED, rows) == expected
    assert (np.diff(rows) > 0).all()


@pytest.mark.parametrize("limit", [1, 7, 50, 149, 150])
def test_limited_gives_exactly_the_limit(limit):
    assert len(limited(SHUFFLED, limit, 0)) == limit


def test_limited_to_the_number_of_classes_takes_one_of_each():
    labels = np.arange(7)
    assert limited(labels, 7, 0).tolist() == labels.tolist()


def test_limited_is_a_function_of_the_seed():
    first = limited(SHUFFLED, 30, 3)
    np.testing.assert_array_equal(first, limited(SHUFFLED.copy(), 30, 3))
    assert set(first) != set(limited(SHUFFLED, 30, 4))


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.1, [10, 4, 1]), (0.01, [1, 1, 1]), (0.25, [25, 10, 2]), (0.99, [99, 40, 10])],
)
def test_labels_are_kept_of_the_same_share_of_each_class(fraction, expected):
    assert counts(SHUFFLED, labelled(SHUFFLED, fraction, 0)) == expected


def test_a_class_of_one_image_keeps_its_label():
    assert labelled(np.array([0, 0, 0, 1]), 0.1, 0)[-1] == 3


def test_a_larger_labelled_share_contains_a_smaller_one():
    rows = [set(labelled(SHUFFLED, fraction, 3)) for fraction in (0.01, 0.1, 0.5, 1)]
    assert rows[0] < rows[1] < rows[2] < rows[3]
    assert rows[1] != set(labelled(SHUFFLED, 0.1, 4))


def test_labelled_rows_are_drawn_apart_from_validation_rows():
    # With one stream, a half of the rows drawn for validation would be the half drawn here.
    assert set(labelled(SHUFFLED, 0.5, 0)) != set(stratified(SHUFFLED, 0.5, 0))


# --- digits ---

# Images per class, from the data set's documentation; every fifth of a class is a test image.
DIGITS = np.array([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])


def node(source: dict, shape: tuple[int, ...], classes: int, **changes):
    """A checked dataset node."""
    return OmegaConf.create(
        {
            "name": "toy",
            "image_shape": list(shape),
            "num_classes": classes,
            "validation_fraction": 0.25,
            "split_seed": 0,
            "limit": None,
            "source": source,
            **changes,
        }
    )


def digits(**changes) -> data.Dataset:
    return data.load(node({"_target_": "kd_cli.sources.digits"}, (8, 8, 1), 10, **changes))


def labels_of(split: data.Split) -> np.ndarray:
    return split.labels[split.rows]


def plan(*overrides: str):
    register_resolvers()
    return check(compose("train-student", list(overrides)), overrides)


def test_digits_as_configured():
    dataset = data.load(plan().dataset)
    test = DIGITS // 5
    validation = np.round(0.15 * (DIGITS - test)).astype(int)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (1225, 217, 355)
    assert np.bincount(labels_of(dataset.test)).tolist() == test.tolist()
    assert np.bincount(labels_of(dataset.validation)).tolist() == validation.tolist()
    assert np.bincount(labels_of(dataset.train)).tolist() == (DIGITS - test - validation).tolist()
    assert dataset.image_shape == (8, 8, 1)
    assert dataset.class_names == tuple("0123456789")
    assert dataset.num_classes == 10


def test_digits_pixels_run_from_0_to_255():
    train, _ = sources.digits().train
    assert (train.dtype, train.shape[1:], train.min(), train.max()) == (np.uint8, (8, 8, 1), 0, 255)
    # The file's pixel (0, 2) of the first image is 5 of 16: 79.6875 of 255.
    assert train[0, 0, 2, 0] == 80


def test_the_splits_of_digits_share_no_image():
    dataset = digits()
    assert not set(dataset.train.rows) & set(dataset.validation.rows)
    assert len(dataset.train) + len(dataset.validation) == len(dataset.train.labels)
    assert len(dataset.train.labels) + len(dataset.test.labels) == 1797
    # Every image of the file is in one pool or the other, with its own label.
    images = np.concatenate([dataset.train.images, dataset.test.images])[..., 0]
    labels = np.concatenate([dataset.train.labels, dataset.test.labels])
    file = load_digits()
    found = sorted(zip(images.reshape(1797, -1).tolist(), labels.tolist(), strict=True))
    pixels = np.round(file.images.reshape(1797, -1) / 16 * 255).astype(int)
    assert found == sorted(zip(pixels.tolist(), file.target.tolist(), strict=True))


def test_without_a_validation_fraction_all_rows_train():
    dataset = digits(validation_fraction=0)
    assert dataset.validation is None
    assert len(dataset.train) == 1442


def test_loading_again_gives_the_same_rows_and_fingerprints():
    first, second = digits(), digits()
    assert first.fingerprint == second.fingerprint
    assert first.split_fingerprint == second.split_fingerprint
    np.testing.assert_array_equal(first.validation.rows, second.validation.rows)


def test_the_split_seed_moves_validation_images_only():
    first, second = digits(split_seed=0), digits(split_seed=1)
    assert first.fingerprint == second.fingerprint
    assert first.split_fingerprint != second.split_fingerprint
    assert set(first.validation.rows) != set(second.validation.rows)
    np.testing.assert_array_equal(first.test.rows, second.test.rows)


def test_the_fingerprint_covers_images_labels_and_names():
    x, y = np.zeros((2, 1, 1, 1), np.uint8), np.array([0, 1])
    sha = hashlib.sha256()
    for _ in ("train", "test"):
        sha.update(b"|u1(2, 1, 1, 1)\0\0<i8(2,)" + b"\0" * 8 + b"\1" + b"\0" * 7)
    sha.update(b'["a", "b"]')
    expected = sha.hexdigest()
    assert fingerprint(Arrays((x, y), (x, y), None, ("a", "b"))) == expected
    for arrays in (
        Arrays((x + 1, y), (x, y), None, ("a", "b")),
        Arrays((x, y), (x, y[::-1]), None, ("a", "b")),
        Arrays((x, y), (x, y), (x, y), ("a", "b")),
        Arrays((x, y), (x, y), None, ("a", "c")),
    ):
        assert fingerprint(arrays) != expected


def test_a_limit_holds_for_training_with_validation_and_for_test():
    dataset = digits(limit=100)
    assert len(dataset.train) + len(dataset.validation) == 100
    assert len(dataset.test) == 100
    assert not set(dataset.train.rows) & set(dataset.validation.rows)
    assert np.abs(np.bincount(labels_of(dataset.test)) - 10).max() <= 1


def test_a_limit_above_the_size_changes_nothing():
    assert digits(limit=5000).split_fingerprint == digits().split_fingerprint


def test_a_limit_that_leaves_no_validation_image_is_refused():
    with pytest.raises(ConfigError, match="dataset.limit=5 .*leaves 5 training and 0 validation"):
        digits(limit=5)


def test_a_labelled_share_parts_the_training_rows_only():
    whole, some = digits(), digits(labelled_fraction=0.2)
    np.testing.assert_array_equal(whole.validation.rows, some.validation.rows)
    np.testing.assert_array_equal(whole.test.rows, some.test.rows)
    assert not set(some.train.rows) & set(some.unlabelled.rows)
    parts = np.concatenate([some.train.rows, some.unlabelled.rows])
    np.testing.assert_array_equal(np.sort(parts), whole.train.rows)
    per_class = np.bincount(labels_of(whole.train))
    np.testing.assert_array_equal(np.bincount(labels_of(some.train)), np.round(0.2 * per_class))
    assert set(digits(labelled_fraction=0.02).train.rows) < set(some.train.rows)
    assert some.split_fingerprint != whole.split_fingerprint
    assert some.fingerprint == whole.fingerprint


def test_with_all_labels_nothing_changes():
    assert digits(labelled_fraction=1.0).unlabelled is None
    # As it was before there was a labelled_fraction: runs and cached logits name it.
    for dataset in (digits(labelled_fraction=1.0), digits()):
        splits = (dataset.train, dataset.validation, dataset.test)
        rows = b"".join(split.rows.astype("<i8").tobytes() + b"|" for split in splits)
        assert dataset.split_fingerprint == hashlib.sha256(rows).hexdigest()


# --- npz ---

X = np.random.default_rng(0).integers(0, 256, (12, 4, 5, 3)).astype(np.uint8)
Y = np.arange(12) % 3


def save(path: Path, **changes) -> Path:
    arrays = {"x_train": X, "y_train": Y, "x_test": X[:6], "y_test": Y[:6], **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def load_npz(path: Path, shape: tuple[int, ...] = (4, 5, 3), classes: int = 3, **source):
    return data.load(
        node({"_target_": "kd_cli.sources.npz", "path": str(path), **source}, shape, classes)
    )


def test_npz_of_bytes_is_taken_as_it_is(tmp_path):
    dataset = load_npz(save(tmp_path / "a.npz"))
    assert dataset.train.images.dtype == np.uint8
    np.testing.assert_array_equal(dataset.train.images, X)
    np.testing.assert_array_equal(dataset.test.images, X[:6])
    np.testing.assert_array_equal(dataset.train.labels, Y)
    # Four of each class: a quarter of them is one.
    assert np.bincount(labels_of(dataset.validation)).tolist() == [1, 1, 1]
    assert dataset.class_names == ("0", "1", "2")


def test_npz_of_floats_from_0_to_1_is_scaled_to_255(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="kd")
    unit = (X / 255).astype(np.float64)
    dataset = load_npz(save(tmp_path / "a.npz", x_train=unit, x_test=unit[:6]))
    assert dataset.train.images.dtype == np.float32
    np.testing.assert_allclose(dataset.train.images, X, rtol=1e-6)
    np.testing.assert_allclose(dataset.test.images, X[:6], rtol=1e-6)
    assert "a.npz: pixels lie in 0..1, multiplied by 255" in caplog.text


def test_npz_of_floats_from_0_to_255_is_not_scaled(tmp_path):
    images = X.astype(np.float32)
    dataset = load_npz(save(tmp_path / "a.npz", x_train=images, x_test=images[:6]))
    np.testing.assert_array_equal(dataset.train.images, images)


def test_npz_scale_replaces_the_guess(tmp_path):
    images = X.astype(np.float32) / 255
    dataset = load_npz(save(tmp_path / "a.npz", x_train=images, x_test=images[:6]), scale=2.0)
    np.testing.assert_array_equal(dataset.train.images, images * 2)


@pytest.mark.parametrize("float_part", ["x_train", "x_test"])
def test_npz_brings_parts_of_different_types_to_one_range(tmp_path, float_part):
    images = {"x_train": X, "x_test": X[:6]}
    file = save(tmp_path / "a.npz", **{float_part: images[float_part] / 255})
    dataset = load_npz(file)
    np.testing.assert_allclose(dataset.train.images, X, rtol=1e-6)
    np.testing.assert_allclose(dataset.test.images, X[:6], rtol=1e-6)


def test_npz_of_grey_images_without_a_channel(tmp_path):
    grey = X[..., 0]
    dataset = load_npz(save(tmp_path / "a.npz", x_train=grey, x_test=grey[:6]), (4, 5, 1))
    np.testing.assert_array_equal(dataset.train.images[..., 0], grey)


def test_npz_labels_may_be_a_column(tmp_path):
    dataset = load_npz(save(tmp_path / "a.npz", y_train=Y[:, None], y_test=Y[:6, None]))
    np.testing.assert_array_equal(dataset.train.labels, Y)


def test_npz_shape_and_classes_are_read_from_the_file(tmp_path):
    grey = save(tmp_path / "grey.npz", x_train=X[..., 0], x_test=X[:6, ..., 0], y_test=Y[:6] + 1)
    cfg = plan("dataset=npz", f"dataset.path={grey}").dataset
    assert list(cfg.image_shape) == [4, 5, 1]
    assert cfg.num_classes == 4  # the largest label of both parts and one


@pytest.mark.parametrize("name", ["x_train", "y_train", "x_test", "y_test"])
def test_npz_names_a_missing_array(tmp_path, name):
    with pytest.raises(ConfigError, match=f"a.npz lacks {name}; expected the arrays x_train, y_t"):
        load_npz(save(tmp_path / "a.npz", **{name: None}))


def test_npz_refuses_labels_that_are_no_whole_numbers(tmp_path):
    with pytest.raises(ConfigError, match="y_train is float64; expected whole class numbers"):
        load_npz(save(tmp_path / "a.npz", y_train=Y.astype(float)))


def test_npz_refuses_one_hot_labels(tmp_path):
    with pytest.raises(ConfigError, match=r"y_train \(12, 3\); expected"):
        load_npz(save(tmp_path / "a.npz", y_train=np.eye(3, dtype=int)[Y]))


def test_npz_refuses_fewer_labels_than_images(tmp_path):
    with pytest.raises(ConfigError, match=r"x_test has shape \(6, 4, 5, 3\) and y_test \(5,\)"):
        load_npz(save(tmp_path / "a.npz", y_test=Y[:5]))


class Bomb:
    """Creates a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_npz_with_objects_is_refused_and_nothing_in_it_is_executed(tmp_path):
    bomb = np.empty(12, object)
    bomb[:] = [Bomb(tmp_path / "executed")] * 12
    with pytest.raises(ConfigError, match="a.npz: Object arrays cannot be loaded"):
        load_npz(save(tmp_path / "a.npz", y_train=bomb))
    assert not (tmp_path / "executed").exists()


def test_npz_of_another_shape_than_declared(tmp_path):
    with pytest.raises(ConfigError, match=r"train images have shape \[4, 5, 3\].*\[4, 4, 3\]"):
        load_npz(save(tmp_path / "a.npz"), (4, 4, 3))


def test_npz_whose_test_images_have_another_shape(tmp_path):
    with pytest.raises(ConfigError, match=r"the test images have shape \[4, 4, 3\]"):
        load_npz(save(tmp_path / "a.npz", x_test=X[:6, :, :4]))


def test_npz_with_more_classes_than_declared(tmp_path):
    with pytest.raises(ConfigError, match="train labels run from 0 to 2.*num_classes=2"):
        load_npz(save(tmp_path / "a.npz"), classes=2)


def test_npz_with_a_negative_label(tmp_path):
    with pytest.raises(ConfigError, match="test labels run from -1 to 1"):
        load_npz(save(tmp_path / "a.npz", y_test=Y[:6] - 1))


def test_npz_with_pixels_that_are_not_finite(tmp_path):
    images = X.astype(np.float32)
    images[3, 2, 1, 0] = np.nan
    with pytest.raises(ConfigError, match="train images hold NaN or infinite pixels"):
        load_npz(save(tmp_path / "a.npz", x_train=images, x_test=X[:6].astype(np.float32)))


def test_npz_without_test_images(tmp_path):
    with pytest.raises(ConfigError, match="the test split is empty"):
        load_npz(save(tmp_path / "a.npz", x_test=X[:0], y_test=Y[:0]))


def test_a_missing_npz_file(tmp_path):
    with pytest.raises(ConfigError, match="gone.npz is not a file"):
        load_npz(tmp_path / "gone.npz")


def test_a_file_that_is_no_npz(tmp_path):
    (tmp_path / "a.npz").write_text("x_train")
    with pytest.raises(ConfigError, match="a.npz is not an .npz file"):
        load_npz(tmp_path / "a.npz")


# --- image folder ---


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tf.io.encode_png(image).numpy())


def plain(value: int, channels: int = 3, side: int = 4) -> np.ndarray:
    return np.full((side, side, channels), value, np.uint8)


@pytest.fixture
def folder(tmp_path) -> Path:
    """train/ with 5 cats of 10..14 and 4 dogs of 20..23, test/ with 2 cats and 1 dog."""
    root = tmp_path / "images"
    for part, label, values in (
        ("train", "cat", range(10, 15)),
        ("train", "dog", range(20, 24)),
        ("test", "cat", range(110, 112)),
        ("test", "dog", range(120, 121)),
    ):
        for value in values:
            write(root / part / label / f"{value}.png", plain(value))
    return root


@pytest.fixture
def flat(tmp_path) -> Path:
    """Class folders without train/ and test/: 10 cats, 5 dogs."""
    root = tmp_path / "flat"
    for number in range(15):
        write(root / ("cat" if number < 10 else "dog") / f"{number}.png", plain(number))
    return root


def read_folder(path: Path, shape=(4, 4, 3), **keywords) -> Arrays:
    return sources.image_folder(str(path), list(shape), str(path.parent / "cache"), **keywords)


def values(split: tuple[np.ndarray, np.ndarray]) -> list[tuple[int, int]]:
    """(pixel, label) of images of one colour."""
    return [(int(x[0, 0, 0]), int(y)) for x, y in zip(*split, strict=True)]


def test_image_folder_with_train_and_test(folder):
    arrays = read_folder(folder)
    assert values(arrays.train) == [
        *((v, 0) for v in range(10, 15)),
        *((v, 1) for v in range(20, 24)),
    ]
    assert values(arrays.test) == [(110, 0), (111, 0), (120, 1)]
    assert arrays.class_names == ("cat", "dog")
    assert (arrays.train[0].dtype, arrays.train[0].shape) == (np.uint8, (9, 4, 4, 3))


def test_image_folder_becomes_a_dataset(folder):
    source = {
        "_target_": "kd_cli.sources.image_folder",
        "path": str(folder),
        "image_shape": [4, 4, 3],
        "cache_dir": str(folder.parent / "cache"),
    }
    dataset = data.load(node(source, (4, 4, 3), 2))
    # A quarter of 5 cats and of 4 dogs is 1 each.
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (7, 2, 3)
    assert np.bincount(labels_of(dataset.validation)).tolist() == [1, 1]
    assert dataset.class_names == ("cat", "dog")


def test_image_folder_with_another_number_of_classes_than_declared(folder):
    source = {
        "_target_": "kd_cli.sources.image_folder",
        "path": str(folder),
        "image_shape": [4, 4, 3],
        "cache_dir": str(folder.parent / "cache"),
    }
    with pytest.raises(ConfigError, match="the data have 2 classes.*num_classes=3"):
        data.load(node(source, (4, 4, 3), 3))


def test_the_number_of_classes_is_read_from_the_folder(folder):
    cfg = plan("dataset=image_folder", f"dataset.path={folder}").dataset
    assert cfg.num_classes == 2


def test_one_folder_is_split_by_class(flat):
    arrays = read_folder(flat, test_fraction=0.2, seed=0)
    train, test = values(arrays.train), values(arrays.test)
    assert [label for _, label in test] == [0, 0, 1]
    assert sorted(train + test) == [(number, int(number >= 10)) for number in range(15)]


def test_the_split_of_one_folder_follows_its_seed(flat):
    first, again = read_folder(flat, seed=0), read_folder(flat, seed=0)
    assert values(first.test) == values(again.test)
    assert any(values(first.test) != values(read_folder(flat, seed=s).test) for s in (1, 2, 3))


def test_grey_images_stay_as_they_are(tmp_path):
    image = np.arange(0, 160, 10, dtype=np.uint8).reshape(4, 4, 1)
    for part in ("train/a", "train/b", "test/a"):
        write(tmp_path / "grey" / part / "1.png", image)
    arrays = read_folder(tmp_path / "grey", (4, 4, 1))
    np.testing.assert_array_equal(arrays.train[0], [image, image])


def test_grey_images_as_colour_repeat_their_channel(tmp_path):
    image = np.arange(0, 160, 10, dtype=np.uint8).reshape(4, 4, 1)
    for part in ("train/a", "train/b", "test/a"):
        write(tmp_path / "grey" / part / "1.png", image)
    arrays = read_folder(tmp_path / "grey", (4, 4, 3))
    np.testing.assert_array_equal(arrays.train[0][0], np.repeat(image, 3, axis=-1))


def test_colour_keeps_its_channels(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    for part in ("train/a", "train/b", "test/a"):
        write(tmp_path / "colour" / part / "1.png", image)
    np.testing.assert_array_equal(read_folder(tmp_path / "colour").test[0], [image])


def test_colour_becomes_grey_by_luminance(tmp_path):
    red = plain(0)
    red[..., 0] = 200
    for part in ("train/a", "train/b", "test/a"):
        write(tmp_path / "red" / part / "1.png", red)
    arrays = read_folder(tmp_path / "red", (4, 4, 1))
    # 0.299 * 200 = 59.8; the decoder cuts off.
    assert values(arrays.test) == [(59, 0)]


def bmp(image: np.ndarray) -> bytes:
    """A 24-bit BMP of [4, 4, 3]; its rows need no padding."""
    pixels = image[::-1, :, ::-1].tobytes()
    numbers = [(54 + len(pixels), 4), (0, 4), (54, 4), (40, 4), (4, 4), (4, 4), (1, 2), (24, 2)]
    numbers += [(0, 4), (len(pixels), 4), (0, 4), (0, 4), (0, 4), (0, 4)]
    return b"BM" + b"".join(n.to_bytes(size, "little") for n, size in numbers) + pixels


@pytest.mark.parametrize("channels", [1, 3])
def test_bmp_is_read_in_grey_and_in_colour(tmp_path, channels):
    for part in ("train/a", "train/b", "test/a"):
        file = tmp_path / "bmp" / part / "1.bmp"
        file.parent.mkdir(parents=True)
        file.write_bytes(bmp(plain(100)))
    arrays = read_folder(tmp_path / "bmp", (4, 4, channels))
    assert arrays.train[0].shape == (2, 4, 4, channels)
    assert abs(values(arrays.test)[0][0] - 100) <= 1


def test_images_are_resized_with_an_antialiasing_filter(tmp_path):
    row = np.array([0, 70, 140, 210], np.uint8)
    image = np.broadcast_to(row[None, :, None], (4, 4, 3))
    for part in ("train/a", "train/b", "test/a"):
        write(tmp_path / "ramp" / part / "1.png", image)
    arrays = read_folder(tmp_path / "ramp", (2, 2, 3))
    # A triangle over 4 pixels weighs 3/7, 3/7, 1/7: (0 + 210 + 140) / 7 = 50, and 160 on the right.
    np.testing.assert_array_equal(arrays.train[0][0, :, :, 1], [[50, 160], [50, 160]])


def test_an_unreadable_file_is_named(folder):
    (folder / "train" / "dog" / "broken.png").write_bytes(b"no image")
    with pytest.raises(
        ConfigError, match=r"train/dog/broken.png can't be decoded .*unreadable=skip"
    ):
        read_folder(folder)


def test_a_file_that_was_cut_short_is_named(folder):
    file = folder / "test" / "cat" / "110.png"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ConfigError, match="test/cat/110.png can't be decoded"):
        read_folder(folder)


def test_unreadable_files_are_left_out_and_counted_when_asked(folder, caplog):
    (folder / "train" / "cat" / "0.png").write_bytes(b"")
    (folder / "train" / "dog" / "broken.png").write_bytes(b"no image")
    arrays = read_folder(folder, unreadable="skip")
    assert len(values(arrays.train)) == 9
    assert np.bincount(arrays.train[1]).tolist() == [5, 4]
    (line,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert line.startswith("left out 2 unreadable images, the first: ")
    assert line.endswith("train/cat/0.png")


def test_unreadable_is_error_or_skip(folder):
    with pytest.raises(ConfigError, match="unreadable=ignore must be error or skip"):
        read_folder(folder, unreadable="ignore")


def test_a_test_class_that_is_not_in_train_is_refused(folder):
    write(folder / "test" / "dgo" / "1.png", plain(1))
    with pytest.raises(ConfigError, match=r"test/dgo is no class of .*train; did you mean 'dog'\?"):
        read_folder(folder)


def test_hidden_folders_are_no_classes(folder):
    for part in ("train", "test"):
        (folder / part / ".ipynb_checkpoints").mkdir()
    assert read_folder(folder).class_names == ("cat", "dog")


def test_train_without_test_is_refused(tmp_path):
    for label in "ab":
        write(tmp_path / "half" / "train" / label / "1.png", plain(1))
    with pytest.raises(ConfigError, match="has train/ but no test/"):
        read_folder(tmp_path / "half")


def test_a_folder_of_one_class_is_refused(tmp_path):
    write(tmp_path / "one" / "cat" / "1.png", plain(1))
    with pytest.raises(ConfigError, match="holds 1 class folders; expected at least 2"):
        read_folder(tmp_path / "one")


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="gone is not a folder"):
        read_folder(tmp_path / "gone")


def test_class_folders_without_images_are_refused(tmp_path):
    for label in "ab":
        (tmp_path / "empty" / label).mkdir(parents=True)
    with pytest.raises(ConfigError, match="no images for the train split"):
        read_folder(tmp_path / "empty")


# --- decoded cache ---


def refuse(*_) -> None:
    raise AssertionError("decoded again")


def test_the_second_load_does_not_decode(folder, monkeypatch):
    first = read_folder(folder)
    monkeypatch.setattr(folders, "_decode_folder", refuse)
    second = read_folder(folder)
    for part in ("train", "test"):
        for ours, theirs in zip(getattr(first, part), getattr(second, part), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert second.class_names == ("cat", "dog")
    assert second.fingerprint == first.fingerprint == fingerprint(second)
    assert isinstance(second.train[0], np.memmap)


def test_another_size_is_decoded_by_itself(folder, monkeypatch):
    read_folder(folder)
    monkeypatch.setattr(folders, "_decode_folder", refuse)
    with pytest.raises(AssertionError, match="decoded again"):
        read_folder(folder, (2, 2, 3))


@pytest.mark.parametrize("name", ["train_x.npy", "test_y.npy"])
def test_a_cache_file_that_was_cut_short_is_decoded_again(folder, caplog, name):
    expected = values(read_folder(folder).train)
    (file,) = (folder.parent / "cache").rglob(name)
    file.write_bytes(file.read_bytes()[:-10])
    arrays = read_folder(folder)
    assert values(arrays.train) == expected
    assert values(arrays.test) == [(110, 0), (111, 0), (120, 1)]
    assert "are damaged; decoding them again" in caplog.text


def test_a_missing_cache_file_is_decoded_again(folder, caplog):
    read_folder(folder)
    (file,) = (folder.parent / "cache").rglob("test_x.npy")
    file.unlink()
    assert values(read_folder(folder).test) == [(110, 0), (111, 0), (120, 1)]
    assert "are damaged; decoding them again" in caplog.text


def test_a_cache_folder_without_a_manifest_is_decoded_again(folder):
    # What a kill in the middle of removing a damaged folder leaves.
    read_folder(folder)
    (manifest,) = (folder.parent / "cache").rglob("manifest.json")
    manifest.unlink()
    assert values(read_folder(folder).test) == [(110, 0), (111, 0), (120, 1)]


def test_two_processes_may_decode_at_once(folder, monkeypatch):
    decode = folders._decode_folder

    def be_second(*arguments):
        monkeypatch.setattr(folders, "_decode_folder", decode)
        read_folder(folder)  # the other process, done before this one
        return decode(*arguments)

    monkeypatch.setattr(folders, "_decode_folder", be_second)
    assert values(read_folder(folder).test) == [(110, 0), (111, 0), (120, 1)]
    assert len(list((folder.parent / "cache" / "data").iterdir())) == 1


def test_a_changed_image_is_decoded_again(folder):
    first = read_folder(folder)
    file = folder / "test" / "dog" / "120.png"
    later = file.stat().st_mtime_ns + 10**9
    write(file, plain(121))
    os.utime(file, ns=(later, later))
    second = read_folder(folder)
    assert values(second.test) == [(110, 0), (111, 0), (121, 1)]
    assert second.fingerprint != first.fingerprint


def test_a_new_image_is_decoded(folder):
    read_folder(folder)
    write(folder / "test" / "dog" / "130.png", plain(130))
    assert values(read_folder(folder).test) == [(110, 0), (111, 0), (120, 1), (130, 1)]


def test_a_decode_that_fails_leaves_no_cache(folder):
    (folder / "train" / "dog" / "broken.png").write_bytes(b"no image")
    with pytest.raises(ConfigError):
        read_folder(folder)
    assert not list((folder.parent / "cache").rglob("*.npy"))


# --- tensorflow-datasets ---


def tfds_source(name: str, shape: list[int], folder: Path, **keywords) -> dict:
    return {
        "_target_": "kd_cli.sources.tfds",
        "name": name,
        "data_dir": str(folder),
        "cache_dir": str(folder / "cache"),
        "image_shape": shape,
        **keywords,
    }


@pytest.fixture
def online(monkeypatch) -> None:
    """Every host answers, with nothing."""
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO())


def test_cifar100_through_tfds(tmp_path, online):
    with tensorflow_datasets.testing.mock_data(num_examples=60):
        source = tfds_source("cifar100", [32, 32, 3], tmp_path)
        dataset = data.load(node(source, (32, 32, 3), 100, validation_fraction=0.1))
    assert len(dataset.train) + len(dataset.validation) == 60
    assert len(dataset.test) == 60
    assert dataset.train.images.shape == (60, 32, 32, 3)
    assert dataset.train.images.dtype == np.uint8
    assert dataset.num_classes == 100


def test_flowers102_is_resized_and_keeps_its_official_validation_split(tmp_path, online):
    with tensorflow_datasets.testing.mock_data(num_examples=7):
        cfg = plan(
            "dataset=oxford_flowers102",
            f"data_dir={tmp_path}",
            f"cache_dir={tmp_path}",
            "dataset.image_shape=[20,30,3]",
        )
        dataset = data.load(cfg.dataset)
    # All 7 train: none is held out for validation.
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (7, 7, 7)
    assert dataset.validation.images is not dataset.train.images
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.images.shape == (7, 20, 30, 3)
        assert split.images.dtype == np.uint8
    assert dataset.num_classes == 102
    assert dataset.class_names[0] == "pink primrose"


def test_a_limit_holds_for_the_official_validation_split(tmp_path, online):
    with tensorflow_datasets.testing.mock_data(num_examples=7):
        source = tfds_source(
            "oxford_flowers102", [8, 8, 3], tmp_path, validation_split="validation"
        )
        dataset = data.load(node(source, (8, 8, 3), 102, limit=5))
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (5, 5, 5)


def test_tfds_images_of_other_channels_than_declared_are_refused(tmp_path, online):
    with tensorflow_datasets.testing.mock_data(num_examples=3):
        with pytest.raises(ConfigError, match=r"shape \[28, 28, 1\], declared .*\[28, 28, 3\]"):
            source = tfds_source("mnist", [28, 28, 3], tmp_path)
            data.load(node(source, (28, 28, 3), 10))


def test_the_cache_tells_official_validation_splits_apart(tmp_path, monkeypatch):
    folder = tmp_path / "toy" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    part = (np.zeros((2, 1, 1, 1), np.uint8), np.array([0, 1]))

    def decode(name, folder, shape, validation_split):
        return Arrays(part, part, part if validation_split else None, ("a", "b"))

    monkeypatch.setattr(sources, "_decode_tfds", decode)
    keywords = {"data_dir": str(tmp_path), "cache_dir": str(tmp_path), "image_shape": [1, 1, 1]}
    assert sources.tfds("toy", **keywords).validation is None
    assert sources.tfds("toy", **keywords, validation_split="validation").validation is not None


def test_an_unknown_tfds_name_is_told(tmp_path):
    with pytest.raises(ConfigError, match="tensorflow-datasets knows no dataset 'cifar1000'"):
        sources.tfds("cifar1000", str(tmp_path), str(tmp_path), [32, 32, 3])


@pytest.fixture
def waited(monkeypatch) -> list[float]:
    """Takes the network away; lists the seconds that the downloader would wait between attempts."""
    from urllib3.util.retry import Retry

    seconds = []

    def unreachable(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(
        Retry, "sleep", lambda self, response=None: seconds.append(self.get_backoff_time())
    )
    return seconds


def test_missing_tfds_data_name_the_folder_and_the_remedy(tmp_path, waited):
    empty = tmp_path / "empty"
    with pytest.raises(ConfigError) as told:
        sources.tfds("cifar100", str(empty), str(tmp_path), [32, 32, 3])
    message = str(told.value)
    assert message.startswith(f"cifar100 is not in {empty} and could not be downloaded")
    assert "data_dir=FOLDER" in message
    assert "\n" not in message


def test_missing_tfds_data_without_a_network_fail_fast(tmp_path, waited):
    with pytest.raises(ConfigError):
        sources.tfds("cifar100", str(tmp_path / "empty"), str(tmp_path), [32, 32, 3])
    assert sum(waited) < 10


def test_missing_tfds_data_leave_nothing_behind(tmp_path, waited):
    with pytest.raises(ConfigError):
        sources.tfds("cifar100", str(tmp_path / "empty"), str(tmp_path / "cache"), [32, 32, 3])
    assert not list(tmp_path.iterdir())


# --- real images ---


@pytest.mark.slow
def test_fashion_mnist_is_decoded_once(real_data, tmp_path, monkeypatch):
    source = tfds_source("fashion_mnist", [28, 28, 1], real_data / "tfds")
    source["cache_dir"] = str(tmp_path)
    cfg = node(source, (28, 28, 1), 10, validation_fraction=0.1)
    first = data.load(cfg)
    assert (len(first.train), len(first.validation), len(first.test)) == (54_000, 6_000, 10_000)
    assert np.bincount(labels_of(first.train)).tolist() == [5400] * 10
    assert np.bincount(labels_of(first.validation)).tolist() == [600] * 10
    assert np.bincount(labels_of(first.test)).tolist() == [1000] * 10
    # The published mean of the 60,000 training images.
    assert first.train.images.mean() / 255 == pytest.approx(0.2860, abs=5e-5)
    assert first.class_names[0] == "T-shirt/top"

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # importing it now fails
    second = data.load(cfg)
    assert second.fingerprint == first.fingerprint
    assert second.split_fingerprint == first.split_fingerprint
    np.testing.assert_array_equal(second.test.images, first.test.images)


def test_flowers12_as_an_image_folder(real_data, tmp_path):
    cfg = plan(
        "dataset=image_folder",
        f"dataset.path={real_data / 'flowers12'}",
        f"cache_dir={tmp_path}",
        "dataset.image_shape=[32,32,3]",
    )
    dataset = data.load(cfg.dataset)
    # 60 training images of each class, a tenth of which are validation; 20 test images.
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (648, 72, 240)
    assert np.bincount(labels_of(dataset.validation)).tolist() == [6] * 12
    assert np.bincount(labels_of(dataset.test)).tolist() == [20] * 12
    assert dataset.train.images.shape == (720, 32, 32, 3)
    assert dataset.class_names == (
        *("bluebell", "buttercup", "colts-foot", "daisy", "dandelion", "fritillary"),
        *("iris", "lily-valley", "pansy", "sunflower", "tigerlily", "windflower"),
    )
