"""Each augmentation node against NumPy, with given numbers instead of drawn ones."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from kd_cli.data import augment
from kd_cli.errors import ConfigError

RNG = np.random.default_rng(11)
# Neither square nor grey, so that no side or channel can stand for another.
IMAGES = RNG.integers(0, 256, (4, 5, 7, 3)).astype(np.uint8)
ALMOST_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


def giving(numbers):
    """`draw` that hands out the columns of [B, n] in turn."""
    left = [np.asarray(numbers, np.float32)]

    def draw(count):
        assert count <= left[0].shape[1], "more numbers than were expected"
        given, left[0] = left[0][:, :count], left[0][:, count:]
        return tf.constant(given)

    return draw


def no_draw(count):
    raise AssertionError("this node is not random")


def each(*rows):
    return np.array(rows, np.float32)


# Geometric nodes.


def test_pad_and_crop_is_a_window_of_the_padded_image():
    numbers = each([0.0, 0.0], [ALMOST_ONE, ALMOST_ONE], [0.5, 0.5], [0.2, 0.99])
    found = augment.pad_and_crop(tf.constant(IMAGES), giving(numbers), padding=2)
    assert found.dtype == tf.uint8 and found.shape == IMAGES.shape
    # 5 places each way for 2 pixels: 0.2 is the second, 0.5 the middle, which is the image.
    for image, shown, (top, left) in zip(
        IMAGES, found.numpy(), [(0, 0), (4, 4), (2, 2), (1, 4)], strict=True
    ):
        padded = np.zeros((9, 11, 3), np.uint8)
        padded[2:7, 2:9] = image
        np.testing.assert_array_equal(shown, padded[top : top + 5, left : left + 7])
    np.testing.assert_array_equal(found[2], IMAGES[2])


def test_pad_and_crop_reflects_without_repeating_the_border():
    numbers = each(*[[0.0, ALMOST_ONE]] * 4)
    found = augment.pad_and_crop(tf.constant(IMAGES), giving(numbers), padding=3, mode="reflect")
    padded = np.pad(IMAGES, [(0, 0), (3, 3), (3, 3), (0, 0)], "reflect")
    np.testing.assert_array_equal(found, padded[:, :5, 6:13])
    assert found.dtype == tf.uint8


def test_padding_below_1_is_a_share_of_the_height():
    numbers = RNG.random((4, 2))
    images = tf.constant(IMAGES)
    share = augment.pad_and_crop(images, giving(numbers), padding=0.4)
    pixels = augment.pad_and_crop(images, giving(numbers), padding=2)
    np.testing.assert_array_equal(share, pixels)
    assert not np.array_equal(share, augment.pad_and_crop(images, giving(numbers), padding=1))
    none = augment.pad_and_crop(images, giving(numbers), padding=0)
    np.testing.assert_array_equal(none, IMAGES)


def test_random_crop_reaches_every_place_alike_and_no_further():
    # One image for each of a fine grid of numbers: 2 rows and 4 columns of places.
    grid = (np.arange(40) + 0.5) / 40
    numbers = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    image = np.arange(5 * 7 * 3).reshape(5, 7, 3).astype(np.uint8)
    images = np.broadcast_to(image, (len(numbers), 5, 7, 3))
    found = augment.random_crop(tf.constant(images), giving(numbers), size=4).numpy()
    assert found.dtype == np.uint8
    corners, counts = np.unique(found[:, 0, 0, 0], return_counts=True)
    assert corners.tolist() == [image[y, x, 0] for y in range(2) for x in range(4)]
    assert set(counts) == {1600 // 8}
    for (u, v), crop in zip(numbers[::37], found[::37], strict=True):
        top, left = int(u * 2), int(v * 4)
        np.testing.assert_array_equal(crop, image[top : top + 4, left : left + 4])
    ends = each([0, 0], [0, ALMOST_ONE], [ALMOST_ONE, 0], [ALMOST_ONE, ALMOST_ONE])
    found = augment.random_crop(tf.constant(IMAGES), giving(ends), size=4).numpy()
    expected = [IMAGES[0, :4, :4], IMAGES[1, :4, 3:], IMAGES[2, 1:, :4], IMAGES[3, 1:, 3:]]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("places", [1, 2, 3, 5, 9, 33, 65, 97, 193])
def test_a_number_just_below_1_stays_inside(places):
    images = RNG.integers(0, 256, (1, 1, places, 1)).astype(np.uint8)
    found = augment.random_crop(tf.constant(images), giving([[ALMOST_ONE, ALMOST_ONE]]), size=1)
    assert found.numpy().item() == images[0, 0, -1, 0]


def test_flip_mirrors_columns_with_exactly_its_probability():
    numbers = each([0.0], [0.29], [0.3], [ALMOST_ONE])
    found = augment.horizontal_flip(tf.constant(IMAGES), giving(numbers), probability=0.3)
    assert found.dtype == tf.uint8
    expected = [IMAGES[0][:, ::-1], IMAGES[1][:, ::-1], IMAGES[2], IMAGES[3]]
    np.testing.assert_array_equal(found, expected)
    half = augment.horizontal_flip(
        tf.constant(IMAGES), giving(each([0.49], [0.5], [0.51], [0.1]))
    ).numpy()
    mirrored = [np.array_equal(a, b[:, ::-1]) for a, b in zip(half, IMAGES, strict=True)]
    assert mirrored == [True, False, False, True]
    for probability, sign in ((0.0, 1), (1.0, -1)):
        found = augment.horizontal_flip(
            tf.constant(IMAGES), giving(numbers), probability=probability
        )
        np.testing.assert_array_equal(found, IMAGES[:, :, ::sign])


@pytest.mark.parametrize("size", [2, 3, 6, 7, 12])
def test_resize_is_tensorflow_s_with_antialias(size):
    found = augment.resize(tf.constant(IMAGES), no_draw, size=size)
    expected = tf.image.resize(IMAGES, [size, size], antialias=True)
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)


def test_resize_by_hand():
    # Twice as large: pixel centres at quarters between the old ones, the border repeated.
    image = np.array([[0, 100], [200, 40]], np.uint8)[None, :, :, None]
    along = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    expected = along @ image[0, :, :, 0] @ along.T
    found = augment.resize(tf.constant(image), no_draw, size=4)[0, :, :, 0]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # Half as large, with a triangle of twice the width: weights 3, 3, 1 and 1, 3, 3 (of 7).
    image = np.array([[0, 10, 200, 40]] * 4, np.uint8)[None, :, :, None]
    found = augment.resize(tf.constant(image), no_draw, size=2)[0, :, :, 0]
    expected = [[(3 * 0 + 3 * 10 + 200) / 7, (10 + 3 * 200 + 3 * 40) / 7]] * 2
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_central_crop_takes_the_middle():
    images = RNG.integers(0, 256, (2, 8, 12, 3)).astype(np.uint8)
    found = augment.central_crop(tf.constant(images), no_draw, fraction=0.5, size=4)
    middle = images[:, 2:6, 3:9]
    expected = tf.image.resize(middle, [4, 4], antialias=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)
    whole = augment.central_crop(tf.constant(images), no_draw, fraction=1, size=4)
    np.testing.assert_allclose(
        whole, tf.image.resize(images, [4, 4], antialias=True), rtol=1e-5, atol=1e-3
    )
    # At least a pixel is left: the one at row 3 and column 5.
    one = augment.central_crop(tf.constant(images), no_draw, fraction=0.01, size=1)
    np.testing.assert_allclose(one[:, 0, 0], images[:, 3, 5], atol=1e-3)


# The Inception-style crop.


def window(shape, numbers, area, ratio):
    """(top, left, height, width, share) in pixels, from the definition."""
    height, width = shape
    u, v, y, x = (float(number) for number in numbers)
    share = area[0] + (area[1] - area[0]) * u
    # width / height of the crop, such that neither side is longer than the image's.
    fits = [share * width / height, width / height / share]
    low, high = (np.clip(r, *fits) for r in ratio)
    shape = low * (high / low) ** v
    tall = np.sqrt(share * height * width / shape)
    wide = tall * shape
    return y * (height - tall), x * (width - wide), tall, wide, share


def bilinear(image, y, x):
    y, x = np.clip(y, 0, image.shape[0] - 1), np.clip(x, 0, image.shape[1] - 1)
    y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
    y1, x1 = np.minimum(y0 + 1, image.shape[0] - 1), np.minimum(x0 + 1, image.shape[1] - 1)
    fy, fx = (y - y0)[:, None, None], (x - x0)[None, :, None]
    upper = image[y0][:, x0] * (1 - fx) + image[y0][:, x1] * fx
    lower = image[y1][:, x0] * (1 - fx) + image[y1][:, x1] * fx
    return upper * (1 - fy) + lower * fy


@pytest.mark.parametrize("shape", [(32, 32), (20, 45), (45, 20)])
def test_inception_crop_is_a_bilinear_look_at_its_window(shape):
    images = RNG.integers(0, 256, (30, *shape, 3)).astype(np.uint8)
    numbers = RNG.random((30, 4)).astype(np.float32)
    numbers[:4] = [[0] * 4, [ALMOST_ONE] * 4, [0, 0, 1, 1], [0, ALMOST_ONE, 0, ALMOST_ONE]]
    area, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    found = augment.inception_crop(
        tf.constant(images), giving(numbers), size=9, area=area, ratio=ratio
    )
    assert found.shape == (30, 9, 9, 3) and found.dtype == tf.float32
    steps = np.linspace(0, 1, 9)
    for image, shown, row in zip(images, found.numpy(), numbers, strict=True):
        top, left, tall, wide, _ = window(shape, row, area, ratio)
        expected = bilinear(
            image.astype(float), top + steps * (tall - 1), left + steps * (wide - 1)
        )
        # A pixel's neighbours differ by up to 255, its place is right to about 1e-5.
        np.testing.assert_allclose(shown, expected, atol=0.02)


def test_inception_crop_of_the_whole_image_is_the_image():
    images = RNG.integers(0, 256, (5, 6, 6, 1)).astype(np.uint8)
    found = augment.inception_crop(
        tf.constant(images), giving(RNG.random((5, 4))), size=6, area=(1, 1), ratio=(1, 1)
    )
    np.testing.assert_allclose(found, images, atol=1e-3)


def look(shape, area, ratio, count=10_000, seed=3):
    """The corners (top, left, bottom, right) of crops, read off images whose pixels are places."""
    height, width = shape
    numbers = np.random.default_rng(seed).random((count, 4)).astype(np.float32)
    places = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1)
    found = []
    for part in np.split(numbers, 10):
        images = np.broadcast_to(places.astype(np.float32), (len(part), *shape, 2))
        crops = augment.inception_crop(
            tf.constant(images), giving(part), size=2, area=area, ratio=ratio
        ).numpy()
        found.append(np.concatenate([crops[:, 0, 0], crops[:, 1, 1]], axis=1))
    return np.concatenate(found).astype(float).T, numbers


@pytest.mark.parametrize("shape", [(40, 40), (30, 50), (90, 20)])
def test_inception_crops_lie_in_the_image_and_in_their_ranges(shape):
    area, ratio = (0.1, 0.9), (3 / 4, 4 / 3)
    (top, left, bottom, right), numbers = look(shape, area, ratio)
    height, width = shape
    assert top.min() >= -1e-3 and left.min() >= -1e-3
    assert bottom.max() <= height - 1 + 1e-3 and right.max() <= width - 1 + 1e-3
    # The corners are centres of pixels: a crop of n pixels spans n - 1.
    tall, wide = bottom - top + 1, right - left + 1
    share = tall * wide / (height * width)
    assert share.min() >= area[0] - 1e-3 and share.max() <= area[1] + 1e-3
    # Uniform: mean and variance, within 4 standard errors.
    span = area[1] - area[0]
    assert abs(share.mean() - sum(area) / 2) < 4 * span / np.sqrt(12 * len(share))
    assert scipy.stats.kstest((share - area[0]) / span, "uniform").pvalue > 1e-4
    # The shape is in its range, unless none of the range fits into the image with this area.
    aspect = wide / tall
    low = np.clip(ratio[0], share * width / height, width / height / share)
    high = np.clip(ratio[1], share * width / height, width / height / share)
    assert (aspect >= low * 0.998).all() and (aspect <= high * 1.002).all()
    free = share < min(ratio[0] * height / width, width / height / ratio[1], 1)
    assert free.sum() > 300
    assert (aspect[free] >= ratio[0] * 0.998).all() and (aspect[free] <= ratio[1] * 1.002).all()
    # Log-uniform where the whole range fits.
    logs = (np.log(aspect[free]) - np.log(ratio[0])) / np.log(ratio[1] / ratio[0])
    assert scipy.stats.kstest(logs, "uniform").pvalue > 1e-4
    # All places alike, in what the window leaves free.
    room = height - tall
    place = (top / np.maximum(room, 1e-9))[room > 1]
    assert len(place) > 1000 and scipy.stats.kstest(place, "uniform").pvalue > 1e-4


def test_inception_crop_of_less_than_a_pixel_stays_in_the_image():
    images = RNG.integers(0, 256, (50, 4, 4, 1)).astype(np.uint8)
    numbers = RNG.random((50, 4))
    numbers[0] = [0, 0.5, ALMOST_ONE, ALMOST_ONE]
    found = augment.inception_crop(
        tf.constant(images), giving(numbers), size=3, area=(0.001, 0.05)
    ).numpy()
    for image, shown in zip(images, found, strict=True):
        assert image.min() - 1e-3 <= shown.min() and shown.max() <= image.max() + 1e-3
    np.testing.assert_allclose(found[0], np.full((3, 3, 1), images[0, -1, -1, 0]), atol=1e-2)


# mixup.

LABELS = np.eye(3, dtype=np.float32)[[0, 1, 2, 1]]


def mixed(values, shares, others):
    values = values.astype(np.float64)
    shares = np.reshape(shares, [-1] + [1] * (values.ndim - 1))
    return shares * values + (1 - shares) * values[others]


def test_mixup_with_one_coefficient_takes_the_next_image():
    numbers = each([0.3, 0.9], [0.6, 0.1], [0.8, 0.5], [0.1, 0.7])
    images, labels = augment.mixup(tf.constant(IMAGES), tf.constant(LABELS), giving(numbers))
    assert images.dtype == labels.dtype == tf.float32
    np.testing.assert_allclose(images, mixed(IMAGES, [0.3] * 4, [1, 2, 3, 0]), atol=1e-3)
    expected = [[0.3, 0.7, 0], [0, 0.3, 0.7], [0, 0.7, 0.3], [0.7, 0.3, 0]]
    np.testing.assert_allclose(labels, expected, atol=1e-6)


def test_mixup_per_example():
    numbers = each([0.3, 0.9], [0.6, 0.1], [0.8, 0.5], [0.1, 0.7])
    images, labels = augment.mixup(
        tf.constant(IMAGES), tf.constant(LABELS), giving(numbers), per_example=True
    )
    shares = [0.3, 0.6, 0.8, 0.1]
    np.testing.assert_allclose(images, mixed(IMAGES, shares, [1, 2, 3, 0]), atol=1e-3)
    np.testing.assert_allclose(labels, mixed(LABELS, shares, [1, 2, 3, 0]), atol=1e-6)
    np.testing.assert_allclose(np.sum(labels, axis=1), 1, atol=1e-6)


def test_mixup_by_a_permutation_sorts_the_second_numbers():
    numbers = each([0.3, 0.9], [0.6, 0.1], [0.8, 0.7], [0.1, 0.5])
    images, labels = augment.mixup(
        tf.constant(IMAGES), tf.constant(LABELS), giving(numbers), partner="permutation"
    )
    others = [1, 3, 2, 0]  # those of 0.1, 0.5, 0.7, 0.9
    np.testing.assert_allclose(images, mixed(IMAGES, [0.3] * 4, others), atol=1e-3)
    np.testing.assert_allclose(labels, mixed(LABELS, [0.3] * 4, others), atol=1e-6)


def partners(numbers, **options):
    """Whose pixels each image of a batch gets a share of: m = 0 leaves the partner alone."""
    numbers = np.array(numbers, np.float32)
    numbers[:, 0] = 0
    own = np.arange(len(numbers), dtype=np.float32).reshape(-1, 1, 1, 1)
    images, _ = augment.mixup(tf.constant(own), None, giving(numbers), **options)
    return np.asarray(images).ravel().astype(int)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_roll_pairs_each_image_once_as_first_and_once_as_second(count):
    others = partners(RNG.random((count, 2)), partner="roll")
    assert others.tolist() == [*range(1, count), 0]
    # Reversing would give each pair twice, and for an odd count an image with itself.
    if count > 2:
        pairs = {frozenset(pair) for pair in enumerate(others)}
        assert len(pairs) == count and all(len(pair) == 2 for pair in pairs)


@pytest.mark.slow
def test_a_permutation_reaches_every_partner_alike():
    counts = np.zeros((4, 4))
    generator = np.random.default_rng(8)
    for _ in range(600):
        others = partners(generator.random((4, 2)), partner="permutation")
        assert sorted(others) == [0, 1, 2, 3]
        counts[np.arange(4), others] += 1
    # 600 draws of 1 in 4: 150 with a standard deviation of 10.6.
    assert abs(counts - 150).max() < 4.5 * 10.6


def test_mixup_without_labels_and_with_one_image():
    images, labels = augment.mixup(tf.constant(IMAGES), None, giving(RNG.random((4, 2))))
    assert labels is None and images.shape == IMAGES.shape
    for partner in ("roll", "permutation"):
        one, labels = augment.mixup(
            tf.constant(IMAGES[:1]),
            tf.constant(LABELS[:1]),
            giving(RNG.random((1, 2))),
            partner=partner,
        )
        np.testing.assert_allclose(one, IMAGES[:1], atol=1e-3)
        np.testing.assert_allclose(labels, LABELS[:1], atol=1e-6)


@pytest.mark.parametrize("concentration", [0.2, 1, 1.0, 4.0])
def test_beta_coefficients_are_quantiles(concentration):
    probabilities = np.concatenate([np.linspace(0, 1, 41)[:-1], [0.001, 0.999]])
    numbers = np.stack([probabilities, np.zeros_like(probabilities)], axis=1)
    # Labels that tell the share: the first of each pair is 1, its partner 0.
    images = np.zeros((len(numbers), 1, 1, 1), np.float32)
    labels = np.eye(len(numbers), dtype=np.float32)
    options = dict(coefficient="beta", concentration=concentration, per_example=True)
    _, shares = augment.mixup(tf.constant(images), tf.constant(labels), giving(numbers), **options)
    found = np.diag(shares)
    expected = scipy.stats.beta(concentration, concentration).ppf(probabilities)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    # One for the batch: the first.
    options["per_example"] = False
    _, shares = augment.mixup(
        tf.constant(images), tf.constant(labels), giving(numbers[::-1]), **options
    )
    np.testing.assert_allclose(np.diag(shares), [expected[-1]] * len(numbers), atol=2e-6)


def test_beta_coefficients_have_their_mean_and_variance():
    uniform = tf.constant(np.random.default_rng(1).random(20_000), tf.float32)
    for concentration in (0.2, 4.0):
        found = np.asarray(augment._beta_quantile(uniform, concentration))
        expected = scipy.stats.beta(concentration, concentration)
        assert abs(found.mean() - 0.5) < 4 * expected.std() / np.sqrt(len(found))
        kurtosis = expected.stats("k") + 3
        error = expected.var() * np.sqrt((kurtosis - 1) / len(found))
        assert abs(found.var() - expected.var()) < 4 * error


# Mistakes.


@pytest.mark.parametrize(
    ("node", "options", "expected"),
    [
        ("random_crop", {"size": 6}, "size=6 must be at least 1 and at most the image's 5x7"),
        ("random_crop", {"size": None}, "size=None must be at least 1"),
        ("resize", {"size": 0}, "size=0 must be a whole number above 0"),
        ("pad_and_crop", {"padding": -1}, "padding=-1 must be at least 0 and below"),
        ("pad_and_crop", {"padding": 5, "mode": "reflect"}, "padding=5 must be at least 0"),
        ("pad_and_crop", {"padding": 1, "mode": "edge"}, "mode=edge must be constant or reflect"),
        ("horizontal_flip", {"probability": 50}, "probability=50 must be between 0 and 1"),
        ("inception_crop", {"size": 3, "area": [0, 1]}, r"area=\[0, 1\] and ratio="),
        ("inception_crop", {"size": 3, "area": [0.5, 0.2]}, "must be .low, high. above 0"),
        ("inception_crop", {"size": 3, "area": 0.5}, "area=0.5 and ratio=.* must be .low, high."),
        ("inception_crop", {"size": 3, "ratio": None}, "ratio=None must be .low, high. above 0"),
        ("inception_crop", {"size": 3, "area": [0.5, 1.2]}, "the area at most 1"),
        ("inception_crop", {"size": 3, "ratio": [2, 1]}, r"ratio=\[2, 1\]"),
        ("inception_crop", {"size": 3, "ratio": [0, 1]}, r"ratio=\[0, 1\]"),
        ("central_crop", {"fraction": 0, "size": 3}, "fraction=0 must be above 0 and at most 1"),
        ("central_crop", {"fraction": 1.1, "size": 3}, "fraction=1.1 must be"),
        ("mixup", {"coefficient": "normal"}, "coefficient=normal with concentration=1.0 must"),
        ("mixup", {"concentration": 0}, "coefficient=uniform with concentration=0 must"),
        ("mixup", {"partner": "reverse"}, "partner=reverse must be roll or permutation"),
    ],
)
def test_mistakes_are_one_line(node, options, expected):
    numbers = giving(RNG.random((4, 4)))
    images = tf.constant(IMAGES)
    with pytest.raises(ConfigError, match=expected) as caught:
        if node == "mixup":
            augment.mixup(images, tf.constant(LABELS), numbers, **options)
        else:
            getattr(augment, node)(images, numbers, **options)
    assert str(caught.value).startswith(f"{node}: ") and "\n" not in str(caught.value)
