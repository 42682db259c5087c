"""Promises of the LLM's graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny_models import make_config, make_tokenizer
from transformers import GPT2Config, Phi3Config, PretrainedConfig

from calm_export.graph import write_graph
from calm_export.llm import export_embed_tokens, export_llm, llm_spec, write_llm_source
from calm_export.reading import reading_graph
from calm_runtime.errors import ExportError, UsageError
from calm_runtime.llm import LanguageModel, read_embed_tokens
from calm_runtime.onnx_session import OnnxSession
from calm_train.config import CalmConfig
from calm_train.model import CalmForConditionalGeneration

TOKENS: dict[str, Any] = {"vocab_size": 384, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
PHI3: dict[str, Any] = TOKENS | {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
FACTORS = [1.0 + 0.2 * index for index in range(8)]  # one per pair of a head's 16 channels
LONG_ROPE = {"rope_type": "longrope", "type": "longrope", "rope_theta": 10000.0,
             "short_factor": FACTORS, "long_factor": [2 * factor for factor in FACTORS]}  # fmt: skip


def with_llm(text: PretrainedConfig) -> CalmForConditionalGeneration:
    torch.manual_seed(0)
    base = make_config()
    config = CalmConfig(
        base.vision_config, text, queries=base.queries, qformer_layers=1, qformer_heads=2, taps=(1, 2, 3), cue_width=16,
        score_token_ids=tuple(base.score_token_ids), technical_token_ids=tuple(base.technical_token_ids),
    )  # fmt: skip
    return CalmForConditionalGeneration(config).eval()


def model_of(llm: str) -> CalmForConditionalGeneration:
    if llm == "phi3":
        return with_llm(Phi3Config(**PHI3, original_max_position_embeddings=512))
    if llm == "phi3 partial":
        wide = PHI3 | {"hidden_size": 128}
        return with_llm(Phi3Config(**wide, original_max_position_embeddings=512, partial_rotary_factor=0.5))
    if llm == "phi3 longrope":
        return with_llm(Phi3Config(**PHI3, original_max_position_embeddings=256, rope_parameters=LONG_ROPE))
    torch.manual_seed(0)
    return CalmForConditionalGeneration(make_config("clip" if llm == "llama" else "siglip", llm)).eval()


def exported(model: CalmForConditionalGeneration, folder: Path, precision: str = "fp32") -> LanguageModel:
    source = write_llm_source(model, make_tokenizer(model.config.text_config.vocab_size), folder / "source")
    export_llm(source, precision, folder / "llm")  # type: ignore[arg-type]
    export_embed_tokens(model, folder / "e.safetensors", torch.float32)
    session = OnnxSession(folder / "llm" / "model.onnx")
    return LanguageModel(session, read_embed_tokens(folder / "e.safetensors"), llm_spec(model.config.text_config))


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3", "phi3", "phi3 partial", "phi3 longrope"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, LanguageModel, Path]:
    """A model, its decoder and the folder that holds it."""
    model, folder = model_of(request.param), tmp_path_factory.mktemp("llm")
    return model, exported(model, folder), folder


def test_the_graph_answers_as_torch_does(built: tuple[Any, LanguageModel, Path]) -> None:
    model, decoder, _ = built
    width = model.config.text_config.hidden_size
    embeds = torch.randn(3, 11, width) * 0.05
    with torch.inference_mode():
        expected = model.llm(inputs_embeds=embeds).logits[:, -1].numpy()
    logits, cache = decoder.prefill(embeds.numpy())
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert cache.length == 11

    # A photo read once, then a prompt, is one prefill
    one = embeds[:1].numpy()
    _, image = decoder.prefill(one[:, :7])
    continued, _ = decoder.prefill(one[:, 7:], image)
    np.testing.assert_allclose(continued, logits[:1], atol=1e-4)


def test_a_graph_that_only_reads_gives_what_torch_gives(built: tuple[Any, LanguageModel, Path], tmp_path: Path) -> None:
    model, whole, folder = built
    proto = reading_graph(onnx.load(folder / "llm" / "model.onnx"), whole.spec.head_dim)
    assert attentions(proto.graph) == 4 * (whole.spec.layers - 1) + 1
    write_graph(proto, tmp_path / "model.onnx")
    decoder = LanguageModel(OnnxSession(tmp_path / "model.onnx"), whole._table, whole.spec)
    embeds = (torch.randn(2, 203, model.config.text_config.hidden_size) * 0.5).numpy()
    with torch.inference_mode():
        expected = model.llm(inputs_embeds=torch.from_numpy(embeds)).logits.numpy()  # [2, 203, V]

    for length in (203, 128, 127, 5, 1):  # in parts of unequal size, and whole
        logits, cache = decoder.prefill(embeds[:, :length])
        np.testing.assert_allclose(logits, expected[:, length - 1], atol=2e-4)
        assert {value.shape[2] for pair in cache.layers for value in pair} == {length}
    for cached, length in ((3, 203), (40, 180), (150, 203), (202, 203)):  # behind a cache, in parts and whole
        _, cache = decoder.prefill(embeds[:1, :cached])
        logits, longer = decoder.prefill(embeds[:1, cached:length], cache)
        np.testing.assert_allclose(logits, expected[:1, length - 1], atol=2e-4)
        assert longer.layers[0][0].shape[2] == longer.length == length
    # Two rows behind a cache are more than the builder's attention takes: a long prompt is read in parts
    _, cache = decoder.prefill(embeds[:, :9])
    logits, _ = decoder.prefill(embeds[:, 9:], cache)
    np.testing.assert_allclose(logits, expected[:, -1], atol=2e-4)
    # A single graph still writes, into a cache with room for what is to come
    _, cache = decoder.prefill(embeds[:1, :150])
    tokens = list(decoder.generate(cache, [7], 6, stop=()))
    _, cache = whole.prefill(embeds[:1, :150])
    assert tokens == list(whole.generate(cache, [7], 6, stop=()))


def attentions(graph: onnx.GraphProto) -> int:
    """Nodes of ONNX's Attention in a graph and its branches."""
    branches = [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return sum(node.op_type == "Attention" for node in graph.node) + sum(map(attentions, branches))


@pytest.mark.parametrize(("name", "value"), [("local_window_size", 64), ("softcap", 30.0), ("smooth_softmax", 1)])
def test_a_decoder_with_more_than_causal_attention_is_left_as_it_is(
    built: tuple[Any, LanguageModel, Path], name: str, value: float
) -> None:
    proto = onnx.load(built[2] / "llm" / "model.onnx")
    for node in proto.graph.node:
        if node.op_type == "GroupQueryAttention":
            kept = [attribute for attribute in node.attribute if attribute.name != name]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])
    before = proto.SerializeToString()
    assert reading_graph(proto, 16).SerializeToString() == before


def test_a_decoder_that_is_not_the_builders_cannot_be_made_to_only_read(
    built: tuple[Any, LanguageModel, Path],
) -> None:
    proto, spec = onnx.load(built[2] / "llm" / "model.onnx"), built[1].spec
    for node in proto.graph.node:
        if node.name == "/lm_head/prune/Unsqueeze":
            node.input[1] = "attention_mask"
    with pytest.raises(ExportError, match="reads attention_mask, not hidden states"):
        reading_graph(proto, spec.head_dim)

    del proto.graph.node[:]
    with pytest.raises(ExportError, match="no GroupQueryAttention"):
        reading_graph(proto, 16)


@pytest.mark.parametrize(("precision", "bits", "tolerance"), [("int8", 8, 0.02), ("int4", 4, 0.3)])
def test_a_quantised_graph_has_the_bits_asked_for_and_stays_close(
    tmp_path: Path, precision: str, bits: int, tolerance: float
) -> None:
    model = model_of("llama")
    decoder = exported(model, tmp_path, precision)
    nodes = [n for n in onnx.load(tmp_path / "llm" / "model.onnx").graph.node if n.op_type == "MatMulNBits"]
    assert {a.i for n in nodes for a in n.attribute if a.name == "bits"} == {bits}
    embeds = torch.randn(1, 9, model.config.text_config.hidden_size) * 0.05
    with torch.inference_mode():
        expected = model.llm(inputs_embeds=embeds).logits[:, -1].numpy()
    logits, _ = decoder.prefill(embeds.numpy())
    assert np.abs(logits - expected).max() <= tolerance * np.abs(expected).max()


def test_dynamic_int8_keeps_the_contract_and_stays_close(tmp_path: Path) -> None:
    model = model_of("qwen3")
    decoder = exported(model, tmp_path, "int8-dynamic")
    graph = onnx.load(tmp_path / "llm" / "model.onnx").graph
    kinds = {node.op_type for node in graph.node}
    assert "MatMulInteger" in kinds and not kinds & {"MatMul", "MatMulNBits"}
    embeds = torch.randn(2, 11, model.config.text_config.hidden_size) * 0.05
    with torch.inference_mode():
        expected = model.llm(inputs_embeds=embeds).logits[:, -1].numpy()
    logits, cache = decoder.prefill(embeds.numpy())
    assert cache.length == 11
    assert np.abs(logits - expected).max() <= 0.1 * np.abs(expected).max()

    # One scale serves all activations of a call: reading in two steps rounds otherwise, but not by more
    _, image = decoder.prefill(embeds[:1, :7].numpy())
    continued, _ = decoder.prefill(embeds[:1, 7:].numpy(), image)
    assert np.abs(continued - expected[:1]).max() <= 0.1 * np.abs(expected).max()


def test_the_float16_graph_for_cuda_is_right_on_any_device(tmp_path: Path) -> None:
    model = model_of("llama")
    source = write_llm_source(model, make_tokenizer(model.config.text_config.vocab_size), tmp_path / "source")
    export_llm(source, "fp16", tmp_path / "llm-cuda", "cuda")
    session = OnnxSession(tmp_path / "llm-cuda" / "model.onnx")
    table = model.get_input_embeddings().weight.detach().numpy()
    decoder = LanguageModel(session, table, llm_spec(model.config.text_config))
    embeds = torch.randn(1, 9, table.shape[1]) * 0.05
    with torch.inference_mode():
        expected = model.llm(inputs_embeds=embeds).logits[:, -1].numpy()
    logits, cache = decoder.prefill(embeds.numpy())
    assert cache.layers[0][0].dtype == np.float16
    assert np.abs(logits - expected).max() <= 0.005 * np.abs(expected).max()


def test_a_folder_that_is_no_llm_is_refused_with_the_builders_log(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ExportError, match="cannot build the LLM .no architecture named. as fp32"):
        export_llm(tmp_path, "fp32", tmp_path / "llm")
    assert not (tmp_path / "llm").exists()


def test_a_sliding_window_bounds_the_context_because_the_graph_has_none(tmp_path: Path) -> None:
    model = with_llm(Phi3Config(**PHI3, original_max_position_embeddings=512, sliding_window=9))
    decoder = exported(model, tmp_path)
    assert decoder.spec.context_length == 9
    embeds = torch.randn(1, 10, 64) * 0.05
    with torch.inference_mode():
        expected = model.llm(inputs_embeds=embeds[:, :9]).logits[:, -1].numpy()
    logits, _ = decoder.prefill(embeds[:, :9].numpy())
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    with pytest.raises(UsageError, match="the model reads 9"):
        decoder.prefill(embeds.numpy())


@pytest.mark.parametrize(
    ("text", "architecture"),
    [
        (GPT2Config(**TOKENS, n_embd=64, n_layer=2, n_head=4, n_positions=512), "GPT2LMHeadModel"),
        (Phi3Config(**PHI3), "Phi3ForCausalLM"),  # names a longer original context but no longrope
    ],
)
def test_an_architecture_the_builder_cannot_do_is_named(
    tmp_path: Path, text: PretrainedConfig, architecture: str
) -> None:
    source = write_llm_source(with_llm(text), make_tokenizer(384), tmp_path / "source")
    with pytest.raises(ExportError, match=rf"cannot build the LLM \({architecture}\) as fp32"):
        export_llm(source, "fp32", tmp_path / "llm")
    assert not (tmp_path / "llm").exists()
