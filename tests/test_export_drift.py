"""Promises of `calm export --allow-drift`: the bundle appears, says that it drifted, and `calm check` fails it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from calm_export import parity
from calm_export.bundle import ExportOptions, export_bundle
from calm_export.cli import export
from calm_runtime.bundle import ParityRow, open_bundle
from calm_runtime.cli.check import check
from calm_runtime.errors import ExportError

pytest_plugins = ["export_fixtures"]
pytestmark = pytest.mark.timeout(900)  # exports and comparisons of 100 photos, on a busy machine


def test_drift_is_refused_unless_allowed_and_then_told(
    tiny_checkpoint: Path, tiny_options: ExportOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(parity.MAX_SCORE_DIFFERENCE, "int8", 0.0)
    arguments = [str(tiny_checkpoint), "-o", str(tmp_path / "bundle"), "--llm-precision", "int8"]
    refused = CliRunner().invoke(export, arguments)
    assert refused.exit_code == 1
    assert "misses the parity gate" in refused.stderr
    assert not list(tmp_path.iterdir())

    allowed = CliRunner().invoke(export, [*arguments, "--allow-drift"])
    assert allowed.exit_code == 0, allowed.output
    assert "not the same model as its checkpoint" in allowed.stderr
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert manifest.drift_allowed
    assert manifest.provenance.options["allow_drift"] == "yes"
    missed = [row.metric for row in manifest.parity if not row.passed]
    assert missed == [f"{where}{what} difference max" for where in ("", "golden ") for what in ("score", "technical")]

    plain = CliRunner().invoke(check, ["--bundle", str(tmp_path / "bundle"), "--json"], standalone_mode=False)
    assert plain.return_value == 1
    findings = {f["check"]: f for f in map(json.loads, plain.stdout.splitlines())}
    assert not findings["parity"]["passed"]
    for words in ("does not compute what its checkpoint computes", "--allow-drift", "score difference max is 0."):
        assert words in findings["parity"]["detail"]
    assert findings["files"]["passed"]
    assert all(f["passed"] for name, f in findings.items() if name.endswith(".jpg"))


def test_allowed_but_not_needed_leaves_no_mark(tiny_bundle: Path) -> None:
    manifest = open_bundle(tiny_bundle).manifest
    assert not manifest.drift_allowed
    assert manifest.provenance.options["allow_drift"] == "no"
    result = CliRunner().invoke(check, ["--bundle", str(tiny_bundle), "--json"], standalone_mode=False)
    parity_line = next(f for f in map(json.loads, result.stdout.splitlines()) if f["check"] == "parity")
    assert parity_line["passed"]
    assert f"met its {len(manifest.parity)} gates" in parity_line["detail"]


def test_a_figure_that_is_no_number_is_refused_even_when_drift_is_allowed(
    tiny_checkpoint: Path, tiny_options: ExportOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [ParityRow("vision_encoder", "hidden_low cosine min", float("nan"), 0.9999, False, 100)]
    monkeypatch.setattr(parity, "feature_rows", lambda *arguments: broken)
    with pytest.raises(ExportError, match="hidden_low cosine min is nan"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", replace(tiny_options, allow_drift=True))
    assert not list(tmp_path.iterdir())
