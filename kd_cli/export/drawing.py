"""How large, where and how thick things are in the images of a data set, for drawings like them.

MNIST, for one, fits a digit into 20 x 20 pixels and puts its centre of mass into the middle of 28 x
28 (LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition", section III.A).
This is measured, so that it holds for other data, too.
"""

from __future__ import annotations

import math

import numpy as np

_INK = 0.25  # from here on a pixel belongs to the box


def measure(images: np.ndarray) -> dict[str, float | list[float]]:
    """What a drawing must be like.

    Args:
        images: [n, H, W, 1] pixels 0..255, a line or thing on a plain background.

    Returns:
        paper, ink: their pixels, 0..255;
        side: the longer side of the box around what is drawn, in pixels;
        centre: [x, y] of its centre of mass, in pixels from the left and upper edges;
        pen: width of the line, in pixels.
    """
    pixels = images[..., 0].astype(np.float64)
    count, height, width = pixels.shape
    border = np.concatenate(
        [pixels[:, 0], pixels[:, -1], pixels[:, 1:-1, 0], pixels[:, 1:-1, -1]], axis=1
    )
    paper = float(np.median(border))
    extremes = pixels.max(axis=(1, 2)) if paper < 128 else pixels.min(axis=(1, 2))
    ink = float(np.median(extremes))
    if ink == paper:
        ink = 255.0 if paper < 128 else 0.0
    share = np.clip((pixels - paper) / (ink - paper), 0, 1)
    share = share[share.max(axis=(1, 2)) > _INK] if (share > _INK).any() else np.ones_like(share)
    sides = []
    for axis in (1, 2):
        marked = (share > _INK).any(axis=3 - axis)
        sides.append(marked.shape[1] - marked.argmax(1) - marked[:, ::-1].argmax(1))
    area = share.sum(axis=(1, 2))
    centre = [
        float(np.mean((share.sum(axis=axis) * (np.arange(size) + 0.5)).sum(axis=1) / area))
        for axis, size in ((1, width), (2, height))
    ]
    # A line of width w and length l has the area w l and an edge of length 2 l. The pixels'
    # differences along rows and columns add up to 4 / pi times the edge, over all directions.
    framed = np.pad(share, ((0, 0), (1, 1), (1, 1)))
    edge = sum(np.abs(np.diff(framed, axis=axis)).sum(axis=(1, 2)) for axis in (1, 2))
    pen = float(np.median(2 * area / (edge * math.pi / 4)))
    side = float(np.median(np.maximum(*sides)))
    return {"paper": paper, "ink": ink, "side": side, "centre": centre, "pen": pen}
