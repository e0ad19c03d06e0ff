"""ONNX files against NumPy, and what kd refuses of them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kd_cli.errors import ConfigError
from kd_cli.export import graph, onnx_file
from kd_cli.export.formats import CantConvertError
from tests.export.test_litert import SHAPE, forward, images, inverse, model, needing  # noqa: F401


def exported(model, folder, precision="float32", images=None, softmax=False):  # noqa: F811
    made = graph.write(model, SHAPE, softmax, folder / "saved_model")
    path = folder / "a.onnx"
    onnx_file.convert(made, path, precision, images)
    return onnx_file.open_file(path)


def test_a_float_file_is_the_network(model, images, tmp_path):  # noqa: F811
    opened = exported(model, tmp_path)
    assert (opened.image.name, opened.image.dtype) == ("image", "float32")
    assert (opened.image.shape, opened.logits.shape) == ((None, *SHAPE), (None, 4))
    np.testing.assert_allclose(opened(images), forward(model, images), atol=2e-5)
    written = onnx.load(tmp_path / "a.onnx").graph
    for tensor in (written.input[0], written.output[0]):
        assert tensor.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_probabilities(model, images, tmp_path):  # noqa: F811
    opened = exported(model, tmp_path, softmax=True)
    assert opened.logits.name == "probabilities"
    powers = np.exp(forward(model, images))
    np.testing.assert_allclose(opened(images), powers / powers.sum(1, keepdims=True), atol=1e-5)


def test_int8_takes_bytes(model, images, tmp_path):  # noqa: F811
    opened = exported(model, tmp_path, "int8", images)
    assert (opened.image.name, opened.image.dtype) == ("image", "uint8")
    difference = np.abs(opened(images) - forward(model, images)).max()
    assert 1e-5 < difference < 0.1
    kinds = {i.data_type for i in onnx.load(tmp_path / "a.onnx").graph.initializer}
    assert TensorProto.INT8 in kinds


def test_an_operation_that_onnx_has_not(tmp_path):
    made = graph.write(needing(inverse), SHAPE, False, tmp_path / "saved_model")
    with pytest.raises(CantConvertError, match="ONNX has no operator for MatrixInverse"):
        onnx_file.convert(made, tmp_path / "a.onnx", "float32", None)
    assert not (tmp_path / "a.onnx").exists()


def written(path, domain="", external=False):
    """A file with one operator."""
    weights = numpy_helper.from_array(np.eye(4, dtype=np.float32), "weights")
    node = helper.make_node("MatMul", ["x", "weights"], ["y"], domain=domain)
    kinds = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, 4]) for n in "xy"]
    graph = helper.make_graph([node], "g", kinds[:1], kinds[1:], [weights])
    imports = [helper.make_opsetid("", 15)]
    imports += [helper.make_opsetid(domain, 1)] if domain else []
    made = helper.make_model(graph, opset_imports=imports, ir_version=8)
    options = {"save_as_external_data": True, "size_threshold": 0} if external else {}
    onnx.save(made, path, **options)
    return path


def test_what_is_refused(tmp_path):
    opened = onnx_file.open_file(written(tmp_path / "a.onnx"))
    assert opened(np.eye(4)).tolist() == np.eye(4).tolist()
    with pytest.raises(ConfigError, match="holds the operator my.own.MatMul, which is not"):
        onnx_file.open_file(written(tmp_path / "b.onnx", domain="my.own"))
    with pytest.raises(ConfigError, match="holds weights in another file"):
        onnx_file.open_file(written(tmp_path / "c.onnx", external=True))
    (tmp_path / "d.onnx").write_bytes(b"no ONNX file")
    with pytest.raises(ConfigError, match="can't be read as an ONNX file"):
        onnx_file.open_file(tmp_path / "d.onnx")
