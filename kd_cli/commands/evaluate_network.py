"""The network that `kd evaluate` measures and `kd export` converts, read and made ready."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from kd_cli.commands.evaluate_target import Target, check_shape, given_to
from kd_cli.config.inputs import Images, Tokens
from kd_cli.data.dataset import Dataset
from kd_cli.errors import ConfigError
from kd_cli.export.check import are_probabilities, as_logits
from kd_cli.export.formats import FORMATS
from kd_cli.export.tensors import fitted
from kd_cli.files import file_hash
from kd_cli.runs.model_file import recorded_network, run_beside
from kd_cli.runs.record import Record
from kd_cli.runs.session import Session
from kd_cli.terminal import shown

if TYPE_CHECKING:
    import keras

    from kd_cli.distillation.teacher import Teacher
    from kd_cli.export.tensors import Opened

log = logging.getLogger("kd")


@dataclass(frozen=True)
class Network:
    """What is measured.

    Attributes:
        predict: From raw pixels [B, H, W, C] to logits [B, K], tensors of TensorFlow.
        run: From a batch of such images to what is timed: the call that brings its logits.
        sha256: Of the weights, or of a file for another runtime.
        parameters, flops: None where they can't be told.
        batches: Sizes of batches that it takes; empty for any.
        warnings: What speaks against it.
    """

    predict: Callable[[Any], Any]
    run: Callable[[np.ndarray], Callable[[], Any]]
    sha256: str
    parameters: int | None
    flops: int | None
    batches: tuple[int, ...] = ()
    warnings: list[str] = field(default_factory=list)


def network_of(plan: DictConfig, target: Target, dataset: Dataset) -> Network:
    """What a run or file holds.

    Raises:
        ConfigError: It can't be read, was altered after training, or does not fit the data.
    """
    if target.format and target.format != "saved_model":
        return _of_file(plan, target, dataset)
    import tensorflow as tf

    from kd_cli.networks import cost
    from kd_cli.networks.doubts import scaled_twice
    from kd_cli.networks.predict import predictor

    model, sha256 = keras_model(plan, target, dataset)
    predict, warnings = predictor(model), scaled_twice(model, "input")

    def run(images: np.ndarray) -> Callable[[], Any]:
        batch = tf.constant(images)
        return lambda: predict(batch).numpy()

    operations: int | None = None
    try:
        operations = cost.flops(model, dataset.inputs.sized(plan.augment.size).shape)
    except cost.UncountedError as error:
        warnings.append(f"FLOPs are not counted: {error}")
    count = model.count_params()
    return Network(predict, run, sha256, count, operations, (), warnings)


def _of_file(plan: DictConfig, target: Target, dataset: Dataset) -> Network:
    """A file of a format of ours, whoever wrote it."""
    opened = FORMATS[target.format].load().open_file(target.file)
    shape, classes = opened.image.shape, opened.logits.shape
    if len(shape) != 4 or len(classes) != 2:
        raise ConfigError(
            f"{plan.what}: expected an image [batch, height, width, channels] and logits [batch, "
            f"classes], received {list(shape)} and {list(classes)}"
        )
    if classes[-1] not in (None, dataset.num_classes):
        raise ConfigError(
            f"{plan.what} has {classes[-1]} outputs, {dataset.name} has {dataset.num_classes} "
            "classes; type dataset=OPTION to choose other data"
        )
    expected = given_to(plan, dataset.inputs)
    if isinstance(expected, Tokens):
        check_shape(plan, shape[1:], expected)
    opened, turned = fitted(opened, expected.shape)
    if turned:
        log.info("%s: it takes images with their channels first", plan.what)
    check_shape(plan, opened.image.shape[1:], expected)
    prepared = _prepared(plan)
    probabilities = are_probabilities(_probe(opened, dataset, prepared), opened.logits)
    if probabilities:
        log.info("%s: its outputs are probabilities; their logarithms are its logits", plan.what)

    def predict(images: Any) -> Any:
        import tensorflow as tf

        outputs = opened(prepared(images.numpy()))
        return tf.constant(as_logits(outputs, opened.logits, probabilities))

    def run(images: np.ndarray) -> Callable[[], Any]:
        numbers = opened.image.numbers(prepared(images))
        return lambda: opened.run(numbers)

    batches = (shape[0],) if shape[0] else ()
    return Network(predict, run, file_hash(target.file), None, None, batches)


def _prepared(plan: DictConfig) -> Callable[[np.ndarray], np.ndarray]:
    """What `input` makes of raw pixels [B, H, W, C]: real values, as the file takes them."""
    scale, offset = (
        np.asarray(OmegaConf.to_container(plan.input)[key], np.float32)
        for key in ("scale", "offset")
    )

    def prepare(images: np.ndarray) -> np.ndarray:
        if plan.input.size is not None and images.shape[1:3] != (plan.input.size,) * 2:
            import tensorflow as tf

            images = tf.image.resize(images, [plan.input.size] * 2).numpy()
        if scale.shape == offset.shape == () and (scale, offset) == (1, 0):
            return images
        return images.astype(np.float32) * scale + offset

    return prepare


def _probe(
    opened: Opened, dataset: Dataset, prepared: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Outputs on images that are unlike: black, white, noise of little and full contrast."""
    known = zip(opened.image.shape[1:], dataset.inputs.shape, strict=True)
    shape = [side or size for side, size in known]
    noise = np.random.default_rng(0).uniform(0, 1, (2, *shape)) * [[[[32]]], [[[255]]]]
    images = np.concatenate([np.zeros((1, *shape)), np.full((1, *shape), 255), noise])
    return opened(prepared(images.astype(np.float32)))


def teacher_of_run(
    plan: DictConfig, record: Record, dataset: Dataset, session: Session
) -> tuple[Teacher, DictConfig]:
    """The teacher that a run was distilled from, and the plan with which it was found.

    Raises:
        ConfigError: It is gone, can't be read, or is another one now.
    """
    from kd_cli.distillation import teacher as teachers

    known, spec = record.teacher, record.config.get("teacher", {})
    bare = {"size": None, "scale": 1.0, "offset": 0.0}
    others = dict.fromkeys(("checkpoint", "logits", "weights", "precision", "module"))
    node = {"input": bare, **others, **spec}
    path = Path(known.path)
    given = next((key for key in ("weights", "logits") if node[key] is not None), "checkpoint")
    node[given] = str(path)
    if not path.exists():
        raise ConfigError(f"{shown(path)} is gone")
    plain = OmegaConf.to_container(plan)
    asked = OmegaConf.create({**plain, "teacher": node, "cache": {"logits": "none"}})
    teacher = teachers.find(asked, dataset, session)
    if teacher is None or teacher.weights_sha256 != known.weights_sha256:
        raise ConfigError(f"{shown(path)} holds another teacher now")
    return teacher, asked


def keras_model(plan: DictConfig, target: Target, dataset: Dataset) -> tuple[keras.Model, str]:
    """The network from the pixels of the dataset to its logits, checked, and its weights' hash.

    Raises:
        ConfigError: It can't be read, was altered after training, or does not fit the data.
    """
    from kd_cli.networks import logits
    from kd_cli.networks.keras_file import OwnCodeError, load_keras, load_of_run, weights_hash
    from kd_cli.networks.wrap import ADAPTER, check_network, with_adapter

    if target.format == "saved_model":
        from kd_cli.networks.saved_model import load_saved_model

        model = load_saved_model(target.file, plan.command)
    elif target.record:
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
    known = {Images: "[batch, height, width, channels]", Tokens: "[batch, length]"}
    if not isinstance(expected, tuple) or len(expected) != 1 + len(dataset.inputs.shape):
        raise ConfigError(
            f"{plan.what}: expected a network with one input {known[type(dataset.inputs)]}, "
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
        model, done = logits.as_logits(model, dataset.num_classes, plan.what)
        if done:
            log.info("%s: %s", plan.what, done)
    shape = dataset.inputs.sized(plan.augment.size).shape
    asked = plan.input is not None and (
        plan.input.size is not None or (plan.input.scale, plan.input.offset) != (1, 0)
    )
    if asked and any(layer.name == ADAPTER for layer in model.layers):
        raise ConfigError(f"{plan.what} takes raw pixels: it has its scale inside; leave input out")
    check_shape(plan, expected[1:], given_to(plan, dataset.inputs))
    model = with_adapter(model, plan.input, shape, "input") if asked else model
    sha = weights_hash(model)
    if target.record and sha != target.record.weights_sha256:
        raise ConfigError(
            f"{shown(target.file)} was altered after training (weights {sha[:12]}, recorded "
            f"{target.record.weights_sha256[:12]}); {plan.command} the file itself: kd "
            f"{plan.command} {shlex.quote(shown(target.file))} dataset={plan.dataset.name}"
        )
    return model, sha
