"""LiteRT files (`.tflite`): written by TensorFlow's converter, run by ai-edge-litert.

Without that package TensorFlow's own interpreter runs them, which is the same code, deprecated.
"""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema

from kd_cli.device import quiet
from kd_cli.errors import ConfigError, first_line
from kd_cli.export.formats import CantConvertError
from kd_cli.export.graph import IMAGE, SIGNATURE, Graph
from kd_cli.export.tensors import Opened, Tensor

_NAME = 10  # where a tensor's table holds its name (schema.fbs: the fourth field)


def convert(graph: Graph, path: Path, precision: str, images: np.ndarray | None) -> None:
    """Writes a network as a LiteRT file.

    Args:
        graph: What is converted.
        path: The file.
        precision: `float32`; `float16` weights; `dynamic`: int8 weights; `int8`: whole numbers all
            through, uint8 [batch, H, W, C] in with scale 1 and zero point 0, int8 out.
        images: [n, H, W, C] uint8, which set the ranges of int8 numbers; None for other precisions.

    Raises:
        CantConvertError: An operation that LiteRT has not.
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(graph.folder), signature_keys=[SIGNATURE]
    )
    # (Neither Flex, which is all of TensorFlow, nor operators of somebody's own.)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if precision == "int8":

        def examples() -> Iterator[dict[str, np.ndarray]]:
            for image in images:
                yield {IMAGE: image[None].astype(np.float32)}

        converter.representative_dataset = examples
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.int8
    path.write_bytes(_named(converted(converter), graph.output))


def converted(converter: Any) -> bytes:
    """What a converter of TensorFlow's makes.

    Raises:
        CantConvertError: An operation that LiteRT has not.
    """
    try:
        with quiet(tells=False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a free batch axis
            return converter.convert()
    except Exception as error:  # of the converter, the quantiser or MLIR
        raise CantConvertError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """What the converter can't do: the operations that it names, or its first line."""
    text = str(error)
    names = dict.fromkeys(re.findall(r"^\s*tf\.(\w+)\(", text, flags=re.MULTILINE))
    if not names:
        names = dict.fromkeys(re.findall(r"'tfl?\.(\w+)' op", text))
    if names:
        return f"LiteRT has no operator for {', '.join(names)}"
    return first_line(error)


def _named(content: bytes, output: str) -> bytes:
    """The same file with the names `image` and `output` for its input and output.

    The converter's names, such as `serving_default_image:0`, are longer. A shorter name is written
    over them, so that nothing in the file moves.
    """
    changed = bytearray(content)
    graph = schema.Model.GetRootAs(changed, 0).Subgraphs(0)
    for number, name in ((graph.Inputs(0), IMAGE), (graph.Outputs(0), output)):
        table = graph.Tensors(int(number))._tab
        place = table.Indirect(table.Offset(_NAME) + table.Pos)
        (length,) = struct.unpack_from("<I", changed, place)
        new = name.encode()
        if len(new) <= length:
            struct.pack_into(f"<I{length}s", changed, place, len(new), new)
    return bytes(changed)


def refused(content: bytes) -> str:
    """An operator of a file that kd does not run, such as `FlexErf`; empty where there is none.

    Custom operators are code beside the file, and Flex ones are all of TensorFlow.
    """
    custom = schema.BuiltinOperator.CUSTOM
    model = schema.Model.GetRootAs(content, 0)
    for number in range(model.OperatorCodesLength()):
        code = model.OperatorCodes(number)
        if custom in (code.BuiltinCode(), code.DeprecatedBuiltinCode()):
            return (code.CustomCode() or b"a custom operator").decode(errors="replace")
    return ""


def open_file(path: Path, threads: int | None = None) -> Opened:
    """Opens any LiteRT file for inference on the CPU.

    Args:
        path: The file.
        threads: How many; None takes the runtime's choice.

    Raises:
        ConfigError: It is damaged, has a custom operator, or is no classifier of images.
    """
    content = path.read_bytes()
    interpreter_class, runtime = _interpreter()
    try:
        custom = refused(content)
        if custom:
            raise ConfigError(
                f"{path} holds the operator {custom}, which kd does not run: it allows LiteRT's "
                "own operators only; convert the network without it"
            )
        with quiet(tells=False):
            interpreter = interpreter_class(model_content=content, num_threads=threads)
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError, TypeError, struct.error, IndexError) as error:
        raise ConfigError(f"{path} can't be read as a LiteRT file: {first_line(error)}") from error
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    if len(inputs) != 1 or len(outputs) != 1:
        raise ConfigError(
            f"{path} has {len(inputs)} inputs and {len(outputs)} outputs; expected one image "
            "[batch, height, width, channels] and one output [batch, classes]"
        )
    return Opened(
        _tensor(inputs[0]), _tensor(outputs[0]), _running(interpreter, inputs[0], outputs[0]),
        runtime,
    )  # fmt: skip


def _interpreter() -> tuple[Callable[..., Any], str]:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        return tf.lite.Interpreter, f"tf.lite of tensorflow {tf.__version__}"
    return Interpreter, f"ai-edge-litert {metadata.version('ai-edge-litert')}"


def _tensor(detail: dict[str, Any]) -> Tensor:
    scales = detail["quantization_parameters"]["scales"]
    zeros = detail["quantization_parameters"]["zero_points"]
    scale, zero = (float(scales[0]), int(zeros[0])) if len(scales) else (None, None)
    shape = tuple(None if size < 0 else int(size) for size in detail["shape_signature"])
    return Tensor(detail["name"], np.dtype(detail["dtype"]).name, shape, scale, zero)


def _running(
    interpreter: Any, image: dict[str, Any], logits: dict[str, Any]
) -> Callable[[np.ndarray], np.ndarray]:
    state = {"batch": int(image["shape"][0])}

    def run(numbers: np.ndarray) -> np.ndarray:
        if len(numbers) != state["batch"]:
            interpreter.resize_tensor_input(image["index"], numbers.shape)
            interpreter.allocate_tensors()
            state["batch"] = len(numbers)
        interpreter.set_tensor(image["index"], numbers)
        interpreter.invoke()
        return interpreter.get_tensor(logits["index"])

    return run
