"""Texts in files: what is read, split, tokenised, kept and refused; values by hand."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from kd_cli.config.inputs import Tokens
from kd_cli.data import tokenizer, vader
from kd_cli.data.arrays import Arrays, fingerprint
from kd_cli.data.dataset import load_dataset
from kd_cli.data.texts import text, text_num_classes
from kd_cli.data.token_ids import checked
from kd_cli.data.words import Words, tokens_of
from kd_cli.errors import ConfigError
from tests.conftest import plan_of

TRAIN = [("the cat sat", "cat"), ("the dog ran!", "dog"), ("the cat ran!", "cat"), ("a dog", "dog")]
TEST = [("the cat flew", "cat"), ("the dog sat", "dog")]


def csv(path: Path, rows, head="text,label", mark=",") -> Path:
    lines = [head, *(mark.join(row) for row in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    csv(tmp_path / "pets/train.csv", TRAIN)
    csv(tmp_path / "pets/test.csv", TEST)
    return tmp_path / "pets"


def read(path: Path, tmp_path: Path, length: int = 4, vocabulary: int = 100, **more) -> Arrays:
    return text(str(path), str(tmp_path / "cache"), length, vocabulary, **more)


# --- tokens ---


def test_tokens():
    assert tokens_of("It's GREAT!! (really?)") == ["it", "s", "great", "!", "!", "really", "?"]
    assert tokens_of("cafe\u0301 x_1 3.5") == ["café", "x_1", "3", "5"]  # composed first
    assert tokens_of("... --") == []


def test_the_word_list():
    """The most frequent first, those of one count by the alphabet; what occurs once is left out."""
    words = Words.of(["b b b c", "a c d"], 100, 3)
    assert words.words == ("b", "c")
    assert Words.of(["b a b a c c c"], 4, 3).words == ("c", "a")  # 0 and 1 are ids, too
    ids, cut = words.ids(["c x b", "b b b b", "...", "C"])
    assert ids.tolist() == [[3, 1, 2], [2, 2, 2], [1, 0, 0], [3, 0, 0]]
    assert (ids.dtype, cut) == (np.int32, 1)
    assert Words.read(json.loads(json.dumps(words.to_json()))) == words
    with pytest.raises(ValueError, match="another tokenizer"):
        Words.read({**words.to_json(), "lower_case": False})


# --- files ---


def test_a_folder_of_csv(folder, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="kd")
    found = read(folder, tmp_path)
    # the: 3; cat, dog, ran, !: 2 each, by the alphabet.
    assert found.tokenizer["words"] == ["the", "!", "cat", "dog", "ran"]
    assert found.train[0].tolist() == [[2, 4, 1, 0], [2, 5, 6, 3], [2, 4, 6, 3], [1, 5, 0, 0]]
    assert found.test[0].tolist() == [[2, 4, 1, 0], [2, 5, 1, 0]]
    assert (found.train[1].tolist(), found.test[1].tolist()) == ([0, 1, 0, 1], [0, 1])
    assert (found.class_names, found.validation, found.notice) == (("cat", "dog"), None, "")
    # Of 3 + 4 + 4 + 2 tokens sat and a are not on the list.
    assert "4 training texts, 7 token ids; 15.4 % of their words are unknown" in caplog.text
    assert text_num_classes(str(folder), "text", "label") == 2
    before = len(caplog.records)
    assert read(folder, tmp_path).fingerprint == found.fingerprint and isinstance(
        read(folder, tmp_path).train[0], np.memmap
    )
    assert len(caplog.records) == before  # it was read from the cache
    assert read(folder, tmp_path, vocabulary=4).fingerprint != found.fingerprint


def test_the_tokenizer_counts_in_the_fingerprint():
    """The same ids may stand for other words."""
    ids = np.ones((2, 3), np.int32), np.array([0, 1])
    made = [Arrays(ids, ids, tokenizer=Words(w, 3).to_json()) for w in (("a",), ("b",))]
    assert fingerprint(made[0]) != fingerprint(made[1])


def test_quotes_tabs_marks_and_json_lines_give_the_same(folder, tmp_path):
    expected = read(folder, tmp_path)
    quoted = [(f'"{line}"', label) for line, label in TRAIN]
    marked = csv(tmp_path / "b/train.csv", quoted)
    marked.write_bytes(b"\xef\xbb\xbf" + marked.read_bytes().replace(b"\n", b"\r\n"))
    csv(
        tmp_path / "b/Test.tsv",
        [(label, "7", line) for line, label in TEST],
        "label\tn\ttext",
        "\t",
    )
    lines = [json.dumps({"label": label, "text": line, "n": 7}) for line, label in TRAIN]
    (tmp_path / "c").mkdir()
    (tmp_path / "c/training.jsonl").write_text("\n".join(lines))
    csv(tmp_path / "c/test.csv", TEST)
    for part in (*TRAIN, *TEST):
        split = "train" if part in TRAIN else "test"
        file = tmp_path / "d" / split / part[1] / f"{hashlib.md5(part[0].encode()).hexdigest()}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(part[0])
    for name in "bcd":
        found = read(tmp_path / name, tmp_path)
        assert found.tokenizer == expected.tokenizer
        assert sorted(found.train[0].tolist()) == sorted(expected.train[0].tolist())
        assert found.class_names == expected.class_names


def test_a_text_over_two_lines_and_numbers_as_labels(tmp_path):
    rows = [('"one, ""two""\nthree"', "10"), ("x", "9"), ("y y", "10"), ("z", "9")]
    csv(tmp_path / "n/train.csv", rows)
    csv(tmp_path / "n/test.csv", rows[1:2])
    found = read(tmp_path / "n", tmp_path)
    assert found.class_names == ("9", "10")  # by value
    assert found.train[0][0].tolist() == [1, 1, 1, 0] and found.train[1].tolist() == [1, 0, 1, 0]


def test_one_file_is_split_class_by_class(tmp_path):
    rows = [(f"w{n} w{n}", "ab"[n % 5 == 0]) for n in range(50)]
    file = csv(tmp_path / "all.csv", rows)
    found = read(file, tmp_path)
    assert np.bincount(found.test[1]).tolist() == [8, 2] and len(found.train[1]) == 40
    # Each text has a word of its own: no test text is a training text.
    words = {row[0] for row in found.train[0].tolist()}
    assert len(words) == 40 and {row[0] for row in found.test[0].tolist()} == {1}
    other = read(file, tmp_path, test_seed=1)
    assert other.fingerprint != found.fingerprint


def test_what_is_left_out_is_named(folder, tmp_path):
    csv(folder / "train.csv", [*TRAIN, ("", "cat"), ("lost", " "), ("", "")])
    csv(folder / "test.csv", [*TEST, TRAIN[1], ("the cat sat ", "cat")])
    found = read(folder, tmp_path)
    assert len(found.train[1]) == 4
    assert "left out 1 without a text (line 6), 1 without a label (line 7), 1 empty (line 8)" in (
        found.notice
    )
    assert "2 test texts are training texts, too" in found.notice
    assert "line 4, line 5" in found.notice


def test_many_cut_texts_are_a_warning(folder, tmp_path):
    assert "75.0 % of the texts are longer than dataset.length=2" in (
        read(folder, tmp_path, length=2).notice
    )


def test_a_given_vocabulary(folder, tmp_path):
    file = tmp_path / "vocabulary.json"
    file.write_text(json.dumps(Words(("sat", "flew"), 9).to_json()))
    found = read(folder, tmp_path, tokenizer=str(file))
    assert found.test[0].tolist() == [[1, 1, 3, 0], [1, 1, 2, 0]]
    assert (found.tokenizer["words"], found.tokenizer["length"]) == (["sat", "flew"], 4)
    with pytest.raises(ConfigError, match=r"has 4 ids; type dataset.vocabulary=4 \(now 3\)"):
        read(folder, tmp_path, vocabulary=3, tokenizer=str(file))
    file.write_text('{"tokenizer": "words"}')
    with pytest.raises(ConfigError, match="vocabulary.json can't be used: it has no words and len"):
        read(folder, tmp_path, tokenizer=str(file))
    with pytest.raises(ConfigError, match="tokenizer=lost is not a file; expected words, bpe, the"):
        read(folder, tmp_path, tokenizer="lost")


# --- parts of words ---


def test_byte_pairs_by_hand(tmp_path):
    """The most frequent pair becomes one: a a, then aa b."""
    pytest.importorskip("tokenizers")
    rows = [("aab AAB", "x"), ("aab ac", "y"), ("c", "x")]
    csv(tmp_path / "p/train.csv", rows)
    csv(tmp_path / "p/test.csv", [("caab zb", "y")])
    found = read(tmp_path / "p", tmp_path, length=6, vocabulary=7, tokenizer="bpe")
    content = found.tokenizer["content"]["model"]
    numbers = {"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3, "c": 4, "aa": 5, "aab": 6}
    assert content["vocab"] == numbers
    assert found.train[0].tolist() == [[6, 6, 0, 0, 0, 0], [6, 2, 4, 0, 0, 0], [4, 0, 0, 0, 0, 0]]
    assert found.test[0].tolist() == [[4, 6, 1, 3, 0, 0]]
    again = tokenizer.read(json.loads(json.dumps(found.tokenizer)))
    assert again.ids(["caab zb", "aab aab aab aab aab aab aab"])[1] == 1  # one is cut
    assert again.not_known("zb Ab") == ["z"] and again.size == 7
    file = tmp_path / "vocabulary.json"
    file.write_text(json.dumps(found.tokenizer))
    bare = tmp_path / "tokenizer.json"
    bare.write_text(json.dumps(found.tokenizer["content"]))
    for given in (file, bare):
        other = read(tmp_path / "p", tmp_path, length=3, vocabulary=7, tokenizer=str(given))
        assert other.test[0].tolist() == [[4, 6, 1]]
    with pytest.raises(ConfigError, match=r"has 7 ids; type dataset.vocabulary=7 \(now 5\)"):
        read(tmp_path / "p", tmp_path, vocabulary=5, tokenizer=str(bare))
    swapped = {**numbers, "[PAD]": 2, "a": 0}
    model = {**content, "vocab": swapped}
    changed = {**found.tokenizer["content"], "model": model, "added_tokens": []}
    bare.write_text(json.dumps(changed))
    with pytest.raises(ConfigError, match="its id 0 is 'a', and networks take id 0 for padding"):
        read(tmp_path / "p", tmp_path, tokenizer=str(bare))


def test_the_package_for_parts_of_words_may_be_missing(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match="pip install tokenizers"):
        read(folder, tmp_path, tokenizer="bpe")


# --- mistakes ---

WRONG = {
    "no column": ("text,stars\na,1\n", "has no column 'label', it has text, stars; type dataset"),
    "two columns": ("text,text,label\na,b,1\n", "has two columns 'text'"),
    "empty": ("", "is empty"),
    "blank": ("\n \n", "is empty"),
    "no row": ("text,label\n", "holds no text with a label"),
    "one class": ("text,label\na,x\nb,x\n", "every text has the label 'x'"),
    "open quote": ('text,label\n"a,x\nb,y\n', "can't be read from line 2 on"),
    "comma": ("text,label\na,x\na, b,y\n", "line 3 has 3 fields, the first line 2; put texts with"),
    "not UTF-8": (b"text,label\na,x\nh\xe9,y\n", r"is not UTF-8 \(line 3 has the byte 0xe9\)"),
    "no classes": (
        "text,label\n" + "".join(f"t,{n}\n" for n in range(50)),
        "50 texts have 50 labels, which are no classes",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file(case, tmp_path):
    content, message = WRONG[case]
    file = tmp_path / "a.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message):
        read(file, tmp_path)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"text": "a", "label": 1}\n{"text": 3', "line 2 is no JSON"),
        ('{"text": "a", "label": 1}\n[1]', "line 2 is no object"),
        ('{"text": "a", "label": 1}\n{"txt": "b"}', "line 2 has no column 'text', it has txt"),
    ],
)
def test_wrong_json_lines(lines, message, tmp_path):
    (tmp_path / "a.jsonl").write_text(lines)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / "a.jsonl", tmp_path)


def test_wrong_folders(folder, tmp_path):
    csv(folder / "test.csv", [("the cat", "cta")])
    with pytest.raises(
        ConfigError, match=r"test.csv, line 2: the label 'cta' is no class; .*cat, d"
    ):
        read(folder, tmp_path)
    csv(folder / "testing.tsv", [])
    with pytest.raises(ConfigError, match="two test splits, test.csv and testing.tsv"):
        read(folder, tmp_path)
    for name in ("test.csv", "testing.tsv"):
        (folder / name).unlink()
    with pytest.raises(ConfigError, match="has train.csv but no test split"):
        read(folder, tmp_path)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ConfigError, match="nothing holds no texts"):
        read(tmp_path / "nothing", tmp_path)
    for name, message in (("lost", "does not exist"), ("pets/train.csv.gz", "has another ending")):
        (tmp_path / "pets/train.csv.gz").touch()
        with pytest.raises(ConfigError, match=message):
            read(tmp_path / name, tmp_path)


def test_a_test_fraction_beside_a_test_split_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="test_fraction=0.3 and test_seed=0 change nothing"):
        read(folder, tmp_path, test_fraction=0.3)


# --- from YAML to a dataset ---


def test_the_dataset(folder, work):
    made = plan_of(
        *("train-student", "dataset=text", f"dataset.path={folder}", "student=bag"),
        *("dataset.length=5", "dataset.vocabulary=50", "dataset.validation_fraction=0.5"),
    )
    dataset = load_dataset(made.dataset)
    assert dataset.inputs == Tokens(5, 50) and dataset.num_classes == 2
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (2, 2, 2)
    assert dataset.train.images.dtype == np.int32 and dataset.tokenizer["length"] == 5
    assert "image_shape" not in made.dataset and made.student.input is None


IDS = np.array([[1, 2, 0], [3, 0, 0]], np.int64)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (IDS.astype(float), "are float64; expected a NumPy array of whole numbers"),
        (IDS.tolist(), "are list; expected"),
        (IDS[:, :2], r"have shape \(2, 2\) .*expected \[N, 3\] \(dataset.length\)"),
        (IDS + 5, r"run from 5 to 8, but dataset.vocabulary=5 \(ids 0 to 4\)"),
        (IDS - 1, "run from -1 to 2"),
        (IDS * [[1], [0]], r"row 1 of the train token ids is all padding"),
    ],
)
def test_ids_of_a_source_are_checked(ids, message):
    labels = np.array([0, 1])
    right = checked(Arrays((IDS, labels), (IDS, labels)), Tokens(3, 5), "mine")
    assert right.train[0].dtype == np.int32
    with pytest.raises(ConfigError, match=message):
        checked(Arrays((ids, labels), (IDS, labels)), Tokens(3, 5), "mine")


# --- film reviews ---


def archive(folder: Path, content: bytes) -> None:
    folder.mkdir(exist_ok=True)
    inner = io.BytesIO()
    for name, into, data in (
        (vader._MEMBER, inner, lambda: content),
        (vader._INNER, folder / vader.ARCHIVE, inner.getvalue),
    ):
        where = {"fileobj": into} if isinstance(into, io.BytesIO) else {"name": into}
        with tarfile.open(mode="w:gz", **where) as made:
            entry = tarfile.TarInfo(name)
            entry.size = len(data())
            made.addfile(entry, io.BytesIO(data()))


def test_film_reviews(tmp_path, monkeypatch):
    """Sentences rated 0 and repeated ones are left out; the hash of its text places a sentence."""
    rows = [(f"film {n} film {n}", 0.5 if n % 2 else -2.0) for n in range(8)]
    lines = [f"{n}\t{rating}\t{line} " for n, (line, rating) in enumerate(rows)]
    lines += ["9\t0.0\tneither", "10\t3.1\tfilm 1 film 1"]
    content = "\n".join(lines).encode()
    monkeypatch.setattr(vader, "_SIZES", {"train": 5, "validation": 1, "test": 2})
    order = sorted(rows, key=lambda row: hashlib.sha256(row[0].encode()).hexdigest())
    with pytest.raises(ConfigError, match="pip download vaderSentiment==3.3.2 --no-deps"):
        vader.film_reviews(str(tmp_path / "d"), str(tmp_path / "c"), 4, 50)
    archive(tmp_path / "d", content)
    with pytest.raises(ConfigError, match="holds other film reviews"):
        vader.film_reviews(str(tmp_path / "d"), str(tmp_path / "c"), 4, 50)
    monkeypatch.setattr(vader, "_SHA256", hashlib.sha256(content).hexdigest())
    found = vader.film_reviews(str(tmp_path / "d"), str(tmp_path / "c"), 4, 50)
    assert found.class_names == ("negative", "positive")
    labels = np.concatenate([split[1] for split in (found.train, found.validation, found.test)])
    assert labels.tolist() == [int(rating > 0) for _, rating in order]
    assert [len(split[1]) for split in (found.train, found.validation, found.test)] == [5, 1, 2]
    (tmp_path / "d" / vader.ARCHIVE).unlink()  # prepared once
    again = vader.film_reviews(str(tmp_path / "d"), str(tmp_path / "c"), 4, 50)
    assert again.fingerprint == found.fingerprint
    (tmp_path / "d" / vader.ARCHIVE).write_bytes(b"no archive")
    with pytest.raises(ConfigError, match="is damaged, or another archive"):
        vader.film_reviews(str(tmp_path / "d"), str(tmp_path / "c2"), 4, 50)
