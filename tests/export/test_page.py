"""Pages: what network.js computes against Keras, what is refused, and how drawings are measured."""

import json
import re
from dataclasses import replace

import keras
import numpy as np
import pytest

from kd_cli.errors import ConfigError
from kd_cli.export import drawing, page
from kd_cli.export.formats import CantConvertError
from tests.export.test_litert import forward, inverse, needing

layers, ops = keras.layers, keras.ops
SHAPE = (5, 6, 4)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, *SHAPE)).astype(np.float32)


def beside(shape=SHAPE, classes=4, **more):
    return page.Beside(
        dataset="some",
        class_names=tuple(f"</script><b>{n}" for n in range(classes)),
        name="net",
        role="student",
        examples=np.zeros((1, *shape), np.uint8),
        labels=np.zeros(1, np.int64),
        drawing=None,
        teacher=None,
        **more,
    )


def exported(model, folder, precision="float32", **more):
    shape = tuple(model.input_shape[1:])
    path = folder / "a.html"
    made = page.PageGraph(folder, model, shape, "logits", replace(beside(shape), **more))
    page.convert(made, path, precision, None)
    return path


def network(*middle):
    """A network with random weights: each of `middle` is a layer or function after the other."""
    inputs = keras.Input(SHAPE)
    x = layers.Rescaling(1 / 128, -1)(inputs)
    for one in middle:
        x = one(x)
    model = keras.Model(inputs, layers.Dense(4)(layers.Flatten()(x)))
    generator = np.random.default_rng(1)
    for weights in model.weights:
        low, high = (0.5, 2) if "variance" in weights.path else (-0.5, 0.5)
        weights.assign(generator.uniform(low, high, weights.shape))
    return model


def attention(x):
    tokens = layers.Reshape((30, 4))(x)
    return layers.MultiHeadAttention(2, 3)(layers.LayerNormalization()(tokens), tokens)


NETWORKS = {
    "convolutions": [
        layers.Conv2D(5, 3, padding="same", strides=2, activation="relu"),
        layers.Conv2D(8, (2, 1), padding="valid", activation="relu6"),
        layers.Conv2D(3, 1),
    ],
    "groups and dilation": [
        layers.Conv2D(6, 3, padding="same", groups=2),
        layers.Conv2D(5, 2, padding="same", dilation_rate=2),
    ],
    "depthwise": [
        layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2),
        layers.DepthwiseConv2D(2, strides=2, activation="relu"),
    ],
    "pooling": [
        layers.MaxPooling2D(2, padding="same"),
        layers.AveragePooling2D(2, strides=1, padding="same"),
        layers.GlobalAveragePooling2D(),
    ],
    "batch norm": [layers.BatchNormalization(), layers.ReLU(), layers.BatchNormalization()],
    "activations": [
        layers.LeakyReLU(negative_slope=0.2),
        layers.Activation("tanh"),
        layers.Activation("silu"),
        layers.Activation("elu"),
        layers.Activation("gelu"),
        layers.Activation("hard_silu"),
        lambda x: ops.gelu(x, approximate=False),
        layers.Softmax(),
        lambda x: ops.exp(x) + ops.log(ops.sqrt(ops.abs(x) + 1)),
    ],
    "two arrays": [
        lambda x: layers.Concatenate()([x, ops.max(x, axis=(1, 2), keepdims=True) * x]),
        lambda x: ops.maximum(x, 0.1) / (ops.square(x) + 2.0) - ops.mean(x, axis=2, keepdims=True),
    ],
    "channel shuffle": [
        layers.Reshape((5, 6, 2, 2)),
        layers.Permute((1, 2, 4, 3)),
        layers.Reshape((5, 6, 4)),
        lambda x: x[:, 1:4, ::2, 1:],
    ],
    "padding and resizing": [
        layers.ZeroPadding2D(((1, 2), (0, 1))),
        layers.UpSampling2D(2),
        layers.Resizing(7, 9),
        layers.Resizing(4, 3, interpolation="nearest"),
        layers.Cropping2D(1),
    ],
    "normalisation": [layers.LayerNormalization(), layers.GroupNormalization(2)],
    "attention": [attention],
    "split": [lambda x: ops.stack(ops.split(x, 2, axis=-1), axis=1)],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_network_js_computes_what_keras_does(name, images, tmp_path):
    model = network(*NETWORKS[name])
    expected = np.asarray(model(images, training=False))
    found = page.open_file(exported(model, tmp_path))(images)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)
    assert np.ptp(expected, axis=0).min() > 1e-3  # it depends on the image


def test_a_page_against_numpy_and_in_float16(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((5, 5, 2)),
            layers.Rescaling(1 / 255, -0.5),
            layers.Conv2D(8, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(4),
        ]
    )
    generator = np.random.default_rng(1)
    model.set_weights([generator.normal(0, 0.1, w.shape) for w in model.get_weights()])
    images = generator.integers(0, 256, (3, 5, 5, 2)).astype(np.float32)
    path = exported(model, tmp_path)
    opened = page.open_file(path)
    assert (opened.image.name, opened.image.shape) == ("image", (None, 5, 5, 2))
    assert opened.logits.shape == (None, 4) and "V8" in opened.runtime
    np.testing.assert_allclose(opened(images), forward(model, images), atol=1e-5)
    full = path.stat().st_size
    rounded = exported(model, tmp_path, "float16")
    # 2 bytes less for each weight, a third more as text; biases and the scale are not rounded.
    assert full - rounded.stat().st_size == pytest.approx((144 + 288) * 2 * 4 / 3, abs=8)
    difference = np.abs(page.open_file(rounded)(images) - forward(model, images)).max()
    assert 1e-5 < difference < 1e-3


def test_a_page_needs_nothing_else_and_no_class_name_breaks_it(tmp_path):
    text = exported(network(), tmp_path).read_text("utf-8")
    assert "{{" not in re.sub(r"\$\{\{", "", text)
    assert not re.search(r"(src|href)=|https?://|@import|url\(", text)
    assert text.count("</script>") == 2 and "default-src 'none'" in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert data["classes"][0] == "</script><b>0"


def test_what_a_page_can_not_hold(tmp_path, monkeypatch):
    with pytest.raises(CantConvertError, match="no operator for MatrixInverse"):
        exported(needing(inverse), tmp_path)
    counted = network(lambda x: ops.cumsum(x, axis=1))
    with pytest.raises(CantConvertError, match="a page has no operator for CUMSUM"):
        exported(counted, tmp_path)
    monkeypatch.setattr(page, "MOST_BYTES", 100)
    with pytest.raises(CantConvertError, match=r"its weights take [\d,]+ bytes; a page holds 100"):
        exported(network(), tmp_path)
    assert not list(tmp_path.iterdir())


def written(data):
    return f'<script type="application/json" id="data">{data}</script>'.encode()


NO_NETWORK = '{"shape":[1,1,1],"classes":[],"networks":[{}]}'


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", written("{"), written(NO_NETWORK)])
def test_a_file_that_is_no_page(tmp_path, content):
    (tmp_path / "a.html").write_bytes(content)
    with pytest.raises(ConfigError, match="can't be read as a page of kd's"):
        page.open_file(tmp_path / "a.html")


@pytest.mark.parametrize("dark", [True, False])
def test_drawings_are_measured(dark):
    """Two bars of 16 x 2 pixels, with their middles at (12, 9)."""
    images = np.zeros((2, 20, 24, 1), np.uint8)
    images[0, 1:17, 11:13] = images[1, 8:10, 4:20] = 200
    found = drawing.measure(images if dark else 255 - images)
    assert (found["paper"], found["ink"]) == ((0, 200) if dark else (255, 55))
    assert found["side"] == 16 and found["centre"] == [12, 9]
    # Edges along rows and columns alone: 4 / pi too short by the formula for all directions.
    assert found["pen"] == pytest.approx(2 * 32 / 36 * 4 / np.pi)


def test_the_pen_of_a_ring():
    """Edges in all directions: a ring of width 3."""
    y, x = np.mgrid[:280, :280] / 10 - 13.95
    far = np.hypot(x, y)
    fine = ((far > 6) & (far < 9)).reshape(28, 10, 28, 10).mean(axis=(1, 3))
    found = drawing.measure(np.rint(255 * fine)[None, ..., None])
    assert found["pen"] == pytest.approx(3, rel=0.1) and found["side"] == 18


def test_images_without_anything_on_them():
    found = drawing.measure(np.zeros((2, 4, 4, 1), np.uint8))
    assert all(np.isfinite(value).all() for value in found.values())
