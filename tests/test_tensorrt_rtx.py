"""Promises of the TensorRT-RTX target. Engines are built here; running them needs a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from calm_export import tensorrt_rtx
from calm_export.bundle import ExportOptions, export_bundle
from calm_export.tensorrt_rtx import BATCHES, MAGIC, build_engine, tensorrt_version
from calm_runtime.bundle import Manifest, open_bundle
from calm_runtime.errors import ExportError
from calm_runtime.session import Hardware, Library, select_engine

pytest.importorskip("tensorrt_rtx", reason="pip install calm-edge[tensorrt-rtx]", exc_type=ImportError)
pytest_plugins = ["export_fixtures"]

DEVICES = ("portable", "8.9")
TARGET_MASK = 32  # byte of the engine's header with one bit per GPU generation it is for


@pytest.fixture(scope="module")
def engines(
    tiny_checkpoint: Path, tiny_options: ExportOptions, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("engines") / "bundle"
    options = replace(tiny_options, targets=("cpu", "cuda", "tensorrt-rtx"), devices=DEVICES)
    export_bundle(tiny_checkpoint, folder, options)
    return folder, open_bundle(folder).manifest


def test_every_stage_and_device_has_an_engine_that_says_what_it_needs(engines: tuple[Path, Manifest]) -> None:
    folder, manifest = engines
    graphs = [g for g in manifest.graphs if g.target == "tensorrt-rtx"]
    assert {(g.stage, g.device) for g in graphs} == {(s, d) for s in ("vision_encoder", "aligner") for d in DEVICES}
    for graph in graphs:
        assert graph.path in manifest.files
        assert (folder / graph.path).read_bytes()[:4] == MAGIC
        assert graph.precision == "fp16"
        assert graph.tool == f"tensorrt-rtx {tensorrt_version()}"
        for part in (graph.stage, tensorrt_version(), graph.device, graph.onnx_sha256[:12]):
            assert part in graph.path
        for shapes in graph.profile.values():
            assert tuple(shape[0] for shape in shapes) == BATCHES
    vision = [(folder / g.path).read_bytes()[TARGET_MASK] for g in graphs if g.stage == "vision_encoder"]
    portable, ada = vision
    assert portable != ada
    assert portable & ada == ada  # the portable engine also serves the named device


def test_the_manifest_proves_that_attention_was_fused(engines: tuple[Path, Manifest]) -> None:
    folder, manifest = engines
    assert len(manifest.engines) == 4
    for evidence in manifest.engines:
        assert (folder / evidence.path).is_file()
        assert 0 < evidence.engine_layers < evidence.network_layers
        assert evidence.activation_bytes > 0
    vision = [e for e in manifest.engines if e.path.startswith("vision_encoder")]
    assert {e.fused_attention for e in vision} == {3}  # one per layer up to the highest tap


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


def test_the_graphs_behind_the_engines_passed_the_gate(engines: tuple[Path, Manifest]) -> None:
    rows = [row for row in engines[1].parity if row.metric.startswith("fp16 engine source")]
    assert len(rows) == 6
    assert all(row.passed for row in rows)


def test_garbage_is_refused_with_a_reason(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"")
    with pytest.raises(ExportError, match="cannot be parsed"):
        build_engine("aligner", broken, tmp_path, "portable", "fp32")
    assert not list(tmp_path.glob("*.engine"))


def test_an_unknown_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no target '9.0'"):
        build_engine("aligner", tmp_path / "x.onnx", tmp_path, "9.0", "fp16")


def test_a_missing_library_is_named_with_the_remedy(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_rtx.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"pip install calm-edge\[tensorrt-rtx\]"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", ExportOptions(targets=("cpu", "tensorrt-rtx")))
