"""Augmentation: nodes as functions of images and of numbers drawn for them.

A node of one image at a time is `(images, draw, *, ...) -> images`; a batch-wise node, which comes
after all of those, is `(images, labels, draw, *, ...) -> (images, labels)`. Images are [B, H, W, C]
raw pixels 0..255, uint8 until a node computes with them. `draw(count)` gives [B, count] numbers in
[0, 1): for each image those of its (seed, example, view), so that a view can be made again exactly;
for a batch-wise node those of (seed, epoch, step). `views.py` draws them and calls the nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from kd_cli.errors import ConfigError

Draw = Callable[[int], tf.Tensor]


def resize(images: tf.Tensor, draw: Draw, *, size: int) -> tf.Tensor:
    """Bilinear to [B, size, size, C] float32, with antialiasing when it makes images smaller."""
    height, width = images.shape[1:3]
    if not isinstance(size, int) or size < 1:
        raise ConfigError(f"resize: size={size} must be a whole number above 0 (see augment.size)")
    # Resizing is linear in rows and in columns: its matrix is what it does to the unit images.
    rows, columns = (
        tf.image.resize(tf.eye(side)[..., None], [size, side], antialias=True)[..., 0]
        for side in (height, width)
    )
    return tf.einsum("ih,bhwc,jw->bijc", rows, tf.cast(images, tf.float32), columns)


def random_crop(images: tf.Tensor, draw: Draw, *, size: int) -> tf.Tensor:
    """A square of `size` pixels at a random place, all places alike."""
    height, width = images.shape[1:3]
    if not isinstance(size, int) or not 1 <= size <= min(height, width):
        raise ConfigError(
            f"random_crop: size={size} must be at least 1 and at most the image's {height}x{width}"
        )
    numbers = draw(2)
    top = tf.cast(numbers[:, 0] * (height - size + 1), tf.int32)
    left = tf.cast(numbers[:, 1] * (width - size + 1), tf.int32)
    places = tf.range(size)
    return _pixels(images, top[:, None] + places, left[:, None] + places)


def pad_and_crop(
    images: tf.Tensor, draw: Draw, *, padding: float, mode: str = "constant"
) -> tf.Tensor:
    """Pads each side (black, or `mode: reflect`) and crops the old size back at a random place.

    Args:
        images: [B, H, W, C].
        draw: See above.
        padding: Pixels, or below 1 a share of the height.
        mode: `constant` or `reflect`.

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2.
    """
    if mode not in ("constant", "reflect"):
        raise ConfigError(f"pad_and_crop: mode={mode} must be constant or reflect")
    height, width = images.shape[1:3]
    if not 0 <= padding < min(height, width):
        raise ConfigError(
            f"pad_and_crop: padding={padding} must be at least 0 and below the image's "
            f"{height}x{width} (below 1 it is a share of the height)"
        )
    padding = round(padding * height) if padding < 1 else int(padding)
    sides = [[0, 0], [padding, padding], [padding, padding], [0, 0]]
    padded = tf.pad(images, sides, mode)
    numbers = tf.cast(draw(2) * (2 * padding + 1), tf.int32)
    rows = numbers[:, :1] + tf.range(height)
    return _pixels(padded, rows, numbers[:, 1:] + tf.range(width))


def horizontal_flip(images: tf.Tensor, draw: Draw, *, probability: float = 0.5) -> tf.Tensor:
    """Mirrors an image with this probability."""
    if not 0 <= probability <= 1:
        raise ConfigError(f"horizontal_flip: probability={probability} must be between 0 and 1")
    chosen = draw(1)[:, :, None, None] < probability
    return tf.where(chosen, tf.reverse(images, [2]), images)


def inception_crop(
    images: tf.Tensor,
    draw: Draw,
    *,
    size: int,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tf.Tensor:
    """A random share of the image's area in a random shape, resized bilinearly to `size` squared.

    The area is uniform, width to height log-uniform among the shapes with which that area fits into
    the image, so that nothing is drawn twice; corner pixels' centres stay corners. float32.
    Source: Szegedy et al. 2015, "Going Deeper with Convolutions", section 6.
    """
    pairs = all(isinstance(one, Sequence) and len(one) == 2 for one in (area, ratio))
    if not pairs or not (0 < area[0] <= area[1] <= 1 and 0 < ratio[0] <= ratio[1]):
        raise ConfigError(
            f"inception_crop: area={area} and ratio={ratio} must be [low, high] above 0, the area "
            "at most 1"
        )
    height, width = (float(side) for side in images.shape[1:3])
    numbers = draw(4)
    share = area[0] + (area[1] - area[0]) * numbers[:, 0]
    # w = sqrt(share * r) and h = sqrt(share / r), in shares of the sides, are at most 1.
    square = height / width  # the aspect, in shares, of a square of pixels
    low, high = (
        tf.clip_by_value(tf.fill(tf.shape(share), r * square), share, 1 / share) for r in ratio
    )
    shape = low * tf.exp(numbers[:, 1] * tf.math.log(high / low))
    # A pixel at least: less could lie beyond the last one's centre.
    tall = tf.clip_by_value(tf.sqrt(share / shape) * height, 1.0, height)
    wide = tf.clip_by_value(tf.sqrt(share * shape) * width, 1.0, width)
    steps = tf.linspace(0.0, 1.0, size)
    y = numbers[:, 2:3] * (height - tall)[:, None] + steps * (tall - 1)[:, None]
    x = numbers[:, 3:4] * (width - wide)[:, None] + steps * (wide - 1)[:, None]
    return _bilinear(images, y, x)


def central_crop(images: tf.Tensor, draw: Draw, *, fraction: float, size: int) -> tf.Tensor:
    """The middle `fraction` of each side, resized to `size` squared: for evaluation."""
    if not 0 < fraction <= 1:
        raise ConfigError(f"central_crop: fraction={fraction} must be above 0 and at most 1")
    height, width = images.shape[1:3]
    tall, wide = (max(1, round(fraction * side)) for side in (height, width))
    top, left = (height - tall) // 2, (width - wide) // 2
    return resize(images[:, top : top + tall, left : left + wide], draw, size=size)


def mixup(
    images: tf.Tensor,
    labels: tf.Tensor | None,
    draw: Draw,
    *,
    coefficient: str = "uniform",
    concentration: float = 1.0,
    per_example: bool = False,
    partner: str = "roll",
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Batch-wise: m * image + (1 - m) * its partner's, and the same of the labels.

    Args:
        images: [B, H, W, C].
        labels: [B, K] shares of the classes, or None.
        draw: See above.
        coefficient: m is `uniform` in [0, 1) or `beta`, from Beta(concentration, concentration).
        concentration: Of the Beta distribution.
        per_example: Whether each image has its own m; else the batch has one.
        partner: `roll` takes the next image of the batch, `permutation` one of a random order.
            (Reversing the batch, as some codes do, pairs every two images twice.)

    Source: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization".
    """
    if coefficient not in ("uniform", "beta") or concentration <= 0:
        raise ConfigError(
            f"mixup: coefficient={coefficient} with concentration={concentration} must be uniform "
            "or beta, with a concentration above 0"
        )
    if coefficient == "uniform" and concentration != 1:
        raise ConfigError(
            f"mixup: concentration={concentration} changes nothing with coefficient=uniform; "
            "type coefficient=beta with it"
        )
    if partner not in ("roll", "permutation"):
        raise ConfigError(f"mixup: partner={partner} must be roll or permutation")
    numbers = draw(2)
    m = numbers[:, 0] if per_example else tf.broadcast_to(numbers[0, 0], tf.shape(numbers)[:1])
    if coefficient == "beta":
        m = _beta_quantile(m, concentration)
    others = (
        tf.argsort(numbers[:, 1])
        if partner == "permutation"
        else tf.roll(tf.range(tf.shape(numbers)[0]), -1, 0)
    )

    def mixed(values: tf.Tensor) -> tf.Tensor:
        share = tf.reshape(m, [-1] + [1] * (len(values.shape) - 1))
        values = tf.cast(values, tf.float32)
        return share * values + (1 - share) * tf.gather(values, others)

    return mixed(images), None if labels is None else mixed(labels)


def _pixels(images: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """[B, h, w, C] from the `rows` [B, h] and `columns` [B, w] of each image."""
    height, width, channels = images.shape[1:]
    first = tf.range(tf.shape(images)[0])[:, None] * height
    flat = ((first + rows) * width)[:, :, None] + columns[:, None, :]
    return tf.gather(tf.reshape(images, [-1, channels]), flat)


def _bilinear(images: tf.Tensor, y: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """float32 [B, h, w, C] at the rows `y` [B, h] and columns `x` [B, w], in pixels from 0."""
    height, width = images.shape[1:3]
    above = tf.clip_by_value(tf.cast(y, tf.int32), 0, max(height - 2, 0))
    before = tf.clip_by_value(tf.cast(x, tf.int32), 0, max(width - 2, 0))
    down = (y - tf.cast(above, tf.float32))[:, :, None, None]
    along = (x - tf.cast(before, tf.float32))[:, None, :, None]
    below, after = tf.minimum(above + 1, height - 1), tf.minimum(before + 1, width - 1)

    def at(rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
        return tf.cast(_pixels(images, rows, columns), tf.float32)

    upper = at(above, before) * (1 - along) + at(above, after) * along
    lower = at(below, before) * (1 - along) + at(below, after) * along
    return upper * (1 - down) + lower * down


def _beta_quantile(probability: tf.Tensor, concentration: float) -> tf.Tensor:
    """The quantile function of Beta(a, a), by halving: TensorFlow has its inverse only."""
    low, high = tf.zeros_like(probability), tf.ones_like(probability)
    a = tf.fill(tf.shape(probability), float(concentration))
    for _ in range(round(-math.log2(1e-7))):
        middle = (low + high) / 2
        above = tf.math.betainc(a, a, middle) > probability
        low, high = tf.where(above, low, middle), tf.where(above, middle, high)
    return (low + high) / 2
