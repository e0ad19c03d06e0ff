"""The ViT against a forward pass in NumPy; DeiT-Ti as published; a file that needs no kd."""

from __future__ import annotations

import json
import zipfile

import keras
import numpy as np
import pytest
from scipy.special import erf, softmax

from kd_cli.errors import ConfigError
from kd_cli.networks import vit

SMALL = dict(patch=2, width=6, blocks=2, heads=2, mlp=5)


def random_weights(model: keras.Model) -> keras.Model:
    """Every weight counts in what follows: none is 0 or 1."""
    random = np.random.default_rng(3)
    for weight in model.weights:
        weight.assign(random.normal(0, 0.7, weight.shape))
    return model


def normed(x, gamma, beta):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return gamma * (x - mean) / np.sqrt(variance + 1e-6) + beta


def forward(weights, images, tokens, blocks=2):
    """[B, classes] of each head, in float64, from the weights in the order of the paper."""
    take = iter(weights)
    kernel, bias = next(take), next(take)
    count, side = len(images), images.shape[1] // 2
    cut = images.reshape(count, side, 2, side, 2, -1).transpose(0, 1, 3, 2, 4, 5)
    x = cut.reshape(count, side * side, -1) @ kernel.reshape(-1, 6) + bias
    first, places = next(take).reshape(tokens, 6), next(take).reshape(-1, 6)
    x = np.concatenate([np.broadcast_to(first, (count, tokens, 6)), x], axis=1) + places
    for _ in range(blocks):
        y = normed(x, next(take), next(take))
        q, k, v = (np.einsum("btc,chd->bhtd", y, next(take)) + next(take)[:, None] for _ in "qkv")
        shares = softmax(q @ k.swapaxes(-1, -2) / np.sqrt(3), axis=-1)
        x = x + np.einsum("bhtd,hdc->btc", shares @ v, next(take)) + next(take)
        y = normed(x, next(take), next(take)) @ next(take) + next(take)
        x = x + (y * (1 + erf(y / np.sqrt(2))) / 2) @ next(take) + next(take)
    x = normed(x, next(take), next(take))
    return [x[:, n] @ next(take) + next(take) for n in range(tokens)]


def ordered(model: keras.Model) -> list[np.ndarray]:
    """The weights as `forward` takes them."""
    found: dict[str, list[np.ndarray]] = {}
    kinds = {"MultiHeadAttention": "attention", "LayerNormalization": "norm"}
    for layer in model.layers:
        kind = kinds.get(type(layer).__name__, "dense" if layer.name.startswith("dense") else "")
        found.setdefault(kind or layer.name, []).append([np.float64(w) for w in layer.weights])
    names = ["patches", "tokens", "positions"]
    names += 2 * ["norm", "attention", "norm", "dense", "dense"]
    names += ["norm", "class_head", "token_head"]
    return [weight for name in names if found.get(name) for weight in found[name].pop(0)]


@pytest.mark.parametrize("distillation_token", [True, False])
def test_the_forward_pass(distillation_token: bool) -> None:
    model = random_weights(vit([4, 4, 3], 5, distillation_token=distillation_token, **SMALL))
    images = np.random.default_rng(0).random((3, 4, 4, 3), np.float32)
    heads = forward(ordered(model), images.astype(np.float64), 1 + distillation_token)
    np.testing.assert_allclose(model(images), np.mean(heads, axis=0), rtol=1e-4, atol=1e-4)
    for name, expected in zip(("class_head", "token_head"), heads, strict=False):
        found = keras.Model(model.inputs, model.get_layer(name).output)(images)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_deit_tiny_as_published() -> None:
    model = vit([224, 224, 3], 1000, patch=16, width=192, blocks=12, heads=3, mlp=768)
    assert model.count_params() == 5_910_800


def modules(node) -> set[str]:
    """Of all classes that the configuration of a file names."""
    if isinstance(node, list):
        return set().union(*map(modules, node))
    if not isinstance(node, dict):
        return set()
    own = {node["module"]} if isinstance(node.get("module"), str) else set()
    return own.union(*map(modules, node.values()))


def test_plain_keras_loads_the_file(tmp_path) -> None:
    """It names classes of Keras alone, and nothing that kd has registered."""
    model = random_weights(vit([4, 4, 3], 5, **SMALL))
    model.save(tmp_path / "vit.keras")
    with zipfile.ZipFile(tmp_path / "vit.keras") as file:
        text = file.read("config.json").decode()
    found = modules(json.loads(text))
    assert "keras.layers" in found and all(one.split(".")[0] == "keras" for one in found)
    assert "kd_cli" not in text
    images = np.ones((2, 4, 4, 3), np.float32)
    loaded = keras.saving.load_model(tmp_path / "vit.keras")
    np.testing.assert_array_equal(loaded(images), model(images))


def test_no_two_layers_begin_alike() -> None:
    model = vit([4, 4, 3], 5, **SMALL)
    kernels = [w.numpy().ravel()[:5] for w in model.weights if w.name == "kernel"]
    assert len({tuple(k) for k in kernels}) == len(kernels)


def test_refusals() -> None:
    with pytest.raises(
        ConfigError, match=r"image_shape=\[28, 30, 1\] must have sides that are mul"
    ):
        vit([28, 30, 1], 10)
    with pytest.raises(ConfigError, match="width=130 must be a multiple of heads=4"):
        vit([32, 32, 3], 10, width=130)
