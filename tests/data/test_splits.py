"""Samples of rows: shares of each class, limits, labelled shares."""

import numpy as np
import pytest

from kd_cli.data.splits import labelled, limited, stratified

LABELS = np.repeat([0, 1, 2], [100, 40, 10])
SHUFFLED = np.random.default_rng(0).permutation(LABELS)


def counts(labels: np.ndarray, rows: np.ndarray, classes: int = 3) -> list[int]:
    return np.bincount(labels[rows], minlength=classes).tolist()


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.1, [10, 4, 1]),
        (0.25, [25, 10, 2]),
        (0.5, [50, 20, 5]),
        (0, [0, 0, 0]),
        (1, [100, 40, 10]),
    ],
)
def test_stratified_takes_the_same_share_of_each_class(fraction, expected):
    rows = stratified(SHUFFLED, fraction, 0)
    assert counts(SHUFFLED, rows) == expected
    assert (np.diff(rows) > 0).all()


def test_stratified_takes_one_of_a_small_class_and_leaves_one():
    labels = np.array([0, 0, 1, 1, 1, 2])
    assert counts(labels, stratified(labels, 0.01, 0)) == [1, 1, 0]
    assert counts(labels, stratified(labels, 0.99, 0)) == [1, 2, 1]


def test_stratified_is_a_function_of_the_seed():
    first = stratified(SHUFFLED, 0.1, 3)
    np.testing.assert_array_equal(first, stratified(SHUFFLED.copy(), 0.1, 3))
    assert set(first) != set(stratified(SHUFFLED, 0.1, 4))


def test_stratified_draws_at_random():
    # 1,000 seeds take each of a class's ten rows 300 times, give or take 4 standard deviations.
    taken = np.zeros(10)
    for seed in range(1000):
        taken[stratified(np.zeros(10, int), 0.3, seed)] += 1
    assert np.abs(taken - 300).max() < 4 * np.sqrt(1000 * 0.3 * 0.7)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(8, [5, 2, 1]), (15, [10, 4, 1]), (30, [20, 8, 2]), (75, [50, 20, 5]), (1, [1, 0, 0])],
)
def test_limited_keeps_the_shares(limit, expected):
    rows = limited(SHUFFLED, limit, 0)
    assert counts(SHUFFLED, rows) == expected
    assert (np.diff(rows) > 0).all()


@pytest.mark.parametrize("limit", [1, 7, 50, 149, 150])
def test_limited_gives_exactly_the_limit(limit):
    assert len(limited(SHUFFLED, limit, 0)) == limit


def test_limited_to_the_number_of_classes_takes_one_of_each():
    labels = np.arange(7)
    assert limited(labels, 7, 0).tolist() == labels.tolist()


def test_limited_is_a_function_of_the_seed():
    first = limited(SHUFFLED, 30, 3)
    np.testing.assert_array_equal(first, limited(SHUFFLED.copy(), 30, 3))
    assert set(first) != set(limited(SHUFFLED, 30, 4))


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.1, [10, 4, 1]), (0.01, [1, 1, 1]), (0.25, [25, 10, 2]), (0.99, [99, 40, 10])],
)
def test_labels_are_kept_of_the_same_share_of_each_class(fraction, expected):
    assert counts(SHUFFLED, labelled(SHUFFLED, fraction, 0)) == expected


def test_a_class_of_one_image_keeps_its_label():
    assert labelled(np.array([0, 0, 0, 1]), 0.1, 0)[-1] == 3


def test_a_larger_labelled_share_contains_a_smaller_one():
    rows = [set(labelled(SHUFFLED, fraction, 3)) for fraction in (0.01, 0.1, 0.5, 1)]
    assert rows[0] < rows[1] < rows[2] < rows[3]
    assert rows[1] != set(labelled(SHUFFLED, 0.1, 4))


def test_labelled_rows_are_drawn_apart_from_validation_rows():
    # With one stream, a half of the rows drawn for validation would be the half drawn here.
    assert set(labelled(SHUFFLED, 0.5, 0)) != set(stratified(SHUFFLED, 0.5, 0))
