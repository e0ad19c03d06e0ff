"""ONNX files: written through tf2onnx, quantised and run by onnxruntime."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import tensorflow as tf

from kd_cli.device import quiet
from kd_cli.errors import ConfigError, first_line
from kd_cli.export.formats import CantConvertError
from kd_cli.export.graph import IMAGE, Graph, signature
from kd_cli.export.tensors import Opened, Tensor

_BATCH = "batch"  # the name of the free axis
# Operators that onnxruntime itself has.
_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"}
_CPU = ["CPUExecutionProvider"]


def convert(graph: Graph, path: Path, precision: str, images: np.ndarray | None) -> None:
    """Writes a network as an ONNX file.

    Args:
        graph: What is converted.
        path: The file.
        precision: `float32`; or `int8`: weights and activations of 8 bits, uint8 images in.
        images: [n, H, W, C] uint8, which set the ranges of int8 numbers; None for float32.

    Raises:
        CantConvertError: An operation that ONNX has not.
    """
    with tempfile.TemporaryDirectory(prefix="kd-") as scratch:
        place = Path(scratch) / "float.onnx"
        try:
            with quiet(tells=False), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of NumPy, about what tf2onnx does
                graph.model.export(
                    str(place),
                    format="onnx",
                    verbose=False,
                    input_signature=[signature(graph.shape)],
                )
            model = onnx.load(place)
        except Exception as error:  # of tf2onnx
            raise CantConvertError(first_line(error)) from error
        _name(model, graph.output)
        if precision == "int8":
            onnx.save(model, place)
            model = _quantised(place, images)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        # What tf2onnx does not know it writes under TensorFlow's name.
        unknown = re.search(r"No Op registered for (\w+)", str(error))
        why = f"ONNX has no operator for {unknown[1]}" if unknown else first_line(error)
        raise CantConvertError(why) from error
    onnx.save(model, path)


def _name(model: onnx.ModelProto, output: str) -> None:
    """Gives input and output their names, and both the same free batch."""
    (image,), (logits,) = model.graph.input, model.graph.output
    names = {image.name: IMAGE, logits.name: output}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for tensor in (image, logits):
        tensor.name = names[tensor.name]
        tensor.type.tensor_type.shape.dim[0].dim_param = _BATCH


def _quantised(place: Path, images: np.ndarray) -> onnx.ModelProto:
    """The file in 8 bits, with a cast before it, so that it takes bytes."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.left: Iterator[np.ndarray] = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.left, None)
            return None if image is None else {IMAGE: image[None].astype(np.float32)}

    ready, done = place.with_name("ready.onnx"), place.with_name("int8.onnx")
    with quiet(tells=False):
        # Without it fewer operations are quantised, and more is lost.
        quant_pre_process(str(place), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready), str(done), Images(), quant_format=QuantFormat.QDQ, per_channel=True
        )
    model = onnx.load(done)
    cast = onnx.helper.make_node("Cast", [IMAGE], ["pixels"], to=onnx.TensorProto.FLOAT)
    for node in model.graph.node:
        node.input[:] = ["pixels" if name == IMAGE else name for name in node.input]
    model.graph.node.insert(0, cast)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    return model


def refused(model: onnx.ModelProto) -> str:
    """What of a file kd does not run, in words; empty where there is nothing."""
    own = {function.domain for function in model.functions}
    for part in (model.graph, *model.functions):
        for node in _nodes(part):
            if node.domain not in _DOMAINS | own:
                return f"the operator {node.domain}.{node.op_type}, which is not onnxruntime's"
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer):
        return "weights in another file; save it as one file"
    return ""


def _nodes(part: Any) -> Iterator[onnx.NodeProto]:
    """Of a graph or function, and of the graphs inside its nodes."""
    for node in part.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _nodes(inner)


def open_file(path: Path, threads: int | None = None) -> Opened:
    """Opens any ONNX file for inference on the CPU.

    Args:
        path: The file.
        threads: How many; None takes the runtime's choice.

    Raises:
        ConfigError: It is damaged, has a custom operator, or is no classifier of images.
    """
    content = path.read_bytes()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or 0
    try:
        found = refused(onnx.load_model_from_string(content))
        if found:
            raise ConfigError(f"{path} holds {found}")
        session = onnxruntime.InferenceSession(content, options, providers=_CPU)
    except ConfigError:
        raise
    except Exception as error:  # of protobuf or onnxruntime
        raise ConfigError(f"{path} can't be read as an ONNX file: {first_line(error)}") from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        raise ConfigError(
            f"{path} has {len(inputs)} inputs and {len(outputs)} outputs; expected one image and "
            "one output [batch, classes]"
        )
    image, logits = _tensor(inputs[0]), _tensor(outputs[0])

    def run(numbers: np.ndarray) -> np.ndarray:
        return session.run([logits.name], {image.name: numbers})[0]

    return Opened(image, logits, run, f"onnxruntime {onnxruntime.__version__}")


def _tensor(known: Any) -> Tensor:
    kinds = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}
    kind = kinds.get(known.type, known.type.removeprefix("tensor(").removesuffix(")"))
    shape = tuple(size if isinstance(size, int) else None for size in known.shape)
    return Tensor(known.name, tf.as_dtype(kind).name, shape)
