"""Images that nobody labelled, in a folder beside the labelled ones: `dataset.unlabelled_path`."""

import hashlib
import logging
import os

import numpy as np
import pytest

from kd_cli.config.plans import scratch_plan, teacher_plan
from kd_cli.data.arrays import Arrays
from kd_cli.data.dataset import Dataset, load_dataset
from kd_cli.distillation import teacher_tables
from kd_cli.errors import ConfigError
from kd_cli.report import groups
from kd_cli.runs.identity import dataset_spec, run_id, teacher_dir
from tests.conftest import only_run, plan_of
from tests.data.test_dataset import node
from tests.data.test_folders import plain, read_folder, source_of, values, write


@pytest.fixture
def folder(work):
    """train/ with 8 dark and 8 light images, test/ with 3 each, unlabelled/ with 6 at any depth."""
    root = work / "images"
    for part, count in (("train", 8), ("test", 3)):
        for number in range(count):
            first = 10 if part == "train" else 30
            write(root / part / "dark" / f"{number}.png", plain(first + number))
            write(root / part / "light" / f"{number}.png", plain(200 + first + number))
    for number in range(6):
        below = "a/b/" * (number % 2)
        write(root / "unlabelled" / f"{below}{number}.png", plain(100 + number))
    return root


def load(folder, used=True, heap=None, **changes) -> Dataset:
    heap = str(heap or folder / "unlabelled")
    source = source_of(folder) | {"unlabelled_path": heap}
    return load_dataset(
        node(source, (4, 4, 3), 2, unlabelled_path=heap if used else None, **changes)
    )


def pixels(split) -> list[int]:
    return split.images[split.rows][:, 0, 0, 0].tolist()


def test_they_are_the_last_training_images(folder):
    heap = str(folder / "unlabelled")
    alone, both = read_folder(folder), read_folder(folder, unlabelled_path=heap)
    assert values(both.train)[:16] == values(alone.train) and both.unlabelled == 6
    assert sorted(values(both.train)[16:]) == [(value, -1) for value in range(100, 106)]
    assert values(both.test) == values(alone.test) and both.class_names == ("dark", "light")
    # The labelled data are the same; the others have a hash of their own, of their bytes.
    assert both.fingerprint == alone.fingerprint and alone.unlabelled_fingerprint == ""
    images = both.train[0][16:]
    said = f"{images.dtype.str}{images.shape}".encode() + images.tobytes()
    assert both.unlabelled_fingerprint == hashlib.sha256(said).hexdigest()


def test_they_are_trained_on_and_never_held_out(folder):
    alone, both = load_dataset(node(source_of(folder), (4, 4, 3), 2)), load(folder)
    assert (len(alone.train), len(both.train), both.train.labelled) == (12, 18, 12)
    assert sorted(set(pixels(both.train)) - set(pixels(alone.train))) == list(range(100, 106))
    assert (both.train.labels[both.train.rows] == -1).sum() == 6
    assert pixels(both.validation) == pixels(alone.validation)
    assert pixels(both.test) == pixels(alone.test)
    assert sorted(pixels(both.unlabelled)) == list(range(100, 106))
    for name in ("fingerprint", "split_fingerprint", "held_out_fingerprint"):
        assert getattr(both, name) == getattr(alone, name)
    assert both.unlabelled_fingerprint and not alone.unlabelled_fingerprint
    assert both.per_class(both.train) == [6, 6]


def test_a_network_that_learns_from_labels_has_the_data_without_them(folder, caplog):
    caplog.set_level(logging.INFO, "kd")
    alone, left = load_dataset(node(source_of(folder), (4, 4, 3), 2)), load(folder, used=False)
    np.testing.assert_array_equal(left.train.images, alone.train.images)
    np.testing.assert_array_equal(left.train.rows, alone.train.rows)
    assert left.unlabelled is None and left.unlabelled_fingerprint == ""
    assert "trained without the 6 images that have none" in caplog.text


@pytest.mark.parametrize(("way", "count"), [("leave_out", 12), ("use", 18)])
def test_hidden_labels_beside_them(folder, way, count):
    some = load(folder, labelled_fraction=0.5, unlabelled=way)  # 3 of 6 of each class
    assert (some.labelled, len(some.train)) == (6, count)
    assert len(some.unlabelled) == 12 and pixels(some.unlabelled)[6:] == pixels(
        load(folder).unlabelled
    )
    known = some.unlabelled.labels[some.unlabelled.rows]
    assert (known[:6] >= 0).all() and (known[6:] == -1).all()
    assert some.train.labelled == 6
    assert len(load(folder, unlabelled="use").train) == 18  # none is hidden: those of the folder


def test_a_limit_holds_for_them_too(folder):
    few = load(folder, limit=4)
    assert (few.train.labelled, len(few.train), len(few.unlabelled), len(few.test)) == (2, 6, 4, 4)
    assert few.unlabelled_fingerprint == load(folder).unlabelled_fingerprint


def test_stored_logits_are_known_by_the_images_that_the_limit_takes(folder):
    for number in range(6, 20):
        write(folder / "unlabelled" / f"{number}.png", plain(100 + number))
    several = [load(folder, limit=16, validation_fraction=0, split_seed=n) for n in range(3)]
    assert len({one.split_fingerprint for one in several}) == 1  # all 16 labelled ones
    for part, count in (("train", 3), ("unlabelled", 3), ("test", 1)):
        assert len({str(teacher_tables._data(one, part)) for one in several}) == count


def test_another_picture_is_decoded(folder):
    before = load(folder)
    write(folder / "unlabelled" / "new.png", plain(99))
    after = load(folder)
    assert len(after.unlabelled) == 7 and 99 in pixels(after.unlabelled)
    assert after.unlabelled_fingerprint != before.unlabelled_fingerprint
    assert after.fingerprint == before.fingerprint
    assert len(list((folder.parent / "cache" / "data").iterdir())) >= 2


def test_a_damaged_unlabelled_image_of_the_cache_is_noticed(folder, caplog):
    before = pixels(load(folder).unlabelled)
    (stored,) = (folder.parent / "cache").rglob("train_x.npy")
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1  # of the last unlabelled image
    stored.write_bytes(content)
    os.utime(stored, ns=(1, 1))
    after = load(folder)
    assert "are damaged; decoding them again" in caplog.text
    assert pixels(after.unlabelled) == before


def test_only_what_is_left_out_is_told(folder, caplog):
    load(folder)
    assert "left out" not in caplog.text
    (folder / "more").mkdir()
    write(folder / "more" / "0.png", plain(1))
    (folder / "unlabelled" / "notes.txt").write_text("x")
    load(folder)
    assert "left out 1 folder beside the splits (more)" in caplog.text
    assert "unlabelled: left out 1 file without an image (notes.txt)" in caplog.text


def test_copies_of_labelled_images_are_told(folder, caplog):
    for part, number in (("test", 0), ("test", 1), ("train", 2)):
        content = (folder / part / "dark" / f"{number}.png").read_bytes()
        (folder / "unlabelled" / f"{part}{number}.png").write_bytes(content)
    for _ in range(2):  # from the decoded images, too
        caplog.clear()
        load(folder)
        assert "in the test split, too: 2 (" in caplog.text and "test0.png, " in caplog.text
        assert "must not be trained on" in caplog.text
        assert "in the train split, too: 1 (" in caplog.text


def test_unreadable_ones_are_refused_or_left_out(folder, caplog):
    (folder / "unlabelled" / "0.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"unlabelled/0.png can't be decoded .*unreadable=skip"):
        load(folder)
    source = source_of(folder) | {"unlabelled_path": str(folder / "unlabelled")}
    source |= {"unreadable": "skip"}
    some = load_dataset(node(source, (4, 4, 3), 2, unlabelled_path="x"))
    assert len(some.unlabelled) == 5 and some.train.labelled == 12
    assert "left out 1 unreadable image" in caplog.text
    for file in (folder / "unlabelled").rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(ConfigError, match="no readable image in unlabelled_path"):
        load_dataset(node(source, (4, 4, 3), 2, unlabelled_path="x"))


MISTAKES = {
    "nothing": ("no", "no is not a folder; expected a folder of images without labels"),
    "a file": ("images/test/dark/0.png", "is not a folder"),
    "no text": ("", "is not a folder"),
    "no images": ("empty", "empty holds no images"),
    "the data": ("images", "images contains .*images/t"),
    "above the data": (".", "contains .*images/t"),
    "a split": ("images/test", "is .*images/test, whose images are used already"),
    "inside a class": ("images/train/dark/deep", "lies inside .*images/train, whose"),
    "a link to the test images": ("link", "link is .*images/test"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_folder_that_can_t_serve_is_refused(folder, name):
    path, expected = MISTAKES[name]
    (folder.parent / "empty").mkdir()
    (folder.parent / "link").symlink_to(folder / "test")
    write(folder / "train" / "dark" / "deep" / "0.png", plain(5))
    with pytest.raises(ConfigError, match=expected):
        read_folder(folder, unlabelled_path=path)
    assert not (folder.parent / "cache").exists()


def test_beside_class_folders_it_would_be_a_class(folder):
    flat = folder / "train"
    write(flat / "unlabelled" / "0.png", plain(1))
    expected = "is .*train/unlabelled, .*every folder there is a class"
    with pytest.raises(ConfigError, match=expected):
        read_folder(flat, unlabelled_path=str(flat / "unlabelled"))


def test_a_source_that_counts_wrongly_is_refused(folder, monkeypatch):
    images, labels = np.zeros((4, 4, 4, 3), np.uint8), np.array([0, 1, 0, -1])
    arrays = Arrays((images, labels), (images[:2], labels[:2]), unlabelled=2)
    monkeypatch.setattr("kd_cli.data.dataset.build", lambda *_: arrays)
    with pytest.raises(ConfigError, match="last 2 training images have no label; theirs must be"):
        load(folder)


# --- commands ---


def words(folder, *more) -> list[str]:
    path = folder.name
    shape = "dataset.image_shape=[4,4,3]"
    return ["dataset=image_folder", f"dataset.path={path}", shape, *more]


BESIDE = "dataset.unlabelled_path=images/unlabelled"


def test_they_are_the_student_s_alone(folder):
    alone, beside = (plan_of("distill", *words(folder), *more) for more in ((), (BESIDE,)))
    assert run_id(alone) != run_id(beside)
    spec = dataset_spec(beside.dataset)
    assert spec["unlabelled_path"] == spec["source"]["unlabelled_path"] == "images/unlabelled"
    absolute = plan_of("distill", *words(folder), f"dataset.unlabelled_path={folder}/unlabelled")
    assert run_id(absolute) == run_id(beside)
    assert teacher_dir(alone) == teacher_dir(beside)
    assert run_id(teacher_plan(beside)) == run_id(plan_of("train-teacher", *words(folder)))
    scratch = run_id(plan_of("train-student", *words(folder)))
    assert run_id(scratch_plan(beside)) == scratch
    assert run_id(plan_of("train-student", *words(folder), BESIDE)) == scratch
    several = [run_id(plan_of("self-train", *words(folder), *more)) for more in ((), (BESIDE,))]
    assert several[0] != several[1]


def test_the_option_s_identity_is_that_of_before(folder):
    spec = dataset_spec(plan_of("distill", *words(folder)).dataset)
    assert "unlabelled_path" not in spec and "unlabelled_path" not in spec["source"]


REFUSED = {
    "leave_out": (
        ["distill", "dataset.unlabelled=leave_out", BESIDE],
        "leave_out changes nothing: it is about labels that dataset.labelled_fraction hides",
    ),
    "evaluate": (["evaluate", BESIDE], "evaluate does not use dataset.unlabelled_path"),
    "another dataset": (["distill", "dataset=digits", BESIDE], "unknown key 'dataset.unlabelled_p"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_nothing_is_refused(kd, folder, name):
    typed, expected = REFUSED[name]
    data = words(folder) if "digits" not in typed[1] else []
    done = kd(typed[0], *data, *typed[1:])
    assert done.code == 2 and expected in done.error
    assert not (folder.parent / "outputs").exists()


SMALL = ("student=mlp", "student.network.units=[8]", "epochs=2", "batch_size=8")


@pytest.mark.slow
def test_distilling_self_training_and_what_follows(kd, work, folder):
    teacher = ("teacher=mlp", "teacher.network.units=[8]", "teacher.training.epochs=2")
    data = words(folder, BESIDE, "dataset.validation_fraction=0.25")
    scratch = kd("train-student", *data, *SMALL)
    assert scratch.code == 0, scratch.err
    done = kd("distill", *data, *SMALL, *teacher)
    assert done.code == 0, done.err
    run, record = only_run(work / "outputs" / "distill")
    sizes = {key: record["dataset"][key] for key in ("train", "labelled", "validation", "test")}
    assert sizes == {"train": 18, "labelled": 12, "validation": 4, "test": 6}
    assert record["steps_done"] == 2 * 3 and "unlabelled" in record["inputs"]
    _, own = only_run(work / "outputs" / "teachers")
    _, alone = only_run(work / "outputs" / "train-student")
    for labelled in (own, alone):
        assert (labelled["dataset"]["train"], labelled["dataset"]["labelled"]) == (12, 12)
        assert "unlabelled" not in labelled["inputs"]
        assert labelled["inputs"]["split"] == record["inputs"]["split"]
    assert "points" in done.out.split("scratch student")[1]  # it was found
    explained = kd("explain", *data, *SMALL, *teacher)
    assert "18 training (12 with a label), 4 validation" in explained.out
    verified = kd("cache", "verify")
    assert verified.code == 0 and verified.out.count("right (") == 3
    family = {group.family for group in _groups(work) if group.kind != groups.TEACHER}
    assert len(family) == 1  # the scratch student is its baseline

    trained = kd("self-train", *data, *SMALL, "rounds=1", "pseudo.threshold=0")
    assert trained.code == 0, trained.err
    assert "labelled 6 examples" in trained.err and "right" not in trained.err
    (top,) = (p for p in (work / "outputs" / "self-train" / "image_folder").iterdir())
    below = only_run(top / "round-1")[1]["pseudo_labels"]
    assert below["unlabelled"] == 6 and "accuracy" not in below
    first = only_run(top / "round-0")[1]
    assert first["weights_sha256"] == alone["weights_sha256"]

    write(folder / "unlabelled" / "new.png", plain(99))
    changed = kd("distill", *data, *SMALL, *teacher)
    assert changed.code == 2
    assert "was made from other images of dataset.unlabelled_path" in changed.error
    again = kd("train-student", *data, *SMALL)  # its data are the same
    assert again.code == 0 and "is finished" in again.err
    verified = kd("cache", "verify")
    assert verified.code == 1 and "its images of unlabelled_path have changed" in verified.out
    (folder / "unlabelled").rename(work / "gone")
    evaluated = kd("evaluate", str(run))  # which needs none of them
    assert evaluated.code == 0, evaluated.err
    assert "18 images, 12 of them with a label" in evaluated.out


def _groups(work):
    from kd_cli.runs import finished

    return groups.grouped(finished.find([work / "outputs"]).runs)[0]
