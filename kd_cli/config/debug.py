"""What `debug=smoke` makes smaller, beside the plain keys of its YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kd_cli.config.overrides import place_of

WHERE_PRESENT = "where_present"


def smaller(
    resolved: dict[str, Any], debug: Mapping[str, Any] | None, overrides: Sequence[str]
) -> None:
    """Puts the values of `debug.where_present` where their keys exist and were not typed.

    A recipe's warm-up of five epochs does not fit into one, and a schedule without a warm-up has no
    such key that YAML could set.

    Args:
        resolved: The root keys of a configuration, as plain data; changed in place.
        debug: The group's node; None without it.
        overrides: What the user typed.
    """
    typed = [place_of(override) for override in overrides]
    for key, value in (debug or {}).get(WHERE_PRESENT, {}).items():
        *path, last = key.split(".")
        node: Any = resolved
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and last in node and key not in typed:
            node[last] = value
