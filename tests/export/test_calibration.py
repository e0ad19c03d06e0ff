"""Calibration images: of the training split, reproducible, and with a 0 and a 255 among them."""

import hashlib

import numpy as np

from kd_cli.data.dataset import Split
from kd_cli.export.calibration import draw

POOL = np.random.default_rng(0).integers(0, 256, (50, 3, 3, 1)).astype(np.uint8)
POOL[:, 0, 0], POOL[:, 0, 1] = 0, 255
SPLIT = Split(POOL, np.arange(50) % 5, np.arange(0, 50, 2))


def test_rows_are_of_the_split_and_their_hash_is_theirs():
    found = draw(SPLIT, 10, 0, None)
    assert len(set(found.rows)) == 10 and set(found.rows) <= set(SPLIT.rows)
    np.testing.assert_array_equal(found.images, POOL[found.rows])
    assert found.rows_sha256 == hashlib.sha256(found.rows.astype("<i8").tobytes()).hexdigest()
    assert found.pixels_sha256 == hashlib.sha256(found.images.tobytes()).hexdigest()


def test_the_same_seed_draws_the_same_and_more_images_hold_fewer():
    first, again = draw(SPLIT, 10, 3, None), draw(SPLIT, 10, 3, None)
    assert first.rows.tolist() == again.rows.tolist()
    assert draw(SPLIT, 10, 4, None).rows.tolist() != first.rows.tolist()
    assert set(first.rows) <= set(draw(SPLIT, 20, 3, None).rows)
    assert len(draw(SPLIT, 1000, 3, None).rows) == len(SPLIT)


def test_a_pixel_becomes_black_and_one_white_where_none_is():
    grey = Split(np.full((4, 2, 2, 1), 90, np.uint8), np.zeros(4, int), np.arange(4))
    found = draw(grey, 4, 0, None)
    assert (found.images.min(), found.images.max(), found.changed_pixels) == (0, 255, 2)
    assert (found.images == 90).sum() == 14
    white = Split(np.full((2, 1, 2, 1), 255, np.uint8), np.zeros(2, int), np.arange(2))
    found = draw(white, 2, 0, None)
    assert sorted(found.images.ravel()) == [0, 255, 255, 255] and found.changed_pixels == 1


def test_what_evaluation_makes_of_images_is_rounded_to_bytes():
    found = draw(SPLIT, 5, 0, lambda images, rows: np.full(images.shape, 20.6))
    assert set(found.images.ravel()) == {0, 21, 255}
