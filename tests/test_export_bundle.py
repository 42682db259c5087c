"""Promises of `calm export`: proven, whole, repeatable."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner
from onnx import ModelProto

from calm_export import eyes, parity
from calm_export.bundle import ExportOptions, export_bundle
from calm_export.cli import export
from calm_export.vision import export_vision
from calm_runtime import Calm
from calm_runtime.bundle import ParityRow, open_bundle
from calm_runtime.errors import DataError, ExportError
from calm_train.checkpoint import load_checkpoint
from calm_train.model import CalmForConditionalGeneration

pytest_plugins = ["export_fixtures"]


def test_the_bundle_opens_and_scores_as_its_golden_scores_say(tiny_bundle: Path, tiny_options: ExportOptions) -> None:
    opened = open_bundle(tiny_bundle)
    with Calm.load(tiny_bundle) as calm:
        for golden, path in zip(opened.manifest.golden, tiny_options.examples, strict=True):
            assert golden.photo == path.name
            score = calm.score(path)
            assert score.mean == pytest.approx(golden.score, abs=1e-4)
            assert score.technical == pytest.approx(golden.technical, abs=1e-4)


def test_the_manifest_says_where_the_bundle_comes_from_and_how_it_was_proven(tiny_bundle: Path) -> None:
    manifest = open_bundle(tiny_bundle).manifest
    assert all(row.passed for row in manifest.parity)
    assert {row.photos for row in manifest.parity if row.stage != "bundle"} == {100}
    assert {row.stage for row in manifest.parity} == {"vision_encoder", "aligner", "llm", "bundle"}
    assert {"photo_embeds cosine min", "technical difference max", "technical SRCC"} <= {
        r.metric for r in manifest.parity
    }
    assert {"torch", "onnxruntime", "onnxruntime-genai"} <= manifest.provenance.tools.keys()
    assert len(manifest.provenance.checkpoint_sha256) == 64
    assert str(Path.home()) not in (tiny_bundle / "manifest.json").read_text()


def test_a_second_export_is_byte_identical_and_auto_takes_the_smallest_that_passes(
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    tiny_options: ExportOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(parity.MAX_SCORE_DIFFERENCE, "int4", 0.0)
    manifest = export_bundle(tiny_checkpoint, tmp_path / "again", replace(tiny_options, llm_precision="auto"))
    assert next(g.precision for g in manifest.graphs if g.stage == "llm") == "int8"
    assert manifest.files == open_bundle(tiny_bundle).manifest.files


def test_a_perturbed_graph_is_refused_and_nothing_is_written(
    tiny_checkpoint: Path, tiny_options: ExportOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def perturbed(model: CalmForConditionalGeneration, *, fused: bool) -> ModelProto:
        twin = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in twin.vision_encoder.parameters():
                weight.mul_(1 + 0.05 * torch.randn(weight.shape, generator=generator))
        return export_vision(twin, fused=fused)

    old = tmp_path / "bundle"
    old.mkdir()
    (old / "manifest.json").write_text("the old one")
    monkeypatch.setattr(eyes, "export_vision", perturbed)
    with pytest.raises(ExportError, match=r"hidden_low cosine min is 0\.\d+, the gate is 0\.999"):
        export_bundle(tiny_checkpoint, old, replace(tiny_options, overwrite=True))
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    assert (old / "manifest.json").read_text() == "the old one"


def test_an_existing_bundle_is_replaced_only_when_asked(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(ExportError, match="--overwrite"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", ExportOptions())


def test_a_folder_that_is_no_bundle_is_never_replaced(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear Anna")
    with pytest.raises(ExportError, match="is not a bundle"):
        export_bundle(tiny_checkpoint, tmp_path, ExportOptions(overwrite=True))
    assert (tmp_path / "letters.txt").read_text() == "dear Anna"


def test_scores_that_drift_or_change_order_miss_the_gate() -> None:
    scores, technical = np.linspace(1, 10, 100), np.linspace(9, 2, 100)
    reference = parity.Seen({}, parity.Ratings(scores, technical))

    def passed(*ratings: npt.NDArray[np.float64], precision: str = "int8") -> list[bool]:
        return [row.passed for row in parity.rating_rows(reference, parity.Ratings(*ratings), precision)]

    assert passed(scores + 0.01, technical - 0.01, precision="fp32") == [True, True, True, True]
    assert passed(scores + 0.2, technical) == [False, True, True, True]
    assert passed(scores, technical + 0.2) == [True, True, False, True]
    assert passed(np.random.default_rng(0).permutation(scores), technical) == [False, False, True, True]
    constant = parity.Seen({}, parity.Ratings(np.full(100, 5.0), technical))
    assert not parity.rating_rows(constant, constant.ratings, "fp32")[1].passed


def test_a_missed_gate_is_told_with_its_numbers() -> None:
    with pytest.raises(ExportError, match="llm score difference max is 0.30000, the gate is 0.15"):
        parity.require([ParityRow("llm", "score difference max", 0.3, 0.15, False, 100)], "the export")


def test_too_few_photos_are_refused(tiny_checkpoint: Path, tiny_options: ExportOptions, tmp_path: Path) -> None:
    folder = tiny_options.examples[0].parent
    with pytest.raises(ExportError, match="the parity gate needs 100"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", replace(tiny_options, photos=folder))
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_comes_back_as_it_was_saved(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model, tokenizer, info = load_checkpoint(tiny_checkpoint)
    assert info.model.name == "calm-tiny-random"
    assert tokenizer.token_to_id("<score_10>") == model.config.score_token_ids[-1]
    with pytest.raises(DataError, match="not a checkpoint"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("key", "moved"),
    [("score_token_ids", "<score_1> has id 3"), ("technical_token_ids", "<technical_1> has id 13")],
)
def test_a_checkpoint_whose_tokens_moved_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, key: str, moved: str
) -> None:
    for path in tiny_checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config[key] = list(range(4, 14))
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=moved):
        load_checkpoint(tmp_path)


def test_the_command_names_the_cause_without_a_traceback(tmp_path: Path) -> None:
    result = CliRunner().invoke(export, [str(tmp_path), "-o", str(tmp_path / "bundle")])
    assert result.exit_code == 1
    assert "not a checkpoint" in result.output
    assert "Traceback" not in result.output
