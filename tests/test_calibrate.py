"""Promises of int8: smaller graphs that pass their gate, ranges from real photos, sensitive products left in float."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import ModelProto, TensorProto, helper, numpy_helper
from tiny_models import make_config, make_photos

from calm_export import parity
from calm_export.calibrate import (
    CPU_SCHEME,
    ENGINE_SCHEME,
    ENGINE_SCHEMES,
    MIN_CALIBRATION_PHOTOS,
    Calibrated,
    Scheme,
    calibrate,
    calibration_pixels,
    evenly,
)
from calm_export.cli import export
from calm_export.engines import STAGES, Sources, source_graphs
from calm_export.eyes import cpu_graphs
from calm_export.figures import cosine_per_photo
from calm_export.graph import write_graph
from calm_export.low_bits import OPSET, round_products
from calm_export.options import ExportOptions
from calm_export.sensitivity import Quantised, calibrate_stages, quantise
from calm_export.tensorrt import engine_profile, run_build
from calm_export.tensorrt_build import BuildRequest
from calm_runtime.bundle import ParityRow, Stage
from calm_runtime.errors import ExportError
from calm_runtime.onnx_session import OnnxSession
from calm_runtime.photo import PhotoSpec
from calm_train.model import CalmForConditionalGeneration

SPEC = PhotoSpec(size=48)
PHOTOS = 9
NOT_READ = parity.Ratings(np.empty(0), np.empty(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("calibration"), PHOTOS)


@pytest.fixture(scope="module")
def pixels(folder: Path) -> parity.Array:
    return calibration_pixels(folder, SPEC, np.empty((0, 3, 48, 48), np.float32))


@pytest.fixture(scope="module")
def traced() -> dict[Stage, bytes]:
    torch.manual_seed(0)
    model = CalmForConditionalGeneration(make_config()).eval()
    model.aligner.cues.features.normal_()
    return {stage: proto.SerializeToString() for stage, proto in cpu_graphs(model, "int8").items()}


@pytest.fixture
def graphs(traced: dict[Stage, bytes]) -> dict[Stage, ModelProto]:
    return {stage: onnx.load_from_string(raw) for stage, raw in traced.items()}


def vision(
    graphs: dict[Stage, ModelProto], pixels: parity.Array, path: Path, scheme: object = CPU_SCHEME
) -> Calibrated:
    return calibrate(graphs["vision_encoder"], [{"pixel_values": row[None]} for row in pixels], path, scheme)  # type: ignore[arg-type]


def quantised(
    graphs: dict[Stage, ModelProto],
    pixels: parity.Array,
    folder: Path,
    judge: Callable[[dict[str, parity.Array]], list[ParityRow]],
) -> tuple[Sources, Quantised]:
    sources: Sources = {stage: folder / f"{stage}.onnx" for stage in STAGES}
    return sources, quantise(graphs, pixels, (pixels, judge), sources, folder / "scratch", CPU_SCHEME)


def activation_scales(path: Path) -> dict[str, float]:
    """Tensor name -> its scale, of every activation that is rounded."""
    graph = onnx.load(path).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return {n.input[0]: float(values[n.input[1]]) for n in graph.node if n.op_type == "QuantizeLinear"}


def test_int8_is_smaller_passes_its_gate_and_the_same_photos_give_the_same_bytes(
    graphs: dict[Stage, ModelProto], traced: dict[Stage, bytes], pixels: parity.Array, tmp_path: Path
) -> None:
    first = [vision(graphs, pixels, tmp_path / name) for name in ("a.onnx", "b.onnx")]
    paths = [part.quantise(part.groups, tmp_path / f"{i}.onnx") for i, part in enumerate(first)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].stat().st_size < first[0].graph.stat().st_size / 2
    onnx.checker.check_model(onnx.load(paths[0]), full_check=True)

    def judge(features: dict[str, parity.Array]) -> list[ParityRow]:
        return parity.feature_rows(reference, features, "int8")

    part = first[0].graph
    aligner = tmp_path / "aligner.onnx"
    aligner.write_bytes(traced["aligner"])
    reference = parity.Seen(parity.onnx_features(part, aligner, pixels), NOT_READ)
    again = {stage: onnx.load_from_string(raw) for stage, raw in traced.items()}
    sources, found = quantised(again, pixels, tmp_path / "both", judge)
    assert all(row.passed for row in found.rows)
    kept = {row.group for row in found.groups if row.decision == "float"}
    assert kept <= {"vision_encoder.model.embeddings"}  # the mean of random patches is small, and rounding shows in it
    assert found.groups[0].cosine == min(row.cosine for row in found.groups)
    assert sources["aligner"].stat().st_size < aligner.stat().st_size


@pytest.mark.parametrize(("rounding", "stored"), [("fp8", TensorProto.FLOAT8E4M3FN), ("int4", TensorProto.INT4)])
def test_fp8_and_int4_engines_hold_the_gate_and_are_built(
    rounding: Literal["fp8", "int4"], stored: int, pixels: parity.Array, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = CalmForConditionalGeneration(make_config()).eval()
    model.aligner.cues.features.normal_()
    plain, sources = ({stage: tmp_path / f"{kind}-{stage}.onnx" for stage in STAGES} for kind in ("fp16", rounding))
    for stage, proto in source_graphs(model, "fp16").items():
        write_graph(proto, plain[stage])
    reference = parity.Seen(parity.onnx_features(plain["vision_encoder"], plain["aligner"], pixels), NOT_READ)

    def judge(features: dict[str, parity.Array]) -> list[ParityRow]:
        return parity.feature_rows(reference, features, rounding)

    scheme = ENGINE_SCHEMES[rounding]
    bytes_of = []
    for turn in ("first", "second"):
        graphs = source_graphs(model, "fp16")
        found = quantise(graphs, pixels, (pixels, judge), sources, tmp_path / turn, scheme)
        bytes_of.append([path.read_bytes() for path in sources.values()])
    assert bytes_of[0] == bytes_of[1]
    assert all(row.passed for row in found.rows)
    assert {row.decision for row in found.groups} <= {rounding, "float"}
    assert sum(row.decision == rounding for row in found.groups) > len(found.groups) / 2
    for path in sources.values():
        graph = onnx.load(path).graph
        assert any(tensor.data_type == stored and tensor.dims for tensor in graph.initializer)
        inputs = [node for node in graph.node if node.op_type == "QuantizeLinear"]
        assert bool(inputs) == (rounding == "fp8")  # int4 rounds weights alone

    pytest.importorskip("tensorrt_rtx", reason="pip install calm-edge[tensorrt-rtx]", exc_type=ImportError)
    for stage, path in sources.items():
        request = BuildRequest("tensorrt_rtx", str(path), str(tmp_path / stage), "8.9", engine_profile(path, (1, 1, 2)))
        answer = run_build(request)
        assert not answer.fault, answer.reason
        assert (tmp_path / stage).stat().st_size > 1000
    if rounding == "fp8":  # Ampere has no such products: the fault is told, not discovered on the device
        answer = run_build(msgspec.structs.replace(request, device="8.6"))
        assert answer.fault == "precision"


@pytest.mark.parametrize("rounding", ["fp8", "int4"])
def test_weights_too_small_for_a_float16_scale_stay_finite(rounding: Literal["fp8", "int4"], tmp_path: Path) -> None:
    weights = [np.zeros((64, 8), np.float16), np.full((64, 8), 1e-6, np.float16), np.ones((64, 8), np.float16)]
    nodes = [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"], f"product{i}") for i in range(3)]
    value = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT16)
    graph = helper.make_graph(
        nodes, "g", [value("x", shape=[1, 64])], [value(f"y{i}", shape=[1, 8]) for i in range(3)],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    round_products(proto, [node.name for node in nodes], rounding, {"x": 0.0 if rounding == "int4" else 2.0})
    onnx.save(proto, tmp_path / "g.onnx")
    onnx.checker.check_model(str(tmp_path / "g.onnx"), full_check=True)
    x = np.ones((1, 64), np.float16)
    found = OnnxSession(tmp_path / "g.onnx").run({"x": x})
    for index, weight in enumerate(weights):
        assert np.abs(found[f"y{index}"] - x @ weight).max() < 0.01


def test_the_most_sensitive_groups_stay_float_as_far_as_the_gate_asks(
    graphs: dict[Stage, ModelProto], pixels: parity.Array, tmp_path: Path
) -> None:
    tried: list[int] = []

    def judge(features: dict[str, parity.Array]) -> list[ParityRow]:
        sources = [tmp_path / f"{stage}.onnx" for stage in STAGES]
        rounded = sum(n.op_type == "QuantizeLinear" for path in sources for n in onnx.load(path).graph.node)
        tried.append(rounded)
        value = 0.9 if len(tried) == 1 else 0.995  # all as int8 misses, whatever is less passes
        return [ParityRow("aligner", "image_embeds cosine min", value, 0.99, value >= 0.99, len(pixels))]

    _, found = quantised(graphs, pixels, tmp_path, judge)
    assert tried[0] > tried[-1]
    assert [row.decision for row in found.groups] == ["float"] + ["int8"] * (len(found.groups) - 1)
    kept = found.groups[0]
    assert kept.cosine == min(row.cosine for row in found.groups)
    assert "image_embeds cosine min is 0.90000, the gate is 0.99" in kept.reason


def test_a_gate_that_no_int8_graph_passes_is_told(
    graphs: dict[Stage, ModelProto], pixels: parity.Array, tmp_path: Path
) -> None:
    never = [ParityRow("aligner", "image_embeds cosine min", 0.5, 0.99, False, 9)]
    with pytest.raises(ExportError, match=r"whatever stays float: .* is 0\.50000.*; take fp32"):
        quantised(graphs, pixels, tmp_path, lambda features: never)


def test_ranges_come_from_the_photos_and_engines_get_symmetric_ones(
    graphs: dict[Stage, ModelProto], traced: dict[Stage, bytes], pixels: parity.Array, tmp_path: Path
) -> None:
    bright = vision(graphs, pixels, tmp_path / "bright.onnx")
    dim = calibrate(
        onnx.load_from_string(traced["vision_encoder"]),
        [{"pixel_values": row[None] / 4} for row in pixels],
        tmp_path / "dim.onnx",
        ENGINE_SCHEME,
    )
    scales = [activation_scales(p.quantise(p.groups, tmp_path / f"q{i}.onnx")) for i, p in enumerate((bright, dim))]
    assert scales[0].keys() == scales[1].keys()
    largest = float(np.abs(pixels / 4).max())
    assert scales[1]["pixel_values"] == pytest.approx(largest / 127, rel=0.01)
    assert scales[0]["pixel_values"] == pytest.approx(float(pixels.max() - pixels.min()) / 255, rel=0.01)
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "q1.onnx").graph.initializer}
    zeros = [value for name, value in weights.items() if name.endswith("zero_point")]
    assert zeros
    assert all(value.dtype == np.int8 and not value.any() for value in zeros)


def test_wrong_input_is_refused_with_the_remedy(
    graphs: dict[Stage, ModelProto], pixels: parity.Array, folder: Path, tmp_path: Path
) -> None:
    few = make_photos(tmp_path / "few", 2)
    (few / "broken.jpg").write_bytes(b"no photo")
    with pytest.raises(ExportError, match=f"2 readable photos, calibration needs {MIN_CALIBRATION_PHOTOS} or more"):
        calibration_pixels(few, SPEC, pixels)
    with pytest.raises(ExportError, match="--calibration"):
        vision(graphs, pixels[:0], tmp_path / "v.onnx")
    with pytest.raises(ExportError, match="not finite"):
        vision(graphs, np.full_like(pixels[:1], np.nan), tmp_path / "v.onnx")
    part = vision(graphs, pixels[:1], tmp_path / "v.onnx")
    with pytest.raises(ExportError, match="no int8 group nonsense"):
        part.quantise(["nonsense"], tmp_path / "q.onnx")
    with pytest.raises(ExportError, match="no int8 group was named"):
        part.quantise([], tmp_path / "q.onnx")
    with pytest.raises(ExportError, match="choose from fp32, int8"):
        ExportOptions(encoder_precision="int4")
    with pytest.raises(ExportError, match="add --encoder-precision int8"):
        ExportOptions(calibration=folder)


@pytest.mark.parametrize("scheme", [CPU_SCHEME, *ENGINE_SCHEMES.values()], ids=lambda scheme: scheme.rounding)
def test_a_siglip_encoder_of_a_newer_opset_is_rounded_too(scheme: Scheme, pixels: parity.Array, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CalmForConditionalGeneration(make_config("siglip")).eval()
    spec = PhotoSpec(size=model.config.vision_config.image_size)
    photos = pixels[:, :, : spec.size, : spec.size]
    protos = cpu_graphs(model, "int8") if scheme is CPU_SCHEME else source_graphs(model, "fp16")
    parts = calibrate_stages(protos, photos, tmp_path, scheme)
    rounded = {stage: part.quantise(part.groups, tmp_path / f"r-{stage}.onnx") for stage, part in parts.items()}
    thematic = [
        parity.onnx_features(sources["vision_encoder"], sources["aligner"], photos[:2])["hidden_thematic"]
        for sources in ({stage: part.graph for stage, part in parts.items()}, rounded)
    ]
    assert 0.98 < cosine_per_photo(*thematic).min() < 1
    kinds = {node.op_type for path in rounded.values() for node in onnx.load(path).graph.node}
    assert ("MultiHeadAttention" in kinds, "Softmax" in kinds) == (scheme is CPU_SCHEME, scheme is not CPU_SCHEME)


def test_photos_of_calibration_are_spread_over_the_folder(pixels: parity.Array) -> None:
    assert len(pixels) == PHOTOS
    assert evenly(100, 4) == [0, 25, 50, 75]
    assert evenly(3, 8) == [0, 1, 2]
    assert "--calibration" in CliRunner().invoke(export, ["--help"]).output
