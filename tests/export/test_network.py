"""A file of another program as a network: the PyTorch network of torch_cnn.py against Keras."""

import keras
import numpy as np
import onnx
import pytest

from kd_cli.errors import ConfigError
from kd_cli.export import network
from kd_cli.export.formats import Format
from tests.torch_twin import TORCH, twin

SHAPE = (6, 6, 1)
IMAGES = np.random.default_rng(0).uniform(0, 1, (9, *SHAPE)).astype(np.float32)


def test_a_network_of_pytorch_equals_its_twin_in_keras(caplog):
    caplog.set_level("INFO", logger="kd")
    model = network.load_exported(TORCH, SHAPE, "teacher.checkpoint")
    assert model.input_shape == (None, *SHAPE) and model.output_shape == (None, 4)
    np.testing.assert_allclose(model(IMAGES), twin()(IMAGES), rtol=1e-5, atol=1e-5)
    assert "torch_cnn.onnx: it takes images with their channels first" in caplog.text


def test_probabilities_become_their_logarithms(tmp_path, caplog):
    caplog.set_level("INFO", logger="kd")
    content = onnx.load(TORCH)
    (scores,) = content.graph.output
    content.graph.node.append(onnx.helper.make_node("Softmax", [scores.name], ["p"], axis=-1))
    scores.name = "p"
    onnx.save(content, tmp_path / "p.onnx")
    found = network.load_exported(tmp_path / "p.onnx", SHAPE, "teacher.checkpoint")(IMAGES)
    expected = keras.ops.log_softmax(twin()(IMAGES))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert "its outputs are probabilities; their logarithms are its logits" in caplog.text


def test_what_is_no_network_for_these_images(tmp_path, monkeypatch):
    content = onnx.load(TORCH)
    content.graph.node[0].domain = "evil"
    onnx.save(content, tmp_path / "custom.onnx")
    with pytest.raises(ConfigError, match=r"custom.onnx holds the operator evil.Conv"):
        network.load_exported(tmp_path / "custom.onnx", SHAPE, "teacher.checkpoint")
    (tmp_path / "text.onnx").write_text("no")
    with pytest.raises(ConfigError, match=r"text.onnx can't be read as an ONNX file"):
        network.load_exported(tmp_path / "text.onnx", SHAPE, "teacher.checkpoint")
    missing = Format("ONNX", ".onnx", (), "onnx_file", "onnx", ("onnx_that_is_not_here",))
    monkeypatch.setitem(network.FORMATS, "onnx", missing)
    with pytest.raises(ConfigError, match="pip install onnx_that_is_not_here"):
        network.load_exported(TORCH, SHAPE, "teacher.checkpoint")
