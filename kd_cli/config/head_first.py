"""Checks the keys by which the last layer of a network is trained first."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from kd_cli.config.overrides import is_typed
from kd_cli.config.plans import given_by, is_taught
from kd_cli.errors import ConfigError

# Networks of which it is known that they start from random weights where none are named.
_RANDOM = ("kd_cli.networks.", "keras.applications.")


def check_head_first(plan: DictConfig, overrides: Sequence[str]) -> None:
    """Refuses features that would stay random, or stay as they are in any case.

    Args:
        plan: A typed configuration, the teacher's keys below `teacher`.
        overrides: What the user typed.

    Raises:
        ConfigError: It names the key that decides.
    """
    for place, role in (("", "student"), ("teacher.training.", "teacher")):
        training = OmegaConf.select(plan, place.rstrip(".")) if place else plan
        if role not in plan or (not place and training.get("epochs") is None):
            continue
        if place and is_taught(plan) and given_by(plan):  # it is not trained
            continue
        first, key = training.freeze_epochs, f"{place}freeze_epochs"
        if not first:
            typed = next((o for o in overrides if is_typed(f"{place}fine_tune_factor", [o])), "")
            if typed:
                raise ConfigError(f"{typed} changes nothing: {key}=0; type {key}=3 with it")
            continue
        node, target = plan[role].network, str(plan[role].network.get("_target_"))
        if node.get("frozen"):
            raise ConfigError(
                f"{key}={first}: {role}.network.frozen=true keeps all but the last layer as it is "
                f"throughout; type {role}.network.frozen=false, or leave {key} out"
            )
        started = (node.get("weights"), plan[role].checkpoint, plan[role].get("weights"))
        if target.startswith(_RANDOM) and not any(started):
            where = f"{role}.network.weights=..." if "weights" in node else f"{role}.checkpoint"
            where = "teacher.weights=FILE.npz" if target.endswith(".bit_resnet") else where
            raise ConfigError(
                f"{key}={first}: the {role} starts from random weights, and its last layer would "
                f"learn from random features; type {key}=0, or start from others with {where}"
            )
