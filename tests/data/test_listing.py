"""What lies in a folder of images: splits, classes, links, and what is left out."""

import os
from pathlib import Path

import pytest
from PIL import Image

from kd_cli.data.folders import class_folders
from kd_cli.data.listing import LINK, Left, class_files, doubt, images_in, layout, plain
from kd_cli.errors import ConfigError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def tree(root: Path, *folders: str) -> Path:
    """A file 1.png in each folder."""
    touch(*(root / folder / "1.png" for folder in folders))
    return root


def read(root: Path) -> tuple[dict[str, list[tuple[str, int]]], str]:
    """Files and class numbers of each split, and what is left out."""
    found = layout(root)
    parts = found.parts or {"all": root}
    files = {part: class_files(folder, found) for part, folder in parts.items()}
    named = {
        part: [(str(file.relative_to(parts[part])), label) for file, label in listed]
        for part, listed in files.items()
    }
    return named, found.left.notice().removeprefix(f"{root}: left out ")


@pytest.mark.parametrize("train", ["train", "Train", "TRAIN", "training", "Training"])
@pytest.mark.parametrize("test", ["test", "TEST", "Testing"])
def test_splits_by_any_of_their_names(tmp_path, train, test):
    tree(tmp_path, f"{train}/a", f"{train}/b", f"{test}/b")
    files, left = read(tmp_path)
    assert files == {"train": [("a/1.png", 0), ("b/1.png", 1)], "test": [("b/1.png", 1)]}
    assert left == "" and class_folders(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("name", ["val", "VAL", "valid", "validation", "Dev"])
def test_a_validation_split_by_any_of_its_names(tmp_path, name):
    tree(tmp_path, "train/a", "train/b", "test/a", f"{name}/a")
    assert read(tmp_path)[0]["validation"] == [("a/1.png", 0)]


@pytest.mark.parametrize(
    ("folders", "text"),
    [
        (["train/a", "train/b", "Training/a", "test/a"], "both mean the train split"),
        (["train/a", "train/b", "test/a", "val/a", "dev/a"], "both mean the validation split"),
        (["train/a", "train/b"], "has train/ but no test/"),
        (["Train/a", "Train/b", "Val/a"], "has Train/ and Val/ but no test/"),
        (["test/a", "test/b"], "has test/ but no train/"),
        (["a", "b", "test"], r"has test/ but no train/.*\(a class that is called test needs"),
        (["bus", "car", "train"], r"has train/ but no test/.*a class that is called train needs"),
        (["train/a", "train/b", "test/c"], "test/c is no class of .*train"),
        (["train/A", "train/b", "test/a"], "test/a is no class of .*train"),
        (["images/a", "images/b"], "holds 1 class folders .*; did you mean dataset.path=.*/images"),
    ],
)
def test_what_is_refused(tmp_path, folders, text):
    with pytest.raises(ConfigError, match=text):
        read(tree(tmp_path, *folders))


def test_a_class_with_images_only_in_test_is_refused(tmp_path):
    tree(tmp_path, "train/a", "train/b", "test/c")
    (tmp_path / "train" / "c").mkdir()
    with pytest.raises(ConfigError, match="test/c has images, but .*train/c has none"):
        read(tmp_path)


def test_what_is_left_out_is_counted(tmp_path):
    tree(tmp_path, "train/a", "train/b", "test/a", "extra/a", "__MACOSX/train/a")
    tree(tmp_path, "train/.checkpoints", "test/a/.hidden")
    for path in ("train/empty", "test/other", "val2"):
        (tmp_path / path).mkdir()
    touch(tmp_path / "train/a/notes.txt", tmp_path / "train/a/list.csv", tmp_path / "test/0.png")
    # What operating systems leave is not worth a word.
    touch(*(tmp_path / "train/a" / name for name in (".DS_Store", "Thumbs.db", "._1.png")))
    files, left = read(tmp_path)
    assert files == {"train": [("a/1.png", 0), ("b/1.png", 1)], "test": [("a/1.png", 0)]}
    assert set(left.split("; ")) == {
        "3 hidden files and folders (__MACOSX, test/a/.hidden, train/.checkpoints)",
        "2 class folders without images (test/other, train/empty)",
        "2 folders beside the splits (extra, val2)",
        "2 files without an image (train/a/list.csv, train/a/notes.txt)",
        "1 image outside the class folders (test/0.png)",
    }


def test_a_class_folder_without_images_is_no_class(tmp_path):
    tree(tmp_path, "b", "c", "a/.hidden", "__MACOSX/b")
    touch(tmp_path / "a" / "readme.txt")
    assert class_folders(tmp_path) == ["b", "c"]
    assert "1 class folder without images (a)" in read(tmp_path)[1]


def test_images_lie_at_any_depth_and_keep_their_order(tmp_path):
    tree(tmp_path, "a/2/x", "a/10", "a", "a/2", "b")
    files, _ = read(tmp_path)
    names = [name for name, label in files["all"] if label == 0]
    assert names == ["a/1.png", "a/10/1.png", "a/2/1.png", "a/2/x/1.png"]


def test_a_file_without_the_name_of_an_image_is_looked_into(tmp_path):
    tree(tmp_path, "a", "b")
    Image.new("RGB", (2, 2)).save(tmp_path / "a" / "photo", "JPEG")
    Image.new("RGB", (2, 2)).save(tmp_path / "a" / "2.blob", "WEBP")
    assert [name for name, _ in read(tmp_path)[0]["all"]] == [
        *("a/1.png", "a/2.blob", "a/photo"),
        "b/1.png",
    ]


def test_links_to_files_and_folders_are_followed(tmp_path):
    root = tree(tmp_path / "root", "a", "b")
    tree(tmp_path / "far", "away/deep", "c")
    (root / "a" / "link").symlink_to(tmp_path / "far" / "away")
    (root / "a" / "2.png").symlink_to(tmp_path / "far" / "c" / "1.png")
    (root / "c").symlink_to(tmp_path / "far" / "c")
    assert read(root)[0]["all"] == [
        *(("a/1.png", 0), ("a/2.png", 0), ("a/link/deep/1.png", 0)),
        *(("b/1.png", 1), ("c/1.png", 2)),
    ]


def test_links_that_lead_nowhere_or_back_are_counted(tmp_path):
    root = tree(tmp_path / "root", "a", "b")
    (root / "a" / "gone.png").symlink_to(tmp_path / "nowhere")
    (root / "a" / "gone").symlink_to(tmp_path / "nowhere")
    (root / "a" / "self.jpg").symlink_to("self.jpg")
    (root / "a" / "back").symlink_to(root / "a")
    (root / "b" / "up").symlink_to(root)
    (root / "b" / "album.jpg").mkdir()
    os.mkfifo(root / "b" / "pipe.png")
    files, left = read(root)
    assert set(left.split("; ")) == {
        "2 links that lead nowhere (a/gone.png, a/self.jpg)",
        "1 file without an image (a/gone)",
        "2 links back to a folder above them (a/back, b/up)",
        "1 empty folder named as an image (b/album.jpg)",
        "1 special file named as an image (b/pipe.png)",
    }
    assert files["all"] == [("a/1.png", 0), ("b/1.png", 1)]


def test_a_class_that_is_a_link_to_nowhere_is_counted(tmp_path):
    tree(tmp_path, "train/a", "train/b", "test/a")
    (tmp_path / "train" / "c").symlink_to(tmp_path / "gone")
    (tmp_path / "val").symlink_to(tmp_path / "gone")
    assert read(tmp_path)[1] == "2 links that lead nowhere (train/c, val)"


def test_images_without_class_folders(tmp_path):
    tree(tmp_path, "train", "train/.hidden", "test/a", "test/b")
    (tmp_path / "train" / "empty").mkdir()
    found = layout(tmp_path)
    assert found.bare and found.classes == ["a", "b"] and found.named == tmp_path / "test"
    assert images_in(tmp_path / "train", found.left) == [tmp_path / "train" / "1.png"]
    assert "1 hidden file or folder (train/.hidden)" in found.left.notice()


def test_images_in_a_folder_named_as_one(tmp_path):
    tree(tmp_path, "a/album.jpg", "b")
    assert read(tmp_path) == ({"all": [("a/album.jpg/1.png", 0), ("b/1.png", 1)]}, "")


def test_class_folders_that_look_like_splits_are_doubted(tmp_path):
    splits = tree(tmp_path / "one", "set1/cat", "set1/dog", "set2/cat", "set2/dog")
    said = doubt(layout(splits))
    assert said.startswith("the classes are set1, set2, each with the folders cat, dog in it")
    assert doubt(layout(tree(tmp_path / "two", "a/2020", "a/2021", "b/2020"))) == ""
    assert doubt(layout(tree(tmp_path / "three", "a/x", "a/y", "a", "b/x", "b/y"))) == ""


def test_names_are_told_in_a_printable_line(tmp_path):
    assert plain("naïve 图.png") == "naïve 图.png"
    assert plain("a\nb\x1b[31m.png") == "a\\nb\\x1b[31m.png"
    name = os.fsdecode(b"caf\xe9.png")  # Latin-1
    assert plain(name) == "caf\\udce9.png"
    left = Left(tmp_path)
    for number in range(4):
        left.add(LINK, tmp_path / f"{number}\n{name}")
    assert "4 links that lead nowhere (0\\ncaf\\udce9.png, 1" in left.notice()
    assert left.notice().isprintable() and left.notice().endswith("2\\ncaf\\udce9.png, ...)")


def test_names_that_are_not_utf8(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    touch(folder / os.fsdecode(b"\xff.png"), tmp_path / "b" / "1.png")
    files, _ = read(tmp_path)
    assert [label for _, label in files["all"]] == [0, 1]
    assert images_in(folder, Left(tmp_path)) == [folder / os.fsdecode(b"\xff.png")]


def test_accents_may_be_written_in_two_ways(tmp_path):
    tree(tmp_path, "train/caf\u00e9", "train/b", "test/cafe\u0301")
    files, _ = read(tmp_path)
    assert files["test"] == [("cafe\u0301/1.png", 1)]
