"""Which class numbers no training image has: labels from 1, a stray 255, a class only in test/."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from kd_cli.config.row import MOST_CLASSES
from kd_cli.errors import ConfigError


def without_images(labels: np.ndarray, num_classes: int, names: Sequence[str] = ()) -> str:
    """The classes that none of the labels names, for a message; empty where there is none.

    Args:
        labels: [N] of the training images; those outside 0..K-1 count for no class.
        num_classes: K, which may be any number: no array is K long.
        names: One per class, where they have names.
    """
    seen = np.unique(labels[(labels >= 0) & (labels < num_classes)]).tolist()
    gaps = [
        (before + 1, after - 1)
        for before, after in itertools.pairwise([-1, *seen, num_classes])
        if after - before > 1
    ]
    if names:
        said = [names[number] for first, last in gaps for number in range(first, last + 1)]
    else:
        said = [str(first) if first == last else f"{first} to {last}" for first, last in gaps]
    more = f" and {len(said) - 5} more" if len(said) > 5 else ""
    return ", ".join(said[:5]) + more


def count_classes(labels: dict[str, np.ndarray], where: str) -> int:
    """The number of classes that labels name: the largest and one.

    Args:
        labels: The labels of each part by the name of its array, the training images' first.
        where: Their file, for messages.

    Raises:
        ConfigError: They are no class numbers, or no training image has one of them.
    """
    for name, part in labels.items():
        if part.dtype.kind not in "iu":
            raise ConfigError(f"{where}: {name} is {part.dtype}; expected whole class numbers")
        if part.shape not in ((part.size,), (part.size, 1)):
            raise ConfigError(
                f"{where}: {name} has shape {part.shape}; expected [N], a class number per image"
            )
    top = {name: int(part.max()) if part.size else -1 for name, part in labels.items()}
    of, train = max(top, key=lambda name: top[name]), next(iter(labels))
    largest = top[of]
    absent = without_images(labels[train], largest + 1)
    if absent and top[train] >= 0:
        keep = f", or type dataset.num_classes={largest + 1} to keep these classes"
        raise ConfigError(
            f"{where}: labels count from 0, and there is no training image with the class numbers "
            f"{absent}; {of}[{labels[of].ravel().argmax()}] is {largest}. Mend the labels"
            + (keep if largest < MOST_CLASSES else "")
        )
    return largest + 1
