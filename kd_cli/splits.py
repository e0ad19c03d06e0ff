"""Random samples of rows that keep the classes' shares: functions of the labels and a seed."""

from __future__ import annotations

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
    chosen = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = round(fraction * len(rows))
        if len(rows) >= 2 and 0 < fraction < 1:
            count = min(max(count, 1), len(rows) - 1)
        generator = np.random.default_rng([seed, int(label)])
        chosen.append(generator.permutation(rows)[:count])
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)


def limited(labels: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """`limit` rows that keep the classes' shares: rows are taken class by class in turn."""
    generator = np.random.default_rng([seed, 1])
    rank = np.empty(len(labels), dtype=np.float64)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        rank[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    order = np.lexsort((np.arange(len(labels)), labels, rank))
    return np.sort(order[:limit])
