"""Class numbers that no training image has."""

import numpy as np
import pytest

from kd_cli.data.labels import count_classes, without_images
from kd_cli.errors import ConfigError


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        ([0, 1, 2], 3, ""),
        ([2, 1, 0, 1], 3, ""),
        ([1, 2, 3], 4, "0"),
        ([0, 1, 255], 256, "2 to 254"),
        ([0, 2, 10**9], 10**9 + 1, "1, 3 to 999999999"),
        ([0, 1], 4, "2 to 3"),
        ([1, 3, 5, 7, 9, 11, 13], 14, "0, 2, 4, 6, 8 and 2 more"),
        ([[0], [1]], 2, ""),
        ([0, 1, -1, 9], 3, "2"),
    ],
)
def test_gaps(labels, classes, expected):
    assert without_images(np.array(labels), classes) == expected


def test_gaps_by_name():
    names = ["cat", "dog", "eel"]
    assert without_images(np.array([1]), 3, names) == "cat, eel"


def refusal(train, test) -> str:
    with pytest.raises(ConfigError) as told:
        count_classes({"y_train": np.array(train), "y_test": np.array(test)}, "a.npz")
    return str(told.value)


def test_count():
    labels = {"y_train": np.array([0, 2, 1], np.uint8), "y_test": np.array([1])}
    assert count_classes(labels, "a.npz") == 3
    unlabelled = {"y_train": np.array([-1, -1]), "y_test": np.array([1, 2])}
    assert count_classes(unlabelled, "a.npz") == 3
    empty = {"y_train": np.array([], int), "y_test": np.array([1])}
    assert count_classes(empty, "a.npz") == 2  # that there are no images is told later


def test_labels_from_1_are_refused():
    assert refusal([1, 2, 3], [1, 2]) == (
        "a.npz: labels count from 0, and there is no training image with the class numbers 0; "
        "y_train[2] is 3. Mend the labels, or type dataset.num_classes=4 to keep these classes"
    )


def test_a_class_only_in_test_is_refused():
    text = refusal([0, 1], [0, 2])
    assert "class numbers 2; y_test[1] is 2. " in text and "num_classes=3 to keep" in text


def test_a_stray_label_is_named_and_no_impossible_key_is_suggested():
    text = refusal(np.array([0, 1, 10**9, 2]), [0, 1])
    assert "3 to 999999999; y_train[2] is 1000000000" in text and "num_classes" not in text


def test_the_largest_number_there_is():
    labels = np.array([0, 1, 2**64 - 1], np.uint64)
    assert "2 to 18446744073709551614; y_train[2]" in refusal(labels, [0])


@pytest.mark.parametrize("labels", [np.eye(3, dtype=int), np.array(3)])
def test_labels_that_are_no_list_are_refused(labels):
    assert f"y_train has shape {labels.shape}; expected [N]" in refusal(labels, [0, 1])


@pytest.mark.parametrize("labels", [["cat", "dog"], [0.0, 1.0], [True, False]])
def test_labels_that_are_no_whole_numbers_are_refused(labels):
    assert "expected whole class numbers" in refusal(labels, [0, 1])
