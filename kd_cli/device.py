"""The device and determinism of this process: called once, before the first tensor."""

from __future__ import annotations

import gc
import logging
import os
import sys
import tempfile
from types import ModuleType

from kd_cli.errors import ConfigError

log = logging.getLogger("kd")
_chosen: dict[str, str] = {}
_request = ["auto"]


def request(device: str) -> None:
    """Says which device this process will want, for the first that needs TensorFlow."""
    _request[0] = device


def import_tensorflow() -> ModuleType:
    """TensorFlow, set up for the requested device: its settings must come before its first tensor.

    Raises:
        ConfigError: As `set_up`.
    """
    set_up(_request[0])
    return sys.modules["tensorflow"]


def _import_quietly() -> ModuleType:
    """Imports TensorFlow without its start-up chatter.

    TF_CPP_MIN_LOG_LEVEL does not reach what TensorFlow 2.21 writes to file descriptor 2 before its
    logging is initialised, so the descriptor itself is turned away for the first import and the
    first look for devices. What was written appears when the import fails.
    """
    if _chosen:
        return sys.modules["tensorflow"]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    for name in ("absl", "tensorflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as chatter:
        os.dup2(chatter.fileno(), 2)
        try:
            import tensorflow

            tensorflow.config.list_physical_devices()
        except BaseException:
            chatter.seek(0)
            os.write(kept, chatter.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    # What the import made stays: 370,000 objects over which no collection has to walk again, which
    # takes 0.2 s, and each point of a sweep collects.
    gc.freeze()
    return tensorflow


def set_up(device: str) -> str:
    """Makes the wanted device the only visible one, with memory growth and deterministic ops.

    Args:
        device: `auto`, `cpu`, `gpu` or `gpu:N`.

    Returns:
        What is used, for people and the metrics.

    Raises:
        ConfigError: When there is no such GPU, or this process has settled on another device.
    """
    tf = _import_quietly()
    gpus = tf.config.list_physical_devices("GPU")
    number = int(device.partition(":")[2] or 0)
    if device.startswith("gpu") and number >= len(gpus):
        raise ConfigError(
            f"device={device}: TensorFlow finds {len(gpus)} GPUs; type device=auto or device=cpu"
        )
    if _chosen:
        if device not in _chosen:
            raise ConfigError(
                f"device={device}: this process runs on device={next(iter(_chosen))} already; "
                "sweep over devices in separate commands"
            )
        return _chosen[device]
    use = [] if device == "cpu" else gpus[number : number + 1]
    tf.config.set_visible_devices(use, "GPU")
    for gpu in use:
        tf.config.experimental.set_memory_growth(gpu, True)
    tf.config.experimental.enable_op_determinism()
    name = "cpu"
    if use:
        name = tf.config.experimental.get_device_details(use[0]).get("device_name", use[0].name)
    _chosen[device] = name
    return name
