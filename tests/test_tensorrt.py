"""Promises of engine builds. TensorRT-RTX builds here; TensorRT shares all but the library and needs a GPU to build."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calm_export import tensorrt
from calm_export.bundle import ExportOptions, export_bundle
from calm_export.tensorrt import (
    BATCHES,
    BUILDERS,
    build_devices,
    build_engine,
    check_version,
    engine_name,
    engine_profile,
    library_version,
    run_build,
)
from calm_export.tensorrt_build import BuildRequest, classify
from calm_runtime.bundle import Graph, Manifest, open_bundle
from calm_runtime.engine_file import read_header
from calm_runtime.errors import (
    EngineMissing,
    EngineVersionMismatch,
    ExportError,
    OperatorUnsupported,
    PrecisionUnsupported,
    ProfileMissing,
)
from calm_runtime.hardware import probe_hardware
from calm_runtime.session import Hardware, Library, select_engine
from calm_runtime.tensorrt_session import TensorRtSession
from calm_runtime.triton_config import served_file

rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="pip install calm-edge[tensorrt-rtx]",
)
pytest_plugins = ["export_fixtures"]
pytestmark = pytest.mark.timeout(900)  # an export with four engines, on a busy machine

DEVICES = ("portable", "8.9")
TARGET_MASK = 32  # byte of the engine's header with one bit per GPU generation it is for
WIDTH = 64


@pytest.fixture(scope="module")
def engines(
    tiny_checkpoint: Path, tiny_options: ExportOptions, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("engines") / "bundle"
    options = replace(tiny_options, targets=("cpu", "cuda", "tensorrt-rtx"), devices=DEVICES, batches=(1, 4, 16))
    export_bundle(tiny_checkpoint, folder, options)
    return folder, open_bundle(folder).manifest


@rtx
def test_every_stage_and_device_has_an_engine_that_says_what_it_needs(engines: tuple[Path, Manifest]) -> None:
    folder, manifest = engines
    version = library_version("tensorrt-rtx")
    graphs = [g for g in manifest.graphs if g.target == "tensorrt-rtx"]
    assert {(g.stage, g.device) for g in graphs} == {(s, d) for s in ("vision_encoder", "aligner") for d in DEVICES}
    for graph in graphs:
        assert graph.path in manifest.files
        header = read_header(folder / graph.path)
        assert header.library == "tensorrt_rtx"
        assert header.version == tuple(int(part) for part in version.split("."))
        assert graph.precision == "fp16"
        assert graph.tool == f"tensorrt-rtx {version}"
        for part in (graph.stage, version, graph.device, graph.onnx_sha256[:12]):
            assert part in graph.path
        for shapes in graph.profile.values():
            assert tuple(shape[0] for shape in shapes) == (1, 4, 16)
    assert manifest.provenance.options["engine_batches"] == "1 4 16"
    vision = [(folder / g.path).read_bytes()[TARGET_MASK] for g in graphs if g.stage == "vision_encoder"]
    portable, ada = vision
    assert portable != ada
    assert portable & ada == ada  # the portable engine also serves the named device


@rtx
def test_the_manifest_proves_that_attention_was_fused(engines: tuple[Path, Manifest]) -> None:
    folder, manifest = engines
    assert len(manifest.engines) == 4
    for evidence in manifest.engines:
        assert (folder / evidence.path).is_file()
        assert 0 < evidence.engine_layers < evidence.network_layers
        assert evidence.activation_bytes > 0
    vision = [e for e in manifest.engines if e.path.startswith("vision_encoder")]
    assert {e.fused_attention for e in vision} == {3}  # one per layer up to the highest tap


@rtx
def test_one_bundle_serves_every_target(engines: tuple[Path, Manifest]) -> None:
    folder, manifest = engines
    for engine, gpu, library in (
        ("cpu", None, "onnxruntime"),
        ("cuda", "9.0", "onnxruntime-gpu"),
        ("tensorrt-rtx", "8.9", "tensorrt_rtx"),
    ):
        installed: frozenset[Library] = frozenset({"onnxruntime-gpu", library})
        choice = select_engine(manifest, installed, Hardware(gpu), engine)
        assert (folder / choice.vision_encoder.graph.path).is_file()
        assert choice.vision_encoder.graph.target == engine
    assert choice.vision_encoder.graph.device == "8.9"
    assert choice.llm.graph.target == "cuda"


@rtx
def test_the_graphs_behind_the_engines_passed_the_gate(engines: tuple[Path, Manifest]) -> None:
    for what in ("fp16 engine source", "fp16 for cuda: hidden", "fp16 for cuda: image", "fp16 for cuda: attribute"):
        rows = [row for row in engines[1].parity if row.metric.startswith(what)]
        assert len(rows) == {"fp16 engine source": 7, "fp16 for cuda: hidden": 4}.get(what, 1)
        assert all(row.passed for row in rows)
    cuda = [graph for graph in engines[1].graphs if graph.target == "cuda"]
    assert [(g.stage, g.precision) for g in cuda] == [(stage, "fp16") for stage in ("vision_encoder", "aligner", "llm")]


@rtx
def test_an_engine_of_another_version_is_refused_with_both_versions(
    engines: tuple[Path, Manifest], tmp_path: Path
) -> None:
    folder, manifest = engines
    graph = next(g for g in manifest.graphs if g.target == "tensorrt-rtx")
    content = bytearray((folder / graph.path).read_bytes())
    whole = tmp_path / "whole.engine"
    whole.write_bytes(content)
    content[24:28] = bytes((1, 0, 0, 33))
    other = tmp_path / "other.engine"
    other.write_bytes(content)
    with pytest.raises(
        EngineVersionMismatch, match=r"built by tensorrt_rtx 1\.0\.0\.33, installed is tensorrt_rtx 1\."
    ):
        TensorRtSession(other, "tensorrt_rtx")
    if not probe_hardware().has_gpu:
        with pytest.raises(EngineMissing, match="nvidia-smi|cuda-bindings"):  # the right version gets as far as the GPU
            TensorRtSession(whole, "tensorrt_rtx")


# One failure mode each


def product(path: Path, kind: int = TensorProto.FLOAT, dtype: Any = np.float32, rows: str | int = "batch") -> Path:
    """An ONNX file of one matrix product: x [rows, WIDTH] f32 -> y, computed in `dtype`."""
    weight = numpy_helper.from_array(np.ones((WIDTH, WIDTH), dtype), "weight")
    nodes = [
        helper.make_node("Cast", ["x"], ["cast"], to=kind),
        helper.make_node("MatMul", ["cast", "weight"], ["raw"], name="/fc/MatMul"),
        helper.make_node("Cast", ["raw"], ["y"], to=TensorProto.FLOAT),
    ]
    return saved(path, nodes, [weight], [rows, WIDTH])


def saved(
    path: Path, nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], shape: list[str | int], opset: int = 18
) -> Path:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], weights)
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains), path)
    return path


def built(path: Path, device: str = "portable") -> None:
    build_engine("tensorrt-rtx", "aligner", path, path.parent, device, "fp32")


@rtx
def test_an_unknown_operator_is_named_with_its_node(tmp_path: Path) -> None:
    nodes = [helper.make_node("Polish", ["x"], ["y"], name="/eyes/Polish_7", domain="com.example")]
    path = saved(tmp_path / "x.onnx", nodes, [], ["batch", WIDTH])
    with pytest.raises(OperatorUnsupported, match="node '/eyes/Polish_7' is a Polish"):
        built(path)
    assert not list(tmp_path.glob("*.engine"))


@rtx
def test_a_dynamic_input_without_a_profile_is_named(tmp_path: Path) -> None:
    path = product(tmp_path / "x.onnx")
    answer = run_build(BuildRequest("tensorrt_rtx", str(path), str(tmp_path / "x.engine"), "portable", {}))
    assert (answer.fault, answer.reason) == ("profile", "no optimization profile for the dynamic input x")
    with pytest.raises(ProfileMissing, match=r"no optimisation profile for x.*only the batch may be dynamic"):
        built(saved(path, [helper.make_node("Relu", ["x"], ["y"])], [], ["batch", "width"]))


@rtx
@pytest.mark.parametrize(
    ("kind", "dtype", "device", "reason"),
    [
        (TensorProto.FLOAT, np.float32, "7.5", "FP32 GEMM is not supported"),
        (TensorProto.BFLOAT16, ml_dtypes.bfloat16, "7.5", "b16"),
    ],
)
def test_a_precision_the_gpu_lacks_is_told(tmp_path: Path, kind: int, dtype: Any, device: str, reason: str) -> None:
    path = product(tmp_path / "x.onnx", kind, dtype)
    with pytest.raises(PrecisionUnsupported, match=rf"for {device}: .*{reason}.*--engine-precision"):
        built(path, device)
    built(path)  # the next build of this program is not touched by the failure


@rtx
def test_eight_bit_floats_are_for_ada_and_later(tmp_path: Path) -> None:
    scale = numpy_helper.from_array(np.array(0.1, np.float32), "scale")
    zero = numpy_helper.from_array(np.array(0, ml_dtypes.float8_e4m3fn), "zero")
    weight = numpy_helper.from_array(np.ones((WIDTH, WIDTH), np.float32), "weight")
    nodes = [
        node
        for name in ("x", "weight")
        for node in (
            helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_q"]),
            helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "zero"], [f"{name}_d"]),
        )
    ]
    nodes.append(helper.make_node("MatMul", ["x_d", "weight_d"], ["y"]))
    path = saved(tmp_path / "x.onnx", nodes, [weight, scale, zero], ["batch", WIDTH], opset=19)
    with pytest.raises(PrecisionUnsupported, match="fp8"):
        built(path, "8.6")
    built(path, "8.9")


@rtx
@pytest.mark.parametrize("content", [b"", b"no graph at all"])
def test_garbage_is_refused_with_a_reason(tmp_path: Path, content: bytes) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(content)
    with pytest.raises(ExportError, match="cannot be parsed"):
        built(broken)
    assert not list(tmp_path.glob("*.engine"))


@rtx
def test_a_builder_that_dies_is_an_error_of_this_build_alone(tmp_path: Path) -> None:
    path = product(tmp_path / "x.onnx")
    answer = run_build(BuildRequest("tensorrt_rtx", str(path), str(tmp_path / "no" / "folder"), "9.9", {}))
    assert answer.fault
    answer = run_build(
        BuildRequest("tensorrt_rtx", str(path), str(tmp_path / "no" / "folder"), "portable", engine_profile(path))
    )
    assert answer.fault == "builder"
    assert "the builder ended with code 1" in answer.reason
    assert "No such file or directory" in answer.reason


# What holds for both libraries, without either


def test_the_shapes_of_a_profile_are_the_graphs_own(tmp_path: Path) -> None:
    assert engine_profile(product(tmp_path / "x.onnx")) == {"x": tuple((batch, WIDTH) for batch in BATCHES)}
    assert engine_profile(product(tmp_path / "x.onnx"), (1, 16, 32))["x"] == ((1, WIDTH), (16, WIDTH), (32, WIDTH))


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("Network has dynamic or shape inputs, but no optimization profile has been defined.", "profile"),
        ("Cannot compile operation '/fc/MatMul' for Turing (SM75): FP32 GEMM is not supported.", "precision"),
        ("Cannot compile for target(s) sm75, because the model contains HW-specific datatypes: b16.", "precision"),
        ('creator && "Plugin not found, are the plugin name, version, and namespace correct?"', "operator"),
        ("something else", "builder"),
    ],
)
def test_the_builders_words_are_sorted(message: str, fault: str) -> None:
    assert classify(message) == fault


def test_a_library_of_another_generation_is_refused() -> None:
    for target, version in (("tensorrt-rtx", "1.7.1.116"), ("tensorrt", "10.13.3.9"), ("tensorrt", "11.0.0.1")):
        check_version(target, version)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=r"TensorRT 8\.6\.1 is not supported, version 10 or 11 is"):
        check_version("tensorrt", "8.6.1")
    with pytest.raises(ExportError, match=r"TensorRT-RTX 2\.0 is not supported"):
        check_version("tensorrt-rtx", "2.0")


@pytest.mark.parametrize("target", BUILDERS)
def test_a_missing_library_is_named_with_the_remedy(
    target: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=rf"needs the package .*pip install calm-edge\[{target}\]"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", ExportOptions(targets=("cpu", target)))
    assert not (tmp_path / "bundle").exists()


def test_tensorrt_builds_for_the_gpu_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(metadata, "version", lambda name: "10.13.3.9")
    monkeypatch.setattr(tensorrt, "probe_hardware", lambda: Hardware("9.0"))
    assert build_devices("tensorrt", ("portable",)) == ("9.0",)
    monkeypatch.setattr(tensorrt, "probe_hardware", lambda: Hardware())
    with pytest.raises(ExportError, match="nvidia-smi.*--target tensorrt-rtx"):
        build_devices("tensorrt", ("portable",))


def test_a_library_that_cannot_be_imported_is_an_answer(tmp_path: Path) -> None:
    path = product(tmp_path / "x.onnx")
    answer = run_build(BuildRequest("no_such_tensorrt", str(path), str(tmp_path / "x"), "9.0", engine_profile(path)))
    assert answer.fault == "library"
    assert "no_such_tensorrt cannot be imported" in answer.reason
    assert "no_such_tensorrt" not in sys.modules


def test_plans_of_several_gpus_get_the_names_triton_asks_for() -> None:
    names = [engine_name("tensorrt", "aligner", "10.13.3.9", device, "ab" * 32) for device in ("8.9", "9.0")]
    assert names[0] == "aligner.tensorrt-10.13.3.9.8.9.abababababab.plan"
    graphs = [
        Graph("aligner", "tensorrt", name, "fp16", "", device)
        for name, device in zip(names, ("8.9", "9.0"), strict=True)
    ]
    assert [served_file(graph, len(graphs)) for graph in graphs] == ["model_8.9.plan", "model_9.0.plan"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"devices": ("9.0",)}, "no target '9.0'"),
        ({"llm_block": 48}, "no LLM block of 48; choose from 32, 64, 128"),
        ({"engine_precision": "int2"}, "no engine precision 'int2'; choose from fp16, bf16, fp32, int8, fp8, int4"),
        ({"batches": (1, 16, 8)}, "do not go together"),
        ({"targets": ("tensorrt-lite",)}, "no export target tensorrt-lite"),
    ],
)
def test_wrong_options_are_told_at_once(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        ExportOptions(**wrong)
