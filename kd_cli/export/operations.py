"""A network for one image as a list of simple operations, read out of the LiteRT form of it.

TensorFlow's converter folds, fuses and orders a network, and its shapes are known when the batch is
1. What is left are about forty operators. Here they become fewer, which `network.js` computes: that
which moves numbers about becomes a copy with strides.

Source: the schema and the operators of LiteRT, tensorflow/lite/schema/schema.fbs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from kd_cli.export import litert
from kd_cli.export.formats import CantConvertError
from kd_cli.export.graph import IMAGE

_OPERATORS = {number: name for name, number in vars(schema.BuiltinOperator).items()}
_TYPES = {number: name for name, number in vars(schema.TensorType).items()}
_FUSED = {
    number: name.lower() for name, number in vars(schema.ActivationFunctionType).items()
}  # what an operator does to its result
_SAME = schema.Padding.SAME


@dataclass
class Program:
    """What is computed, in order.

    Attributes:
        image: Number of the value that is the image.
        logits: Number of the value that is the result.
        operations: JSON objects: `op`, `in` and `out` (numbers of values), `shape` of the result,
            and what else the operation needs.
        constants: Float32 arrays by the number of the value.
    """

    image: int
    logits: int
    operations: list[dict[str, Any]] = field(default_factory=list)
    constants: dict[int, np.ndarray] = field(default_factory=dict)


def program(model: keras.Model, shape: tuple[int, ...]) -> Program:
    """The operations of a network.

    Args:
        model: From an image [H, W, C] to logits, in float32.
        shape: (H, W, C).

    Raises:
        CantConvertError: An operation that LiteRT or this table has not.
    """
    function = tf.function(
        lambda image: model(image, training=False),
        input_signature=[tf.TensorSpec([1, *shape], tf.float32, name=IMAGE)],
        autograph=False,
    )
    fixed = convert_variables_to_constants_v2(function.get_concrete_function())
    converter = tf.lite.TFLiteConverter.from_concrete_functions([fixed], model)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    return _Reader(schema.ModelT.InitFromObj(schema.Model.GetRootAs(litert.converted(converter))))()


class _Reader:
    """Reads a LiteRT file that was just made."""

    def __init__(self, model: Any) -> None:
        self.model, self.graph = model, model.subgraphs[0]
        self.made = Program(int(self.graph.inputs[0]), int(self.graph.outputs[0]))
        self.wholes: dict[int, np.ndarray] = {}  # constant whole numbers: axes, sizes, orders
        self.values = len(self.graph.tensors)

    def __call__(self) -> Program:
        for number, tensor in enumerate(self.graph.tensors):
            data = self.model.buffers[tensor.buffer].data
            if data is not None and len(data):
                kind = np.dtype(_TYPES[tensor.type].lower())
                array = np.frombuffer(np.asarray(data).tobytes(), kind)
                array = array.reshape(self.shape(number))
                (self.made.constants if kind == np.float32 else self.wholes)[number] = array
        for operator in self.graph.operators:
            self._read(operator)
        used = {number for one in self.made.operations for number in one["in"]}
        constants = self.made.constants
        self.made.constants = {n: constants[n] for n in sorted(used & set(constants))}
        return self.made

    def _read(self, operator: Any) -> None:
        code = self.model.operatorCodes[operator.opcodeIndex]
        name = _OPERATORS[max(code.builtinCode, code.deprecatedBuiltinCode)]
        how = _HOW.get(name)
        if how is None:
            raise CantConvertError(f"a page has no operator for {name}")
        for number in operator.outputs:
            kind = _TYPES[self.graph.tensors[number].type]
            if kind != "FLOAT32":
                raise CantConvertError(f"a page has no operator for {name} of {kind.lower()}")
        inputs = [int(number) for number in operator.inputs]
        how(self, name, inputs, [int(n) for n in operator.outputs], operator.builtinOptions)

    def shape(self, number: int) -> list[int]:
        shape = self.graph.tensors[number].shape
        return [] if shape is None else [int(size) for size in shape]

    def whole(self, name: str, number: int) -> list[int]:
        """Constant whole numbers."""
        if number not in self.wholes:
            raise CantConvertError(f"a page has no operator for {name} whose settings change")
        return self.wholes[number].reshape(-1).tolist()

    def add(self, op: str, inputs: list[int], out: int, options: Any = None, **more: Any) -> None:
        """Adds an operation, and the activation that is fused with it."""
        fused = _FUSED[getattr(options, "fusedActivationFunction", 0)]
        last, shape = out, self.shape(out)
        if fused != "none":
            self.values += 1
            out = self.values
        self.made.operations.append({"op": op, "in": inputs, "out": out, "shape": shape, **more})
        if fused != "none":
            if fused not in _ACTIVATIONS:
                raise CantConvertError(f"a page has no operator for {fused}")
            self.made.operations.append({"op": fused, "in": [out], "out": last, "shape": shape})


_ACTIVATIONS = ("relu", "relu6", "tanh")
_How = Callable[[_Reader, str, list[int], list[int], Any], None]


def _strides(shape: list[int]) -> list[int]:
    """Of an array in the order of its memory."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _convolution(reader: _Reader, name: str, inputs: list[int], outs: list[int], o: Any) -> None:
    """Convolutions and pooling: windows over the image."""
    image, result = reader.shape(inputs[0]), reader.shape(outs[0])
    pooling = name.endswith("POOL_2D")
    kernel = [o.filterHeight, o.filterWidth] if pooling else reader.shape(inputs[1])[1:3]
    dilation = [1, 1] if pooling else [o.dilationHFactor, o.dilationWFactor]
    strides, before = [o.strideH, o.strideW], [0, 0]
    for axis in range(2) if o.padding == _SAME else ():
        reach = (kernel[axis] - 1) * dilation[axis] + 1
        missing = (result[axis + 1] - 1) * strides[axis] + reach - image[axis + 1]
        before[axis] = max(missing, 0) // 2
    more = {"image": image, "kernel": kernel, "strides": strides, "before": before}
    if not pooling:
        more["dilation"] = dilation
    reader.add(_WINDOWS[name], inputs, outs[0], o, **more)


_WINDOWS = {
    "CONV_2D": "convolution",
    "DEPTHWISE_CONV_2D": "depthwise",
    "MAX_POOL_2D": "max_pool",
    "AVERAGE_POOL_2D": "average_pool",
}


def _dense(reader: _Reader, name: str, inputs: list[int], outs: list[int], o: Any) -> None:
    if inputs[1] not in reader.made.constants:
        raise CantConvertError(f"a page has no operator for {name} whose weights change")
    reader.add("dense", [n for n in inputs if n >= 0], outs[0], o)


def _pointwise(reader: _Reader, name: str, inputs: list[int], outs: list[int], o: Any) -> None:
    more = {"slope": o.alpha} if name == "LEAKY_RELU" else {}
    op = "gelu_tanh" if name == "GELU" and o.approximate else name.lower()
    reader.add(op, inputs, outs[0], **more)


def _pairwise(reader: _Reader, name: str, inputs: list[int], outs: list[int], o: Any) -> None:
    """Two arrays; along an axis where one has size 1, its number counts for all."""
    shape = reader.shape(outs[0])
    strides = []
    for number in inputs:
        own = [1] * (len(shape) - len(reader.shape(number))) + reader.shape(number)
        steps = zip(own, _strides(own), strict=True)
        strides.append([0 if size == 1 else step for size, step in steps])
    reader.add(name.lower(), inputs, outs[0], o, steps=strides)


def _reduction(reader: _Reader, name: str, inputs: list[int], outs: list[int], o: Any) -> None:
    shape = reader.shape(inputs[0])
    axes = {axis % len(shape) for axis in reader.whole(name, inputs[1])}
    kept = [1 if axis in axes else size for axis, size in enumerate(shape)]
    steps = [0 if axis in axes else s for axis, s in enumerate(_strides(kept))]
    count = math.prod(shape[axis] for axis in axes)
    reader.add(name.lower(), inputs[:1], outs[0], over=shape, steps=steps, count=count)


def _softmax(reader: _Reader, name: str, inputs: list[int], outs: list[int], o: Any) -> None:
    reader.add(name.lower(), inputs, outs[0], beta=getattr(o, "beta", 1.0))


def _reshape(reader: _Reader, name: str, inputs: list[int], outs: list[int], o: Any) -> None:
    reader.add("reshape", inputs[:1], outs[0])


def _copy(reader: _Reader, source: int, out: int, steps: list[int], start: int = 0) -> None:
    """Of some numbers of an array, in an order of their own."""
    reader.add("copy", [source], out, steps=steps, start=start)


def _transpose(reader: _Reader, name: str, inputs: list[int], outs: list[int], o: Any) -> None:
    steps = _strides(reader.shape(inputs[0]))
    order = reader.whole(name, inputs[1])
    _copy(reader, inputs[0], outs[0], [steps[axis] for axis in order])


def _slice(reader: _Reader, name: str, inputs: list[int], outs: list[int], o: Any) -> None:
    begin, steps = reader.whole(name, inputs[1]), _strides(reader.shape(inputs[0]))
    start = sum(b * s for b, s in zip(begin, steps, strict=True))
    _copy(reader, inputs[0], outs[0], steps, start)


def _strided(reader: _Reader, name: str, inputs: list[int], outs: list[int], o: Any) -> None:
    if o.ellipsisMask or o.newAxisMask:
        raise CantConvertError(f"a page has no operator for {name} with new axes")
    begin, _, by = (reader.whole(name, number) for number in inputs[1:4])
    shape = reader.shape(inputs[0])
    memory, steps, start = _strides(shape), [], 0
    for axis, size in enumerate(shape):
        first = begin[axis] + (size if begin[axis] < 0 else 0)
        if o.beginMask >> axis & 1:
            first = 0 if by[axis] > 0 else size - 1
        start += first * memory[axis]
        if not o.shrinkAxisMask >> axis & 1:  # (such an axis is left out of the result)
            steps.append(by[axis] * memory[axis])
    _copy(reader, inputs[0], outs[0], steps, start)


def _tile(reader: _Reader, name: str, inputs: list[int], outs: list[int], o: Any) -> None:
    own = reader.shape(inputs[0])
    times = reader.whole(name, inputs[1])
    steps = [step for one in _strides(own) for step in (0, one)]
    _copy(reader, inputs[0], outs[0], steps)
    # The copies along an axis are an axis of their own, which comes before it.
    reader.made.operations[-1]["shape"] = [
        size for pair in zip(times, own, strict=True) for size in pair
    ]


def _split(reader: _Reader, name: str, inputs: list[int], outs: list[int], o: Any) -> None:
    sizes_first = name == "SPLIT_V"
    source, axis = (inputs[0], inputs[2]) if sizes_first else (inputs[1], inputs[0])
    shape = reader.shape(source)
    steps, along = _strides(shape), reader.whole(name, axis)[0] % len(shape)
    start = 0
    for out in outs:
        _copy(reader, source, out, steps, start)
        start += reader.shape(out)[along] * steps[along]


def _joined(reader: _Reader, name: str, inputs: list[int], outs: list[int], o: Any) -> None:
    shape = reader.shape(outs[0])
    axis = o.axis % len(shape)
    # What one input holds of each run of the result that goes over all inputs.
    runs = [math.prod(reader.shape(number)) // math.prod(shape[:axis]) for number in inputs]
    reader.add("join", inputs, outs[0], o, runs=runs)


def _pad(reader: _Reader, name: str, inputs: list[int], outs: list[int], o: Any) -> None:
    value = 0.0
    if len(inputs) > 2:
        value = float(reader.made.constants[inputs[2]].reshape(-1)[0])
    steps = _strides(reader.shape(outs[0]))
    before = reader.whole(name, inputs[1])[::2]
    start = sum(b * s for b, s in zip(before, steps, strict=True))
    image = reader.shape(inputs[0])
    reader.add("pad", inputs[:1], outs[0], image=image, steps=steps, start=start, value=value)


def _matmul(reader: _Reader, name: str, inputs: list[int], outs: list[int], o: Any) -> None:
    """Of the last two axes; an operand that others share is not repeated."""
    shape = reader.shape(outs[0])
    operands = []
    for number, turned in zip(inputs, (o.adjX, o.adjY), strict=True):
        own = reader.shape(number)
        own = [1] * (len(shape) - len(own)) + own
        memory = _strides(own)
        outer = [0 if size == 1 else s for size, s in zip(own[:-2], memory[:-2], strict=True)]
        rows, columns = memory[:-3:-1] if turned else memory[-2:]
        operands.append({"outer": outer, "rows": rows, "columns": columns})
    first = reader.shape(inputs[0])
    reader.add("matmul", inputs, outs[0], operands=operands, inner=first[-2 if o.adjX else -1])


def _resize(reader: _Reader, name: str, inputs: list[int], outs: list[int], o: Any) -> None:
    image, result = reader.shape(inputs[0]), reader.shape(outs[0])
    scale = []
    for axis in (1, 2):
        corners = o.alignCorners and result[axis] > 1
        less = 1 if corners else 0
        scale.append((image[axis] - less) / (result[axis] - less))
    more = {"image": image, "scale": scale, "half": bool(o.halfPixelCenters)}
    if name == "RESIZE_NEAREST_NEIGHBOR":
        more["corners"] = bool(o.alignCorners)
    reader.add(name.lower(), inputs[:1], outs[0], **more)


_HOW: dict[str, _How] = {
    **dict.fromkeys(_WINDOWS, _convolution),
    "FULLY_CONNECTED": _dense,
    **dict.fromkeys(
        "RELU RELU6 LEAKY_RELU ELU LOGISTIC TANH HARD_SWISH GELU EXP LOG SQRT RSQRT NEG ABS "
        "SQUARE".split(),
        _pointwise,
    ),
    **dict.fromkeys("ADD SUB MUL DIV SQUARED_DIFFERENCE MAXIMUM MINIMUM POW".split(), _pairwise),
    **dict.fromkeys("MEAN SUM REDUCE_MAX".split(), _reduction),
    **dict.fromkeys("SOFTMAX LOG_SOFTMAX".split(), _softmax),
    **dict.fromkeys("RESHAPE SQUEEZE EXPAND_DIMS".split(), _reshape),
    "TRANSPOSE": _transpose,
    "SLICE": _slice,
    "TILE": _tile,
    "STRIDED_SLICE": _strided,
    **dict.fromkeys("SPLIT SPLIT_V".split(), _split),
    **dict.fromkeys("CONCATENATION PACK".split(), _joined),
    **dict.fromkeys("PAD PADV2".split(), _pad),
    "BATCH_MATMUL": _matmul,
    **dict.fromkeys("RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR".split(), _resize),
}
