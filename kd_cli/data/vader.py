"""Sentences of film reviews, out of the source archive of the package vaderSentiment."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

from kd_cli.data.arrays import Arrays, decoded
from kd_cli.data.listing import plain
from kd_cli.data.text_files import Rows
from kd_cli.data.texts import READER, key_of, tokenized
from kd_cli.data.tokenizer import given
from kd_cli.errors import ConfigError, first_line

ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
_INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_SHA256 = "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"
_SIZES = {"train": 8_000, "validation": 1_000, "test": 1_566}
_FETCH = "pip download vaderSentiment==3.3.2 --no-deps --no-binary :all: -d"


def film_reviews(
    data_dir: str | None,
    cache_dir: str,
    length: int,
    vocabulary: int,
    tokenizer: str = "words",
) -> Arrays:
    """10,566 sentences of film reviews with the sign of their mean rating: negative or positive.

    Sentences rated 0 and repeated ones are left out. In the order of the SHA-256 of their texts the
    first 8,000 are training, the next 1,000 validation, and the others test.

    Args:
        data_dir: The folder of the archive; None is that of tensorflow-datasets.
        cache_dir: Where the token ids are kept; then the archive is not needed any more.
        length, vocabulary, tokenizer: As in `texts.text`.

    Raises:
        ConfigError: The archive is not there, or not the one that is expected.

    Source: Hutto and Gilbert 2014, "VADER: A parsimonious rule-based model for sentiment analysis
    of social media text"; sentences of rottentomatoes.com, rated by 20 people. MIT licence.
    """
    of_file = given(tokenizer, length, vocabulary)
    folder = Path(data_dir or "~/tensorflow_datasets").expanduser()
    key = {
        "text": "film_reviews",
        "sha256": _SHA256,
        "sizes": _SIZES,
        "tokens": [length, vocabulary],
        "reader": READER,
        "tokenizer": key_of(tokenizer, of_file),
    }

    def decode() -> Arrays:
        return tokenized(_split(_read(folder)), vocabulary, length, tokenizer, of_file)

    return decoded(Path(cache_dir), key, decode, "the film reviews")


def _read(folder: Path) -> str:
    """The file with the ratings, checked."""
    path = folder / ARCHIVE
    if not path.is_file():
        raise ConfigError(
            f"the film reviews are not there: expected {plain(path)}; fetch it once (2.4 MB, MIT "
            f"licence) with: {_FETCH} {plain(folder)} (or type data_dir=FOLDER)"
        )
    try:
        with tarfile.open(path) as outer:
            inner = outer.extractfile(_INNER).read()
        with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
            content = archive.extractfile(_MEMBER).read()
    except (tarfile.TarError, OSError, EOFError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{plain(path)} is damaged, or another archive ({first_line(error)}); remove it and "
            f"type: {_FETCH} {plain(folder)}"
        ) from error
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != _SHA256:
        raise ConfigError(
            f"{plain(path)} holds other film reviews (SHA-256 {sha256[:12]}, expected "
            f"{_SHA256[:12]}); remove it and type: {_FETCH} {plain(folder)}"
        )
    return content.decode()


def _split(content: str) -> dict[str, Rows]:
    ratings: dict[str, tuple[str, float]] = {}
    for line in content.splitlines():
        number, rating, text = line.split("\t")
        if float(rating):
            ratings.setdefault(text.strip(), (number, float(rating)))
    order = iter(sorted(ratings, key=lambda text: hashlib.sha256(text.encode()).hexdigest()))
    rows = {}
    for part, size in _SIZES.items():
        rows[part] = Rows(Path("film_reviews"))
        for text in (next(order) for _ in range(size)):
            number, rating = ratings[text]
            rows[part].add(text, "positive" if rating > 0 else "negative", f"sentence {number}")
    return rows
