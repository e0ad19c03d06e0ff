"""A file against its network: numbers by hand, and when an export fails or warns."""

import numpy as np
import pytest

from kd_cli.export import check
from kd_cli.export.tensors import Tensor

LABELS = np.array([0, 1, 1, 0])
REFERENCE = np.array([[2.0, 0.0], [0.0, 2.0], [1.0, 0.0], [3.0, 1.0]])
FILE = np.array([[2.5, 0.0], [0.0, 2.0], [0.0, 0.25], [3.0, 1.0]])


def test_comparison_by_hand():
    found = check.compare(FILE, REFERENCE, LABELS)
    assert (found["images"], found["accuracy"], found["agreement"]) == (4, 1.0, 0.75)
    assert found["largest_difference"] == 1.0
    margins = np.array([2.5, 2.0, 0.25, 2.0])  # of the right class
    assert found["nll"] == pytest.approx(np.log1p(np.exp(-margins)).mean())


def test_differences_of_probabilities():
    found = check.compare(FILE, REFERENCE, LABELS, softmax=True)
    # Two classes: the probability of the first is 1 / (1 + exp(-(a - b))).
    sigmoid = 1 / (1 + np.exp(-(np.array([FILE, REFERENCE]) @ [1, -1])))
    assert found["largest_difference"] == pytest.approx(np.abs(sigmoid[0] - sigmoid[1]).max())


def test_logits_of_probabilities():
    given = np.array([[0.75, 0.25], [1.0, 0.0]], np.float32)
    steps = Tensor("probabilities", "int8", (None, 2), 1 / 256, -128)
    found = check.as_logits(given, steps, True)
    np.testing.assert_allclose(found, np.log([[0.75, 0.25], [1, 1 / 512]]), rtol=1e-6)
    assert check.as_logits(given, steps, False) is given
    plain = check.as_logits(given, Tensor("probabilities", "float32", (None, 2)), True)
    assert plain[1, 1] == pytest.approx(-87.3365, abs=1e-3)  # ln of 1.1755e-38


def result(agreement, accuracy=0.9):
    return {
        "images": 1000,
        "agreement": agreement,
        "accuracy": accuracy,
        "largest_difference": 0.5,
    }


def test_when_an_export_fails():
    assert check.failure("float32", result(0.999)) == ""
    assert "agrees with Keras on 99.89 % of 1,000 test images" in check.failure(
        "float32", result(0.9989)
    )
    assert check.failure("float16", result(0.99)) == "" != check.failure("float16", result(0.98))
    assert check.failure("int8", result(0.5)) == check.failure("dynamic", result(0.5)) == ""


def test_when_it_warns():
    assert check.doubts("int8", result(0.97), 0.91, 1000) == []
    (line,) = check.doubts("int8", result(0.969), 0.9, 1000)
    assert "on 96.90 % of the test images only; try calibration=10000, or precision=dynamic" in line
    (line,) = check.doubts("dynamic", result(0.99), 0.911, None)
    assert line == "the file loses 1.10 points of test accuracy; try precision=float16"
    assert len(check.doubts("int8", result(0.5), 0.99, 200)) == 2


def test_what_probabilities_are():
    plain, steps = Tensor("p", "float32", (None, 4)), Tensor("p", "int8", (None, 4), 1 / 256, -128)
    rows = np.array([[0.25, 0.25, 0.25, 0.25], [1, 0, 0, 0]])
    assert check.are_probabilities(rows, plain)
    assert not check.are_probabilities(rows + [[0, 0, 0, 0.02]], plain)
    assert not check.are_probabilities(rows - [[0.3, -0.3, 0, 0]], plain)  # one is below 0
    # Four that are rounded to 1/256 are off by 1/128 together.
    assert check.are_probabilities(rows + 1 / 512, steps)
