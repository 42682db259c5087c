"""Static quantisation of a graph, with value ranges taken from real photos.

Only products with a weight matrix are rounded. onnxruntime.quantization writes int8, of MatMul, Gemm and Conv: inputs per
tensor, weights per output channel; `low_bits` writes fp8 and int4, of MatMul. What the products give is float again. Norms,
softmax, activations and the products of attention stay float, so that attention can still be fused.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, TensorProto
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from calm_export.graph import PROTOBUF_LIMIT, data_file, write_graph
from calm_export.low_bits import OPSET, int4_block, round_products
from calm_export.photos import photo_files
from calm_runtime.errors import ExportError, PhotoError
from calm_runtime.photo import PhotoSpec, leave_out_frame, load_photo, to_pixel_values

Array = npt.NDArray[np.float32]
Feeds = Mapping[str, Array]

Rounding = Literal["int8", "fp8", "int4"]

PRODUCTS = ("MatMul", "Gemm", "Conv")
CALIBRATION_PHOTOS = 32  # ranges hardly move with more of them
MIN_CALIBRATION_PHOTOS = 8
HALF_OPSET = 19  # the first whose QuantizeLinear takes float16
_LAYER = re.compile(r"^.*\.layers?\.\d+\.[^.]+")
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class Scheme:
    """How values become eight bits or fewer.

    rounding: int8 and fp8 products, or int4 weights. symmetric: activations are int8 around zero, what TensorRT asks for;
    else uint8 with a zero point.
    seven_bits: weights keep to seven bits; with eight, x86-64 processors without VNNI overflow in their 16-bit sums.
    """

    symmetric: bool
    seven_bits: bool
    rounding: Rounding = "int8"


CPU_SCHEME = Scheme(symmetric=False, seven_bits=True)
ENGINE_SCHEME = Scheme(symmetric=True, seven_bits=False)
ENGINE_SCHEMES: dict[Rounding, Scheme] = {
    "int8": ENGINE_SCHEME,
    "fp8": Scheme(symmetric=True, seven_bits=False, rounding="fp8"),
    "int4": Scheme(symmetric=True, seven_bits=False, rounding="int4"),
}


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands a graph's feeds to the library, one photo at a time."""

    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self._feeds: Iterator[Feeds] = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self._feeds, None)


@dataclass(frozen=True)
class Calibrated:
    """A float graph, its groups of products, and the range of every tensor over the calibration photos.

    groups: name -> names of its nodes. parameters: name -> weights in it.
    """

    graph: Path
    ranges: Path
    groups: dict[str, tuple[str, ...]]
    parameters: dict[str, int]
    scheme: Scheme

    def quantise(self, groups: Collection[str], path: Path) -> Path:
        """Write the graph with these groups rounded and the rest as it was; the same groups give the same bytes.

        Raises ExportError for a group the graph does not have, or none: the library would then take them all.
        """
        unknown = set(groups) - self.groups.keys()
        if unknown or not groups:
            raise ExportError(
                f"{self.graph.name}: no {self.scheme.rounding} group {', '.join(sorted(unknown)) or 'was named'}"
            )
        nodes = [node for name, members in self.groups.items() if name in groups for node in members]
        if self.scheme.rounding != "int8":
            largest = self._largest() if self.scheme.rounding == "fp8" else {}
            write_graph(round_products(onnx.load(str(self.graph)), nodes, self.scheme.rounding, largest), path)
            return path
        raw = self.graph.with_name(f"raw-{self.graph.name}")
        _run_library(self.graph, raw, self.ranges, self.scheme, nodes, ())
        write_graph(onnx.load(str(raw)), path)
        _remove(raw)
        return path

    def _largest(self) -> dict[str, float]:
        """Largest magnitude of every tensor, from the library's file of ranges."""
        found = json.loads(self.ranges.read_text("utf-8"))["data"]
        return {
            name: max(abs(float(np.ravel(entry[end]["data"])[0])) for end in ("lowest", "highest"))
            for name, entry in found.items()
        }


def calibrate(proto: ModelProto, feeds: Sequence[Feeds], path: Path, scheme: Scheme) -> Calibrated:
    """Write a float graph to `path` and, but for int4, the ranges of its tensors beside it.

    feeds: per photo, input name -> [1, ...] f32. Raises ExportError without photos, for values that are not finite, or
    for a graph without products.
    """
    if not feeds:
        raise ExportError("calibration has no photos; give a folder of photos with --calibration")
    if any(not np.isfinite(value).all() for row in feeds for value in row.values()):
        raise ExportError(f"{path.name}: calibration meets values that are not finite; check the checkpoint's weights")
    groups, parameters = _groups(proto, scheme.rounding)
    if not groups:
        raise ExportError(
            f"{path.name}: the graph has no product with a weight matrix; nothing can become {scheme.rounding}"
        )
    if scheme.rounding != "int8":
        proto = _at_least(proto, OPSET)
    elif any(tensor.data_type == TensorProto.FLOAT16 for tensor in proto.graph.initializer):
        proto = _at_least(proto, HALF_OPSET)
    path.parent.mkdir(parents=True, exist_ok=True)
    large = sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > PROTOBUF_LIMIT
    quant_pre_process(  # the graph is traced and folded already: shapes are all that is missing
        proto,
        str(path),
        skip_optimization=True,
        skip_symbolic_shape=True,
        save_as_external_data=large,
        all_tensors_to_one_file=large,
        external_data_location=data_file(path).name if large else None,
    )
    ranges = path.with_suffix(".ranges.json")
    ranges.unlink(missing_ok=True)
    if scheme.rounding != "int4":  # which rounds weights alone
        raw = path.with_name(f"raw-{path.name}")
        first = next(iter(groups.values()))
        _run_library(path, raw, ranges, scheme, first, feeds)
        _remove(raw)
    return Calibrated(path, ranges, groups, parameters, scheme)


def calibration_pixels(folder: Path | None, spec: PhotoSpec, gate_pixels: Array) -> Array:
    """pixel_values [P, 3, S, S] of up to CALIBRATION_PHOTOS photos, spread evenly over a folder or, without one, the gate's.

    Raises ExportError when fewer than MIN_CALIBRATION_PHOTOS of the folder can be read.
    """
    if folder is None:
        return gate_pixels[evenly(len(gate_pixels), CALIBRATION_PHOTOS)]
    rows: list[Array] = []
    files = photo_files(folder)
    for path in (files[index] for index in evenly(len(files), CALIBRATION_PHOTOS)):
        try:
            picture, _ = leave_out_frame(load_photo(path, spec), spec)
            rows.append(to_pixel_values(picture, spec))
        except PhotoError as error:
            logging.getLogger(__name__).warning("calibration leaves out %s: %s", path.name, error)
    if len(rows) < MIN_CALIBRATION_PHOTOS:
        raise ExportError(
            f"{folder}: {len(rows)} readable photos, calibration needs {MIN_CALIBRATION_PHOTOS} or more; "
            "choose photos like those the model will see"
        )
    return np.stack(rows)


def evenly(total: int, count: int) -> list[int]:
    """At most `count` indices of `total` items, spread evenly."""
    return [index * total // count for index in range(count)] if total > count else list(range(total))


def _at_least(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The graph in ONNX's operators of a version, or as it is where they are newer."""
    now = next(entry.version for entry in proto.opset_import if not entry.domain)
    return proto if now >= opset else onnx.version_converter.convert_version(proto, opset)


def _groups(proto: ModelProto, rounding: Rounding) -> tuple[dict[str, tuple[str, ...]], dict[str, int]]:
    """Products with a weight matrix by the part of the model they were traced from, in the graph's order."""
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    groups: dict[str, list[str]] = {}
    parameters: dict[str, int] = {}
    for node in proto.graph.node:
        weight = weights.get(node.input[1]) if node.op_type in PRODUCTS else None
        if weight is None or (node.op_type == "MatMul" and len(weight.dims) != 2):
            continue
        if rounding != "int8" and node.op_type != "MatMul":
            continue
        if rounding == "int4" and int4_block(weight.dims[0]) is None:
            continue
        name = _part(node)
        groups.setdefault(name, []).append(node.name)
        parameters[name] = parameters.get(name, 0) + int(np.prod(weight.dims))
    return {name: tuple(nodes) for name, nodes in groups.items()}, parameters


def _part(node: onnx.NodeProto) -> str:
    """The part of a layer a node belongs to, such as encoder.layers.3.mlp; the node's name where the trace does not say."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "")
    modules = [name for name in re.findall(r"'([^']*)'", scopes)[:-1] if name]
    if not modules:
        return str(node.name)
    layer = _LAYER.match(modules[-1])
    return layer[0] if layer else modules[-1].rpartition(".")[0] or modules[-1]


def _run_library(
    graph: Path, output: Path, ranges: Path, scheme: Scheme, nodes: Sequence[str], feeds: Sequence[Feeds]
) -> None:
    options: dict[str, Any] = {
        "ActivationSymmetric": scheme.symmetric,
        "WeightSymmetric": True,
        "QuantizeBias": False,  # TensorRT takes no int32 bias
        "OpTypesToExcludeOutputQuantization": list(PRODUCTS),
    }
    try:
        quantize_static(
            str(graph),
            str(output),
            _Reader(feeds) if feeds else None,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(PRODUCTS),
            per_channel=True,
            reduce_range=scheme.seven_bits,
            activation_type=QuantType.QInt8 if scheme.symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=list(nodes),
            calibrate_method=CalibrationMethod.MinMax,
            calibration_cache_path=ranges,
            use_external_data_format=data_file(graph).is_file(),
            extra_options=options,
        )
    except Exception as error:  # the library raises what its parts raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(f"{graph.name}: onnxruntime.quantization failed: {reason}; take fp32 instead") from error


def _remove(graph: Path) -> None:
    for path in (graph, data_file(graph)):
        path.unlink(missing_ok=True)
