"""TensorFlow's import, and the device and determinism of this process.

TensorFlow takes a choice of devices until its first tensor and keeps it from then on, so the device
belongs to the process. TensorFlow itself remembers which one it is; nothing here does.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from types import ModuleType

from kd_cli.errors import ConfigError

_wanted = ContextVar("wanted", default="auto")


@contextlib.contextmanager
def wanting(device: str) -> Iterator[None]:
    """Inside the block, `import_tensorflow` sets `device` up.

    It reaches code whose arguments are a user's affair: a source of images that may need TensorFlow
    to decode them, or not need it at all.
    """
    token = _wanted.set(device)
    try:
        yield
    finally:
        _wanted.reset(token)


def import_tensorflow() -> ModuleType:
    """TensorFlow, with the wanted device: that choice must come before its first tensor.

    Raises:
        ConfigError: As `set_up`.
    """
    set_up(_wanted.get())
    return _import_quietly()


@contextlib.contextmanager
def quiet(tells: bool = True) -> Iterator[None]:
    """Inside the block nothing reaches file descriptor 2, where C++ code writes its chatter.

    Args:
        tells: Whether what was written appears when the block fails.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as chatter:
        os.dup2(chatter.fileno(), 2)
        try:
            yield
        except BaseException:
            if tells:
                chatter.seek(0)
                os.write(kept, chatter.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@functools.cache
def _import_quietly() -> ModuleType:
    """Imports TensorFlow without its start-up chatter; its operations are deterministic from then.

    TF_CPP_MIN_LOG_LEVEL does not reach what TensorFlow 2.21 writes to file descriptor 2 before its
    logging is initialised, so the descriptor itself is turned away for the first import and the
    first look for devices. What was written appears when the import fails.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    for name in ("absl", "tensorflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with quiet():
        import tensorflow

        tensorflow.config.list_physical_devices()
    tensorflow.config.experimental.enable_op_determinism()
    # What the import made stays: 370,000 objects over which no collection has to walk again, which
    # takes 0.2 s, and each point of a sweep collects.
    gc.freeze()
    return tensorflow


def set_up(device: str) -> str:
    """Makes the wanted device the only visible one, with memory growth.

    Args:
        device: `auto`, `cpu`, `gpu` or `gpu:N`.

    Returns:
        What is used, for people and the metrics.

    Raises:
        ConfigError: When there is no such GPU, or this process computes on another device already.
    """
    tf = _import_quietly()
    gpus = tf.config.list_physical_devices("GPU")
    number = int(device.partition(":")[2] or 0)
    if device.startswith("gpu") and number >= len(gpus):
        raise ConfigError(
            f"device={device}: TensorFlow finds {len(gpus)} GPUs; type device=auto or device=cpu"
        )
    use = [] if device == "cpu" else gpus[number : number + 1]
    try:
        tf.config.set_visible_devices(use, "GPU")
        for gpu in use:
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError as error:  # it has made tensors
        raise ConfigError(
            f"device={device}: this process computes on "
            f"{_names(tf, tf.config.get_visible_devices('GPU'))} already; sweep over devices in "
            "separate commands"
        ) from error
    return _names(tf, use)


def _names(tf: ModuleType, gpus: list) -> str:
    """For people: the model of the GPU, or `cpu` where there is none."""
    details = [(tf.config.experimental.get_device_details(gpu), gpu.name) for gpu in gpus]
    return ", ".join(known.get("device_name", name) for known, name in details) or "cpu"
