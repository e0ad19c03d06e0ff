"""`.keras` files: read without executing code, and the hash of their weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import keras
import numpy as np

from kd_cli.errors import ConfigError, first_line


def weights_hash(model: keras.Model) -> str:
    """SHA-256 over the type, shape and bytes of each weight, in the model's order."""
    sha = hashlib.sha256()
    for weight in model.get_weights():
        sha.update(f"{weight.dtype.str}{weight.shape}".encode())
        sha.update(np.ascontiguousarray(weight).data)
    return sha.hexdigest()


def load_keras(path: Path, what: str) -> keras.Model:
    """Reads a `.keras` file without executing code in it.

    Raises:
        ConfigError: When there is no such file, or Keras refuses it (a Lambda layer, say).
    """
    if not path.is_file():
        raise ConfigError(f"{what}={path} is not a file; expected a .keras file")
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (ValueError, TypeError, OSError, KeyError) as error:
        reason = first_line(error)
        if "ambda" in str(error):
            reason = "it holds a Lambda layer, whose code kd does not execute"
        raise ConfigError(f"{what}={path} can't be loaded by Keras: {reason}") from error
