"""Runs on texts from end to end: what they say, leave, continue and predict."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from scipy.special import softmax

from kd_cli.data.words import tokens_of
from tests.conftest import assert_refused, only_run

GOOD, BAD = "lovely great fine superb warm".split(), "dull boring awful weak flat".split()
NOUNS = "film plot cast ending story".split()
TEACHER = ("teacher=text_cnn", "teacher.network.width=4", "teacher.network.filters=4")
TEACHER += ("teacher.training.epochs=2",)
TINY = ("student=bag", "student.network.width=4", "student.network.buckets=7", "epochs=2")
TINY += ("dataset.length=6", "dataset.vocabulary=20")


def write(path: Path, count: int, seed: int) -> Path:
    """Sentences of a noun or two and one word that tells the class."""
    random = np.random.default_rng(seed)
    lines = ["label,text"]
    for number in range(count):
        good = number % 2
        words = [*random.choice(NOUNS, random.integers(1, 4)), random.choice((BAD, GOOD)[good])]
        lines.append(f'{"positive" if good else "negative"},"{", ".join(words)}!"')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def reviews(work) -> list[str]:
    write(work / "reviews/train.csv", 120, 0)
    write(work / "reviews/test.csv", 40, 1)
    return ["dataset=text", "dataset.path=reviews", *TINY]


def says_images(text: str) -> list[str]:
    """Words of images in what a run on texts says; not in the names of keys."""
    return re.findall(r".*(?:pixel|\bimages?\b(?!\")).*", text)


@pytest.mark.slow
def test_what_a_run_on_texts_says_and_leaves(kd, work, reviews):
    both = [*TEACHER, *reviews]
    said = [kd("distill", *both), kd("train-student", *reviews), kd("explain", *both)]
    folder, record = only_run(work / "outputs/distill")
    said += [kd("evaluate", str(folder)), kd("report", "outputs"), kd("cache", "list")]
    for one in said:
        assert one.code == 0, one.err
        assert not says_images(one.out + one.err)
    assert not says_images((work / "outputs/report/report.md").read_text())
    for name in ("metrics.json", "evaluation.json", "kd.log"):
        assert not says_images((folder / name).read_text()), name
    assert (
        "image_shape" not in record["dataset"] and "image_shape" not in record["config"]["dataset"]
    )
    assert (record["dataset"]["length"], record["dataset"]["vocabulary"]) == (6, 20)
    assert record["input"] == "token ids 0..19, 0 is padding, int32 [batch, 6]"
    assert "token ids   [6] int32, 0..19, 0 is padding, in memory" in said[2].out
    assert "FLOPs per text" in said[3].out
    teacher = Path(record["teacher"]["path"])
    vocabularies = [(place / "vocabulary.json").read_text() for place in (folder, teacher)]
    assert vocabularies[0] == vocabularies[1]
    assert "decoded texts: reviews" in said[5].out

    # What predict prints is what plain Keras computes from the ids of vocabulary.json.
    words = json.loads(vocabularies[0])["words"]
    numbers = [words.index(w) + 2 if w in words else 1 for w in tokens_of("A lovely film!")]
    ids = np.array([numbers + [0] * (6 - len(numbers))], np.int32)
    done = kd("predict", str(folder), "A lovely film!", "dull")
    assert done.code == 0 and "not in the vocabulary: a" in done.err
    expected = [
        100 * softmax(keras.saving.load_model(place / "model.keras")(ids), -1)[0]
        for place in (folder, teacher)
    ]
    printed = {
        found[1]: [float(found[2]), float(found[3])]
        for found in re.finditer(r"(positive|negative) +([\d.]+) +([\d.]+)", done.out)
    }
    first = re.search(r"A lovely film! +(\w+) +([\d.]+) +([\d.]+)", done.out)
    label = ["negative", "positive"].index(first[1])
    np.testing.assert_allclose(
        [float(first[2]), float(first[3])], [one[label] for one in expected], atol=0.01
    )
    assert len(printed) == 2


@pytest.mark.slow
def test_the_vocabulary_of_another_run_is_refused(kd, work, reviews):
    assert kd("train-student", *reviews).code == 0
    folder, record = only_run(work / "outputs")
    write(work / "others.csv", 60, 2)
    other = ["dataset=text", "dataset.path=others.csv", "dataset.length=6", "dataset.vocabulary=20"]
    given = f"dataset.source.tokenizer={folder.relative_to(work)}/vocabulary.json"
    done = kd("evaluate", str(folder), *other)
    assert done.code == 2 and "has another vocabulary than this data" in done.error
    assert given in done.error
    done = kd("evaluate", str(folder / "model.keras"), *other)
    assert done.code == 2 and "has another vocabulary than this data" in done.error
    done = kd("evaluate", str(folder), *other, given)
    assert done.code == 0, done.err
    as_teacher = ["student=bag", f"teacher.checkpoint={folder}", *other, "epochs=1"]
    done = kd("distill", *as_teacher)
    assert done.code == 2 and "teacher.checkpoint=" in done.error and given in done.error
    assert kd("distill", *as_teacher, given).code == 0
    done = kd("train-student", *reviews, *other[1:2], f"student.checkpoint={folder}")
    assert done.code == 2 and "student.checkpoint=" in done.error
    words = json.loads((folder / "vocabulary.json").read_text())
    (folder / "vocabulary.json").write_text(json.dumps({**words, "words": words["words"][::-1]}))
    done = kd("predict", str(folder), "a film")
    assert done.code == 2 and "is the vocabulary of another run" in done.error
    (folder / "vocabulary.json").unlink()
    assert "vocabulary.json is lost" in kd("predict", str(folder), "a film").error
    assert record["dataset"]["tokenizer_sha256"]


@pytest.mark.slow
def test_points_of_a_joint_sweep_are_those_trained_alone(kd, work, reviews):
    sweep = ["--multirun", "seed=0,1", "hydra/launcher=joint"]
    assert kd("distill", *TEACHER, *reviews, *sweep).code == 0
    joint = {p.parent.name: np.load(p) for p in work.glob("outputs/sweeps/*/*/predictions.npz")}
    assert len(joint) == 2
    for seed in (0, 1):
        assert kd("distill", *TEACHER, *reviews, f"seed={seed}").code == 0
    alone = {p.parent.name: np.load(p) for p in work.glob("outputs/distill/*/*/predictions.npz")}
    assert joint.keys() == alone.keys()
    for name in joint:
        for array in joint[name].files:
            np.testing.assert_array_equal(joint[name][array], alone[name][array])


@pytest.mark.slow
def test_a_killed_run_continues_bit_for_bit(work, reviews):
    command = [sys.executable, "-m", "kd_cli", "train-student", *reviews, "epochs=60"]
    command += ["student=transformer_encoder", "~student.network.buckets"]
    command = [word for word in command if "student.network" not in word and word != "student=bag"]

    def trained(folder: str, kill: bool) -> Path:
        words = [*command, f"outputs={folder}"]
        if kill:
            process = subprocess.Popen(words, cwd=work, stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + 300
            while time.monotonic() < deadline and process.poll() is None:
                rows = [p.read_text().count("\n") for p in work.glob(f"{folder}/**/history.jsonl")]
                if rows and rows[0] >= 3:
                    break
                time.sleep(0.02)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            assert not list(work.glob(f"{folder}/**/metrics.json"))  # it was killed in time
        done = subprocess.run(words, cwd=work, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return only_run(work / folder)[0]

    once, twice = trained("once", False), trained("twice", True)
    assert (once / "vocabulary.json").read_bytes() == (twice / "vocabulary.json").read_bytes()
    first, second = (np.load(folder / "predictions.npz") for folder in (once, twice))
    for name in first.files:
        np.testing.assert_array_equal(first[name], second[name])
    hashes = [json.loads((f / "metrics.json").read_text())["weights_sha256"] for f in (once, twice)]
    assert hashes[0] == hashes[1]


@pytest.mark.slow
def test_predict_reads_image_files_as_the_data_were_read(kd, work):
    """A training image's file gets what predictions.npz holds of the test image that it is."""
    from tests.data.test_folders import plain
    from tests.data.test_folders import write as write_image

    for part, values in (("train", range(0, 60, 10)), ("test", (5, 25))):
        for value in values:
            for label, more in (("dark", 0), ("light", 150)):
                write_image(work / "shades" / part / label / f"{value}.png", plain(value + more))
    words = ["dataset=image_folder", "dataset.path=shades", "dataset.image_shape=[6,6,3]"]
    assert kd("train-student", *words, "epochs=2", "student.network.units=[4]").code == 0
    folder, _ = only_run(work / "outputs")
    files = [f"shades/test/{label}/{value}.png" for label in ("dark", "light") for value in (25, 5)]
    done = kd("predict", str(folder), *files)
    assert done.code == 0, done.err
    expected = 100 * softmax(np.load(folder / "predictions.npz")["student_logits"], -1)
    for row, file in zip(expected, files, strict=True):
        found = re.search(re.escape(file) + r" +(\w+) +([\d.]+)", done.out)
        assert float(found[2]) == pytest.approx(row[["dark", "light"].index(found[1])], abs=0.01)
    assert "is not a file" in kd("predict", str(folder), "lost.png").error
    (work / "text.png").write_text("no image")
    assert "expected an image" in kd("predict", str(folder), "text.png").error
    assert "predict needs images" in kd("predict", str(folder)).error


def test_predict_needs_a_finished_run(kd, work):
    assert 'kd predict outputs/latest "a text"' in kd("predict").error
    assert "does not exist" in kd("predict", "nowhere", "a text").error
    assert "usage: kd predict RUN" in kd("predict", "--help").out


REFUSED = {
    "adapter": (["student.input.scale=1"], "student.input.scale=1: the inputs of text are texts"),
    "teacher's adapter": (["teacher.input.size=8"], "token ids are not scaled; leave it out"),
    "augmentation": (["augment=flip_crop"], "augment: its steps change images"),
    "view": (["view=independent"], "view=independent: the inputs of text are texts"),
    "seed": (["augment_seed=3"], "which are not augmented"),
    "image shape": (["dataset.image_shape=[8,8,1]"], "exclude each other"),
    "image network": (["student=mlp"], "student.network: mlp takes images, and the inputs of text"),
    "image teacher": (["teacher=resnet8"], "teacher.network: resnet takes images"),
    "no length": (["dataset.length=null"], "dataset.image_shape is missing"),
    "length": (["dataset.length=0"], "dataset.length=0 must be at least 1"),
    "vocabulary": (["dataset.vocabulary=2"], "dataset.vocabulary=2 must be at least 3"),
    "no vocabulary": (["dataset.vocabulary=null"], "dataset.vocabulary is missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_keys_that_make_no_sense_for_texts(case, kd, work, tmp_path_factory):
    typed, message = REFUSED[case]
    folder = tmp_path_factory.mktemp("reviews")
    write(folder / "train.csv", 12, 0)
    write(folder / "test.csv", 4, 1)
    chosen = {"teacher": "text_cnn", "student": "bag"} | dict(word.split("=", 1) for word in typed)
    words = [f"{key}={value}" for key, value in chosen.items()]
    assert_refused(kd, work, ["distill", "dataset=text", f"dataset.path={folder}", *words], message)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["student=bag"], "student.network: bag takes texts, and the inputs of digits are images"),
        (["dataset.length=5"], "exclude each other"),
        (["dataset.vocabulary=5"], "dataset.vocabulary=5: the inputs of digits are images; leave"),
    ],
)
def test_keys_that_make_no_sense_for_images(typed, message, kd, work):
    assert_refused(kd, work, ["distill", *typed], message)
