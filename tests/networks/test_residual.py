"""Residual networks: parameters as counted in the authors' code, and PyTorch's padding."""

import keras
import numpy as np
import pytest

from kd_cli.errors import ConfigError
from kd_cli.networks import resnet, resnet9, wide_resnet
from kd_cli.networks.blocks import convolution


def _counts(model: keras.Model) -> tuple[int, int]:
    """Trainable parameters, and statistics of BatchNormalization."""
    return tuple(
        sum(int(np.prod(w.shape)) for w in weights)
        for weights in (model.trainable_weights, model.non_trainable_weights)
    )


# Counted in PyTorch in the code of RepDistiller, as `sum(p.numel())`, at 10 and 100 classes.
TABLE = {
    "resnet8": (dict(depth=8), 78_042, 83_892, 672),
    "resnet14": (dict(depth=14), 175_258, 181_108, 1_120),
    "resnet20": (dict(depth=20), 272_474, 278_324, 1_568),
    "resnet32": (dict(depth=32), 466_906, 472_756, 2_464),
    "resnet44": (dict(depth=44), 661_338, 667_188, 3_360),
    "resnet110": (dict(depth=110), 1_730_714, 1_736_564, 8_288),
    "resnet32x4": (dict(depth=32, stem=32, widths=[64, 128, 256]), 7_410_730, 7_433_860, 9_920),
    "resnet56": (dict(depth=56), 855_770, 861_620, 4_256),
    "resnet8x4": (dict(depth=8, stem=32, widths=[64, 128, 256]), 1_210_410, 1_233_540, 2_752),
}


def _check(model: keras.Model, ten: int, hundred: int, moving: int) -> None:
    """Ninety more classes are ninety more columns of the last layer, each with its bias."""
    assert _counts(model) == (ten, moving)
    assert ten + 90 * (model.get_layer("logits").input.shape[-1] + 1) == hundred


# Deep networks take seconds to build.
DEEP = {"resnet44", "resnet56", "resnet110"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in DEEP)) for name in TABLE],
)
def test_parameters_of_the_cifar_resnets(name: str) -> None:
    options, ten, hundred, moving = TABLE[name]
    _check(resnet([32, 32, 3], 10, **options), ten, hundred, moving)


@pytest.mark.parametrize(
    ("depth", "width", "ten", "hundred", "moving"),
    [
        (16, 1, 175_066, 180_916, 928),
        (16, 2, 691_674, 703_284, 1_824),
        pytest.param(40, 1, 563_930, 569_780, 2_720, marks=pytest.mark.slow),
        pytest.param(40, 2, 2_243_546, 2_255_156, 5_408, marks=pytest.mark.slow),
    ],
)
def test_parameters_of_wide_resnets(
    depth: int, width: int, ten: int, hundred: int, moving: int
) -> None:
    _check(wide_resnet([32, 32, 3], 10, depth=depth, width=width), ten, hundred, moving)


def test_a_wide_resnet_begins_its_shortcut_after_the_first_relu() -> None:
    """A block that widens sees only what its first ReLU lets pass."""
    model = wide_resnet([8, 8, 1], 2, depth=10, width=2)
    first = next(x for x in model.layers if isinstance(x, keras.layers.BatchNormalization))
    sides = [layer for layer in model.layers if getattr(layer, "kernel_size", None) == (1, 1)]
    relu = sides[0].input._keras_history.operation
    assert isinstance(relu, keras.layers.ReLU) and relu.input is first.output


def test_parameters_of_resnet9() -> None:
    assert _counts(resnet9([32, 32, 3], 10)) == (6_573_120, 4_480)
    assert _counts(resnet9([32, 32, 3], 100)) == (6_619_200, 4_480)


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
