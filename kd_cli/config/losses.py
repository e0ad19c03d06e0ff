"""The entries below `loss`: one for each loss that a student is trained with.

loss:
  at:
    _target_: kd_cli.distillation.attention
    weight: 1000.0                              # or {start: 0, stop: 1000, epochs: 20}
    pairs: [[stage1, stage1]]                   # taps of the student and of the teacher
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kd_cli.config.keys import VARIABLES
from kd_cli.config.overrides import override_key, place_of
from kd_cli.config.row import is_number
from kd_cli.errors import ConfigError

_RAMP = {"start", "stop", "epochs"}
_EXAMPLE = "{start: 0, stop: 100, epochs: 20}"


def require_entries(cfg: DictConfig, command: str, overrides: Sequence[str]) -> None:
    """Refuses a `loss` without an entry, one chosen twice, and an entry without a function."""
    loss = cfg.get("loss")
    for override in overrides:  # (Hydra merges the two, and names no list among its choices.)
        typed = override.partition("=")[2].strip("[] ").split(",")
        options = [option.strip() for option in typed]
        twice = [option for option in options if options.count(option) > 1]
        if override_key(override) == "loss" and twice:
            name = twice[0]
            raise ConfigError(
                f"{override}: {name} is chosen twice; a second one needs a name of its own, as in "
                f"'+loss.{name}2={{_target_: ..., weight: 0.5}}' (see kd guide losses)"
            )
    if not isinstance(loss, DictConfig) or not loss:
        raise ConfigError(f"{command} needs a loss: type loss=OPTION (see kd --help)")
    if "_target_" in loss:
        raise ConfigError(
            "loss._target_: a loss is an entry with a name below loss; write loss: {my_loss: "
            "{_target_: ...}} in its file, whose first line is # @package _global_"
        )
    for name, node in loss.items():
        if not isinstance(node, DictConfig) or "_target_" not in node:
            raise ConfigError(f"loss.{name} must name its function: loss.{name}._target_=...")


def loss_name(loss: Mapping[str, Any]) -> str:
    """As one would type it: `hinton`, or `[hinton,at]`."""
    return next(iter(loss)) if len(loss) == 1 else f"[{','.join(map(str, loss))}]"


def unused_by_loss(cfg: DictConfig) -> dict[str, str]:
    """The graph variables that the chosen losses do not name, and why they are not used."""
    text, name = OmegaConf.to_yaml(cfg.loss), loss_name(cfg.loss)
    found = {}
    for key in VARIABLES:
        if re.search(r"\$\{" + key + r"\}", text):
            continue
        own = next((entry for entry in cfg.loss if key in cfg.loss[entry]), None)
        found[key] = (
            f"loss={name} does not use it"
            if own is None
            else f"loss={name} has its own, loss.{own}.{key}"
        )
    return found


def refuse_below_loss(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Refuses `loss.hinton.alpha=3` where the loss takes alpha from the root.

    Its range is checked at the root, and names and records of runs show the root's value.
    """
    for override in overrides:
        group, _, rest = place_of(override).partition(".")
        entry, _, key = rest.partition(".")
        _, equals, value = override.partition("=")
        if group != "loss" or not equals or key not in VARIABLES or cfg.get(key) is None:
            continue
        node = cfg.loss.get(entry)
        if node is not None and key in node and not OmegaConf.is_interpolation(node, key):
            raise ConfigError(
                f"{override}: loss={loss_name(cfg.loss)} takes {key} from the top level; "
                f"type {key}={value}"
            )


def teacher_taps(loss: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of the teacher's layers that the losses compare."""
    pairs = [pair[1] for node in loss.values() for pair in node.get("pairs") or ()]
    alone = [tap for node in loss.values() for tap in node.get("teacher_taps") or ()]
    return [*pairs, *alone]


def check_entries(loss: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses weights and taps that can't be."""
    for name, node in loss.items():
        _check_weight(f"loss.{name}", node.get("weight", 1.0))
        pairs = node.get("pairs", ())
        if not _is_list(pairs) or not all(_is_list(p) and len(p) == 2 for p in pairs or ()):
            raise ConfigError(
                f"loss.{name}.pairs={pairs} must be a list of pairs [student's layer, teacher's "
                "layer], as in [[stage1,stage1],[stage2,stage2]]"
            )
        if not pairs and "pairs" in node and str(node["_target_"]).startswith("kd_cli."):
            raise ConfigError(
                f"loss.{name}.pairs={pairs} must name at least one pair of layers, as in "
                "[[stage1,stage1]]"
            )
        for key in ("student_taps", "teacher_taps"):
            taps = node.get(key, ())
            if not _is_list(taps):
                raise ConfigError(
                    f"loss.{name}.{key}={taps} must be a list of layers, as in [stage1,pooled]"
                )


def _is_list(value: Any) -> bool:
    return value is None or (isinstance(value, Sequence) and not isinstance(value, str))


def _check_weight(place: str, weight: Any) -> None:
    leave_out = f"; to leave the loss out, type ~{place}"
    if isinstance(weight, Mapping):
        if set(weight) != _RAMP or not all(map(is_number, weight.values())):
            raise ConfigError(f"{place}.weight={dict(weight)} must be a number, or {_EXAMPLE}")
        if weight["start"] < 0 or weight["stop"] <= 0 or weight["epochs"] <= 0:
            raise ConfigError(
                f"{place}.weight={dict(weight)} must have a start of at least 0, and stop and "
                f"epochs above 0{leave_out}"
            )
    elif not is_number(weight) or weight <= 0:
        raise ConfigError(
            f"{place}.weight={weight} must be a number above 0, or {_EXAMPLE}{leave_out}"
        )
