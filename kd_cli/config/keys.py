"""The keys of a configuration: which exist, and where they belong."""

from __future__ import annotations

from typing import Any

# Root keys that come with the losses that use them: a loss without `${temperature}` has none.
LOSS_KEYS = ("alpha", "temperature", "t_squared")
# Root keys of self-train alone.
ROUND_KEYS = ("rounds", "pseudo")


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping under dotted keys."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


ROOT_NAMES = ("alpha", "temperature", "t_squared", "learning_rate", "label_smoothing")
