"""Promises of the LLM's graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny_models import make_config, make_tokenizer

from calm_export.llm import export_embed_tokens, export_llm, llm_spec, write_llm_source
from calm_runtime.errors import ExportError
from calm_runtime.llm import LanguageModel, read_embed_tokens
from calm_runtime.onnx_session import OnnxSession
from calm_train.model import CalmForConditionalGeneration


def model_of(llm: str) -> CalmForConditionalGeneration:
    torch.manual_seed(0)
    return CalmForConditionalGeneration(make_config("clip" if llm == "llama" else "siglip", llm)).eval()


def exported(model: CalmForConditionalGeneration, folder: Path, precision: str = "fp32") -> LanguageModel:
    source = write_llm_source(model, make_tokenizer(model.config.text_config.vocab_size), folder / "source")
    export_llm(source, precision, folder / "llm")  # type: ignore[arg-type]
    export_embed_tokens(model, folder / "e.safetensors", torch.float32)
    session = OnnxSession(folder / "llm" / "model.onnx")
    return LanguageModel(session, read_embed_tokens(folder / "e.safetensors"), llm_spec(model.config.text_config))


@pytest.mark.parametrize("llm", ["llama", "qwen2", "qwen3"])
def test_the_graph_answers_as_torch_does(tmp_path: Path, llm: str) -> None:
    model = model_of(llm)
    decoder = exported(model, tmp_path)
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
    with pytest.raises(ExportError, match="cannot build the LLM as fp32"):
        export_llm(tmp_path, "fp32", tmp_path / "llm")
    assert not (tmp_path / "llm").exists()
