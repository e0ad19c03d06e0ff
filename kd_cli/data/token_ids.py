"""What a source's token ids are: whole numbers below the vocabulary, in rows of one length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kd_cli.config.inputs import Tokens
from kd_cli.data.arrays import Arrays
from kd_cli.data.pixels import splits_of
from kd_cli.errors import ConfigError


def checked(arrays: Arrays, inputs: Tokens, name: str) -> Arrays:
    """The same arrays, with int32 ids.

    Raises:
        ConfigError: Ids or labels that are no NumPy arrays of whole numbers or do not fit together,
            ids out of the vocabulary, or a row that is all padding.
    """
    changed = {}
    for part, (ids, labels) in splits_of(arrays, name).items():
        for what, array in (("token ids", ids), ("labels", labels)):
            if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
                kind = getattr(array, "dtype", type(array).__name__)
                raise ConfigError(
                    f"{name}: the {part} {what} are {kind}; expected a NumPy array of whole numbers"
                )
        if ids.shape[1:] != inputs.shape or labels.shape != ids.shape[:1]:
            raise ConfigError(
                f"{name}: the {part} token ids have shape {ids.shape} and their labels "
                f"{labels.shape}; expected [N, {inputs.length}] (dataset.length) and [N]"
            )
        if not ids.size:
            continue
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= inputs.vocabulary:
            raise ConfigError(
                f"{name}: the {part} token ids run from {low} to {high}, but dataset.vocabulary="
                f"{inputs.vocabulary} (ids 0 to {inputs.vocabulary - 1})"
            )
        blank = np.flatnonzero(ids.max(axis=1) == 0)
        if len(blank):
            raise ConfigError(
                f"{name}: row {blank[0]} of the {part} token ids is all padding (0); leave such "
                "texts out, or give them one unknown word (1)"
            )
        changed[part] = (ids if ids.dtype == np.int32 else ids.astype(np.int32), labels)
    return replace(arrays, **changed)
