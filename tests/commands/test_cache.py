"""`kd cache list|verify|prune` on what real runs keep."""

import json
import os
import re
import sys

import numpy as np
import pytest

from kd_cli.distillation import logits_cache
from kd_cli.files import file_hash
from tests.conftest import read_record


@pytest.fixture
def kept(once, work, small):
    """A finished run, with the logits of its teacher on train and test."""
    once("distill", *small)
    entries = {}
    for folder in logits_cache.entries(work / "outputs" / "cache"):
        entries[logits_cache.read_manifest(folder)["origin"]["part"]] = folder
    assert set(entries) == {"train", "validation", "test"}
    return entries


@pytest.mark.slow
def test_a_run_keeps_its_teacher_s_logits_in_its_rows_order(kd, work, small, kept):
    import keras

    (teacher,) = (work / "outputs" / "teachers").glob("*/model.keras")
    model = keras.saving.load_model(teacher, compile=False)
    with np.load(work / "quarters.npz") as data:
        pixels = data["x_test"].astype(np.float32)
    table = np.load(kept["test"] / "logits.npy")
    np.testing.assert_allclose(table, model.predict(pixels, verbose=0), rtol=1e-4, atol=1e-5)
    assert np.load(kept["train"] / "logits.npy").shape == (144, 4)


def test_list_names_what_is_kept(kd, work, kept):
    done = kd("cache", "list")
    assert done.code == 0 and done.err == ""
    for part, rows in (("train", "144 x 4"), ("test", "40 x 4")):
        line = next(line for line in done.out.splitlines() if kept[part].name in line)
        assert f"npz: mlp on {part}" in line and rows in line and "float32" in line
    assert kd("cache").out == done.out
    assert kd("cache", "list", f"cache_dir={work}/none").out == f"nothing is kept in {work}/none\n"


@pytest.mark.slow
def test_verify_computes_rows_again(kd, work, kept):
    done = kd("cache", "verify", "rows=7")
    assert done.code == 0
    assert done.out.count("right (7 random rows compared)") == 3
    # A row that is wrong although its checksum is right (it was wrong from the beginning).
    folder = kept["test"]
    table = np.load(folder / "logits.npy")
    table[3] += 1
    np.save(folder / "logits.npy", table)
    manifest = (folder / "manifest.json").read_text()
    sha = file_hash(folder / "logits.npy")
    manifest = re.sub(r'"sha256": "\w+"', f'"sha256": "{sha}"', manifest)
    (folder / "manifest.json").write_text(manifest)
    done = kd("cache", "verify")
    assert done.code == 1 and "differs from the teacher by up to 1 in 40 random rows" in done.out
    (folder / "logits.npy").write_bytes(b"short")
    done = kd("cache", "verify")
    assert done.code == 1 and f"{folder.name}: damaged (the checksum is wrong)" in done.out


@pytest.mark.slow
def test_verify_notices_another_teacher_and_a_missing_one(kd, work, small, kept):
    (teacher,) = (work / "outputs" / "teachers").glob("*")
    teacher.rename(work / "elsewhere")
    done = kd("cache", "verify")
    assert done.code == 1 and done.out.count("its teacher or data are gone") == 3
    place = f"teacher_dir={teacher.relative_to(work)}"
    assert kd("train-teacher", *small[:4], "epochs=1", place).code == 0
    done = kd("cache", "verify")
    assert done.code == 1 and done.out.count("its weights have changed since") == 3


@pytest.mark.slow
def test_prune_removes_what_cannot_be_used(kd, work, kept):
    assert kd("cache", "prune").out == "removed 0, kept 3 in outputs/cache\n"
    (kept["train"] / "manifest.json").unlink()
    assert kd("cache", "prune").out == "removed 1, kept 2 in outputs/cache\n"
    assert not kept["train"].exists() and kept["test"].exists()
    assert kd("cache", "prune", "days=1").out == "removed 0, kept 2 in outputs/cache\n"
    assert kd("cache", "prune", "days=0").out == "removed 2, kept 0 in outputs/cache\n"


@pytest.mark.slow
def test_prune_all_removes_the_decoded_images_too(kd, work, kept):
    folder = work / "outputs" / "cache" / "data" / "ab"
    folder.mkdir(parents=True)
    said = {"key": {"tfds": "cifar10"}, "class_names": [], "fingerprint": "f", "notice": ""}
    (folder / "manifest.json").write_text(json.dumps({**said, "sizes": {}}))
    assert "decoded images: cifar10" in kd("cache", "list").out
    assert kd("cache", "prune").out == "removed 0, kept 3 in outputs/cache\n"
    assert kd("cache", "prune", "all=true").out == "removed 4, kept 0 in outputs/cache\n"
    assert not folder.exists()


MANIFEST = {
    "format": logits_cache.FORMAT, "what": "cnn on train", "key": {}, "rows": 3, "classes": 2,
    "dtype": "float32", "largest_rounding_error": 0.0, "size": 5, "sha256": "0", "written": "now",
    "origin": {"teacher": {"file": "t", "sha256": "0"}, "dataset": {"name": "d"}, "part": "train"},
}  # fmt: skip
DAMAGED = {
    "cut": json.dumps(MANIFEST)[:90].encode(),
    "empty": b"",
    "no text": b'{"format": 2, "what": "cnn on tr\xffin"}',
    "a list": b"[1, 2]",
    "a number": b"7",
    "deep": b"[" * 100_000,
    "no origin": json.dumps(MANIFEST | {"origin": None}).encode(),
    "no rows": json.dumps(MANIFEST | {"rows": "three"}).encode(),
    "a folder": None,
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("kind", ["logits", "data"])
def test_a_damaged_manifest_counts_as_no_entry(kd, work, kind, damage):
    """Of both caches; list, verify and prune work, and prune removes it."""
    folder = work / "outputs" / "cache" / kind / "0123456789abcdef"
    folder.mkdir(parents=True)
    manifest, content = folder / "manifest.json", DAMAGED[damage]
    manifest.mkdir() if content is None else manifest.write_bytes(content)
    listed, verified = kd("cache", "list"), kd("cache", "verify")
    assert listed.code == 0 and folder.name in listed.out and listed.err == ""
    assert verified.code == (kind == "logits") and verified.err == ""
    assert kind == "data" or "its manifest is damaged" in verified.out
    pruned = kd("cache", "prune")
    assert pruned.out == "removed 1, kept 0 in outputs/cache\n" and not folder.exists()


def test_a_manifest_whose_origin_means_nothing_is_a_fault_and_no_traceback(kd, work):
    folder = work / "outputs" / "cache" / "logits" / "0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "logits.npy").write_bytes(b"12345")
    sha = file_hash(folder / "logits.npy")
    (folder / "manifest.json").write_text(json.dumps(MANIFEST | {"sha256": sha}))
    done = kd("cache", "verify")
    assert done.code == 1 and done.err == "" and "can't be computed again (" in done.out
    assert kd("cache", "prune").out == "removed 1, kept 0 in outputs/cache\n"  # no such teacher


def test_prune_removes_a_link_and_not_what_it_leads_to(kd, work):
    (work / "precious").mkdir()
    (work / "precious" / "manifest.json").write_text("of another program")
    for kind in ("logits", "data"):
        (work / "outputs" / "cache" / kind).mkdir(parents=True)
        (work / "outputs" / "cache" / kind / "0123").symlink_to(work / "precious")
    assert kd("cache", "prune").out == "removed 2, kept 0 in outputs/cache\n"
    assert (work / "precious" / "manifest.json").exists()


def test_prune_removes_what_killed_processes_left(kd, work):
    cache = work / "outputs" / "cache"
    for place in ("data/.tmp-9-0123456789abcdef", "logits/0123456789abcdef", "logits"):
        (cache / place).mkdir(parents=True, exist_ok=True)
        (cache / place / ".tmp-9-manifest.json").write_text("half")
    for path in cache.rglob("*"):
        os.utime(path, (0, 0))
    assert kd("cache", "prune").out == "removed 4, kept 0 in outputs/cache\n"
    assert [p.name for p in cache.rglob(".tmp-*")] == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["lst"], "unknown action 'lst'; did you mean 'list'? (kd cache list|verify|prune)"),
        (
            ["verify", "row=3"],
            "kd cache verify takes cache_dir=..., outputs=..., rows=..., seed=...;",
        ),
        (["verify", "rows=-1"], "rows=-1 must be a whole number"),
        (["prune", "all=yes"], "all=yes must be true or false"),
        (["prune", "days"], "received 'days'"),
    ],
)
def test_mistakes_are_one_line(kd, work, words, expected):
    done = kd("cache", *words)
    assert done.code == 2 and expected in done.error
    assert list(work.iterdir()) == []


@pytest.mark.slow
def test_the_teacher_s_precision_is_its_own(kd, work, small, kept):
    done = kd("distill", *small, "teacher.precision=mixed_bfloat16")
    assert done.code == 0, done.err
    records = [read_record(p.parent) for p in (work / "outputs/distill").rglob("metrics.json")]
    by = {record["teacher"]["precision"]: record for record in records}
    assert set(by) == {"float32", "mixed_bfloat16"}
    assert {record["precision"] for record in records} == {"float32"}  # the student's
    assert len({record["teacher"]["weights_sha256"] for record in records}) == 1
    # bfloat16 has 8 bits: the logits differ, by little, and have entries of their own.
    folders = logits_cache.entries(work / "outputs" / "cache")
    tables = {}
    for folder in folders:
        origin = logits_cache.read_manifest(folder)["origin"]
        if origin["part"] == "train":
            tables[origin["teacher"]["precision"]] = np.load(folder / "logits.npy")
    difference = np.abs(tables[None] - tables["mixed_bfloat16"]).max()
    assert 0 < difference < 0.05 * np.abs(tables[None]).max()
    assert kd("cache", "verify").code == 0


@pytest.mark.slow
def test_verify_finds_modules_of_the_user_s(kd, work, npz, small):
    """The source of the data lies beside the YAML, not in the working directory."""
    (work / "conf" / "dataset").mkdir(parents=True)
    (work / "conf" / "own_data.py").write_text(
        f"from kd_cli.data import npz\n\n\ndef source():\n    return npz({str(npz)!r})\n"
    )
    (work / "conf" / "dataset" / "own.yaml").write_text(
        "name: own\nimage_shape: [6, 6, 1]\nnum_classes: 4\nsource: {_target_: own_data.source}\n"
    )
    words = ["--config-dir", "conf", "dataset=own", *small[2:]]
    assert kd("distill", *words).code == 0
    for flag in ([], ["--config-dir", "conf"], ["--config-dir=conf"]):
        # As in a new process, which has no such path.
        sys.path[:] = [path for path in sys.path if path != str(work / "conf")]
        sys.modules.pop("own_data", None)
        done = kd("cache", "verify", *flag)
        if flag:
            assert done.code == 0 and done.out.count("right (") == 3, done.out
        else:
            assert done.code == 1 and "No module named 'own_data'" in done.out
    done = kd("cache", "verify", "--config-dir")
    assert done.code == 2 and "--config-dir needs a value" in done.error
