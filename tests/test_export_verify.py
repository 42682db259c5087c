"""Promises of `calm export verify`: the same model passes, another one is told, and at which stage they part."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import msgspec
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from tiny_models import make_photos

from calm_export import sides
from calm_export.cli import export
from calm_export.stages import Distance, VerifyReport
from calm_runtime.bundle import DEFAULT_BUNDLE, MANIFEST, Manifest, encode_manifest, open_bundle, sign_manifest
from calm_runtime.vision import VISION_OUTPUTS
from calm_train.checkpoint import load_checkpoint, save_checkpoint

pytest_plugins = ["export_fixtures"]
pytestmark = pytest.mark.timeout(900)  # exports and comparisons of 100 photos, on a busy machine

NANO = Path(__file__).resolve().parents[1] / "models" / "calm-nano"
STAGES = ["pixels", *VISION_OUTPUTS, "image_embeds", "attribute_logits", "prompt tokens", "prefill logits",
          "prefill logits", "score", "technical", "greedy text"]  # fmt: skip


def verify(bundle: Path, checkpoint: Path, *more: str | Path) -> Result:
    return CliRunner().invoke(export, ["verify", str(bundle), "--checkpoint", str(checkpoint), *map(str, more)])


def perturbed(checkpoint: Path, part: str, folder: Path) -> Path:
    """The checkpoint with 5% of Gaussian noise on every weight of one part."""
    model, tokenizer, info = load_checkpoint(checkpoint)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in getattr(model, part).parameters():
            weight.mul_(1 + 0.05 * torch.randn(weight.shape, generator=generator))
    save_checkpoint(folder, model, tokenizer, info)
    return folder


def changed(bundle: Path, folder: Path, change: Callable[[Manifest], Manifest]) -> Path:
    """The bundle with another manifest, signed."""
    shutil.copytree(bundle, folder)
    manifest = sign_manifest(change(open_bundle(folder).manifest))
    (folder / MANIFEST).write_bytes(encode_manifest(manifest))
    return folder


@pytest.fixture(scope="module")
def passing(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """The bundle against its own checkpoint, on a folder of photos with hostile names."""
    photos = make_photos(tmp_path_factory.mktemp("gate"), 101, "<script>&{:03d}.jpg".format)
    report = tmp_path_factory.mktemp("report") / "new"
    return verify(tiny_bundle, tiny_checkpoint, "--photos", photos, "--report", report, "--json"), report


def test_a_bundle_is_its_checkpoint_at_every_stage(passing: tuple[Result, Path]) -> None:
    result, _ = passing
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["stage"] for row in rows] == STAGES
    assert all(row["passed"] for row in rows)
    for row in rows:
        if row["stage"] in (*VISION_OUTPUTS, "image_embeds"):
            assert row["cosine"] > 0.99999
            assert row["max_difference"] < 1e-3
            assert row["srcc"] > 0.999
        if row["stage"] != "prompt tokens":
            assert row["photos"] == 101
    assert {row["reference"] for row in rows if row["stage"] == "prefill logits"} == {
        "float32",
        "checkpoint rounded to int8",
    }


def test_the_report_has_the_table_and_every_photo(passing: tuple[Result, Path], tiny_bundle: Path) -> None:
    result, folder = passing
    report = msgspec.json.decode((folder / "verify.json").read_bytes(), type=VerifyReport, strict=True)
    assert [json.loads(line) for line in result.stdout.splitlines()] == msgspec.to_builtins(list(report.stages))
    assert report.bundle == open_bundle(tiny_bundle).digest
    assert (report.passed, report.same_checkpoint, report.first_failing_stage) == (True, True, None)
    assert len(report.photos) == 101
    score = next(row for row in report.stages if row.stage == "score")
    assert max(photo.difference for photo in report.photos) == pytest.approx(score.max_difference, abs=1e-6)


class Page(HTMLParser):
    """What a browser would load, draw and run."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]


def test_the_page_is_one_file_that_loads_and_runs_nothing(passing: tuple[Result, Path]) -> None:
    _, folder = passing
    assert {path.name for path in folder.iterdir()} == {"verify.json", "verify.html"}
    text = (folder / "verify.html").read_text("utf-8")
    page = Page()
    page.feed(text)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "url(" not in text
    assert "@import" not in text
    assert page.tags.count("circle") == 101  # one dot per photo
    assert page.tags.count("img") == 12
    for address in page.addresses:
        head, _, data = address.partition(",")
        assert head == "data:image/jpeg;base64"
        picture = Image.open(BytesIO(base64.b64decode(data)))
        assert picture.format == "JPEG"
        assert max(picture.size) <= 112
    assert all(stage in text for stage in STAGES)


@pytest.mark.parametrize(
    ("part", "stage"), [("vision_encoder", "hidden_low"), ("aligner", "image_embeds"), ("llm", "prefill logits")]
)
def test_perturbed_weights_fail_at_the_stage_they_belong_to(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, part: str, stage: str
) -> None:
    result = verify(tiny_bundle, perturbed(tiny_checkpoint, part, tmp_path / "noisy"), "--report", tmp_path / "report")
    assert result.exit_code == 1
    assert f"fails at {stage}" in result.stderr
    assert "exported from another checkpoint" in result.stderr
    report = msgspec.json.decode((tmp_path / "report" / "verify.json").read_bytes(), type=VerifyReport)
    assert report.first_failing_stage == stage
    assert not report.same_checkpoint
    before = [row for row in report.stages if row.stage in STAGES[: STAGES.index(stage)]]
    assert all(row.passed for row in before)
    assert f"fails at {stage}" in (tmp_path / "report" / "verify.html").read_text("utf-8")


def test_other_preprocessing_fails_at_the_pixels(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    def brighter(manifest: Manifest) -> Manifest:
        photo = msgspec.structs.replace(manifest.photo, mean=(0.5, 0.5, 0.5))
        return msgspec.structs.replace(manifest, photo=photo)

    result = verify(changed(tiny_bundle, tmp_path / "bundle", brighter), tiny_checkpoint)
    assert result.exit_code == 1
    assert "fails at pixels" in result.stderr


def test_another_prompt_fails_at_its_tokens(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    def swapped(manifest: Manifest) -> Manifest:
        prompts = manifest.prompts | {"suggest": manifest.prompts["comment"]}
        return msgspec.structs.replace(manifest, prompts=prompts)

    result = verify(changed(tiny_bundle, tmp_path / "bundle", swapped), tiny_checkpoint, "--json")
    assert result.exit_code == 1
    assert "fails at prompt tokens" in result.stderr
    assert "differs for suggest" in result.stdout


def test_text_that_torch_would_not_write_fails_at_the_text(
    tiny_bundle: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = sides.Decoder._write
    monkeypatch.setattr(
        sides.Decoder, "_write", lambda self, embeds: [(t + i) % 300 for i, t in enumerate(write(self, embeds))]
    )
    result = verify(tiny_bundle, tiny_checkpoint)
    assert result.exit_code == 1
    assert "fails at greedy text" in result.stderr


def test_the_shipped_bundle_is_told_from_a_perturbed_checkpoint_in_spite_of_its_four_bits(tmp_path: Path) -> None:
    assert next(g.precision for g in open_bundle(DEFAULT_BUNDLE).manifest.graphs if g.stage == "llm") == "int4"
    result = verify(DEFAULT_BUNDLE, perturbed(NANO, "llm", tmp_path / "noisy"), "--json")
    assert result.exit_code == 1
    failing = [row for row in map(json.loads, result.stdout.splitlines()) if row["passed"] is False]
    assert failing[0]["stage"] == "prefill logits"


def test_a_damaged_bundle_is_named(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    with (broken / "aligner.onnx").open("ab") as handle:
        handle.write(b"x")
    result = verify(broken, tiny_checkpoint)
    assert result.exit_code == 1
    assert "aligner.onnx" in result.stderr


def test_wrong_use_is_exit_code_two(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    few = make_photos(tmp_path / "few", 3)
    before = {path: path.stat().st_mtime_ns for path in tiny_bundle.rglob("*")}
    for arguments, said in (
        ((tiny_bundle, tiny_checkpoint, "--report", tiny_bundle / "report"), "inside the bundle"),
        ((tiny_bundle, tiny_checkpoint, "--report", tiny_bundle / "llm" / ".." / "report"), "inside the bundle"),
        ((tiny_bundle, tiny_checkpoint, "--report", few / "000.jpg"), "is a file"),
        ((tiny_bundle, tiny_checkpoint, "--photos", few), "needs 100"),
        ((tiny_bundle, few), "not a checkpoint"),
        ((few, tiny_checkpoint), "no manifest.json"),
        ((DEFAULT_BUNDLE, tiny_checkpoint), "different models: photo size"),
        ((tiny_bundle, tmp_path / "nowhere"), "does not exist"),
    ):
        result = verify(*arguments)
        assert result.exit_code == 2, result.output
        assert said in re.sub(r"\s+", " ", result.stderr)
        assert result.stdout == ""
    assert {path: path.stat().st_mtime_ns for path in tiny_bundle.rglob("*")} == before


def test_values_that_are_not_finite_never_pass() -> None:
    distance = Distance()
    distance.add(torch.ones(4).numpy(), torch.tensor([1.0, float("nan"), 1.0, 1.0]).numpy())
    row = distance.row("score", "engine", "fp32", "float32", min_cosine=0.0, max_difference=10.0)
    assert row.passed is False
    assert row.cosine is None


def test_help_teaches_both_uses() -> None:
    help_text = CliRunner().invoke(export, ["--help"]).output
    assert "calm export models/calm-nano -o my-bundle" in help_text
    assert "calm export verify my-bundle --checkpoint" in help_text
    assert "--allow-drift" in help_text
    result = CliRunner().invoke(export, ["verify", "--help"])
    assert result.exit_code == 0
    assert "BUNDLE" in result.output
    assert "--checkpoint" in result.output
    assert CliRunner().invoke(export, []).exit_code == 2
    assert CliRunner().invoke(export, ["verify"]).exit_code == 2
