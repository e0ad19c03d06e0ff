"""tensorflow-datasets, and the real images."""

import io
import socket
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets

from kd_cli.data.arrays import Arrays
from kd_cli.data.dataset import load_dataset
from kd_cli.data.sources import tfds
from kd_cli.errors import ConfigError
from kd_cli.runs.identity import dataset_spec
from tests.conftest import plan_of
from tests.data.test_dataset import labels_of, node, plan


def tfds_source(name: str, shape: list[int], folder: Path, **keywords) -> dict:
    return {
        "_target_": "kd_cli.data.tfds",
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


@pytest.mark.slow
def test_cifar100_through_tfds(tmp_path, online):
    with tensorflow_datasets.testing.mock_data(num_examples=60):
        source = tfds_source("cifar100", [32, 32, 3], tmp_path)
        dataset = load_dataset(node(source, (32, 32, 3), 100, validation_fraction=0.1))
    assert len(dataset.train) + len(dataset.validation) == 60
    assert len(dataset.test) == 60
    assert dataset.train.images.shape == (60, 32, 32, 3)
    assert dataset.train.images.dtype == np.uint8
    assert dataset.num_classes == 100


@pytest.mark.slow
def test_flowers102_is_resized_and_keeps_its_official_validation_split(tmp_path, online):
    with tensorflow_datasets.testing.mock_data(num_examples=7):
        cfg = plan(
            "dataset=oxford_flowers102",
            f"data_dir={tmp_path}",
            f"cache_dir={tmp_path}",
            "dataset.image_shape=[20,30,3]",
        )
        dataset = load_dataset(cfg.dataset)
    # All 7 train: none is held out for validation.
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (7, 7, 7)
    assert dataset.validation.images is not dataset.train.images
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.images.shape == (7, 20, 30, 3)
        assert split.images.dtype == np.uint8
    assert dataset.num_classes == 102
    assert dataset.class_names[0] == "pink primrose"


@pytest.mark.slow
def test_any_image_set_of_tfds_without_a_file_of_its_own(tmp_path, online):
    words = ("dataset=tfds", "dataset.name=svhn_cropped", "dataset.num_classes=10")
    words += ("dataset.image_shape=[32,32,3]", f"data_dir={tmp_path}", f"cache_dir={tmp_path}")
    with tensorflow_datasets.testing.mock_data(num_examples=40):
        dataset = load_dataset(plan(*words).dataset)
        assert (len(dataset.train) + len(dataset.validation), len(dataset.test)) == (40, 40)
        assert (dataset.name, dataset.image_shape) == ("svhn_cropped", (32, 32, 3))


def test_a_set_without_image_and_label_is_refused_before_it_is_fetched(tmp_path, waited):
    with pytest.raises(ConfigError, match="coco of .* has .*objects; expected label .*label_key"):
        tfds("coco", str(tmp_path), str(tmp_path), [32, 32, 3])
    assert waited == []


def test_a_limit_holds_for_the_official_validation_split(tmp_path, online):
    with tensorflow_datasets.testing.mock_data(num_examples=7):
        source = tfds_source(
            "oxford_flowers102", [8, 8, 3], tmp_path, validation_split="validation"
        )
        dataset = load_dataset(node(source, (8, 8, 3), 102, limit=5))
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (5, 5, 5)


def test_tfds_images_of_other_channels_than_declared_are_refused(tmp_path, online):
    with tensorflow_datasets.testing.mock_data(num_examples=3):
        with pytest.raises(ConfigError, match=r"shape \[28, 28, 1\], but .*\[28, 28, 3\]"):
            source = tfds_source("mnist", [28, 28, 3], tmp_path)
            load_dataset(node(source, (28, 28, 3), 10))


def test_the_cache_tells_official_validation_splits_apart(tmp_path, monkeypatch):
    folder = tmp_path / "toy" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    part = (np.zeros((2, 1, 1, 1), np.uint8), np.array([0, 1]))

    def decode(name, folder, wanted):
        return Arrays(part, part, part if "validation" in wanted.splits else None, ("a", "b"))

    monkeypatch.setattr("kd_cli.data.sources._decode_tfds", decode)
    keywords = {"data_dir": str(tmp_path), "cache_dir": str(tmp_path), "image_shape": [1, 1, 1]}
    assert tfds("toy", **keywords).validation is None
    assert tfds("toy", **keywords, validation_split="validation").validation is not None


def test_an_unknown_tfds_name_is_told(tmp_path):
    with pytest.raises(ConfigError, match="tensorflow-datasets knows no dataset 'cifar1000'"):
        tfds("cifar1000", str(tmp_path), str(tmp_path), [32, 32, 3])


# --- a set of our own, with the splits and features of tensorflow-datasets ---


class KdToy(tensorflow_datasets.core.GeneratorBasedBuilder):
    """Image number n is n everywhere, of 20 in train and 10 in test, the last ones of 20 to 29."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def _info(self):
        features = tensorflow_datasets.features
        return self.dataset_info_from_configs(
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(2, 2, 1)),
                    "deep": features.Tensor(shape=(4, 4), dtype=np.uint16),
                    "label": features.ClassLabel(names=["even", "odd"]),
                    "nested": {"third": features.Scalar(np.int32), "flag": np.bool_},
                    "share": features.Scalar(np.float32),
                }
            )
        )

    def _split_generators(self, dl_manager):
        return {"train": self._examples(0, 20), "test": self._examples(20, 30)}

    def _generate_examples(self):
        raise NotImplementedError

    def _examples(self, first, last):
        for number in range(first, last):
            yield (
                f"{number:03}",
                {
                    "image": np.full((2, 2, 1), 8 * number, np.uint8),
                    "deep": np.full((4, 4), 2000 * number, np.uint16),
                    "label": number % 2,
                    "nested": {"third": number % 3, "flag": number % 2 == 0},
                    "share": 0.5,
                },
            )


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A folder with the prepared set."""
    folder = tmp_path_factory.mktemp("tfds")
    KdToy(data_dir=str(folder)).download_and_prepare()
    return folder


def load_toy(toy: Path, cache: Path, classes: int = 2, shape=(2, 2, 1), **keywords):
    source = tfds_source("kd_toy", list(shape), toy, **keywords)
    source["cache_dir"] = str(cache)
    return load_dataset(node(source, shape, classes, validation_fraction=0))


def numbers(split) -> list[int]:
    return sorted((split.images[split.rows][:, 0, 0, 0] // 8).tolist())


def test_parts_and_sums_of_splits(toy, tmp_path):
    dataset = load_toy(
        toy,
        tmp_path,
        train_split="train[:60%]+test[:2]",
        validation_split="train[60%:80%]",
        test_split="train[80%:]+test[2:]",
    )
    every = numbers(dataset.train) + numbers(dataset.validation) + numbers(dataset.test)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (14, 4, 12)
    assert sorted(every) == list(range(30))
    assert dataset.class_names == ("even", "odd")


def test_another_label_and_image_by_key(toy, tmp_path):
    dataset = load_toy(toy, tmp_path, 3, (4, 4, 1), label_key="nested/third", image_key="deep")
    # 16 bits: 65535 becomes 255; 29 * 2000 is the largest.
    np.testing.assert_allclose(dataset.test.images[:, 0, 0, 0].max(), 58000 / 257, rtol=1e-6)
    deep = np.round(dataset.train.images[:, 0, 0, 0] * 257 / 2000)
    np.testing.assert_array_equal(dataset.train.labels, deep % 3)
    again = load_toy(toy, tmp_path, 3, (4, 4, 1), label_key="nested/third", image_key="deep")
    assert again.fingerprint == dataset.fingerprint


def test_images_of_16_bits_keep_their_range_when_they_are_resized(toy, tmp_path):
    dataset = load_toy(toy, tmp_path, 2, (2, 2, 1), image_key="deep")
    np.testing.assert_allclose(dataset.test.images.max(), 58000 / 257, rtol=1e-6)


def test_a_flag_as_label(toy, tmp_path):
    dataset = load_toy(toy, tmp_path, label_key="nested/flag")
    np.testing.assert_array_equal(
        dataset.train.labels, 1 - dataset.train.images[:, 0, 0, 0] // 8 % 2
    )


@pytest.mark.parametrize(
    ("keywords", "told"),
    [
        (
            {"test_split": "train[80%:]"},
            r"test_split=train\[80%:\] shares with dataset.source.train_split 4 images \(train\)",
        ),
        ({"validation_split": "test[5:]"}, "validation_split=.* shares with .*test_split 5 images"),
        ({"train_split": "train+train[:10%]"}, r"train\[:10%\] takes 2 images twice"),
        ({"train_split": "all"}, "test_split=test shares with dataset.source.train_split 10"),
        (
            {"train_split": "training"},
            r"no split 'training' \(it has train, test\); type .*train_s",
        ),
        ({"train_split": "train[:80"}, r"train_split=train\[:80 can't be read as a split"),
        ({"train_split": "train[:120%]"}, "can't be read as a split of kd_toy"),
        ({"train_split": "train[:0]"}, r"train_split=train\[:0\] of kd_toy is empty"),
        ({"label_key": "age"}, "has .*nested.*; expected age .dataset.source.label_key=age"),
        ({"label_key": "nested/age"}, "has third, flag; expected age|has flag, third; expected"),
        ({"label_key": "share"}, "share has shape .* expected one class number"),
        ({"label_key": "nested"}, "nested has shape .*expected one class number"),
        ({"image_key": "label"}, "label has shape .*expected an image"),
    ],
)
def test_what_a_set_has_not_is_one_line(toy, tmp_path, keywords, told):
    with pytest.raises(ConfigError, match=told) as error:
        load_toy(toy, tmp_path, **keywords)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("data/*"))


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("train[:80%]", "train[:80%]"),  # as a shell hands 'train[:80%]' over
        ("'train[:80%]'", "train[:80%]"),
        ("train[:80%]+test[5:]", "train[:80%]+test[5:]"),
        ("train+test", "train+test"),
    ],
)
def test_a_part_of_a_split_needs_no_quotes_of_hydra(typed, read):
    made = plan_of("train-student", "dataset=mnist", f"dataset.source.train_split={typed}")
    assert made.dataset.source.train_split == read


def test_splits_and_keys_are_part_of_a_run_and_their_defaults_are_not(toy):
    def spec(*words):
        return dataset_spec(plan("dataset=mnist", *words).dataset)["source"]

    assert set(spec()) == {"_target_", "name", "image_shape", "validation_split"}
    part = spec("dataset.source.train_split='train[:80%]'", "dataset.source.label_key=other")
    assert (part["train_split"], part["label_key"]) == ("train[:80%]", "other")
    assert "scale" in spec("dataset.source.scale=1")


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
        tfds("cifar100", str(empty), str(tmp_path), [32, 32, 3])
    message = str(told.value)
    assert message.startswith(f"cifar100 is not in {empty} and could not be downloaded")
    assert "data_dir=FOLDER" in message
    assert "\n" not in message


def test_missing_tfds_data_without_a_network_fail_fast(tmp_path, waited):
    with pytest.raises(ConfigError):
        tfds("cifar100", str(tmp_path / "empty"), str(tmp_path), [32, 32, 3])
    assert sum(waited) < 10


def test_missing_tfds_data_leave_nothing_behind(tmp_path, waited):
    with pytest.raises(ConfigError):
        tfds("cifar100", str(tmp_path / "empty"), str(tmp_path / "cache"), [32, 32, 3])
    assert not list(tmp_path.iterdir())


# --- real images ---


def test_a_split_that_a_set_lacks_is_told(real_data, tmp_path):
    words = ("dataset=fashion_mnist", "dataset.source.validation_split=dev")
    cfg = plan(*words, f"data_dir={real_data / 'tfds'}", f"cache_dir={tmp_path}")
    with pytest.raises(ConfigError, match="no split 'dev' .it has train, test"):
        load_dataset(cfg.dataset)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_fashion_mnist_is_decoded_once(real_data, tmp_path, monkeypatch):
    source = tfds_source("fashion_mnist", [28, 28, 1], real_data / "tfds")
    source["cache_dir"] = str(tmp_path)
    cfg = node(source, (28, 28, 1), 10, validation_fraction=0.1)
    first = load_dataset(cfg)
    assert (len(first.train), len(first.validation), len(first.test)) == (54_000, 6_000, 10_000)
    assert np.bincount(labels_of(first.train)).tolist() == [5400] * 10
    assert np.bincount(labels_of(first.validation)).tolist() == [600] * 10
    assert np.bincount(labels_of(first.test)).tolist() == [1000] * 10
    # The published mean of the 60,000 training images.
    assert first.train.images.mean() / 255 == pytest.approx(0.2860, abs=5e-5)
    assert first.class_names[0] == "T-shirt/top"

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # importing it now fails
    second = load_dataset(cfg)
    assert second.fingerprint == first.fingerprint
    assert second.split_fingerprint == first.split_fingerprint
    np.testing.assert_array_equal(second.test.images, first.test.images)


@pytest.mark.slow
def test_flowers12_as_an_image_folder(real_data, tmp_path):
    cfg = plan(
        "dataset=image_folder",
        f"dataset.path={real_data / 'flowers12'}",
        f"cache_dir={tmp_path}",
        "dataset.image_shape=[32,32,3]",
    )
    dataset = load_dataset(cfg.dataset)
    # 60 training images of each class, a tenth of which are validation; 20 test images.
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (648, 72, 240)
    assert np.bincount(labels_of(dataset.validation)).tolist() == [6] * 12
    assert np.bincount(labels_of(dataset.test)).tolist() == [20] * 12
    assert dataset.train.images.shape == (720, 32, 32, 3)
    assert dataset.class_names == (
        *("bluebell", "buttercup", "colts-foot", "daisy", "dandelion", "fritillary"),
        *("iris", "lily-valley", "pansy", "sunflower", "tigerlily", "windflower"),
    )
