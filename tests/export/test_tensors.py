"""Whole numbers in a file and the real numbers that they stand for, by hand."""

import numpy as np

from kd_cli.export.tensors import Opened, Tensor, channels_last

BYTES = Tensor("image", "uint8", (None, 2), 1.0, 0)
HALVES = Tensor("logits", "int8", (None, 2), 0.5, 3)
PLAIN = Tensor("logits", "float32", (None, 2))


def test_a_byte_stands_for_itself():
    values = np.array([0.0, 17.0, 254.6, 300.0, -2.0])
    numbers = BYTES.numbers(values)
    assert numbers.dtype == np.uint8 and numbers.tolist() == [0, 17, 255, 255, 0]
    assert BYTES.values(numbers).tolist() == [0, 17, 255, 255, 0]


def test_scale_and_zero_point_by_hand():
    # q = round(r / 0.5) + 3 within -128..127, and r = 0.5 x (q - 3)
    assert HALVES.numbers(np.array([0.0, 1.0, -1.6, 100.0, -100.0])).tolist() == [
        3,
        5,
        0,
        127,
        -128,
    ]
    assert HALVES.values(np.array([3, 5, 0, 127, -128], np.int8)).tolist() == [
        0,
        1,
        -1.5,
        62,
        -65.5,
    ]


def test_numbers_that_stand_for_themselves():
    values = np.array([0.1, -3.0])
    assert PLAIN.numbers(values).dtype == np.float32
    np.testing.assert_array_equal(PLAIN.values(PLAIN.numbers(values)), np.float32(values))


def test_a_fixed_batch_is_filled_up():
    given = []

    def run(numbers):
        given.append(len(numbers))
        return (numbers * 2).astype(np.int8)

    fixed = Tensor("image", "uint8", (4, 2), 1.0, 0)
    images = np.arange(20).reshape(10, 2)
    found = Opened(fixed, HALVES, run, "none")(images)
    assert given == [4, 4, 4]
    np.testing.assert_array_equal(found, 0.5 * (2 * images - 3))
    given.clear()
    np.testing.assert_array_equal(Opened(BYTES, HALVES, run, "none")(images), found)
    assert given == [10]


def test_channels_may_come_first():
    first = Tensor("image", "float32", (None, 3, 4, 5))
    weights = np.arange(3)  # of the channels

    def run(numbers):
        assert numbers.shape[1:] == (3, 4, 5)
        return np.einsum("nchw,c->nh", numbers, weights)

    images = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype(np.float32)
    turned = channels_last(Opened(first, PLAIN, run, "none"))
    assert turned.image.shape == (None, 4, 5, 3)
    np.testing.assert_allclose(turned(images), (images @ weights).sum(2), rtol=1e-5)
