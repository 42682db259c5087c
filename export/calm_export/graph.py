"""ONNX files: torch module -> graph -> file. The same weights always give the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import torch
from onnx import ModelProto
from onnx.external_data_helper import set_external_data
from torch import Tensor, nn

from calm_runtime.errors import ExportError

OPSET = 18
PROTOBUF_LIMIT = 2**31 - 2**20  # a protobuf message ends at 2 GB; leave room for the graph itself
INLINE_LIMIT = 100_000_000  # a file beside the graph is mapped; weights inside it are read, parsed and copied in memory
PRODUCER = "calm-edge"
_SMALL = 1024  # bytes: weights that stay in the graph
_PAGE = 4096  # where a mapping may begin

logger = logging.getLogger(__name__)


def to_onnx(
    module: nn.Module,
    inputs: Sequence[Tensor],
    input_names: Sequence[str],
    output_names: Sequence[str],
    opset: int = OPSET,
) -> ModelProto:
    """Trace a module whose inputs and outputs all have the batch as first, dynamic dimension.

    Raises ExportError when the module cannot be traced or the graph fails ONNX's checker.
    """
    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                module.eval(),
                tuple(inputs),
                dynamo=True,
                opset_version=opset,
                input_names=list(input_names),
                output_names=list(output_names),
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                verbose=False,
            )
        assert program is not None  # torch returns None only when asked to write a file itself
        proto = program.model_proto
    except torch.onnx.errors.OnnxExporterError as error:
        cause = error.__cause__ or error
        raise ExportError(f"{type(module).__name__} cannot be traced to ONNX: {cause}") from error
    for value in proto.graph.output:
        if not value.type.tensor_type.shape.dim[0].dim_param:
            raise ExportError(f"{type(module).__name__}: the batch of output {value.name} was traced as a constant")
    return proto


def canonical(proto: ModelProto) -> ModelProto:
    """Remove, in place, everything that is not the model: traces with source paths, comments, tool metadata."""
    proto.producer_name, proto.producer_version, proto.doc_string = PRODUCER, "", ""
    proto.ClearField("metadata_props")
    _strip_graph(proto.graph)
    for function in proto.functions:
        function.doc_string = ""
        function.ClearField("metadata_props")
        for node in function.node:
            _strip_node(node)
    return proto


def _strip_graph(graph: onnx.GraphProto) -> None:
    graph.doc_string = ""
    graph.ClearField("metadata_props")
    for item in (*graph.initializer, *graph.value_info, *graph.input, *graph.output):
        item.doc_string = ""
        item.ClearField("metadata_props")
    for node in graph.node:
        _strip_node(node)


def _strip_node(node: onnx.NodeProto) -> None:
    node.doc_string = ""
    node.ClearField("metadata_props")
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            _strip_graph(attribute.g)


def write_graph(proto: ModelProto, path: Path, *, inline_limit: int = INLINE_LIMIT) -> tuple[Path, ...]:
    """Write a graph, its weights inside the file; above `inline_limit` bytes they go beside it as NAME.data.

    Returns the files written. A proto whose weights went beside the file has none any more.
    """
    canonical(proto)
    path.parent.mkdir(parents=True, exist_ok=True)
    size = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    data = data_file(path)
    data.unlink(missing_ok=True)  # of a larger graph that was here before
    files: tuple[Path, ...] = (path,)
    if size > inline_limit:
        _move_weights(proto, data)
        files = (path, data)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    logger.info("wrote %s: %d nodes, %.1f MB of weights", path.name, len(proto.graph.node), size / 1e6)
    return files


def data_file(path: Path) -> Path:
    """Where `write_graph` puts the weights of a large graph."""
    return path.with_name(path.name + ".data")


def graph_sha256(path: Path) -> str:
    """SHA-256 of a graph's file followed by its weights', where they are beside it."""
    digest = hashlib.sha256()
    for file in (path, data_file(path)):
        if file.is_file():
            with file.open("rb") as handle:
                hashlib.file_digest(handle, lambda: digest)
    return digest.hexdigest()


def _move_weights(proto: ModelProto, data: Path) -> None:
    """Not by `onnx.save_model`, which looks for the file it is about to write in the working directory, too."""
    with data.open("wb") as handle:
        for tensor in proto.graph.initializer:
            if len(tensor.raw_data) < _SMALL:
                continue
            handle.write(b"\0" * (-handle.tell() % _PAGE))
            set_external_data(tensor, data.name, handle.tell(), len(tensor.raw_data))
            handle.write(tensor.raw_data)
            tensor.ClearField("raw_data")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about libraries that CALM does not use and about its own internals."""
    names = ("torch.onnx._internal.exporter._registration", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
