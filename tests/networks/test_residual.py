"""Residual networks: their parts, and PyTorch's padding. (Parameters: test_named.)"""

import keras
import numpy as np
import pytest

from kd_cli.errors import ConfigError
from kd_cli.networks import resnet, resnet9, wide_resnet
from kd_cli.networks.blocks import convolution


def test_a_wide_resnet_begins_its_shortcut_after_the_first_relu() -> None:
    """A block that widens sees only what its first ReLU lets pass."""
    model = wide_resnet([8, 8, 1], 2, depth=10, width=2)
    first = next(x for x in model.layers if isinstance(x, keras.layers.BatchNormalization))
    sides = [layer for layer in model.layers if getattr(layer, "kernel_size", None) == (1, 1)]
    relu = sides[0].input._keras_history.operation
    assert isinstance(relu, keras.layers.ReLU) and relu.input is first.output


def test_resnet9_scales_its_scores_by_an_eighth() -> None:
    model = resnet9([32, 32, 3], 10, width=2)
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    scores = keras.Model(model.input, model.get_layer("scores").output)(images)
    np.testing.assert_allclose(model(images), np.asarray(scores) / 8, rtol=1e-6)


def test_a_stride_of_two_pads_all_sides_as_pytorch_does() -> None:
    inputs = keras.Input([4, 4, 1])
    model = keras.Model(inputs, convolution(inputs, 1, stride=2, activate=False))
    model.layers[2].set_weights([np.ones((3, 3, 1, 1))])
    image = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    padded = np.pad(image[0, :, :, 0], 1)
    expected = [[padded[r : r + 3, c : c + 3].sum() for c in (0, 2)] for r in (0, 2)]
    # A new BatchNormalization divides by sqrt(1 + epsilon) alone.
    np.testing.assert_allclose(
        np.asarray(model(image))[0, :, :, 0], np.array(expected) / np.sqrt(1 + 1e-5), rtol=1e-6
    )


@pytest.mark.parametrize("depth", [2, 9, 18])
def test_a_depth_that_no_resnet_has(depth: int) -> None:
    with pytest.raises(ConfigError, match=f"depth={depth} must be 8, 14, 20"):
        resnet([32, 32, 3], 10, depth=depth)


def test_images_too_small_for_resnet9() -> None:
    with pytest.raises(ConfigError, match="sides of at least 8"):
        resnet9([7, 8, 3], 10)
