"""Products with a weight matrix in fp8, or with int4 weights, for TensorRT: Q/DQ written into a float graph.

fp8 rounds inputs and weights per tensor to E4M3, whose largest value is 448 (Micikevicius et al. 2022, arXiv 2209.05433).
int4 rounds weights alone, symmetric, with one scale per block of them along the inner dimension; products stay float.
onnxruntime.quantization, which writes int8, does neither for graphs of float16.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Float = npt.NDArray[Any]

OPSET = 21  # the first whose DequantizeLinear has blocks
E4M3_LARGEST = 448.0
LEAST_SCALE = 2.0**-14  # float16's smallest normal number: below it a scale could round to zero
INT4_LARGEST = 7  # of -8..7: symmetric
BLOCKS = (64, 32, 16)  # weights that share a scale: the first that divides the inner dimension


def int4_block(inner: int) -> int | None:
    """The block of a matrix with this inner dimension; None when it cannot be split."""
    return next((block for block in BLOCKS if inner % block == 0), None)


def round_products(
    proto: ModelProto, nodes: Collection[str], rounding: Literal["fp8", "int4"], largest: Mapping[str, float]
) -> ModelProto:
    """Round the named MatMul nodes of a graph in place and return it.

    largest: largest magnitude of each tensor over the calibration photos; fp8 needs it of every node's input.
    """
    graph = proto.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    written: list[NodeProto] = []
    rounded: dict[str, str] = {}
    for node in graph.node:
        if node.name in nodes:
            source, weight = node.input
            matrix = numpy_helper.to_array(weights[weight])
            if weight not in rounded:
                rounded[weight] = f"{weight}_rounded"
                tensors, dequantise = _fp8_weight(weight, matrix) if rounding == "fp8" else _int4_weight(weight, matrix)
                graph.initializer.extend(tensors)
                written.append(dequantise)
            if rounding == "fp8" and source not in rounded:
                rounded[source] = f"{source}_rounded"
                scale = np.array(max(largest[source] / E4M3_LARGEST, LEAST_SCALE), matrix.dtype)
                graph.initializer.extend(_scale_and_zero(source, scale))
                names = [source, f"{source}_scale", f"{source}_zero"]
                written.append(helper.make_node("QuantizeLinear", names, [f"{source}_fp8"], f"{source}/quantise"))
                written.append(_dequantise(source, f"{source}_fp8", f"{source}_zero"))
            node.input[:] = [rounded.get(source, source), rounded[weight]]
        written.append(node)
    del graph.node[:]
    graph.node.extend(written)
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return proto


def _dequantise(name: str, values: str, *zero: str, **attributes: Any) -> NodeProto:
    names = [values, f"{name}_scale", *zero]
    return helper.make_node("DequantizeLinear", names, [f"{name}_rounded"], f"{name}/dequantise", **attributes)


def _scale_and_zero(name: str, scale: Float) -> list[TensorProto]:
    zero = helper.make_tensor(f"{name}_zero", TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True)
    return [numpy_helper.from_array(scale, f"{name}_scale"), zero]


def _fp8_weight(name: str, matrix: Float) -> tuple[list[TensorProto], NodeProto]:
    scale = np.array(max(float(np.abs(matrix).max()) / E4M3_LARGEST, LEAST_SCALE), matrix.dtype)
    values = (matrix.astype(np.float32) / scale.astype(np.float32)).clip(-E4M3_LARGEST, E4M3_LARGEST)
    raw = values.astype(ml_dtypes.float8_e4m3fn).tobytes()
    stored = helper.make_tensor(f"{name}_fp8", TensorProto.FLOAT8E4M3FN, matrix.shape, raw, raw=True)
    return [stored, *_scale_and_zero(name, scale)], _dequantise(name, stored.name, f"{name}_zero")


def _int4_weight(name: str, matrix: Float) -> tuple[list[TensorProto], NodeProto]:
    inner, outer = matrix.shape
    block = int4_block(inner)
    assert block is not None  # such a product is in no group
    blocks = matrix.astype(np.float32).reshape(inner // block, block, outer)
    scale = np.maximum(np.abs(blocks).max(axis=1) / INT4_LARGEST, LEAST_SCALE).astype(
        matrix.dtype
    )  # [inner / block, outer]
    values = np.rint(blocks / scale[:, None].astype(np.float32)).clip(-INT4_LARGEST - 1, INT4_LARGEST)
    pairs = values.astype(np.int8).reshape(-1, 2)  # outer * inner is even: the block is
    raw = ((pairs[:, 0] & 15) | (pairs[:, 1] << 4)).astype(np.int8).tobytes()  # the first in the lower four bits
    stored = helper.make_tensor(f"{name}_int4", TensorProto.INT4, matrix.shape, raw, raw=True)
    tensors = [stored, numpy_helper.from_array(scale, f"{name}_scale")]
    return tensors, _dequantise(name, stored.name, axis=0, block_size=block)
