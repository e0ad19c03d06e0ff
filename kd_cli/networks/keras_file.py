"""`.keras` files: read without executing code in them, and the hash of their weights.

A file holds layers by the names of their classes. Those of Keras are known; a layer of the user's
own is found when its module is imported, and only a module that the user names is: `teacher.module`
for a file, `_target_` of the recorded network for a run.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from omegaconf import OmegaConf

from kd_cli.config.inputs import inputs_of
from kd_cli.errors import ConfigError, first_line
from kd_cli.networks.wrap import build_network

# How to name the module of a file's own layers, by the key that gave the file.
MODULE_KEYS = {
    "teacher.checkpoint": "teacher.module",
    **dict.fromkeys(("evaluate", "export", "logits"), "module"),
}


class OwnCodeError(ConfigError):
    """A file holds a layer of the user's own, or a Lambda, so Keras can't read it by itself."""


def weights_hash(model: keras.Model) -> str:
    """SHA-256 over the type, shape and bytes of each weight, in the model's order."""
    sha = hashlib.sha256()
    for weight in model.get_weights():
        sha.update(f"{weight.dtype.str}{weight.shape}".encode())
        sha.update(np.ascontiguousarray(weight).data)
    return sha.hexdigest()


def load_keras(path: Path, what: str, module: str | None = None) -> keras.Model:
    """Reads a `.keras` file without executing code in it.

    Args:
        path: The file.
        what: The key that gave it, for errors.
        module: The user's module with the file's own layers, which is imported first.

    Raises:
        OwnCodeError: When it holds a class that is not known, or a Lambda layer.
        ConfigError: When there is no such file, or Keras refuses it.
    """
    if not path.is_file():
        raise ConfigError(f"{what}={path} is not a file; expected a .keras file")
    own = _own_classes(module, MODULE_KEYS.get(what, "module")) if module else None
    try:
        with _whole():
            return keras.saving.load_model(path, custom_objects=own, compile=False, safe_mode=True)
    except Exception as error:  # of zip, JSON, HDF5 or any layer
        why, of_code = _reason(error, what, module)
        kind = OwnCodeError if of_code else ConfigError
        raise kind(f"{what}={path} can't be loaded by Keras: {why}") from error


def load_of_run(path: Path, what: str, recorded: Mapping[str, Any]) -> keras.Model:
    """The network in a run's `model.keras`; built again from its record where it has own layers.

    A student that SimKD has rebuilt is another network than its record builds, so that its own
    layers are taken from the module of that network.

    Args:
        path: The file.
        what: For errors.
        recorded: From `runs.identity.recorded_network`.

    Raises:
        ConfigError: The file can't be read, its network can't be built, or the two don't fit.
    """
    try:
        return load_keras(path, what)
    except OwnCodeError as error:
        alone = str(error)
    if recorded.get("rebuilt"):
        return load_keras(path, what, recorded["network"]["_target_"].rpartition(".")[0])
    # The same layer names as when it was built: they count in the network's hash.
    keras.utils.clear_session(free_memory=False)
    node = OmegaConf.create({key: recorded[key] for key in ("network", "input")})
    shape, classes = inputs_of(recorded).shape, recorded["classes"]
    try:
        model = build_network(node, shape, classes, recorded["precision"], recorded["role"])
    except ConfigError as error:
        raise ConfigError(
            f"{alone}; the run's network can't be built again either ({error}); work where its "
            "module lies, or type the --config-dir beside it"
        ) from error
    return load_weights(model, path, f"{what}={path}", recorded["network"]["_target_"])


def load_weights(model: keras.Model, path: Path, what: str, target: str) -> keras.Model:
    """Puts the weights of a `.keras` file into a model that `target` has built.

    Raises:
        ConfigError: They are of another network.
    """
    try:
        with _whole():
            model.load_weights(path)
    except Exception as error:  # as `load_keras`
        raise ConfigError(f"{what} holds other weights than {target} builds now") from error
    return model


@contextlib.contextmanager
def _whole() -> Iterator[None]:
    """Inside the block, weights that the file lacks are an error: Keras would only warn."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Skipping nested container")
        yield


def refuse_unsaveable(model: keras.Model, what: str) -> None:
    """Refuses a network that Keras can't save, before it is trained.

    Raises:
        ConfigError: With the class and what it lacks.
    """
    try:
        model.to_json()
    except Exception as error:  # whatever a layer's get_config does
        lacking = re.search(r"Object (\w+) was created by passing", str(error))
        if lacking:
            raise ConfigError(
                f"{what}: Keras can't save the class {lacking[1]}, because its __init__ takes "
                f"arguments that it does not tell; give {lacking[1]} a get_config() that returns "
                "them (and from_config() where they are layers or functions)"
            ) from error
        name = _unsaveable(model)
        raise ConfigError(
            f"{what}: Keras can't save {name or 'the network'} ({first_line(error)}); its "
            "get_config() must return plain values: numbers, texts, lists and mappings"
        ) from error


def _unsaveable(model: keras.Model) -> str:
    """The class of the first layer that can't be told as JSON."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            inner = _unsaveable(layer)
            if inner:
                return inner
            continue
        try:
            json.dumps(keras.saving.serialize_keras_object(layer))
        except Exception:  # as above
            return f"the class {type(layer).__name__}"
    return ""


def _own_classes(module: str, key: str) -> dict[str, Any]:
    """Imports a module; its own classes and functions, by the names under which files hold them."""
    try:
        content = vars(importlib.import_module(module))
    except Exception as error:  # whatever the module does
        raise ConfigError(
            f"{key}={module} can't be imported: {first_line(error)}; name a module in the working "
            "directory or beside the YAML of --config-dir"
        ) from error
    package = module.partition(".")[0]
    return {
        name: one
        for name, one in content.items()
        if (inspect.isclass(one) or inspect.isfunction(one))
        and one.__module__.partition(".")[0] == package
    }


def _reason(error: Exception, what: str, module: str | None) -> tuple[str, bool]:
    """Why Keras can't load a file, and whether it is for want of code."""
    text = str(error)
    if "Lambda" in text:
        return "it holds a Lambda layer, whose code kd does not execute", True
    missing = re.search(r"Could not (?:locate|interpret) (\w+) '?([\w>.]+)'?", text)
    if missing:
        where = re.search(r"\{'module': '([\w.]+)', 'class_name': '" + missing[2] + "'", text)
        of = f" of the module {where[1]}" if where and where[1] != "builtins" else ""
        words = f"it holds the {missing[1]} {missing[2]}{of}, which Keras does not know"
        key = MODULE_KEYS.get(what)
        if module:
            words += f", and {key}={module} has none of that name"
        elif key:
            words += f"; name the module that defines it: {key}=MODULE (it is imported)"
        return words, True
    if "could not be loaded" in text or "Skipping nested container" in text:
        return "it lacks weights of its own layers", False
    if "File format not supported" in text:
        return "its name must end in .keras", False
    if isinstance(error, zipfile.BadZipFile) or "zip" in text:
        return "it is damaged, or no .keras file", False
    return first_line(error), False
