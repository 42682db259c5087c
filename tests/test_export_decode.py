"""Promises of a second LLM graph: one reads photos and prompts, the other what is written, behind the same caches."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from test_export_llm import attentions
from test_export_verify import changed, perturbed, verify

from calm_export.bundle import ExportOptions, export_bundle
from calm_export.cli import export
from calm_export.decoders import LLM, LLM_DECODE
from calm_export.figures import cosine_per_photo
from calm_export.llm import export_llm, llm_spec, open_llm, write_llm_source
from calm_runtime import Calm
from calm_runtime.bundle import LLM_STAGES, FileEntry, Manifest, file_sha256, open_bundle
from calm_runtime.errors import EngineError, ExportError
from calm_runtime.llm import read_embed_tokens
from calm_runtime.triton_repository import build
from calm_train.checkpoint import load_checkpoint

pytest_plugins = ["export_fixtures"]
pytestmark = pytest.mark.timeout(900)  # exports and comparisons of 100 photos, on a busy machine


@pytest.fixture(scope="module")
def options(tiny_options: ExportOptions) -> ExportOptions:
    return replace(tiny_options, llm_precision="int8-dynamic", llm_decode_precision="int8")


@pytest.fixture(scope="module")
def two_graphs(tiny_checkpoint: Path, options: ExportOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two") / "bundle"
    export_bundle(tiny_checkpoint, folder, options)
    return folder


def test_the_manifest_names_both_and_both_were_proven(two_graphs: Path) -> None:
    manifest = open_bundle(two_graphs).manifest
    graphs = {graph.stage: graph for graph in manifest.graphs}
    assert (graphs["llm"].precision, graphs["llm_decode"].precision) == ("int8-dynamic", "int8")
    assert graphs["llm_decode"].path == LLM_DECODE
    assert {row.stage for row in manifest.parity} >= {"llm", "llm_decode"}
    assert manifest.provenance.options["llm_decode_precision"] == "int8"
    reads, writes = (onnx.load(two_graphs / graphs[stage].path).graph for stage in LLM_STAGES)
    assert attentions(reads) == 4 * (manifest.llm.layers - 1) + 1
    assert attentions(writes) == 0


def test_a_rounded_graph_reads_a_long_prompt_as_the_whole_one_does(
    two_graphs: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model, tokenizer, _ = load_checkpoint(tiny_checkpoint)
    export_llm(write_llm_source(model, tokenizer, tmp_path / "source"), "int8-dynamic", tmp_path)
    spec, table = llm_spec(model.config.text_config), read_embed_tokens(two_graphs / "embed_tokens.safetensors")
    embeds = np.random.default_rng(0).standard_normal((2, 201, spec.hidden_size), np.float32)
    whole, parts = (open_llm(p, table, spec).prefill(embeds) for p in (tmp_path / "model.onnx", two_graphs / LLM))
    # Sums in another order may round an activation to the other side: once in 127 of its range
    assert cosine_per_photo(whole[0], parts[0]).min() > 0.999
    for (key, value), (its_key, its_value) in zip(whole[1].layers, parts[1].layers, strict=True):
        assert key.shape == its_key.shape == value.shape == its_value.shape
        assert cosine_per_photo(value.reshape(2, -1), its_value.reshape(2, -1)).min() > 0.999


def test_the_second_is_loaded_with_the_first_text_and_writes_all_of_it(
    two_graphs: Path, options: ExportOptions, tmp_path: Path
) -> None:
    photo = options.examples[0]
    with Calm.load(two_graphs) as calm:
        assert calm.engine.stages["llm_decode"].graph.precision == "int8"
        calm.score(photo)
        llm = calm._llm
        assert llm._decode_session is None
        words = "".join(calm.look(photo).answer("comment", max_new_tokens=12))
        assert llm._decode_session is not None
        # The same by hand: the prompt through one graph, every token through the other
        before, after = calm._prompt("comment")
        embeds = np.concatenate([llm.embed(before)[None], calm.see(calm.decode(photo)[0][None])[0].image_embeds], 1)
        _, cache = llm.prefill(embeds)
        logits, cache = llm.prefill(llm.embed(after)[None], cache)
        spec = calm.bundle.manifest
        barred = [*spec.rating_tokens, spec.llm.bos_token_id, spec.llm.pad_token_id]
        tokens: list[int] = []
        while len(tokens) < 12:
            logits[0, [t for t in barred if t != spec.llm.eos_token_id]] = -np.inf
            if int(logits[0].argmax()) == spec.llm.eos_token_id:
                break
            tokens.append(int(logits[0].argmax()))
            logits, cache = llm._run(llm._decode_session, llm.embed(tokens[-1:])[None], cache)
        assert words.strip() == calm._text.decode(tokens).strip()
        late = calm.look(photo)
    with pytest.raises(EngineError, match="closed"):
        list(late.answer("comment"))


def test_verify_compares_both_with_the_checkpoint(two_graphs: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = verify(two_graphs, tiny_checkpoint, "--json")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    stages = [(row["stage"], row["precision"]) for row in rows if row["stage"] in ("prefill logits", "decode logits")]
    assert stages == [("prefill logits", "int8-dynamic")] * 2 + [("decode logits", "int8")] * 2
    assert next(row["precision"] for row in rows if row["stage"] == "greedy text") == "int8"

    model, tokenizer, _ = load_checkpoint(perturbed(tiny_checkpoint, "llm", tmp_path / "noisy"))
    source = write_llm_source(model, tokenizer, tmp_path / "source")

    def foreign(manifest: Manifest) -> Manifest:
        export_llm(source, "int8", (tmp_path / "other" / LLM_DECODE).parent)
        path = tmp_path / "other" / LLM_DECODE
        graphs = [
            msgspec.structs.replace(graph, onnx_sha256=file_sha256(path)) if graph.stage == "llm_decode" else graph
            for graph in manifest.graphs
        ]
        files = manifest.files | {LLM_DECODE: FileEntry(file_sha256(path), path.stat().st_size)}
        return msgspec.structs.replace(manifest, graphs=tuple(graphs), files=files)

    result = verify(changed(two_graphs, tmp_path / "other", foreign), tiny_checkpoint, "--json")
    assert result.exit_code == 1
    assert "fails at decode logits" in result.output


def test_a_triton_repository_has_it_where_text_is_written(two_graphs: Path, tmp_path: Path) -> None:
    build(two_graphs, tmp_path / "repository")
    found = {path.relative_to(tmp_path / "repository").parts[0] for path in tmp_path.rglob("llm-decode/model.onnx")}
    assert found == {"calm_llm", "calm_text"}


def test_a_second_graph_like_the_first_is_wrong_use(tiny_checkpoint: Path, tmp_path: Path) -> None:
    arguments = [str(tiny_checkpoint), "-o", str(tmp_path / "b"), "--llm-precision", "int8"]
    result = CliRunner().invoke(export, [*arguments, "--llm-decode-precision", "int8"])
    assert result.exit_code == 1
    assert "would be the first again" in result.output
    with pytest.raises(ExportError, match="no precision 'int2' to write"):
        ExportOptions(llm_decode_precision="int2")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_fast_is_four_options_and_those_given_beside_it_win(tiny_checkpoint: Path, tmp_path: Path) -> None:
    arguments = [str(tiny_checkpoint), "-o", str(tmp_path / "b")]
    names = ("encoder_precision", "llm_precision", "llm_decode_precision", "llm_block")

    def asked(*more: str) -> list[str]:
        parameters = export.make_context("export", [*arguments, *more]).params
        return [parameters[name] for name in names]

    assert asked() == ["fp32", "auto", None, "32"]
    assert asked("--fast") == ["int8", "int8-dynamic", "int4", "auto"]
    assert asked("--llm-decode-precision", "int8", "--fast", "--llm-block", "64") == [
        "int8",
        "int8-dynamic",
        "int8",
        "64",
    ]
