"""What a source's images are: arrays of a form and of pixels that a network can take.

Every network takes pixels 0..255. This is the one place that finds out which range a source has:
what is certain is converted, what is doubtful is told with its smallest and largest value, and what
can't be known is refused.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from kd_cli.data.arrays import Arrays
from kd_cli.errors import ConfigError

log = logging.getLogger("kd")
PARTS = ("train", "validation", "test")
OVERSHOOT = 0.01  # of a range of width 1: resizing with a bicubic filter leaves it a little
DARK = 128  # images whose brightest pixel is below half of the range are rarely in that range
APART = 20  # splits whose largest pixels differ by more were not written in one range
_BLOCK = 2**26  # elements that are looked at together

# Of one split: the smallest and the largest pixel.
Extent = tuple[float, float]
# Pixels become factor * pixel + shift, divided by divisor.
Change = tuple[float, float, float]
_AS_THEY_ARE: Change = (1.0, 0.0, 1.0)


def formed(arrays: Arrays, name: str) -> Arrays:
    """The same arrays; grey images [N, H, W] get their channel, [N, H, W, 1].

    Raises:
        ConfigError: Images or labels that are no NumPy arrays of numbers, or do not fit together.
    """
    changed = {}
    for part, (images, labels) in splits_of(arrays, name).items():
        for what, array in (("images", images), ("labels", labels)):
            if not isinstance(array, np.ndarray):
                raise ConfigError(
                    f"{name}: the {part} {what} are of type {type(array).__name__}; expected a "
                    "NumPy array"
                )
        if np.ma.is_masked(images):
            raise ConfigError(
                f"{name}: some {part} pixels are masked; fill them (images.filled(0))"
            )
        if images.ndim not in (3, 4) or labels.shape != images.shape[:1]:
            raise ConfigError(
                f"{name}: the {part} images have shape {images.shape} and their labels "
                f"{labels.shape}; expected [N, H, W] or [N, H, W, C], and [N]"
            )
        if labels.dtype.kind not in "iu":
            raise ConfigError(
                f"{name}: the {part} labels are {labels.dtype}; expected whole class numbers"
            )
        if images.ndim == 3:
            changed[part] = (images[..., None], labels)
    return replace(arrays, **changed)


def to_bytes(arrays: Arrays, name: str, keys: bool = False) -> tuple[Arrays, str]:
    """Brings all splits to pixels 0..255; what was converted for certain is logged.

    Without `arrays.scale` the type and the range decide, for all splits of a type together:

        bool                        False becomes 0, True 255
        uint8, other whole numbers  0..255 stay; 0 and 1 alone are multiplied by 255
        uint16 above 255            divided by 257, so that 65535 becomes 255
        floats in 0..1              multiplied by 255
        floats in -1..1             127.5 * pixel + 127.5
        floats in 0..255            stay

    With it, pixels become scale * pixel + offset, whatever they are; 1 takes them as they are.

    Args:
        arrays: Of a source. uint8 that stays is not copied, all else becomes float32.
        name: Of the source, for messages.
        keys: Whether the source has the keys scale and offset, for messages.

    Returns:
        The arrays, with scale 1, and what there is to doubt, or nothing.

    Raises:
        ConfigError: Pixels that are no finite numbers, or of a range that can't be known.
    """
    splits = {p: split for p, split in splits_of(arrays, name).items() if split[0].size}
    kinds = {part: _kind(images.dtype) for part, (images, _) in splits.items()}
    for part, kind in kinds.items():
        if not kind:
            raise ConfigError(
                f"{name}: the {part} images are of type {splits[part][0].dtype}; expected numbers"
            )
    given = _given(arrays)
    if given not in (None, _AS_THEY_ARE) and len(set(kinds.values())) > 1:
        types = ", ".join(f"{part} {images.dtype}" for part, (images, _) in splits.items())
        raise ConfigError(
            f"{name}: the splits are of different types ({types}), so one scale of {given[0]:g} "
            "can't be right for all; save them as one type"
        )
    doubts, changed = [], {}
    for kind in dict.fromkeys(kinds.values()):
        images = {part: splits[part][0] for part in splits if kinds[part] == kind}
        change = given
        if given is None or kind == "float":
            extents = {part: _extent(one) for part, one in images.items()}
            _refuse_not_finite(extents, name)
        if change is None:
            change, doubt = _judge(kind, extents, name, keys)
            doubts += [doubt] if doubt else []
        small = given is None and kind in ("bool", "uint8")  # 0 and 1 become bytes, not floats
        for part, one in images.items():
            changed[part] = (_converted(one, change, small), splits[part][1])
        if given not in (None, _AS_THEY_ARE):
            _refuse_not_finite({part: _extent(changed[part][0]) for part in images}, name)
    return replace(arrays, **changed, scale=1.0, offset=0.0), "; ".join(doubts)


def _given(arrays: Arrays) -> Change | None:
    """What the user says of the pixels, or None."""
    for key, value in (("scale", arrays.scale), ("offset", arrays.offset)):
        number = isinstance(value, int | float) and math.isfinite(value)
        if not (number or value is None) or (key == "scale" and value == 0):
            raise ConfigError(f"{key}={value} of the pixels must be a number, and the scale not 0")
    if arrays.scale is None:
        if arrays.offset:
            raise ConfigError(f"offset={arrays.offset} of the pixels needs a scale beside it")
        return None
    return float(arrays.scale), float(arrays.offset or 0), 1.0


def splits_of(arrays: Arrays, name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The pairs of inputs and labels, by split; ConfigError where one is no pair, or missing."""
    found = {part: getattr(arrays, part) for part in PARTS if getattr(arrays, part) is not None}
    for part in ("train", "test"):
        if part not in found:
            raise ConfigError(f"{name}: there is no {part} split; a source returns train and test")
    for part, split in found.items():
        if not isinstance(split, tuple | list) or len(split) != 2:
            raise ConfigError(f"{name}: {part} must be a pair, its images and its labels")
    return found


def _kind(dtype: np.dtype) -> str:
    """bool, uint8, uint16, integer or float; empty for what is no number."""
    dtype = dtype.newbyteorder("=")
    if dtype in (np.bool_, np.uint8, np.uint16):
        return dtype.name
    return {"i": "integer", "u": "integer", "f": "float"}.get(dtype.kind, "")


def _extent(images: np.ndarray) -> Extent:
    """The smallest and largest pixel, block by block; NaN where one is NaN.

    Of bytes it is enough to know that they are not dark: it ends where that is seen.
    """
    lows, highs = [], []
    for block in _blocks(images):
        lows.append(float(block.min()))
        highs.append(float(block.max()))
        if images.dtype == np.uint8 and min(lows) < DARK <= max(highs):
            break
    return float(np.min(lows)), float(np.max(highs))


def _refuse_not_finite(extents: Mapping[str, Extent], name: str) -> None:
    for part, extent in extents.items():
        if not np.isfinite(extent).all():
            raise ConfigError(f"{name}: the {part} images hold NaN or infinite pixels")


def _judge(kind: str, extents: Mapping[str, Extent], name: str, keys: bool) -> tuple[Change, str]:
    """How pixels become 0..255, and what is doubtful about it."""
    low = min(extent[0] for extent in extents.values())
    high = max(extent[1] for extent in extents.values())
    told = f"{name}: {kind} pixels run from {low:g} to {high:g}"
    factor, shift, divisor, doubt = 1.0, 0.0, 1.0, ""
    if low == high:
        doubt = f"{name}: every pixel is {low:g}"
    if kind == "bool":
        log.info("%s: pixels are true or false, which became 255 and 0", name)
        return (255.0, 0.0, 1.0), doubt
    _refuse_apart(extents, name)
    if kind == "float" and -OVERSHOOT <= low and 0 < high <= 1 + OVERSHOOT:
        inside = low >= 0 and high <= 1
        log.info("%s, multiplied by 255", f"{name}: pixels lie in 0..1" if inside else told)
        factor = 255.0
        if high * factor < DARK and not doubt:
            doubt = f"{told}, multiplied by 255: very dark; {_remedy(low, high, keys)}"
    elif kind == "float" and -1 - OVERSHOOT <= low <= -0.9 and 0 < high <= 1 + OVERSHOOT:
        if max(extent[0] for extent in extents.values()) > -0.5:
            raise ConfigError(_different(extents, name))
        log.info("%s: pixels lie in -1..1 (%g to %g), brought to 0..255", name, low, high)
        factor = shift = 127.5
    elif kind == "float" and low == high == 0:
        pass
    elif kind == "float" and -255 * OVERSHOOT <= low and DARK <= high <= 255 * (1 + OVERSHOOT):
        if low < 0 or high > 255:
            log.info("%s, taken as 0..255", told)
    elif kind != "float" and low >= 0 and high == 1 and low < high:
        log.info("%s: pixels are 0 and 1, multiplied by 255", name)
        factor = 255.0
    elif kind != "float" and low >= 0 and high <= 255:
        if high < DARK and not doubt:
            doubt = f"{told}, taken as 0..255: very dark; {_remedy(0, high, keys)}"
    elif kind == "uint16":
        log.info("%s, divided by 257", told)
        divisor = 257.0
        if high / divisor < DARK:
            doubt = f"{told}, divided by 257: very dark; {_remedy(0, high, keys)}"
    else:
        raise ConfigError(
            f"{told}, so what is black and what is white can't be known; expected 0 to 255, 0 to 1 "
            f"or -1 to 1; {_remedy(low, high, keys)}"
        )
    return (factor, shift, divisor), doubt


def _remedy(low: float, high: float, keys: bool) -> str:
    if not keys:
        return (
            f"if {low:g} is black and {high:g} white, let the source return them as 0 to 255 "
            "(Arrays(..., scale=1) takes them as they are)"
        )
    scale = 255 / (high - low or 1)
    shift = f" dataset.source.offset={-low * scale:.6g}" if low else ""
    return (
        f"if {low:g} is black and {high:g} white, type dataset.source.scale={scale:.6g}{shift} "
        "(dataset.source.scale=1 takes them as they are)"
    )


def _refuse_apart(extents: Mapping[str, Extent], name: str) -> None:
    """Splits that were written in different ranges: 0..1 for training and 0..255 for test."""
    sizes = [max(-low, high) for low, high in extents.values()]
    if min(sizes) > 0 and max(sizes) > APART * min(sizes):
        raise ConfigError(_different(extents, name))


def _different(extents: Mapping[str, Extent], name: str) -> str:
    told = ", ".join(f"{part} {low:g} to {high:g}" for part, (low, high) in extents.items())
    return f"{name}: the pixels of the splits have different ranges ({told}); save them in one"


def _converted(images: np.ndarray, change: Change, small: bool) -> np.ndarray:
    """float32, except for bytes that stay bytes."""
    factor, shift, divisor = change
    if images.dtype == np.uint8 and change == _AS_THEY_ARE:
        return images
    if small:
        return images.astype(np.uint8) * np.uint8(factor)
    with np.errstate(over="ignore"):  # told by the caller
        changed = images.astype(np.float32, copy=change != _AS_THEY_ARE)
        for block in _blocks(changed):
            if factor != 1:
                block *= np.float32(factor)
            if shift:
                block += np.float32(shift)
            if divisor != 1:
                block /= np.float32(divisor)
    return changed


def _blocks(images: np.ndarray) -> Iterator[np.ndarray]:
    step = max(_BLOCK // max(images[0].size, 1), 1)
    return (images[start : start + step] for start in range(0, len(images), step))
