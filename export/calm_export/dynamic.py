"""Dynamic int8: weights rounded per output channel, activations as they come, products as MatMulInteger."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from calm_export.graph import data_file


def dynamic_int8(source: Path, *, reduce_range: bool = True, signed: bool = True) -> onnx.ModelProto:
    """A graph's products with constant weights in int8; everything else stays as it is.

    reduce_range: weights of 7 bits. Processors without VNNI add two products in 16 bits, which 8 bits overflow silently.
    One scale serves all activations of a call, so that a row's result depends a little on the rows beside it.
    """
    with tempfile.TemporaryDirectory(prefix="calm-int8-") as scratch, _quiet():
        written = Path(scratch) / "model.onnx"
        quantize_dynamic(
            source,
            written,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=_batched(source),
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8 if signed else QuantType.QUInt8,
            use_external_data_format=data_file(source).is_file(),
        )
        return onnx.load(str(written))


def _batched(source: Path) -> list[str]:
    """Products with a stack of constant matrices: the kernel takes one scale per channel of a single matrix only."""
    graph = onnx.load(str(source), load_external_data=False).graph
    stacks = {tensor.name for tensor in graph.initializer if len(tensor.dims) != 2}
    return [node.name for node in graph.node if node.op_type == "MatMul" and stacks.intersection(node.input)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The library logs on the root logger, about its own preparations."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
