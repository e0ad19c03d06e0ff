"""Networks of texts against forward passes in NumPy on texts without padding, and their counts."""

from __future__ import annotations

import json
import zipfile

import keras
import numpy as np
import pytest
from omegaconf import OmegaConf
from scipy.special import erf, softmax

from kd_cli.errors import ConfigError
from kd_cli.networks import bag, text_cnn, transformer_encoder
from kd_cli.networks.ensemble import together
from kd_cli.networks.taps import Graph
from kd_cli.networks.wrap import build_network, check_network, with_adapter, with_precision
from tests.networks.test_transformer import modules, normed, random_weights

LENGTH, VOCABULARY, CLASSES = 7, 11, 3
TEXTS = [[4, 9, 2, 10, 3], [5], [2, 2, 3, 1, 4, 6, 10]]  # of 5 tokens, of 1, and of all 7
SMALL = {
    bag: dict(width=4, buckets=13, dropout=0.5),
    text_cnn: dict(width=4, filters=5, sizes=[2, 3], dropout=0.5),
    transformer_encoder: dict(width=6, blocks=2, heads=2, mlp=5, dropout=0.5),
}


def small(network, length: int = LENGTH) -> keras.Model:
    return random_weights(network(length, VOCABULARY, CLASSES, **SMALL[network]))


def padded(length: int = LENGTH) -> np.ndarray:
    return np.array([text + [0] * (length - len(text)) for text in TEXTS], np.int32)


def of_bag(weights: list[np.ndarray], text: list[int]) -> np.ndarray:
    table, kernel, bias = weights
    pairs = [11 + (31_337 * a + b) % 13 for a, b in zip(text, text[1:], strict=False)]
    return table[text + pairs].mean(axis=0) @ kernel + bias


def of_text_cnn(weights: list[np.ndarray], text: list[int]) -> np.ndarray:
    table, *convolutions, kernel, bias = weights
    largest = []
    for size, (filters, shift) in zip((2, 3), (convolutions[:2], convolutions[2:]), strict=True):
        before = (size - 1) // 2  # Keras pads an even kernel more on the right
        x = np.pad(table[text], ((before, size - 1 - before), (0, 0)))
        windows = [x[n : n + size] for n in range(len(text))]
        values = [np.einsum("kc,kcf->f", window, filters) + shift for window in windows]
        largest.append(np.maximum(values, 0).max(axis=0))
    return np.concatenate(largest) @ kernel + bias


def of_transformer_encoder(weights: list[np.ndarray], text: list[int]) -> np.ndarray:
    take = iter(weights)
    x = next(take)[text] + next(take)[: len(text)]
    for _ in range(2):
        y = normed(x, next(take), next(take))
        q, k, v = (np.einsum("tc,chd->htd", y, next(take)) + next(take)[:, None] for _ in "qkv")
        shares = softmax(q @ k.swapaxes(-1, -2) / np.sqrt(3), axis=-1)
        x = x + np.einsum("htd,hdc->tc", shares @ v, next(take)) + next(take)
        y = normed(x, next(take), next(take)) @ next(take) + next(take)
        x = x + (y * (1 + erf(y / np.sqrt(2))) / 2) @ next(take) + next(take)
    x = normed(x, next(take), next(take)).mean(axis=0)
    return x @ next(take) + next(take)


FORWARD = {bag: of_bag, text_cnn: of_text_cnn, transformer_encoder: of_transformer_encoder}
EACH = pytest.mark.parametrize("network", FORWARD, ids=lambda network: network.__name__)


@EACH
def test_the_forward_pass_of_each_text_alone(network):
    model = small(network)
    weights = [np.float64(weight) for layer in model.layers for weight in layer.weights]
    expected = [FORWARD[network](weights, text) for text in TEXTS]
    np.testing.assert_allclose(model(padded()), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("network", "count"),
    [
        (bag, (6_002 + 10_000) * 16 + 16 * 2 + 2),  # 256,066, as published
        (text_cnn, 6_002 * 64 + (3 + 4 + 5) * 64 * 64 + 3 * 64 + 3 * 64 * 2 + 2),
        (
            transformer_encoder,
            6_002 * 64 + 40 * 64
            # queries, keys, values, output; two norms; two dense layers
            + 2 * (4 * (64 * 64 + 64) + 2 * 128 + (64 * 256 + 256) + (256 * 64 + 64))
            + 128 + 64 * 2 + 2,
        ),
    ],
)  # fmt: skip
def test_the_parameters_of_the_defaults(network, count):
    assert network(40, 6_002, 2).count_params() == count


@EACH
def test_plain_keras_loads_the_file(network, tmp_path):
    model = small(network)
    model.save(tmp_path / "text.keras")
    with zipfile.ZipFile(tmp_path / "text.keras") as file:
        text = file.read("config.json").decode()
    assert "kd_cli" not in text
    assert all(one.split(".")[0] == "keras" for one in modules(json.loads(text)))
    loaded = keras.saving.load_model(tmp_path / "text.keras")
    np.testing.assert_array_equal(loaded(padded()), model(padded()))


@EACH
def test_a_mixed_network_tells_large_ids_apart(network):
    """bfloat16 has 8 bits: as floats the ids 1024 and 1025 would be one."""
    target = f"kd_cli.networks.{network.__name__}"
    sizes = {"length": 3, "vocabulary": 1_100, "num_classes": 2}
    node = OmegaConf.create({"network": {"_target_": target, **sizes}, "input": None})
    model = build_network(node, (3,), 2, "mixed_bfloat16", "student")
    first, second = (model(np.array([[word, 5, 0]], np.int32)) for word in (1024, 1025))
    assert first.dtype == "float32" and (np.asarray(first) != np.asarray(second)).any()
    assert {v.dtype for v in model.trainable_variables} == {"float32"}


@EACH
def test_taps_copies_and_ensembles_give_the_same_logits(network):
    model = with_adapter(small(network), None, (LENGTH,), "student")
    assert (model.inputs[0].dtype, model.input_shape) == ("int32", (None, LENGTH))
    expected = np.asarray(model(padded(), training=False))
    logits, pooled = Graph(model, "student").with_taps(["pooled"])(padded(), training=False)
    np.testing.assert_allclose(logits, expected, rtol=1e-6)
    assert pooled.shape[0] == 3
    copy = with_precision(model, "mixed_bfloat16")(padded(), training=False)
    np.testing.assert_allclose(copy, expected, rtol=0.2, atol=0.2)
    twice = together([model, model])(padded(), training=False)
    np.testing.assert_allclose(softmax(twice, -1), softmax(expected, -1), rtol=1e-5)


def test_a_softmax_is_found_without_knowing_the_vocabulary():
    model = small(bag)
    outputs = keras.layers.Softmax()(model.output)
    with pytest.raises(ConfigError, match="ends in a softmax"):
        check_network(keras.Model(model.input, keras.layers.Lambda(lambda x: x)(outputs)), 3, "t")


def test_a_network_of_another_kind_is_refused():
    floats = keras.Sequential([keras.Input((LENGTH,)), keras.layers.Dense(3)])
    with pytest.raises(ConfigError, match=r"takes float32 numbers.*keras.Input\(\[length\], dtype"):
        with_adapter(floats, None, (LENGTH,), "student")
    images = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten()])
    with pytest.raises(ConfigError, match=r"takes images of shape \[2, 2, 1\], it would get token"):
        with_adapter(images, None, (LENGTH,), "student")
    with pytest.raises(ConfigError, match=r"takes token ids of shape \[7\], it would get .* \[9\]"):
        with_adapter(small(bag), None, (9,), "student")
    identity = OmegaConf.create({"size": None, "scale": 1.0, "offset": 0.0})
    with pytest.raises(ConfigError, match=r"takes token ids of shape \[7\], it would get \[2, 2"):
        with_adapter(small(bag), identity, (2, 2, 1), "student")


def test_refusals():
    with pytest.raises(ConfigError, match="at most 68,000 ids, received 70,000"):
        bag(4, 70_000, 2)
    assert bag(4, 70_000, 2, buckets=0, width=1).count_params() == 70_000 + 2 + 2
    with pytest.raises(ConfigError, match="width=6 must be a multiple of heads=4"):
        transformer_encoder(4, 9, 2, width=6)
