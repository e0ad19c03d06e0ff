"""Random samples of rows that keep the classes' shares: functions of the labels and a seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def stratified(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Rows of a random sample that takes the same share of every class.

    The share of a class is rounded to the nearest number, but a class of at least two rows always
    gives one and keeps one.

    Args:
        labels: [N] class numbers.
        fraction: Share to take, 0..1.
        seed: Any seed; the rows depend on it and on the labels alone.

    Returns:
        The rows, sorted.
    """

    def count(size: int) -> int:
        share = round(fraction * size)
        return min(max(share, 1), size - 1) if size >= 2 and 0 < fraction < 1 else share

    return _drawn(labels, count, [seed])


def labelled(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Rows of a random sample that keep their labels: the same share of every class, at least one.

    A larger fraction takes the rows of a smaller one and more. Arguments and result are those of
    `stratified`, whose draws with the same seed are others.
    """
    return _drawn(labels, lambda size: max(round(fraction * size), 1), [seed, 1])


def _drawn(labels: np.ndarray, count: Callable[[int], int], seeds: list[int]) -> np.ndarray:
    """`count(size of the class)` random rows of each class, sorted.

    `seeds` are the seed, and a number above 0 for a stream of its own.
    """
    chosen = [np.empty(0, dtype=np.int64)]
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        generator = np.random.default_rng([seeds[0], int(label), *seeds[1:]])
        chosen.append(generator.permutation(rows)[: count(len(rows))])
    return np.sort(np.concatenate(chosen))


def limited(labels: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """`limit` rows that keep the classes' shares: rows are taken class by class in turn."""
    generator = np.random.default_rng([seed, 1])
    rank = np.empty(len(labels), dtype=np.float64)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        rank[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    order = np.lexsort((np.arange(len(labels)), labels, rank))
    return np.sort(order[:limit])
