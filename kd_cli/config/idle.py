"""Keys that would be accepted and do nothing: each is refused, with what to type instead.

(Those that a command has no use for at all stand in the table `keys`; those of an optimizer are
told by the optimizer that was built, in `kd_cli/training/optimizers.py`.)
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kd_cli.config.keys import Augment, Dataset, Student, Teacher
from kd_cli.config.losses import teacher_taps
from kd_cli.config.overrides import is_typed
from kd_cli.config.plans import given_by, is_taught, member_plans
from kd_cli.errors import ConfigError, suggest

# Groups whose options may add keys, for other keys to refer to.
_OPEN = {
    "dataset": Dataset,
    "teacher": Teacher,
    "student": Student,
    "augment": Augment,
    "teacher.training.augment": Augment,
}
# The places of the keys that say how a network is trained.
_TRAININGS = ("", "teacher.training.")


def refuse_unread(cfg: DictConfig, used: Sequence[str], overrides: Sequence[str]) -> None:
    """Refuses a key that kd does not know and nothing refers to: typed, or misspelt in YAML.

    (An option's own key may outlive the nodes that it was for.)

    Args:
        cfg: The composed configuration, with its interpolations.
        used: The root keys that the command uses.
        overrides: What the user typed.

    Raises:
        ConfigError: It names the first such key.
    """
    for name, known in _unknown(cfg, used):
        key = name.rpartition(".")[2]
        near = suggest(key, known)
        if not near and not is_typed(name, list(overrides)):
            continue
        text = OmegaConf.to_yaml(OmegaConf.create({key: cfg._get_node(key) for key in used}))
        if not re.search(r"\$\{[^}]*\b" + re.escape(key) + r"\b", text):
            raise ConfigError(
                f"{name}: nothing uses this key{near or ';'} leave it out, or refer to it as "
                f"${{{name}}}"
            )


def _unknown(cfg: DictConfig, used: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The keys of open groups that are no keys of kd, with those that are."""
    for place, table in _OPEN.items():
        *parents, last = place.split(".")
        parent = OmegaConf.select(cfg, ".".join(parents)) if parents else cfg
        if place.split(".")[0] not in used or parent is None or last not in parent:
            continue
        if OmegaConf.is_interpolation(parent, last):  # it follows another node
            continue
        known = [field.name for field in dataclasses.fields(table)]
        for key in parent[last] if isinstance(parent[last], DictConfig) else ():
            if key not in known:
                yield f"{place}.{key}", known


def count_typed_epochs(plan: DictConfig, overrides: Sequence[str]) -> None:
    """Lets `epochs` that the user typed win over `steps` that an option or a recipe sets."""
    for place in _TRAININGS:
        training = OmegaConf.select(plan, place.rstrip(".")) if place else plan
        if is_typed(f"{place}epochs", overrides) and not is_typed(f"{place}steps", overrides):
            training.steps = None


def refuse_idle(plan: DictConfig, overrides: Sequence[str]) -> None:
    """Refuses what was typed and would change nothing, because another key decides.

    Args:
        plan: A checked configuration, the teacher's keys below `teacher`.
        overrides: What the user typed.

    Raises:
        ConfigError: It names the key that decides.
    """
    typed = [override for override in overrides if "=" in override]

    def refuse(key: str, why: str) -> None:
        for override in typed:
            if is_typed(key, [override]):
                raise ConfigError(f"{override} changes nothing: {why}")

    if plan.dataset.labelled_fraction == 1:
        refuse("dataset.labelled_seed", "all labels are used; type dataset.labelled_fraction=0.1")
        beside = plan.dataset.get("unlabelled_path")
        if beside is not None and plan.dataset.unlabelled == "leave_out":
            why = "it is about labels that dataset.labelled_fraction hides, and none is hidden"
            refuse("dataset.unlabelled", f"{why}; leave out dataset.unlabelled_path={beside}")
    for place in _TRAININGS:
        training = OmegaConf.select(plan, place.rstrip(".")) if place else plan
        if training is None or training.get("epochs") is None:
            continue
        if training.steps is not None:
            here = f"{place}steps"
            refuse(f"{place}epochs", f"{here}={training.steps} decides; type {here}=null with it")
        _refuse_durations(training.schedule, f"{place}schedule", refuse)
        augment = training.augment
        if not augment.train:
            refuse(f"{place}augment_seed", _NO_NODES)
        if not augment.train and not augment.evaluate:
            for key in ("size", "preview"):
                refuse(f"{place}augment.{key}", _NO_NODES)
            if not place:
                refuse("view", _NO_NODES)
    every, lengths = OmegaConf.select(plan, "checkpoint.every"), _epochs(plan)
    if every is not None and every > max(lengths, default=math.inf):
        refuse("checkpoint.every", f"the training ends after epoch {max(lengths):g}")
    if is_taught(plan) and not teacher_taps(plan.loss):
        for key in ("features", "features_gib"):
            refuse(f"cache.{key}", "no loss compares layers of the teacher; see kd guide methods")
    if is_taught(plan) and len(member_plans(plan)) == 1:
        refuse("teacher.combine", "there is one teacher; type teacher.members=3")
    if is_taught(plan) and given_by(plan):
        given = given_by(plan)
        refuse("teacher.train_if_missing", f"the teacher is given by {given}")
        if given == "teacher.checkpoint":
            refuse("teacher.network", "the file of teacher.checkpoint has its own network")
        if given == "teacher.logits":
            for key in ("network", "input", "precision", "combine"):
                refuse(f"teacher.{key}", "teacher.logits has the teacher's outputs, no network")
            for key in ("logits", "views"):
                refuse(f"cache.{key}", "teacher.logits is read from its file")


def _epochs(plan: DictConfig) -> list[float]:
    """Of each network that a plan trains; no end where it counts steps."""
    places = [""] if is_taught(plan) and given_by(plan) else _TRAININGS
    every = [OmegaConf.select(plan, place.rstrip(".")) if place else plan for place in places]
    known = [one for one in every if one is not None and one.get("epochs") is not None]
    return [math.inf if one.steps is not None else one.epochs for one in known]


_NO_NODES = "there is no augmentation; choose one, as in augment=flip_crop"


def _refuse_durations(schedule: Mapping[str, Any], place: str, refuse: Any) -> None:
    """Of a duration in steps and in epochs, our schedules take the steps."""
    if not str(schedule.get("_target_", "")).startswith("kd_cli."):
        return
    for key, value in schedule.items():
        if key.endswith("_steps") and value is not None:
            epochs = f"{place}.{key.removesuffix('_steps')}_epochs"
            refuse(epochs, f"{place}.{key}={value} decides; type {place}.{key}=null with it")
