"""The network that `kd evaluate` and `kd export` mean, and its data; TensorFlow comes last."""

from __future__ import annotations

import inspect
import itertools
import json
import logging
import shlex
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from kd_cli.commands.table import Request
from kd_cli.config.check import check, refuse_unused
from kd_cli.config.compose import compose
from kd_cli.config.instantiate import build
from kd_cli.config.keys import UNUSED
from kd_cli.config.overrides import is_typed, override_key
from kd_cli.config.plans import unlabelled_left_out, view_shape
from kd_cli.data.dataset import Dataset
from kd_cli.errors import ConfigError, first_line
from kd_cli.runs import identity
from kd_cli.runs.model_file import model_file, recorded_network, run_beside
from kd_cli.runs.record import Record
from kd_cli.runs.resolvers import register_resolvers
from kd_cli.terminal import shown

if TYPE_CHECKING:
    import keras

log = logging.getLogger("kd")
_FINGERPRINTS = ("fingerprint", "split_fingerprint")


@dataclass(frozen=True)
class Target:
    """What is evaluated.

    Attributes:
        file: The `.keras` file.
        record: The run's; None for a file by itself.
        name: Of the network.
        role: `teacher` or `student`, as the arrays of predictions.npz are called.
    """

    file: Path
    record: Record | None
    name: str
    role: str

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


def find(what: str) -> Target:
    """The network that a path means.

    Raises:
        ConfigError: No such path, no `.keras` file, or no finished run, or one that can't be read.
    """
    path = Path(what).expanduser()
    expected = "expected the directory of a finished run, or a .keras file"
    if not path.exists():
        raise ConfigError(f"{what} does not exist; {expected}")
    path = path.resolve()  # outputs/latest moves
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


def network_of(plan: DictConfig, target: Target, dataset: Dataset) -> tuple[keras.Model, str]:
    """The network from the pixels of the dataset to its logits, checked, and its weights' hash.

    Raises:
        ConfigError: It can't be read, was altered after training, or does not fit the data.
    """
    from kd_cli.networks.keras_file import OwnCodeError, load_keras, load_of_run, weights_hash
    from kd_cli.networks.logits import as_logits
    from kd_cli.networks.wrap import ADAPTER, check_network, with_adapter

    if target.record:
        model = load_of_run(target.file, plan.command, recorded_network(target.record))
    else:
        try:
            model = load_keras(target.file, plan.command, plan.module)
        except OwnCodeError as error:
            raise ConfigError(f"{error}{run_beside(target.file)}") from error
    try:
        expected = model.input_shape
    except (AttributeError, ValueError):
        expected = None
    if not isinstance(expected, tuple) or len(expected) != 4:
        raise ConfigError(
            f"{plan.what}: expected a network with one input [batch, height, width, channels], "
            f"received {expected}"
        )
    outputs, fitting = model.output_shape, {dataset.num_classes}
    fitting |= {1} if dataset.num_classes == 2 else set()  # one logit decides between two
    if isinstance(outputs, tuple) and outputs[-1] not in fitting:
        raise ConfigError(
            f"{plan.what} has {outputs[-1]} outputs, {dataset.name} has {dataset.num_classes} "
            "classes; type dataset=OPTION to choose other data"
        )
    if target.record:  # what kd trains ends in logits
        check_network(model, dataset.num_classes, plan.what)
    else:
        model, done = as_logits(model, dataset.num_classes, plan.what)
        if done:
            log.info("%s: %s", plan.what, done)
    shape = view_shape(plan.augment.size, dataset.image_shape)
    asked = plan.input.size is not None or (plan.input.scale, plan.input.offset) != (1, 0)
    if asked and any(layer.name == ADAPTER for layer in model.layers):
        raise ConfigError(f"{plan.what} takes raw pixels: it has its scale inside; leave input out")
    check_shape(plan, expected[1:], view_shape(plan.input.size, shape))
    model = with_adapter(model, plan.input, shape, "input") if asked else model
    sha = weights_hash(model)
    if target.record and sha != target.record.weights_sha256:
        raise ConfigError(
            f"{shown(target.file)} was altered after training (weights {sha[:12]}, recorded "
            f"{target.record.weights_sha256[:12]}); {plan.command} the file itself: kd "
            f"{plan.command} {shlex.quote(shown(target.file))} dataset={plan.dataset.name}"
        )
    return model, sha


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
        expected = _input_shape(target.file)
        given = view_shape(plan.input.size or plan.augment.size, plan.dataset.image_shape)
        if len(expected) == 3:  # (of a network with other inputs Keras tells)
            check_shape(plan, expected, given)
        return plan, False
    keys = [override_key(override) for override in typed]
    recorded = target.record.config
    for key in keys:
        if key.startswith("input"):
            raise ConfigError(f"{key}: a run's model.keras takes raw pixels; leave it out")
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
    trained_on = view_shape(recorded.get("augment", {}).get("size"), known.image_shape)
    given = view_shape(plan.augment.size, plan.dataset.image_shape)
    check_shape(plan, trained_on, given)
    return plan, own


def _input_shape(file: Path) -> list[int | None]:
    """[H, W, C] that a `.keras` file takes, read without Keras; empty where it is not plain."""
    try:
        with zipfile.ZipFile(file) as archive:
            first = json.loads(archive.read("config.json"))["config"]["layers"][0]
        return list(first["config"]["batch_shape"][1:])
    except (OSError, ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile):
        return []  # Keras will tell


def check_shape(plan: DictConfig, expected: Sequence[int | None], given: Sequence[int]) -> None:
    """Raises ConfigError when a network takes other images than it would get.

    Args:
        plan: Names network and data.
        expected: [H, W, C], None for any.
        given: [H, W, C].
    """
    if any(e not in (None, g) for e, g in zip(expected, given, strict=True)):
        raise ConfigError(
            f"{plan.what} takes images of shape {list(expected)}, {plan.dataset.name} would give "
            f"it {list(given)}; choose other data, or (for a file that kd did not write) "
            "input.size=..."
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
