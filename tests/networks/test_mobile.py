"""VGG, MobileNetV2 and the ShuffleNets: their maps and parts. (Parameters: test_named.)"""

import keras
import numpy as np
import pytest

from kd_cli.errors import ConfigError
from kd_cli.networks import mobilenet_v2, shufflenet_v1, shufflenet_v2, vgg
from kd_cli.networks.mobile import _shuffled

# The shape before the mean, in the code of RepDistiller.
MAPS = {
    "vgg8": (vgg, dict(depth=8), (4, 4, 512)),
    "mobilenet_v2": (mobilenet_v2, {}, (2, 2, 1280)),
    "shufflenet_v1": (shufflenet_v1, {}, (4, 4, 960)),
    "shufflenet_v2": (shufflenet_v2, {}, (4, 4, 1024)),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=[pytest.mark.slow] * one.startswith("shuffle")) for one in MAPS],
)
def test_last_maps(name: str) -> None:
    build, options, maps = MAPS[name]
    model = build([32, 32, 3], 10, **options)
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
