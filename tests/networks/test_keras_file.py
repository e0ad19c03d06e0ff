"""`.keras` files with layers of the user's own, damaged ones, and networks that can't be saved."""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from omegaconf import OmegaConf

from kd_cli.errors import ConfigError
from kd_cli.networks.keras_file import (
    OwnCodeError,
    load_keras,
    load_of_run,
    refuse_unsaveable,
    weights_hash,
)
from kd_cli.networks.wrap import build_network

MODULE = """
import keras
from keras import layers

class Gain(layers.Layer):
    def build(self, shape):
        self.gain = self.add_weight(shape=shape[-1:], initializer="ones")
    def call(self, x):
        return x * self.gain

@keras.saving.register_keras_serializable(package="mine")
class Registered(Gain):
    pass

def net(image_shape, num_classes, kind, units=5):
    inputs = keras.Input(tuple(image_shape))
    own = {"plain": Gain, "registered": Registered}.get(kind)
    x = own()(inputs) if own else layers.Lambda(lambda t: 2.0 * t)(inputs)
    x = layers.Dense(units, "relu")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(num_classes)(x))
"""
IMAGES = np.random.default_rng(0).uniform(0, 255, (3, 2, 2, 1)).astype(np.float32)


def forget() -> None:
    """As in another process: neither the module nor its registered classes are known."""
    sys.modules.pop("own_nets", None)
    for name in [name for name in keras.saving.get_custom_objects() if name.startswith("mine>")]:
        del keras.saving.get_custom_objects()[name]


@pytest.fixture
def written(work, monkeypatch):
    """A function that writes `model.keras` of a network with an own layer, and forgets it."""
    (work / "own_nets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(work))

    def write(kind: str) -> tuple[keras.Model, dict]:
        node = {"_target_": "own_nets.net", "image_shape": [2, 2, 1], "num_classes": 3}
        recorded = {
            "network": {**node, "kind": kind},
            "input": {"size": None, "scale": 0.004, "offset": 0.0},
            "role": "teacher",
            "precision": "float32",
            "image_shape": [2, 2, 1],
            "classes": 3,
        }
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        model = build_network(OmegaConf.create(recorded), (2, 2, 1), 3, "float32", "teacher")
        model.set_weights([weight + 0.5 for weight in model.get_weights()])
        model.save("model.keras")
        forget()
        return model, recorded

    yield write
    forget()


@pytest.mark.parametrize("kind", ["plain", "registered", "lambda"])
def test_a_run_s_network_is_built_again_with_its_weights(written, kind):
    model, recorded = written(kind)
    again = load_of_run(Path("model.keras"), "teacher", recorded)
    np.testing.assert_array_equal(again(IMAGES), model(IMAGES))
    assert weights_hash(again) == weights_hash(model)
    if kind != "lambda":  # the key of its logits
        assert again.to_json() == model.to_json()
    other = {**recorded, "network": {**recorded["network"], "units": 6}}
    forget()
    with pytest.raises(ConfigError, match="other weights than own_nets.net builds now"):
        load_of_run(Path("model.keras"), "teacher", other)


def test_a_rebuilt_student_takes_its_own_layers_from_the_module_of_its_network(written):
    """It is another network than its record builds, so it must come from the file alone."""
    model, recorded = written("plain")
    other = {**recorded, "network": {**recorded["network"], "units": 6}, "rebuilt": True}
    again = load_of_run(Path("model.keras"), "student", other)
    np.testing.assert_array_equal(again(IMAGES), model(IMAGES))


def test_a_run_whose_module_is_gone_is_one_line(written):
    _, recorded = written("plain")
    Path("own_nets.py").unlink()
    with pytest.raises(ConfigError, match="can't be built again either .*No module") as caught:
        load_of_run(Path("model.keras"), "teacher", recorded)
    assert "--config-dir" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "name"), [("plain", "Gain"), ("registered", "Registered")])
def test_a_missing_class_is_named_and_its_module_imported_only_when_the_user_names_it(
    written, kind, name
):
    model, _ = written(kind)
    file = Path("model.keras")
    expected = f"the class {name} of the module own_nets.*teacher.module=MODULE"
    with pytest.raises(OwnCodeError, match=expected) as caught:
        load_keras(file, "teacher.checkpoint")
    assert "own_nets" not in sys.modules and "\n" not in str(caught.value)
    with pytest.raises(OwnCodeError, match=f"class {name} .*teacher.module=json has none of that"):
        load_keras(file, "teacher.checkpoint", "json")
    again = load_keras(file, "teacher.checkpoint", "own_nets")
    np.testing.assert_array_equal(again(IMAGES), model(IMAGES))


def test_a_lambda_is_not_executed_even_with_a_module(written):
    written("lambda")
    with pytest.raises(OwnCodeError, match="holds a Lambda layer, whose code kd does not execute"):
        load_keras(Path("model.keras"), "teacher.checkpoint", "own_nets")


def test_a_module_that_can_t_be_imported_is_one_line(written):
    written("plain")
    Path("broken.py").write_text("1 / 0")
    for module, why in (("nowhere", "No module named"), ("broken", "division by zero")):
        with pytest.raises(ConfigError, match=f"teacher.module={module} can't be imported: {why}"):
            load_keras(Path("model.keras"), "teacher.checkpoint", module)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "byte"])
def test_a_damaged_file_is_one_line(work, damage):
    inputs = keras.Input((2, 2, 1))
    keras.Model(inputs, layers.Dense(3)(layers.Flatten()(inputs))).save("a.keras")
    content = bytearray(Path("a.keras").read_bytes())
    content[len(content) // 2] ^= 255
    kinds = {"empty": b"", "text": b"none", "cut": content[:2000], "byte": content}
    Path("a.keras").write_bytes(kinds[damage])
    with pytest.raises(ConfigError, match="a.keras can't be loaded by Keras: it is damaged"):
        load_keras(Path("a.keras"), "teacher.checkpoint")


class Untold(layers.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)


class Odd(layers.Layer):
    def call(self, x):
        return x

    def get_config(self):
        return {"thing": object()}


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (lambda: Untold(lambda x: x), "the class Untold, because its __init__ .* a get_config()"),
        (Odd, "the class Odd .*its get_config.. must return plain values"),
        (lambda: keras.Sequential([Odd()]), "the class Odd "),
    ],
)
def test_a_network_that_can_t_be_saved_is_refused_with_its_class(work, layer, expected):
    inputs = keras.Input((2, 2, 1))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layer()(inputs))))
    with pytest.raises(ConfigError, match=f"student: Keras can't save {expected}") as caught:
        refuse_unsaveable(model, "student")
    assert "\n" not in str(caught.value)
    with pytest.raises((TypeError, NotImplementedError)):
        model.save("a.keras")
