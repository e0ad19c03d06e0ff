"""The network that `kd evaluate` and `kd export` mean, and its data, found without TensorFlow."""

from __future__ import annotations

import inspect
import itertools
import json
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from kd_cli.commands.table import Request
from kd_cli.config.check import check, refuse_unused
from kd_cli.config.compose import compose
from kd_cli.config.inputs import Images, Inputs, inputs_of
from kd_cli.config.instantiate import build
from kd_cli.config.keys import UNUSED
from kd_cli.config.overrides import is_typed, override_key
from kd_cli.config.plans import unlabelled_left_out
from kd_cli.data.dataset import Dataset
from kd_cli.errors import ConfigError, first_line
from kd_cli.export import formats
from kd_cli.runs import identity
from kd_cli.runs.model_file import model_file
from kd_cli.runs.record import Record
from kd_cli.runs.resolvers import register_resolvers
from kd_cli.terminal import shown

log = logging.getLogger("kd")
_FINGERPRINTS = ("fingerprint", "split_fingerprint")


@dataclass(frozen=True)
class Target:
    """What is evaluated.

    Attributes:
        file: The `.keras` file, or one for another runtime.
        record: The run's; None for a file by itself.
        name: Of the network.
        role: `teacher` or `student`, as the arrays of predictions.npz are called.
        format: Of a file for another runtime; empty for a `.keras` file.
    """

    file: Path
    record: Record | None
    name: str
    role: str
    format: str = ""

    @property
    def run(self) -> Path:
        return self.file.parent


def plan_of(request: Request, does: str) -> DictConfig:
    """The checked configuration of a command whose word is followed by a run or a file.

    Args:
        request: What was typed.
        does: What the command does, in a word, for errors.

    Raises:
        ConfigError: Flags of Hydra's, no run or file, or what `check` refuses.
    """
    word, overrides = request.command.word, request.overrides
    if request.flags:
        raise ConfigError(
            f"{word} does not take {request.flags[0]}: it {does} one network at a time"
        )
    for override in overrides:
        if is_typed("hydra.run", [override]) or is_typed("hydra.sweep", [override]):
            raise ConfigError(f"{override}: {word} writes into the run's folder; leave it out")
    # First, because Hydra does not know these keys in the command's YAML and would say no more.
    refuse_unused(word, overrides, UNUSED[word])
    if not is_typed("what", overrides):
        raise ConfigError(
            f"{word} needs the directory of a finished run or a .keras file, as in: "
            f"kd {word} outputs/latest"
        )
    register_resolvers()
    return check(compose(word, overrides, request.config_dir), overrides)


def find(what: str, exported: bool = False) -> Target:
    """The network that a path means.

    Args:
        what: As typed.
        exported: Whether it may be a file for another runtime.

    Raises:
        ConfigError: No such path, no `.keras` file, or no finished run, or one that can't be read.
    """
    path = Path(what).expanduser()
    expected = "expected the directory of a finished run, or a .keras file"
    if exported:
        expected += f", or a file for another runtime ({formats.names()})"
    if not path.exists():
        raise ConfigError(f"{what} does not exist; {expected}")
    path = path.resolve()  # outputs/latest moves
    kind = formats.kind_of(path) if exported else ""
    if kind:
        return Target(path, None, path.stem, "student", kind)
    if not path.is_dir():
        if path.suffix != ".keras" or not zipfile.is_zipfile(path):
            raise ConfigError(f"{what} is not a .keras file; {expected}")
        return Target(path, None, path.stem, "student")
    record = Record.read(path)
    if record is None:
        raise ConfigError(f"{what} is not a finished run{_why(path)}; {expected}")
    source = record.config.get("dataset", {}).get("source")
    if not isinstance(source, dict) or "_target_" not in source:
        raise ConfigError(
            f"{what}/metrics.json does not say on which data (config.dataset.source); evaluate the "
            f"file: kd evaluate {what}/model.keras dataset=..."
        )
    role = "teacher" if record.command == "train-teacher" else "student"
    return Target(model_file(path), record, record.network, role)


def _why(folder: Path) -> str:
    """What a directory without metrics.json is instead."""
    below = itertools.chain.from_iterable(
        folder.glob(f"{levels}metrics.json") for levels in ("*/", "*/*/", "*/*/*/")
    )
    first = next(below, None)
    if first is not None:
        return f", but holds some, such as {shown(first.parent)}"
    if (folder / ".hydra").is_dir():
        return " (it has no metrics.json yet: the command that began it continues it)"
    return " (it has no metrics.json)"


def with_data(plan: DictConfig, typed: list[str], target: Target) -> tuple[DictConfig, bool]:
    """The plan with the data that count, and whether they are the run's own.

    Raises:
        ConfigError: Typed keys that don't go together, or data that don't fit the run.
    """
    folder = Path(plan.outputs) / plan.command
    for parent in [folder, *folder.parents]:
        if parent.exists() and not parent.is_dir():
            raise ConfigError(f"{parent} is a file; kd needs a directory there")
    plain = OmegaConf.to_container(plan)
    if target.record is None:
        plan = OmegaConf.create(plain)
        expected = [] if target.format else _input_shape(target.file)
        if expected:  # (of a network with other inputs Keras tells)
            check_shape(plan, expected, given_to(plan, inputs_of(plan.dataset)))
        return plan, False
    keys = [override_key(override) for override in typed]
    recorded = target.record.config
    images = isinstance(inputs_of(target.record.dataset), Images)
    for key in keys:
        if key.startswith("input"):
            raw = "raw pixels" if images else "token ids"
            raise ConfigError(f"{key}: a run's model.keras takes {raw}; leave it out")
        if key == "module":
            raise ConfigError("module: a run has recorded its network; leave it out")
        if key.startswith("dataset.") and "dataset" not in keys:
            raise ConfigError(
                f"{key}: the run has its own dataset; type dataset={recorded['dataset']['name']} "
                f"{key}=... to evaluate it on other data"
            )
    if "dataset" not in keys:
        plain["dataset"] = _recorded(recorded["dataset"], plan, keys, target.run)
    other_pixels = any(key.split(".")[0] == "augment" for key in keys)
    if not other_pixels:
        plain["augment"] |= recorded.get("augment", {})
    plan = OmegaConf.create(plain)
    spec = identity.dataset_spec(plan.dataset)
    own = not other_pixels and identity.digest(spec) == identity.digest(recorded["dataset"])
    for node in (plan.dataset, plan.dataset.source):  # nothing is measured on these images
        node.update(unlabelled_left_out(node))
    known = target.record.dataset
    if len(known.class_names) != plan.dataset.num_classes:
        raise ConfigError(
            f"{plan.what} was trained for {len(known.class_names)} classes "
            f"({known.name}), {plan.dataset.name} has {plan.dataset.num_classes}"
        )
    trained_on = inputs_of(known).sized(recorded.get("augment", {}).get("size"))
    given = inputs_of(plan.dataset).sized(plan.augment.size)
    check_shape(plan, trained_on.shape, given)
    return plan, own


def _input_shape(file: Path) -> list[int | None]:
    """[H, W, C] or [L] that a `.keras` file takes, without Keras; empty where it is not plain."""
    try:
        with zipfile.ZipFile(file) as archive:
            first = json.loads(archive.read("config.json"))["config"]["layers"][0]
        shape, dtype = list(first["config"]["batch_shape"][1:]), first["config"]["dtype"]
        return shape if len(shape) == 3 or (len(shape) == 1 and "int" in dtype) else []
    except (OSError, ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile):
        return []  # Keras will tell


def given_to(plan: DictConfig, inputs: Inputs) -> Inputs:
    """What a network gets of a dataset's inputs, behind augmentation and `input`."""
    size = None if plan.input is None else plan.input.size
    return inputs.sized(plan.augment.size).sized(size)


def check_shape(plan: DictConfig, expected: Sequence[int | None], given: Inputs) -> None:
    """Raises ConfigError when a network takes other inputs than it would get.

    Args:
        plan: Names network and data.
        expected: [H, W, C] or [L], None for any.
        given: What it would get.
    """
    fits = len(expected) == len(given.shape)
    if fits and all(e in (None, g) for e, g in zip(expected, given.shape, strict=True)):
        return
    many = "images" if len(expected) == 3 else "texts"
    hint = ", or (for a file that kd did not write) input.size=..." if many == "images" else ""
    words = "" if given.many == many else f"{given.many} "
    raise ConfigError(
        f"{plan.what} takes {many} of shape {list(expected)}, {plan.dataset.name} would give it "
        f"{words}{list(given.shape)}; choose other data{hint}"
    )


def _recorded(spec: dict[str, Any], plan: DictConfig, typed: list[str], run: Path) -> Any:
    """A run's dataset node, with the places that its record leaves out.

    They are as typed now, or else as typed for the run, or else the defaults.
    """
    source = dict(spec["source"])
    then = _configuration(run / ".hydra" / "config.yaml")
    function = build({**source, "_partial_": True}, "dataset.source").func
    for key in ("data_dir", "cache_dir"):
        if key in inspect.signature(function).parameters:
            old = then.get(key)
            of_then = isinstance(old, str) and "$" not in old and key not in typed
            source[key] = old if of_then else plan[key]
    whole = {"labelled_fraction": 1.0, "unlabelled": "leave_out"}
    return {**whole, "labelled_seed": spec["split_seed"], **spec, "source": source}


def _configuration(path: Path) -> dict[str, Any]:
    """What Hydra left of a run's configuration; empty where nothing can be read."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, YAMLError) as error:
        log.warning("%s can't be read (%s); its folders are not asked", path, first_line(error))
        return {}
    return content if isinstance(content, dict) else {}


def check_same(plan: DictConfig, record: Record, dataset: Dataset) -> None:
    """Raises ConfigError when the data that a run was made from have changed since."""
    # (The split of self-training counts the pseudo-labels, which nobody is evaluated on.)
    keys = ("fingerprint",) if record.command == "self-train" else _FINGERPRINTS
    for key in keys:
        then, now = getattr(record.dataset, key), getattr(dataset, key)
        if then != now:
            raise ConfigError(
                f"{plan.what}: the data of {dataset.name} have changed since this run ({key} "
                f"{then[:12]}, now {now[:12]}); to evaluate the network on the new data, give its "
                f"file: {plan.what}/model.keras dataset={dataset.name}"
            )


def warn_of_classes(record: Record, dataset: Dataset) -> None:
    """Says when the classes of the data are not those that a run was trained for."""
    trained = record.dataset.class_names
    if trained != list(dataset.class_names):
        log.warning(
            "the network was trained on the classes %s, in %s they are %s",
            ", ".join(trained[:3]) + ", ...",
            dataset.name,
            ", ".join(dataset.class_names[:3]) + ", ...",
        )
