"""`kd predict RUN ...`: what a finished run's network, and its teacher, say of texts or images."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from kd_cli.commands.evaluate_target import Target, find
from kd_cli.commands.table import Request
from kd_cli.config.inputs import Images, Tokens, inputs_of
from kd_cli.data import pictures
from kd_cli.data.listing import plain
from kd_cli.data.tokenizer import Tokenizer
from kd_cli.device import set_up
from kd_cli.errors import ConfigError
from kd_cli.runs import vocabulary
from kd_cli.runs.model_file import is_run, model_file, recorded_network
from kd_cli.runs.record import Record
from kd_cli.terminal import messages, print_table, shown

log = logging.getLogger("kd")
USAGE = """\
usage: kd predict RUN "A TEXT" ["ANOTHER TEXT" ...]   for a run on texts
       kd predict RUN FILE [FILE ...]                 for a run on images

Prints the classes with their probabilities: of the run's network, and of its teacher where that is
a finished run. RUN is the folder of a finished run, such as outputs/latest.
"""
_MOST = 5  # classes of a text or image
_WIDTH = 60  # columns of a text


def run(request: Request) -> int:
    """Prints the table; returns 0.

    Raises:
        ConfigError: No finished run, nothing to predict, or a file or vocabulary that can't be
            used.
    """
    words = request.words
    if {"--help", "-h"} & set(words):
        print(USAGE, end="")
        return 0
    if not words:
        raise ConfigError('predict needs a finished run, as in: kd predict outputs/latest "a text"')
    what, *given = words
    with messages():
        target = find(what)
        if target.record is None:
            raise ConfigError(
                f"{what} is a file, and its classes stand in the record of its run; give the "
                "folder of a finished run"
            )
        inputs = inputs_of(target.record.dataset)
        if not given:
            example = '"a text"' if isinstance(inputs, Tokens) else "FILE"
            raise ConfigError(f"predict needs {inputs.many}: kd predict {what} {example}")
        if isinstance(inputs, Tokens):
            read = _token_ids(given, vocabulary.read(target.run, target.record))
        else:
            read = _pixels(given, target.record, inputs)
        predicted = _predicted(target, read)
    _print(target, [plain(one) for one in given], predicted)
    return 0


def _token_ids(texts: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """[n, L]; says what the network does not see."""
    if blank := [text for text in texts if not text.strip()]:
        raise ConfigError(f"'{plain(blank[0])}' is an empty text; type some words, in quotes")
    for text in texts:
        unknown = list(dict.fromkeys(tokenizer.not_known(text)))
        if unknown:
            told = ", ".join(unknown[:_MOST]) + (", ..." if len(unknown) > _MOST else "")
            log.info("'%s': not in the vocabulary: %s", _short(plain(text)), plain(told))
        if tokenizer.ids([text])[1]:
            length, noun = f"{tokenizer.length:,}", tokenizer.noun
            log.info("'%s': only its first %s %s count", _short(plain(text)), length, noun)
    return tokenizer.ids(texts)[0]


def _pixels(files: Sequence[str], record: Record, inputs: Images) -> np.ndarray:
    """[n, H, W, C], uint8: of the size of the run's data."""
    height, width, channels = inputs.shape
    if channels not in (1, 3, 4):
        raise ConfigError(
            f"the images of {record.dataset.name} have {channels} channels; files have 1, 3 or 4"
        )
    images = []
    for name in files:
        file = Path(name).expanduser()
        if not file.is_file():
            raise ConfigError(f"{plain(name)} is not a file; expected an image")
        try:
            image, remarks = pictures.read(file, channels)
        except pictures.Unreadable as error:
            raise ConfigError(f"{plain(name)} {error}; expected an image") from error
        for remark in sorted(remarks):
            log.warning("%s: %s", plain(name), remark)
        images.append(pictures.resized(image, height, width))
    return np.stack(images)


def _predicted(target: Target, read: np.ndarray) -> dict[str, np.ndarray]:
    """Probabilities [n, K] by whose they are."""
    record = target.record
    set_up("auto")
    import tensorflow as tf

    from kd_cli.data.views import evaluated
    from kd_cli.networks.inputs import as_given
    from kd_cli.networks.keras_file import load_of_run

    given = as_given(tf.constant(read))
    augment = record.config.get("augment") or {}
    if augment.get("evaluate"):
        given = evaluated(OmegaConf.create(augment["evaluate"]), given)

    def ask(file: Path, of: Record) -> np.ndarray:
        model: Any = load_of_run(file, "predict", recorded_network(of))
        logits = tf.cast(model(given, training=False), tf.float32)
        return tf.nn.softmax(logits).numpy()

    found = {target.role: ask(target.file, record)}
    if record.teacher is not None:
        teacher, why = _teacher(record)
        if teacher is None:
            log.info("its teacher is not asked: %s", why)
        else:
            found["teacher"] = ask(model_file(Path(record.teacher.path)), teacher)
    return found


def _teacher(record: Record) -> tuple[Record | None, str]:
    """The record of a run's teacher; or why it can't be asked."""
    folder = Path(record.teacher.path)
    if not is_run(folder):
        where = "is gone" if not os.path.exists(folder) else "is no finished run"
        return None, f"{shown(folder)} {where}"
    teacher = Record.read(folder)
    if teacher.weights_sha256 != record.teacher.weights_sha256:
        return None, f"{shown(folder)} holds another teacher now"
    theirs, ours = (inputs_of(one.dataset) for one in (teacher, record))
    sizes = [(one.config.get("augment") or {}).get("size") for one in (teacher, record)]
    if theirs.sized(sizes[0]) != ours.sized(sizes[1]):
        return None, f"{shown(folder)} takes inputs of another shape"
    return teacher, ""


def _print(target: Target, given: Sequence[str], predicted: dict[str, np.ndarray]) -> None:
    record, rows = target.record, []
    names = record.dataset.class_names
    for number, one in enumerate(given):
        first = next(iter(predicted.values()))[number]
        for place, label in enumerate(np.argsort(-first, kind="stable")[:_MOST]):
            shares = [f"{100 * share[number, label]:.2f}" for share in predicted.values()]
            rows.append(["" if place else _short(one), names[label], *shares])
    one = inputs_of(record.dataset).one
    title = f"{record.network} on {record.dataset.name}: probabilities"
    print_table(title, [one, "class", *(f"{who}, %" for who in predicted)], rows)


def _short(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}..."
