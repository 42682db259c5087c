"""Promises of `calm export pack`: what is in the folder is enough to score, and scores as the bundle does."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner

from calm_export import packs
from calm_export.cli import export
from calm_export.graph import write_graph
from calm_export.packs import PACK, Pack, make_pack, sign_pack
from calm_runtime import Calm
from calm_runtime.bundle import Bundle, FileEntry, open_bundle
from calm_runtime.errors import ExportError
from calm_runtime.onnx_session import OnnxSession
from calm_runtime.vision import VisionEncoder

pytest_plugins = ["export_fixtures"]
pytestmark = pytest.mark.timeout(900)  # conversions on a busy machine


@pytest.fixture(scope="module")
def bundle(nano_bundle: Path) -> Bundle:
    return open_bundle(nano_bundle)


@pytest.fixture(scope="module")
def web(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs") / "web"
    make_pack(bundle, "web", folder)
    return folder


@pytest.fixture(scope="module")
def mobile(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs") / "mobile"
    make_pack(bundle, "mobile", folder)
    return folder


def read(folder: Path) -> Pack:
    return msgspec.json.decode((folder / PACK).read_bytes(), type=Pack)


def score_with_the_pack_alone(folder: Path, pixels: np.ndarray) -> tuple[float, float, float]:
    """What an app does: pack.json, three sessions, one matrix of prompt embeddings. pixels: [3, S, S]."""
    pack = json.loads((folder / PACK).read_bytes())
    sessions = {
        stage: onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
        for stage, name in pack["graphs"].items()
    }

    def run(stage: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [output.name for output in sessions[stage].get_outputs()]
        return dict(zip(names, sessions[stage].run(names, feeds), strict=True))

    llm, prompt = pack["llm"], pack["prompt"]
    rows = np.fromfile(folder / prompt["path"], "<f4").reshape(-1, llm["hidden_size"])
    before, after = np.split(rows, [len(prompt["before"])])
    assert len(after) == len(prompt["after"])
    seen = run("vision_encoder", {"pixel_values": pixels[None]})
    image = run("aligner", {name: value for name, value in seen.items() if name.startswith("hidden_")})["image_embeds"][
        0
    ]
    embeds = np.concatenate([before, image, after])[None]
    feeds = {"inputs_embeds": embeds, "attention_mask": np.ones(embeds.shape[:2], np.int64)}
    for layer in range(llm["layers"]):
        for half in ("key", "value"):
            empty = np.zeros((1, llm["kv_heads"], 0, llm["head_dim"]), np.float32)
            feeds[f"past_key_values.{layer}.{half}"] = empty
    last = run("llm", feeds)["logits"][0, -1]
    score, technical = (expectation(last, pack[question]) for question in ("score", "technical"))
    return score, technical, float(np.interp(score, pack["reference"]["quantiles"], np.arange(101)))


def expectation(logits: np.ndarray, spec: dict[str, Any]) -> float:
    picked = logits[spec["token_ids"]].astype(np.float64)
    histogram = np.exp(picked - picked.max())
    return float(histogram / histogram.sum() @ np.arange(spec["low"], spec["high"] + 1))


@pytest.mark.parametrize("target", ["web", "mobile"])
def test_a_pack_alone_scores_as_the_bundle(
    target: str, request: pytest.FixtureRequest, calm: Calm, example_photos: list[Path]
) -> None:
    folder = request.getfixturevalue(target)
    scores = [calm.score(photo) for photo in example_photos[:4]]
    found = [score_with_the_pack_alone(folder, calm.decode(photo)[0]) for photo in example_photos[:4]]
    expected = np.array([(score.mean, score.technical, score.percentile) for score in scores])
    assert (np.abs(np.array(found) - expected).max(axis=0) <= (0.01, 0.01, 1.0)).all()
    assert (expected.std(axis=0) > 0.1).all()  # or agreement would mean nothing


@pytest.mark.parametrize("target", ["web", "mobile"])
def test_every_byte_is_covered_by_the_digest(target: str, request: pytest.FixtureRequest, bundle: Bundle) -> None:
    folder = request.getfixturevalue(target)
    pack = read(folder)
    assert {path.name for path in folder.iterdir()} == {PACK, *pack.files}
    for name, entry in pack.files.items():
        data = (folder / name).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (entry.sha256, entry.bytes)
    assert sign_pack(pack) == pack
    # how a program in another language checks it: the digest taken out of the file's own bytes
    raw = (folder / PACK).read_bytes()
    blank = raw.replace(f'"digest": "{pack.digest}"'.encode(), b'"digest": ""')
    assert hashlib.sha256(blank).hexdigest() == pack.digest
    assert (pack.target, pack.bundle, pack.golden) == (target, bundle.digest, bundle.manifest.golden)


def test_the_web_pack_holds_the_bundles_own_graphs(web: Path, bundle: Bundle) -> None:
    for graph in bundle.manifest.graphs:
        if graph.target == "cpu":
            assert read(web).files[f"{graph.stage}.onnx"].sha256 == graph.onnx_sha256


def test_the_mobile_pack_names_the_operators_of_a_reduced_build(mobile: Path) -> None:
    text = (mobile / "required_operators.config").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    operators = {name for line in lines for name in line.split(";")[2].split(",")}
    assert {"Conv", "LayerNormalization", "GroupQueryAttention", "MatMulNBits"} <= operators
    assert "/" not in text  # no path of the machine it was made on
    assert {path.suffix for path in mobile.iterdir()} == {".ort", ".json", ".f32", ".config"}


def test_a_pack_that_scores_differently_is_not_written(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "MAX_SCORE_DIFFERENCE", -1.0)
    with pytest.raises(ExportError, match=r"score up to 0\.\d+ apart"):
        make_pack(bundle, "mobile", tmp_path / "pack")
    assert not list(tmp_path.iterdir())


def test_weights_beside_a_graph_come_into_the_packs_one_file(bundle: Bundle, tmp_path: Path) -> None:
    original = bundle.file("aligner.onnx")
    source, data = write_graph(onnx.load(original), tmp_path / "aligner.onnx", inline_limit=1000)
    (tmp_path / "pack").mkdir()
    (tmp_path / "linked").hardlink_to(data)  # as in a Triton repository made of the bundle
    packs._write_web({"aligner": source}, tmp_path / "pack")
    data.unlink()
    assert [file.name for file in (tmp_path / "pack").iterdir()] == ["aligner.onnx"]
    session, plain = (OnnxSession(path) for path in (tmp_path / "pack" / "aligner.onnx", original))
    seen = VisionEncoder(OnnxSession(bundle.file("vision_encoder.onnx")))(np.zeros((1, 3, 224, 224), np.float32))
    feeds = {name: seen[name] for name in plain.input_dtypes}
    wanted = plain.run(feeds)
    assert all(np.array_equal(value, wanted[name]) for name, value in session.run(feeds).items())


def test_a_model_above_two_gigabytes_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    files = bundle.manifest.files | {"llm/model.onnx.data": FileEntry("0" * 64, 3_000_000_000)}
    large = replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, files=files))
    with pytest.raises(ExportError, match=r"llm/model.onnx with its weights is above 2 GB"):
        make_pack(large, "web", tmp_path / "pack")
    assert not list(tmp_path.iterdir())


def test_the_command_replaces_packs_only(nano_bundle: Path, tmp_path: Path) -> None:
    def pack(*arguments: str) -> str:
        result = CliRunner().invoke(export, ["pack", str(nano_bundle), "--target", "web", *arguments])
        return result.output if result.exit_code else ""

    made, other = tmp_path / "made", tmp_path / "other"
    assert pack("-o", str(made)) == ""
    assert "--overwrite" in pack("-o", str(made))
    assert pack("-o", str(made), "--overwrite") == ""
    other.mkdir()
    (other / "diary.txt").write_text("mine")
    assert "is not a pack" in pack("-o", str(other), "--overwrite")
    assert (other / "diary.txt").read_text() == "mine"
    assert "inside the bundle" in pack("-o", str(nano_bundle / "web"))
    assert not (nano_bundle / "web").exists()


def test_export_writes_the_packs_beside_the_bundle(tiny_checkpoint: Path, tmp_path: Path) -> None:
    targets = ["--target", "web", "--target", "mobile", "--llm-precision", "int8"]
    result = CliRunner().invoke(export, [str(tiny_checkpoint), "-o", str(tmp_path / "tiny"), *targets])
    assert result.exit_code == 0, result.output
    made = open_bundle(tmp_path / "tiny")
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "tiny-web", "tiny-mobile"}
    assert {read(tmp_path / f"tiny-{target}").bundle for target in ("web", "mobile")} == {made.digest}
    assert made.manifest.provenance.options["targets"] == "cpu"  # packs leave the bundle as it is
    pixels = np.random.default_rng(1).normal(size=(3, made.manifest.photo.size, made.manifest.photo.size))
    web, mobile = (
        score_with_the_pack_alone(tmp_path / f"tiny-{target}", pixels.astype(np.float32))
        for target in ("web", "mobile")
    )
    assert web == pytest.approx(mobile, abs=0.01)
