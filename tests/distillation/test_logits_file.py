"""A file of logits as a teacher: what is read of it, and what is refused."""

import numpy as np
import pytest

from kd_cli.config.inputs import Images
from kd_cli.data.dataset import Dataset, Split
from kd_cli.distillation.logits_file import read
from kd_cli.errors import ConfigError

GENERATOR = np.random.default_rng(0)
TRAIN, TEST = (GENERATOR.normal(size=(n, 3)).astype(np.float32) for n in (6, 2))


def dataset(own_validation=False):
    def split(count, rows):
        return Split(
            np.zeros([count, 2, 2, 1], np.uint8), np.zeros(count, np.int64), np.array(rows)
        )

    train = split(6, [4, 0, 2])
    validation = Split(train.images, train.labels, np.array([5, 1]))
    if own_validation:
        validation = split(2, [1])
    names = ("a", "b", "c")
    return Dataset(
        "toy", Images((2, 2, 1)), names, train, validation, split(2, [1, 0]), "f" * 64, ""
    )


def softmax(rows):
    shares = np.exp(rows)
    return shares / shares.sum(1, keepdims=True)


def write(path, **arrays):
    np.savez(path / "l.npz", **arrays)
    return path / "l.npz"


def test_rows_of_each_split(tmp_path):
    """kd holds validation out of the training images: its rows are among theirs."""
    table = read(write(tmp_path, train=TRAIN, test=TEST, fingerprint="f" * 64), dataset())
    np.testing.assert_array_equal(table.rows(dataset(), "train"), TRAIN[[4, 0, 2]])
    np.testing.assert_array_equal(table.rows(dataset(), "validation"), TRAIN[[5, 1]])
    np.testing.assert_array_equal(table.rows(dataset(), "test"), TEST[[1, 0]])


def test_one_array_of_all_parts_one_behind_the_other(tmp_path):
    np.save(tmp_path / "l.npy", np.concatenate([TRAIN, TEST[::-1], TEST]))
    data = dataset(own_validation=True)
    table = read(tmp_path / "l.npy", data)
    np.testing.assert_array_equal(table.rows(data, "train"), TRAIN[[4, 0, 2]])
    np.testing.assert_array_equal(table.rows(data, "validation"), TEST[::-1][[1]])
    np.testing.assert_array_equal(table.rows(data, "test"), TEST[[1, 0]])


def test_probabilities_that_are_named_so(tmp_path):
    shares = softmax(TRAIN)
    shares[0] = [0, 1, 0]
    table = read(write(tmp_path, train_probabilities=shares, test=TEST), dataset())
    expected = np.log(np.maximum(shares, np.finfo(np.float32).tiny))
    np.testing.assert_allclose(table.rows(dataset(), "train"), expected[[4, 0, 2]], rtol=1e-6)


def broken():
    rows = TRAIN.copy()
    rows[3, 1] = np.nan
    return rows


MISTAKES = {
    "no array": ({}, "has no array; expected the logits of the 6 train images of toy as train"),
    "no test": ({"train": TRAIN}, "the logits of the 2 test images of toy as test"),
    "rows": ({"train": TRAIN[:5], "test": TEST}, r"float32 \[5, 3\]; expected .* \[6, 3\]"),
    "classes": ({"train": TRAIN[:, :2], "test": TEST}, r"\[6, 2\]; expected numbers \[6, 3\]"),
    "texts": ({"train": TRAIN.astype(str), "test": TEST}, "expected numbers"),
    "not finite": ({"train": broken(), "test": TEST}, "row 3 of train is not finite"),
    "probabilities": ({"train": softmax(TRAIN), "test": TEST}, "name the array train_probabilit"),
    "logits": ({"train_probabilities": TRAIN, "test": TEST}, "no probabilities .* logits train"),
    "both": ({"train": TRAIN, "train_probabilities": TRAIN, "test": TEST}, "has both train and"),
    "other data": ({"train": TRAIN, "test": TEST, "fingerprint": "e"}, "its fingerprint is e"),
    "order": ({"train": TRAIN, "test": TEST, "class_names": ["b", "a", "c"]}, "its class_names is"),
    "unknown": ({"train": TRAIN, "test": TEST, "trian": TEST}, "holds the array trian; expected"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(tmp_path, name):
    arrays, said = MISTAKES[name]
    with pytest.raises(ConfigError, match=said) as refused:
        read(write(tmp_path, **arrays), dataset())
    assert "\n" not in str(refused.value)


def test_files_that_are_no_arrays(tmp_path):
    np.save(tmp_path / "short.npy", TRAIN)
    with pytest.raises(ConfigError, match=r"shape \[6, 3\]; expected \[8, 3\]: a row for each of"):
        read(tmp_path / "short.npy", dataset())
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    (tmp_path / "text.npz").write_text("no")
    for name in ("objects.npy", "text.npz"):
        with pytest.raises(ConfigError, match="can't be read"):
            read(tmp_path / name, dataset())
