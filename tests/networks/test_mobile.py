"""VGG, MobileNetV2 and the ShuffleNets: parameters and maps as counted in the authors' code."""

import keras
import numpy as np
import pytest

from kd_cli.errors import ConfigError
from kd_cli.networks import mobilenet_v2, shufflenet_v1, shufflenet_v2, vgg
from kd_cli.networks.mobile import _shuffled

# Counted in PyTorch in the code of RepDistiller: parameters at 10 and 100 classes, statistics of
# BatchNormalization, and the shape before the mean.
TABLE = {
    "vgg8": (vgg, dict(depth=8), 3_918_858, 3_965_028, 2_944, (4, 4, 512)),
    "vgg13": (vgg, dict(depth=13), 9_416_010, 9_462_180, 5_888, (4, 4, 512)),
    "mobilenet_v2": (mobilenet_v2, {}, 697_546, 812_836, 18_368, (2, 2, 1280)),
    "shufflenet_v1": (shufflenet_v1, {}, 862_768, 949_258, 23_736, (4, 4, 960)),
    "shufflenet_v2": (shufflenet_v2, {}, 1_263_278, 1_355_528, 16_180, (4, 4, 1024)),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=[pytest.mark.slow] * one.startswith("shuffle")) for one in TABLE],
)
def test_parameters_and_last_maps(name: str) -> None:
    build, options, ten, hundred, moving, maps = TABLE[name]
    model = build([32, 32, 3], 10, **options)
    counts = [
        sum(int(np.prod(w.shape)) for w in weights)
        for weights in (model.trainable_weights, model.non_trainable_weights)
    ]
    assert counts == [ten, moving]
    # Ninety more classes are ninety more columns of the last layer, each with its bias.
    assert ten + 90 * (model.get_layer("logits").input.shape[-1] + 1) == hundred
    mean = next(x for x in model.layers if isinstance(x, keras.layers.GlobalAveragePooling2D))
    assert mean.input.shape[1:] == maps


def test_channels_are_shuffled_as_cards_are() -> None:
    inputs = keras.Input([1, 1, 6])
    shuffled = keras.Model(inputs, _shuffled(inputs, 3))
    channels = np.arange(6, dtype=np.float32).reshape(1, 1, 1, 6)
    assert np.asarray(shuffled(channels)).ravel().tolist() == [0, 2, 4, 1, 3, 5]


def test_a_convolution_for_each_channel_begins_as_the_authors_do() -> None:
    """MobileNetV2: variance 2 / (9 C); the ShuffleNets: uniform within 1 / sqrt(9)."""
    keras.utils.set_random_seed(0)
    kernels = [
        layer.kernel.numpy()
        for layer in mobilenet_v2([32, 32, 3], 10).layers
        if isinstance(layer, keras.layers.DepthwiseConv2D)
    ]
    widest = max(kernels, key=np.size)
    assert widest.std() == pytest.approx((2 / (9 * widest.shape[2])) ** 0.5, rel=0.05)
    layers = shufflenet_v2([32, 32, 3], 10).layers
    kernel = next(x for x in layers if isinstance(x, keras.layers.DepthwiseConv2D)).kernel.numpy()
    assert 0.3 < abs(kernel).max() <= 1 / 3


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="depth=16 must be 8 or 13"):
        vgg([32, 32, 3], 10, depth=16)
    with pytest.raises(ConfigError, match="sides of at least 8"):
        vgg([4, 4, 3], 10, depth=8)
