"""From sources to checked splits: digits and npz files, and what is refused."""

import hashlib
import io
import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from sklearn.datasets import load_digits

from kd_cli.config.check import check
from kd_cli.config.compose import compose
from kd_cli.data import archives, sources
from kd_cli.data.arrays import Arrays, fingerprint
from kd_cli.data.dataset import Dataset, Split, load_dataset
from kd_cli.data.folders import image_folder
from kd_cli.errors import ConfigError
from kd_cli.files import open_npz
from kd_cli.runs.resolvers import register_resolvers

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
            "labelled_fraction": 1.0,
            "unlabelled": "leave_out",
            "split_seed": 0,
            "labelled_seed": "${.split_seed}",
            "limit": None,
            "source": source,
            **changes,
        }
    )


def digits(**changes) -> Dataset:
    return load_dataset(node({"_target_": "kd_cli.data.digits"}, (8, 8, 1), 10, **changes))


def labels_of(split: Split) -> np.ndarray:
    return split.labels[split.rows]


def plan(*overrides: str):
    register_resolvers()
    return check(compose("train-student", list(overrides)), overrides)


def test_digits_as_configured():
    dataset = load_dataset(plan("dataset=digits").dataset)
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


def test_the_digits_in_the_package_are_those_of_scikit_learn():
    file = load_digits()
    with open_npz(Path(sources.__file__).with_name("digits.npz")) as archive:
        np.testing.assert_array_equal(archive["images"], file.images)  # in the same order
        np.testing.assert_array_equal(archive["labels"], file.target)
        assert "Alpaydin" in str(archive["source"]) and "CC BY 4.0" in str(archive["source"])
    # What kd 0.4 made of scikit-learn's own copy.
    sha = "5b378da425447affab3f3ff311febe79f0bc11122d9c4c21ba6eda3e702750b2"
    assert fingerprint(sources.digits()) == sha


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


def test_the_labelled_seed_draws_labelled_images_only():
    first, second = (digits(labelled_fraction=0.05, labelled_seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(first.validation.rows, second.validation.rows)
    np.testing.assert_array_equal(first.test.rows, second.test.rows)
    assert first.held_out_fingerprint == second.held_out_fingerprint
    assert len(first.train.rows) == len(second.train.rows) == 53
    assert set(first.train.rows) != set(second.train.rows)
    # By itself it is the split's.
    np.testing.assert_array_equal(digits(labelled_fraction=0.05).train.rows, first.train.rows)


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


def test_unlabelled_images_are_trained_on_without_their_labels():
    some, used = (digits(labelled_fraction=0.2, unlabelled=way) for way in ("leave_out", "use"))
    np.testing.assert_array_equal(used.train.rows, digits().train.rows)
    known = used.train.labels >= 0
    np.testing.assert_array_equal(np.flatnonzero(known), some.train.rows)
    np.testing.assert_array_equal(used.train.labels[known], some.train.labels[some.train.rows])
    assert used.labelled == used.train.labelled == len(some.train)
    np.testing.assert_array_equal(used.validation.labels, some.validation.labels)
    # The split is the same one; only what is done with it differs.
    assert used.split_fingerprint == some.split_fingerprint


def test_the_rows_that_are_held_out_do_not_depend_on_the_labels():
    prints = {digits(labelled_fraction=share).held_out_fingerprint for share in (1.0, 0.5, 0.02)}
    assert len(prints) == 1 and digits(split_seed=1).held_out_fingerprint not in prints


def test_to_use_unlabelled_images_there_must_be_some():
    with pytest.raises(ConfigError, match="unlabelled=use: all training images have labels"):
        digits(unlabelled="use")


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
    return load_dataset(
        node({"_target_": "kd_cli.data.npz", "path": str(path), **source}, shape, classes)
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
    grey = save(tmp_path / "grey.npz", x_train=X[..., 0], x_test=X[:6, ..., 0], y_test=Y[:6])
    cfg = plan("dataset=npz", f"dataset.path={grey}").dataset
    assert list(cfg.image_shape) == [4, 5, 1]
    assert cfg.num_classes == 3


def test_npz_with_a_stray_label_is_refused(tmp_path):
    labels = Y.copy()
    labels[5] = 10**9
    file = save(tmp_path / "a.npz", y_train=labels)
    with pytest.raises(ConfigError, match=r"y_train\[5\] is 1000000000"):
        plan("dataset=npz", f"dataset.path={file}")


def test_npz_with_a_class_number_that_no_training_image_has(tmp_path, caplog):
    load_npz(save(tmp_path / "a.npz", y_train=Y + 1), classes=5)
    assert "toy: there is no training image with the class numbers 0, 4" in caplog.text


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
    with pytest.raises(ConfigError, match="a.npz: y_train holds Python objects"):
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


# --- archives are looked at before they are unpacked ---


def write_archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy(shape: tuple[int, ...], dtype: str, content: bytes) -> bytes:
    """An `.npy` file whose header may say anything."""
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(file, header)
    return file.getvalue() + content


def toy_members(**changes: bytes) -> dict[str, bytes]:
    images, labels = npy((12, 2, 2), "|u1", bytes(range(48))), npy((12,), "|u1", bytes([0, 1] * 6))
    members = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    return members | changes


@pytest.fixture
def unread(monkeypatch) -> None:
    """Nothing may be unpacked."""

    def load(*_, **__):
        raise AssertionError("the archive was unpacked")

    monkeypatch.setattr(np, "load", load)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"x_train": npy((12, 2, 2), "|u1", b"")},
            "x_train says that it has [0-9]+ bytes, the arch",
        ),
        (
            {"x_train": npy((2**40, 64, 64), "|u1", b"0" * 48)},
            "x_train says that it has [0-9,]{17}",
        ),
        ({"x_train": npy((12, 2, 2), "|O", b"0" * 96)}, "x_train holds Python objects"),
        ({"y_train": npy((12,), "<f4", bytes(48))}, "y_train is float32; expected whole class"),
        (
            {"y_test": npy((11,), "|u1", bytes(11))},
            r"x_test has shape \(12, 2, 2\) and y_test \(11,",
        ),
        ({"x_test": b"\x93NUMPY\x01\x00\xff"}, "a.npz is damaged or cut short"),
        ({"x_test": b"no array"}, "a.npz is damaged or cut short .*np.savez"),
        (
            {"x_validation": npy((1, 2, 2), "|u1", bytes(4))},
            "has x_validation alone; expected x_val",
        ),
    ],
)
def test_what_an_archive_says_of_itself_is_looked_at(tmp_path, unread, changes, told):
    path = write_archive(tmp_path / "a.npz", toy_members(**changes))
    with pytest.raises(ConfigError, match=told) as error:
        plan("dataset=npz", f"dataset.path={path}")
    assert "\n" not in str(error.value)


def test_a_zip_bomb_is_not_unpacked(tmp_path, unread, monkeypatch):
    monkeypatch.setattr(archives, "_SMALL", 2**20)
    count = 2**22
    bomb = npy((count, 1, 1), "|u1", bytes(count)), npy((count,), "|u1", bytes(count))
    path = write_archive(tmp_path / "a.npz", toy_members(x_train=bomb[0], y_train=bomb[1]))
    with pytest.raises(ConfigError, match="x_train would unpack from 4.[01] KiB to 4.0 MiB"):
        load_npz(path)


def test_more_than_the_memory_is_not_unpacked(tmp_path, unread, monkeypatch):
    monkeypatch.setattr(archives, "available_memory", lambda: 100)
    with pytest.raises(ConfigError, match="take 632 bytes of memory, 100 bytes are"):
        load_npz(write_archive(tmp_path / "a.npz", toy_members()), (2, 2, 1), 2)


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_an_archive_that_is_cut_short_is_one_line(tmp_path, keep):
    path = save(tmp_path / "a.npz")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ConfigError, match="a.npz is damaged or cut short .*; np.savez") as error:
        load_npz(path)
    assert "\n" not in str(error.value)


def test_a_flipped_bit_in_an_array_is_one_line(tmp_path):
    path = save(tmp_path / "a.npz")
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="a.npz is damaged .*CRC"):
        load_npz(path)


def test_npz_with_a_validation_split_and_what_is_left_out(tmp_path, caplog):
    path = save(tmp_path / "a.npz", x_validation=X[6:9], y_validation=Y[6:9], x_val=X, names=Y)
    dataset = load_npz(path)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (12, 3, 6)
    np.testing.assert_array_equal(dataset.validation.images, X[6:9])
    assert "a.npz: left out [x_val, names]; the arrays of a data set are x_train" in caplog.text


@pytest.mark.parametrize("channels", [2, 4, 13])
def test_npz_of_any_number_of_channels(tmp_path, channels):
    images = np.resize(X, (12, 4, 5, channels))
    path = save(tmp_path / "a.npz", x_train=images, x_test=images[:6])
    dataset = load_dataset(plan("dataset=npz", f"dataset.path={path}").dataset)
    np.testing.assert_array_equal(dataset.train.images, images)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 28, 28), (3, 32, 48)])
def test_channels_before_rows_are_refused(tmp_path, shape):
    images = np.resize(X, (12, *shape))
    path = save(tmp_path / "a.npz", x_train=images, x_test=images[:6])
    with pytest.raises(ConfigError, match=r"image_shape=.* must be .*np.moveaxis\(images, 1, -1\)"):
        plan("dataset=npz", f"dataset.path={path}")


def test_a_preview_of_other_channels_is_refused(tmp_path):
    path = save(tmp_path / "a.npz", x_train=X[..., :2], x_test=X[:6, ..., :2])
    with pytest.raises(ConfigError, match="augment.preview=True must be false .*, not 2"):
        plan("dataset=npz", f"dataset.path={path}", "augment.preview=true")


def test_a_folder_of_images_has_one_channel_or_three(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=r"image_shape=\[4, 5, 2\].* 1 .grey., 3 .colour. or 4"):
        image_folder(str(tmp_path), [4, 5, 2], str(tmp_path))
