"""Networks of keras.applications: preprocessing as Keras's, weights as Keras loads them.

The files are written here, by Keras. No weights of ImageNet are needed.
"""

import hashlib
import io
import urllib.error
import urllib.request

import h5py
import keras
import numpy as np
import pytest
from keras import applications, layers

from kd_cli.errors import ConfigError
from kd_cli.networks import application, published
from kd_cli.networks.applications import _preprocessed, _scale_as_published
from kd_cli.networks.doubts import scaled_twice
from kd_cli.networks.taps import Graph
from kd_cli.networks.weights_file import load_features
from kd_cli.networks.wrap import set_weights, with_adapter
from tests.conftest import plan_of

RNG = np.random.default_rng(3)
IMAGES = RNG.integers(0, 256, (4, 32, 32, 3)).astype(np.float32)
# The quickest to build: 87 layers. Its published file has no hash in Keras.
SMALL = {"alpha": 0.25}
FILE = "mobilenet_2_5_224_tf_no_top.h5"
# The public module of each family, with the beginning of its networks' names.
FAMILIES = {
    "ConvNeXt": applications.convnext,
    "DenseNet": applications.densenet,
    "EfficientNetB": applications.efficientnet,
    "EfficientNetV2": applications.efficientnet_v2,
    "InceptionRes": applications.inception_resnet_v2,
    "InceptionV3": applications.inception_v3,
    "MobileNet": applications.mobilenet,
    "MobileNetV2": applications.mobilenet_v2,
    "MobileNetV3": applications.mobilenet_v3,
    "NASNet": applications.nasnet,
    "ResNet": applications.resnet,
    "ResNet50V2": applications.resnet_v2,
    "ResNet101V2": applications.resnet_v2,
    "ResNet152V2": applications.resnet_v2,
    "VGG16": applications.vgg16,
    "VGG19": applications.vgg19,
    "Xception": applications.xception,
}
NAMES = [name for name in dir(applications) if name[0].isupper()]


@pytest.fixture(scope="module")
def source():
    """A whole MobileNet for 5 classes whose features differ from image to image."""
    keras.utils.set_random_seed(2)
    model = applications.MobileNet(
        weights=None, input_shape=(32, 32, 3), classes=5, classifier_activation=None, **SMALL
    )
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0
    model(IMAGES / 127.5 - 1, training=True)  # its statistics are those of the images
    return model


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory):
    """Its weights in every kind of file."""
    folder = tmp_path_factory.mktemp("files")
    source.save_weights(folder / "own.weights.h5")
    source.save(folder / "own.h5")
    source.save(folder / "own.keras")
    return folder


@pytest.fixture(scope="module")
def features(source):
    """What Keras makes of the images: the mean over the last map."""
    end = source.get_layer("conv_pw_13_relu").output
    maps = keras.Model(source.input, end)(applications.mobilenet.preprocess_input(IMAGES.copy()))
    return np.asarray(maps).mean(axis=(1, 2))


@pytest.fixture(scope="module")
def base():
    """MobileNet's features with other weights."""
    return applications.MobileNet(
        weights=None, include_top=False, pooling="avg", input_shape=(32, 32, 3), **SMALL
    )


def features_of(network):
    return np.asarray(keras.Model(network.input, network.layers[-1].input)(IMAGES, training=False))


@pytest.mark.parametrize("name", NAMES)
def test_preprocessing_is_that_of_keras(name):
    module = FAMILIES[max((f for f in FAMILIES if name.startswith(f)), key=len)]
    inputs = keras.Input((32, 32, 3))
    outputs = _preprocessed(inputs, getattr(applications, name))
    ours = keras.Model(inputs, outputs)(IMAGES)
    expected = module.preprocess_input(IMAGES.copy())
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=2e-5)
    assert (outputs is inputs) == (np.array_equal(expected, IMAGES))


def test_a_file_gives_the_features_that_keras_gives(folder, features):
    network = application(
        [32, 32, 3], 7, architecture="MobileNet", weights=str(folder / "own.keras"), **SMALL
    )
    np.testing.assert_allclose(features_of(network), features, atol=0.01)
    assert features.std(axis=0).mean() > 0.3  # the norms of few images enlarge roundings
    assert network.output_shape == (None, 7) and all(w.trainable for w in network.weights[:1])
    graph = Graph(network, "teacher")
    assert graph.find("pooled").shape == (256,) and graph.find("head").shape == (7,)
    assert [graph.find(f"stage{n}").shape[0] for n in (1, 2, 3, 4)] == [16, 8, 4, 2]
    assert graph.find("map").shape == (1, 1, 256)


@pytest.mark.parametrize("kind", ["own.weights.h5", "own.h5", "own.keras"])
def test_every_kind_of_file_is_read_whole(source, folder, base, kind):
    base.set_weights([np.zeros_like(w) for w in base.get_weights()])
    load_features(base, folder / kind, "network.weights=x")
    for found, expected in zip(base.get_weights(), source.get_weights(), strict=False):
        np.testing.assert_array_equal(found, expected)


def wrong_file(path, kernel, name="conv1"):
    """A network whose first layer with weights has another kernel."""
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(*kernel, use_bias=False, name=name)(inputs)
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    model.save_weights(path) if path.name.endswith(".weights.h5") else model.save(path)
    return path


@pytest.mark.parametrize("kind", ["a.weights.h5", "a.h5", "a.keras"])
def test_another_network_is_told_with_its_first_layer_that_differs(tmp_path, base, kind):
    path = wrong_file(tmp_path / kind, (16, 3), "stem")
    with pytest.raises(ConfigError) as told:
        load_features(base, path, "network.weights=x")
    assert "its layer stem has weights of shape [3, 3, 3, 16], conv1 takes [3, 3, 3, 8]" in str(
        told.value
    )
    path = wrong_file(tmp_path / f"b.{kind.partition('.')[2]}", (8, 3))
    with pytest.raises(ConfigError, match="another network: it has no layer for conv1_bn"):
        load_features(base, path, "network.weights=x")


def test_files_that_are_none(tmp_path, base, folder):
    def told(path):
        with pytest.raises(ConfigError) as error:
            load_features(base, path, f"network.weights={path.name}")
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "network.weights=none is not a file; expected imagenet, null" in told(tmp_path / "none")
    (tmp_path / "text").write_text("weights")
    assert "neither a zip nor an HDF5 file" in told(tmp_path / "text")
    cut = (folder / "own.weights.h5").read_bytes()[:5000]
    (tmp_path / "cut.h5").write_bytes(cut)
    assert "network.weights=cut.h5 can't be read" in told(tmp_path / "cut.h5")
    with h5py.File(tmp_path / "link.h5", "w") as file:  # numbers of another file
        file["layers"] = h5py.ExternalLink(str(folder / "own.weights.h5"), "layers")
    assert "has a link there" in told(tmp_path / "link.h5")


def test_grey_images_are_repeated(folder):
    path = str(folder / "own.keras")
    grey = application([32, 32, 1], 5, architecture="MobileNet", weights=path, dropout=0, **SMALL)
    one = IMAGES[..., :1]
    ours = keras.Model(grey.input, grey.layers[-1].input)(one)
    base = grey.layers[-2]
    expected = base(np.repeat(one, 3, axis=-1) / 127.5 - 1)
    np.testing.assert_allclose(ours, expected, atol=0.01)
    adapter = plan_of("train-student").student.input  # pixels / 255
    (warning,) = scaled_twice(with_adapter(grey, adapter, (32, 32, 1), "student"), "student.input")
    assert "type student.input.scale=1" in warning


REFUSED = {
    "no such network": ({"architecture": "MobileNetV5"}, "did you mean 'MobileNetV"),
    "nothing like it": ({"architecture": "x"}, "it has ConvNeXtBase, ConvNeXtLarge"),
    "too small": (
        {"architecture": "InceptionV3"},
        "InceptionV3 takes images of at least 75x75, it would get 32x32; type input.size=75",
    ),
    "no such option": ({"beta": 1}, "MobileNet takes no option 'beta' here; it takes alpha, "),
    "one of kd's": ({"pooling": "max"}, "MobileNet takes no option 'pooling' here"),
    "channels": ({"image_shape": [32, 32, 4]}, "must have 1 or 3 channels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    changes, expected = REFUSED[name]
    given = {"image_shape": [32, 32, 3], "num_classes": 5, "architecture": "MobileNet", **changes}
    with pytest.raises(ConfigError) as refused:
        application(given.pop("image_shape"), given.pop("num_classes"), **given)
    assert expected in str(refused.value)


# --- weights of ImageNet: the cache is a folder of the test's ---


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))

    def refuse(address, timeout):
        assert timeout < 60
        raise urllib.error.URLError("no way out")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return tmp_path / "keras" / "models"


def imagenet():
    return application([32, 32, 3], 7, architecture="MobileNet", weights="imagenet", **SMALL)


def write_published(source, path):
    """As Keras 2 wrote it: the features alone, layers and weights by name."""
    path.parent.mkdir(parents=True)
    end = keras.Model(source.input, source.get_layer("conv_pw_13_relu").output)
    end.save(path)


def test_published_weights_come_from_the_cache(cache, source, features):
    write_published(source, cache / FILE)
    np.testing.assert_allclose(features_of(imagenet()), features, atol=0.01)


def test_what_cannot_be_fetched_is_told_with_its_place(cache):
    with pytest.raises(ConfigError) as told:
        imagenet()
    text = str(told.value)
    assert (
        "the weights of MobileNet can't be fetched (<urlopen error no way out>); put the file"
        in text
    )
    assert f"https://storage.googleapis.com/tensorflow/keras-applications/mobilenet/{FILE} " in text
    assert f"at {cache / FILE}, or type network.weights=FILE" in text
    assert "\n" not in text and not cache.parent.exists()


def test_what_is_fetched_is_compared_with_its_hash(cache, monkeypatch, caplog):
    content = b"weights"
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(content))
    for kind in (hashlib.md5, hashlib.sha256):
        name = f"{kind().name}.h5"
        with pytest.raises(ConfigError, match=r"what came is another file\); put the file http"):
            published._published(name, "https://x/y.h5", kind(b"other").hexdigest(), "VGG16")
        assert list(cache.iterdir()) == sorted(cache.glob("md5.h5"))
        path = published._published(name, "https://x/y.h5", kind(content).hexdigest(), "VGG16")
        assert path == cache / name and path.read_bytes() == content
    path.write_bytes(b"altered")  # nothing of the user's is replaced
    with pytest.raises(ConfigError, match="is not the file that Keras publishes, SHA-256 .*; rem"):
        published._published(path.name, "https://x/y.h5", kind(content).hexdigest(), "VGG16")
    assert path.read_bytes() == b"altered"


# --- Normalization, whose statistics EfficientNet takes from its file ---


def normalizing():
    return keras.Sequential([keras.Input((4, 4, 3)), layers.Normalization()])


def test_an_efficientnet_s_file_scales_as_its_published_weights():
    mean, deviation = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    pixels = RNG.random((2, 4, 4, 3))
    model = normalizing()
    set_weights(model, [mean, deviation, np.array(0)])  # deviations in the place of variances
    for _ in range(2):
        _scale_as_published(model)
        np.testing.assert_allclose(model(pixels), (pixels - mean) / deviation, rtol=1e-4, atol=1e-5)
    other = normalizing()
    set_weights(other, [np.array([0.5] * 3), deviation, np.array(0)])
    _scale_as_published(other)
    np.testing.assert_allclose(
        other(pixels), (pixels - 0.5) / np.sqrt(deviation), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_a_file_of_efficientnet_gives_the_features_of_imagenet(cache, tmp_path, monkeypatch):
    """Keras adds a layer for its own weights that it leaves out for a file."""
    keras.utils.set_random_seed(2)
    shape = {"include_top": False, "pooling": "avg", "input_shape": (32, 32, 3)}
    model = applications.EfficientNetB0(weights=None, **shape)
    norm = next(x for x in model.layers if isinstance(x, layers.Normalization))
    norm.adapt_mean.assign([0.485, 0.456, 0.406])
    norm.adapt_variance.assign([0.229, 0.224, 0.225])
    cache.mkdir(parents=True)
    model.save(cache / "efficientnetb0_notop.h5")
    model.save_weights(tmp_path / "own.weights.h5")
    monkeypatch.setattr(published, "_is", lambda *_: True)  # it is not the published file
    found = [
        features_of(application([32, 32, 3], 5, architecture="EfficientNetB0", weights=str(given)))
        for given in ("imagenet", tmp_path / "own.weights.h5")
    ]
    largest = np.abs(found[0]).max()  # about as large as the colours
    np.testing.assert_allclose(found[0], found[1], atol=1e-3 * largest)
    assert largest > 1e-5
