"""Inputs and outputs of an exported file, and how whole numbers in them stand for real ones.

A quantised tensor holds whole numbers q that stand for the real numbers scale * (q - zero_point).

Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", equation 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

# Images at once.
BATCH = 64


@dataclass(frozen=True)
class Tensor:
    """An input or output.

    Attributes:
        name: As the runtime knows it.
        dtype: Of its numbers, as NumPy names it.
        shape: Its sizes, None for any.
        scale: What a whole number stands for; None for numbers that stand for themselves.
        zero_point: The whole number that stands for 0.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    scale: float | None = None
    zero_point: int | None = None

    def numbers(self, values: np.ndarray) -> np.ndarray:
        """Real values as the tensor holds them: the nearest whole numbers, within their range."""
        kind = np.dtype(self.dtype)
        if self.scale is not None:
            values = np.asarray(values, np.float64) / self.scale + self.zero_point
        if np.issubdtype(kind, np.integer):
            limits = np.iinfo(kind)
            values = np.clip(np.rint(values), limits.min, limits.max)
        return np.ascontiguousarray(values, kind)

    def values(self, numbers: np.ndarray) -> np.ndarray:
        """The real values of numbers in the tensor, float32."""
        if self.scale is None:
            return np.asarray(numbers, np.float32)
        shifted = np.asarray(numbers, np.float64) - self.zero_point
        return np.asarray(shifted * self.scale, np.float32)


@dataclass(frozen=True)
class Opened:
    """A file that was opened for inference.

    Attributes:
        image: Its input, [batch, H, W, C].
        logits: Its output, [batch, K].
        run: From numbers in the input, of a whole batch, to numbers in the output.
        runtime: Package and version that runs it.
    """

    image: Tensor
    logits: Tensor
    run: Callable[[np.ndarray], np.ndarray]
    runtime: str

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Outputs [n, K] of images [n, H, W, C], as real numbers.

        Where the file has a fixed batch, the images go through it in parts of that size.
        """
        size = self.image.shape[0] or BATCH
        found = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            fill = size - len(part) if self.image.shape[0] else 0
            numbers = self.image.numbers(np.concatenate([part, np.repeat(part[-1:], fill, axis=0)]))
            found.append(self.logits.values(self.run(numbers))[: len(part)])
        return np.concatenate(found)


def fitted(opened: Opened, shape: Sequence[int]) -> tuple[Opened, bool]:
    """A file for images of shape (H, W, C), and whether it takes their channels first.

    Where it fits neither way it stays as it is.
    """
    turned = channels_last(opened)
    swap = not _fits(opened.image.shape[1:], shape) and _fits(turned.image.shape[1:], shape)
    return (turned, True) if swap else (opened, False)


def _fits(taken: Sequence[int | None], given: Sequence[int]) -> bool:
    return all(size in (None, one) for size, one in zip(taken, given, strict=True))


def channels_last(opened: Opened) -> Opened:
    """A file that takes [batch, C, H, W], as PyTorch's do, as one that takes [batch, H, W, C]."""
    batch, channels, height, width = opened.image.shape
    return replace(
        opened,
        image=replace(opened.image, shape=(batch, height, width, channels)),
        run=lambda numbers: opened.run(np.ascontiguousarray(np.moveaxis(numbers, -1, 1))),
    )
