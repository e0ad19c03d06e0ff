"""Image folders, and the cache of decoded images."""

import logging
import os
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from omegaconf import OmegaConf
from PIL import Image

from kd_cli import terminal
from kd_cli.data import arrays as arrays_module
from kd_cli.data import folders
from kd_cli.data.arrays import Arrays, decoded, fingerprint
from kd_cli.data.dataset import load_dataset
from kd_cli.errors import ConfigError
from kd_cli.files import temporary_of
from tests.data.test_dataset import labels_of, node, plan
from tests.data.test_pictures import png_of


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
    return folders.image_folder(str(path), list(shape), str(path.parent / "cache"), **keywords)


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


def source_of(folder: Path) -> dict:
    return {
        "_target_": "kd_cli.data.image_folder",
        "path": str(folder),
        "image_shape": [4, 4, 3],
        "cache_dir": str(folder.parent / "cache"),
    }


def test_image_folder_becomes_a_dataset(folder):
    dataset = load_dataset(node(source_of(folder), (4, 4, 3), 2))
    # A quarter of 5 cats and of 4 dogs is 1 each.
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (7, 2, 3)
    assert np.bincount(labels_of(dataset.validation)).tolist() == [1, 1]
    assert dataset.class_names == ("cat", "dog")


def test_image_folder_with_another_number_of_classes_than_declared(folder):
    with pytest.raises(ConfigError, match="the data have 2 classes.*num_classes=3"):
        load_dataset(node(source_of(folder), (4, 4, 3), 3))


def test_the_number_of_classes_is_read_from_the_folder(folder):
    cfg = plan("dataset=image_folder", f"dataset.path={folder}").dataset
    assert cfg.num_classes == 2


def test_one_folder_is_split_by_class(flat):
    arrays = read_folder(flat, test_fraction=0.2, test_seed=0)
    train, test = values(arrays.train), values(arrays.test)
    assert [label for _, label in test] == [0, 0, 1]
    assert sorted(train + test) == [(number, int(number >= 10)) for number in range(15)]


def test_the_split_of_one_folder_follows_its_seed(flat):
    first, again = read_folder(flat, test_seed=0), read_folder(flat, test_seed=0)
    assert values(first.test) == values(again.test)
    others = [values(read_folder(flat, test_seed=seed).test) for seed in (1, 2, 3)]
    assert any(values(first.test) != other for other in others)


def test_split_seeds_share_the_test_split_and_the_data(flat):
    """So runs of several split seeds are pairs of one group in the report."""
    words = ("dataset=image_folder", f"dataset.path={flat}", "dataset.image_shape=[4,4,3]")
    words += (f"cache_dir={flat.parent / 'cache'}", "dataset.validation_fraction=0.3")
    cfgs = [plan(*words, f"dataset.split_seed={seed}").dataset for seed in (0, 1)]
    first, second = map(load_dataset, cfgs)
    assert values((first.test.images, first.test.labels)) == values(
        (second.test.images, second.test.labels)
    )
    assert first.fingerprint == second.fingerprint
    assert first.validation.rows.tolist() != second.validation.rows.tolist()
    plain = [OmegaConf.to_container(cfg) for cfg in cfgs]
    for key in ("split_seed", "labelled_seed"):
        assert [one.pop(key) for one in plain] == [0, 1]
    assert plain[0] == plain[1]  # the report leaves the seeds out of what a group shares


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


def test_links_that_lead_nowhere_are_named_and_left_out_when_asked(folder, caplog):
    (folder / "train" / "dog" / "gone.png").symlink_to("/nowhere/x.png")
    with pytest.raises(
        ConfigError, match=r"dog/gone.png is a link that leads nowhere; .*unreadable=skip"
    ):
        read_folder(folder)
    assert len(values(read_folder(folder, unreadable="skip").train)) == 9
    assert "left out 1 link that leads nowhere (train/dog/gone.png)" in caplog.text


def test_a_bomb_is_refused_in_one_line(folder):
    (folder / "train" / "dog" / "bomb.png").write_bytes(png_of(100_000, 100_000))
    with pytest.raises(
        ConfigError, match=r"dog/bomb.png would unpack to more than 89,.*unreadable=skip"
    ):
        read_folder(folder)


def test_the_decoder_follows_the_content_and_what_is_lost_is_told(folder, caplog):
    jpeg = Image.new("RGB", (4, 4), (7, 7, 7))
    jpeg.save(folder / "train" / "cat" / "10.png", "JPEG")
    later = Image.new("RGB", (4, 4), (250, 0, 0))
    jpeg.save(folder / "train" / "dog" / "20.png", "GIF", save_all=True, append_images=[later])
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(folder / "train" / "cat" / "11.png", "WEBP")
    deep = Image.fromarray(np.full((4, 4), 4095, np.uint16))
    for name in ("12", "13"):
        deep.save(folder / "train" / "cat" / f"{name}.png", "TIFF")
    arrays = read_folder(folder)
    train = [value for value, _ in values(arrays.train)]
    assert train[0] == 7 and train[2:4] == [15, 15] and train[5] == 7
    assert arrays.notice.split("; ") == [
        "only the first of several frames is used: 1 image (dog/20.png)",
        "the upper 8 of 16 bits are used, and the largest pixel is 15: 2 images "
        "(cat/12.png, cat/13.png)",
        "transparency is ignored: 1 image (cat/11.png)",
    ]
    load_dataset(node(source_of(folder), (4, 4, 3), 2))
    assert caplog.text.count(arrays.notice) == 1


def test_a_class_whose_images_are_all_unreadable_is_named(folder, caplog):
    for file in (folder / "train" / "dog").iterdir():
        file.write_bytes(b"no image")
    source = {**source_of(folder), "unreadable": "skip"}
    load_dataset(node(source, (4, 4, 3), 2))
    assert "toy: there is no training image of the classes dog" in caplog.text


def test_test_images_are_not_those_of_training(folder):
    shutil.rmtree(folder / "test")
    (folder / "test").symlink_to(folder / "train")
    with pytest.raises(ConfigError, match="test and train/ are the same folder"):
        read_folder(folder)


def test_test_images_without_class_folders_are_refused(folder):
    shutil.rmtree(folder / "test")
    write(folder / "test" / "1.png", plain(1))
    with pytest.raises(ConfigError, match="test has images but no class folders; expected <class>"):
        read_folder(folder)


def test_names_that_are_not_utf8_become_printable_classes(tmp_path):
    for part in ("train", "test"):
        write(tmp_path / "odd" / part / os.fsdecode(b"caf\xe9") / "1.png", plain(1))
        write(tmp_path / "odd" / part / "b" / os.fsdecode(b"\xff.png"), plain(2))
    arrays = read_folder(tmp_path / "odd")
    assert arrays.class_names == ("b", "caf\\udce9") and values(arrays.train) == [(2, 0), (1, 1)]


def test_two_channels_are_refused(folder):
    with pytest.raises(ConfigError, match=r"image_shape=\[4, 4, 2\].* 1 \(grey\), 3 \(colour\)"):
        read_folder(folder, (4, 4, 2))


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
    assert caplog.records == []  # it is told where the data are checked
    assert arrays.notice.startswith("left out 2 unreadable images, the first: ")
    assert arrays.notice.endswith("train/cat/0.png")


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
    with pytest.raises(ConfigError, match="holds 1 class folders with images; expected at least 2"):
        read_folder(tmp_path / "one")


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="gone is not a folder"):
        read_folder(tmp_path / "gone")


def test_class_folders_without_images_are_refused(tmp_path):
    for label in "ab":
        (tmp_path / "empty" / label).mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds 0 class folders .*; without images: a, b"):
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


@pytest.mark.parametrize("name", ["train_x.npy", "train_y.npy", "test_x.npy"])
@pytest.mark.parametrize("place", [9, 70, -1])  # in the header's length, its text, the values
def test_a_flipped_bit_in_the_cache_is_noticed(folder, caplog, name, place):
    expected = read_folder(folder)
    kept = [expected.train[0].copy(), expected.train[1].copy()]
    (file,) = (folder.parent / "cache").rglob(name)
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.unlink()  # the maps of `expected` stay as they are
    file.write_bytes(content)
    arrays = read_folder(folder)
    assert "are damaged; decoding them again" in caplog.text
    for ours, theirs in zip(arrays.train, kept, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert arrays.fingerprint == fingerprint(arrays) == expected.fingerprint
    assert file.read_bytes() != content


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"key": 1, "sizes": {}}'])
def test_a_damaged_manifest_counts_as_none(folder, caplog, content):
    read_folder(folder)
    (manifest,) = (folder.parent / "cache").rglob("manifest.json")
    manifest.write_bytes(content)
    assert values(read_folder(folder).test) == [(110, 0), (111, 0), (120, 1)]
    assert "are damaged; decoding them again (no manifest)" in caplog.text


def test_the_checksum_is_computed_once_per_process(folder, monkeypatch):
    first = read_folder(folder)
    monkeypatch.setattr(arrays_module, "fingerprint", refuse)
    assert read_folder(folder).train[0] is first.train[0]


def test_a_finished_entry_is_read_without_a_lock(folder, monkeypatch):
    """So from a disk that can't be written, too."""
    read_folder(folder)
    arrays_module._checked.cache_clear()
    monkeypatch.setattr(arrays_module, "locked", refuse)
    assert values(read_folder(folder).test) == [(110, 0), (111, 0), (120, 1)]


def test_a_long_decoding_is_told_in_one_line(folder, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="kd")
    read_folder(folder)
    assert "decoding" not in caplog.text
    monkeypatch.setattr(terminal, "_LONG", -1.0)
    read_folder(folder, (2, 2, 3))
    (line,) = (m for m in caplog.messages if "decoding" in m)
    assert re.fullmatch(r"decoding images: 1 of 12, 0m\d\ds left", line)  # busy machines take 1 s


def test_what_a_killed_process_was_decoding_is_removed(folder):
    read_folder(folder)
    data = folder.parent / "cache" / "data"
    (entry,) = [path for path in data.iterdir() if path.is_dir()]
    shutil.rmtree(entry)
    gone = subprocess.Popen(["true"])
    gone.wait()
    name = temporary_of(entry).name.replace(str(os.getpid()), str(gone.pid))
    (data / name).mkdir()
    read_folder(folder)
    assert not list(data.glob(".tmp-*"))


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


def test_of_two_at_once_one_decodes_and_the_other_waits(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="kd")
    part = (np.zeros((2, 1, 1, 1), np.uint8), np.array([0, 1]))
    decoding, calls = threading.Event(), []

    def decode() -> Arrays:
        calls.append(threading.get_ident())
        decoding.set()
        while "waiting for another process that decodes images" not in caplog.text:
            time.sleep(0.01)
        return Arrays(part, part)

    first = threading.Thread(target=decoded, args=(tmp_path, {"a": 1}, decode))
    first.start()
    decoding.wait()
    second = decoded(tmp_path, {"a": 1}, decode)
    first.join()
    assert len(calls) == 1
    assert second.train[1].tolist() == [0, 1]
    (folder,) = [path for path in (tmp_path / "data").iterdir() if path.is_dir()]
    assert not folder.name.startswith(".")


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
    assert not (folder.parent / "cache").exists()
