"""Promises of `calm export --target A --target B`: one bundle for several devices, the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from calm_export.cli import export
from calm_runtime.bundle import FileEntry, Manifest, open_bundle
from calm_runtime.engine_file import read_header

pytest.importorskip("tensorrt_rtx", reason="pip install calm-edge[tensorrt-rtx]", exc_type=ImportError)
pytest_plugins = ["export_fixtures"]
pytestmark = pytest.mark.timeout(900)  # exports and comparisons of 100 photos, on a busy machine


def exported(checkpoint: Path, folder: Path) -> Manifest:
    arguments = [str(checkpoint), "-o", str(folder), "--target", "cpu", "--target", "tensorrt-rtx"]
    result = CliRunner().invoke(export, [*arguments, "--llm-precision", "int8"])
    assert result.exit_code == 0, result.output
    return open_bundle(folder).manifest


def onnx_side(manifest: Manifest) -> dict[str, FileEntry]:
    return {name: entry for name, entry in manifest.files.items() if not name.endswith(".engine")}


def test_two_targets_are_one_bundle_and_twice_gives_the_same_onnx_bytes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    first, second = (exported(tiny_checkpoint, tmp_path / name) for name in ("first", "second"))
    assert {(g.stage, g.target) for g in first.graphs} == {
        ("vision_encoder", "cpu"),
        ("aligner", "cpu"),
        ("llm", "cpu"),
        ("vision_encoder", "tensorrt-rtx"),
        ("aligner", "tensorrt-rtx"),
    }
    assert {"vision_encoder.onnx", "aligner.onnx", "llm/model.onnx"} <= onnx_side(first).keys()
    assert onnx_side(first) == onnx_side(second)
    engines = [g for g in first.graphs if g.target == "tensorrt-rtx"]
    assert all(read_header(tmp_path / "first" / g.path).library == "tensorrt_rtx" for g in engines)
    # Engine bytes differ between builds; the ONNX they were built from does not
    assert [g.onnx_sha256 for g in engines] == [g.onnx_sha256 for g in second.graphs if g.target == "tensorrt-rtx"]
    assert first.provenance.options["targets"] == "cpu tensorrt-rtx"
    assert {"python", "torch", "onnxruntime", "pillow", "tensorrt-rtx"} <= first.provenance.tools.keys()

    report = CliRunner().invoke(
        export, ["verify", str(tmp_path / "first"), "--checkpoint", str(tiny_checkpoint), "--json"]
    )
    assert report.exit_code == 0, report.output
    assert report.stdout.count("built, not run: ") == 2
