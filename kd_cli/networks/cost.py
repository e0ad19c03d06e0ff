"""What a network costs: floating-point operations of one input, and latency on this device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

CONVENTION = (
    "2 x multiply-adds of convolutions, dense layers and attention for one input, with padding; "
    "activations, biases, normalisation, pooling, resizing and look-ups are not counted"
)
LEAST_RUNS, MOST_RUNS = 30, 500
SECONDS = 5.0
# A network so slow that 30 runs take minutes is measured fewer times.
MOST_SECONDS = 60.0
# Operations that call another graph, by the attributes that name it. How often a loop runs, and
# which branch is taken, a graph does not tell.
_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
_BRANCHES = {
    "While": ("body", "cond"),
    "StatelessWhile": ("body", "cond"),
    "If": ("then_branch", "else_branch"),
    "StatelessIf": ("then_branch", "else_branch"),
}
# They multiply too, in ways that their shapes alone don't tell.
_UNKNOWN = {"CudnnRNN", "CudnnRNNV2", "CudnnRNNV3", "XlaCallModule", "Case", "MapDefun", "Map"}


class UncountedError(Exception):
    """An operation whose multiply-adds can't be told from the graph."""


def flops(model: keras.Model, image_shape: tuple[int, ...]) -> int:
    """Floating-point operations of one input, by `CONVENTION`, counted in the traced graph.

    (tf.profiler is not used: it also counts some of the element-wise operations, such as biases but
    not ReLUs, and nothing inside a called function, such as a convolution in groups.)

    Args:
        model: From images [B, H, W, C] or token ids [B, L] to logits, in inference mode.
        image_shape: (H, W, C), or (L,).

    Raises:
        UncountedError: The graph does not tell, as for a recurrent layer's loop.
    """
    traced = tf.function(lambda images: model(images, training=False), autograph=False)
    spec = tf.TensorSpec([1, *image_shape], tf.int32 if len(image_shape) == 1 else tf.float32)
    return 2 * _multiply_adds(traced.get_concrete_function(spec).graph)


def _multiply_adds(graph: Any) -> int:
    total = 0
    for op in graph.get_operations():
        if op.type in _COUNTS:
            count = _COUNTS[op.type](op)
            if count is None:
                raise UncountedError(f"{op.type} '{op.name}' has no fixed shape")
            total += count
        elif op.type in _CALLS:
            total += _multiply_adds(_called(graph, op, "f"))
        elif op.type in _BRANCHES:
            if any(_multiply_adds(_called(graph, op, name)) for name in _BRANCHES[op.type]):
                raise UncountedError(f"{op.type} '{op.name}' multiplies matrices inside")
        elif op.type in _UNKNOWN:
            raise UncountedError(f"{op.type} '{op.name}' can't be counted")
    return total


def _called(graph: Any, op: tf.Operation, attribute: str) -> Any:
    return graph._get_function(op.get_attr(attribute).name).graph


def _shape(tensor: tf.Tensor) -> list[int | None]:
    return tensor.shape.as_list() if tensor.shape.rank is not None else [None]


def _product(*sizes: int | None) -> int | None:
    return None if None in sizes else math.prod(sizes)


def _convolution(op: tf.Operation) -> int | None:
    """Each output value takes kernel x input channels of its group."""
    return _product(*_shape(op.outputs[0]), *_shape(op.inputs[1])[:-1])


def _depthwise(op: tf.Operation) -> int | None:
    """Each output value takes one channel's kernel [h, w, channels, multiplier]."""
    return _product(*_shape(op.outputs[0]), *_shape(op.inputs[1])[:2])


def _transposed(op: tf.Operation) -> int | None:
    """Each input value (the third input) goes through the kernel [h, w, out, in] to `out`."""
    return _product(*_shape(op.inputs[2]), *_shape(op.inputs[1])[:-1])


def _matrices(op: tf.Operation) -> int | None:
    turned = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
    return _product(*_shape(op.outputs[0]), _shape(op.inputs[0])[-2 if turned else -1])


def _einsum(op: tf.Operation) -> int | None:
    """The product of all its indices."""
    equation = op.get_attr("equation").decode()
    sizes: dict[str, int | None] = {}
    for term, tensor in zip(equation.split("->")[0].split(","), op.inputs, strict=True):
        if "." in term or tensor.shape.rank != len(term):
            return None
        sizes |= dict(zip(term, _shape(tensor), strict=True))
    return _product(*sizes.values())


_COUNTS: dict[str, Callable[[tf.Operation], int | None]] = {
    "Conv2D": _convolution,
    "Conv3D": _convolution,
    "DepthwiseConv2dNative": _depthwise,
    "Conv2DBackpropInput": _transposed,
    "Conv3DBackpropInputV2": _transposed,
    "MatMul": _matrices,
    "BatchMatMul": _matrices,
    "BatchMatMulV2": _matrices,
    "BatchMatMulV3": _matrices,
    "Einsum": _einsum,
}


def timed(run: Callable[[], Any]) -> dict[str, float | int]:
    """Wall time of a call on this device, warm.

    At least 30 runs, then up to 500 within 5 s; a call that needs a minute for 30 runs gets fewer,
    at least 3.

    Args:
        run: Brings the logits of one batch.

    Returns:
        median_ms and p95_ms of a batch, and the number of runs.
    """
    for _ in range(3):  # traces, allocates, chooses algorithms
        run()
    seconds: list[float] = []
    spent = 0.0
    while len(seconds) < MOST_RUNS:
        if len(seconds) >= LEAST_RUNS and spent >= SECONDS:
            break
        if len(seconds) >= 3 and spent >= MOST_SECONDS:
            break
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
        spent += seconds[-1]
    return {
        "median_ms": 1e3 * float(np.median(seconds)),
        "p95_ms": 1e3 * float(np.percentile(seconds, 95)),
        "runs": len(seconds),
    }
