"""Pretrained parts enter through `from_pretrained`: tested on tiny models saved from real Hugging Face configs."""

import json

import msgspec
import pytest
import torch
from tiny_models import make_tokenizer
from tiny_recipe import TINY
from transformers import (
    CLIPConfig,
    CLIPModel,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.llama import LlamaConfig

from calm_runtime.errors import DataError
from calm_runtime.score import SCORE_TOKENS, TECHNICAL_TOKENS
from calm_train.build import build_model, photo_spec
from calm_train.checkpoint import load_checkpoint
from calm_train.recipe import Recipe
from calm_train.run import language_checkpoint

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
PICTURE = {"image_size": 32, "patch_size": 8}
PREPROCESSOR = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "size": {"height": 32, "width": 32}}


def save_llm(folder, kind):
    torch.manual_seed(1)
    tokenizer = make_tokenizer(384)
    common = {**SIZES, "num_key_value_heads": 1, "vocab_size": 400, "eos_token_id": 2}
    if kind == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**common, head_dim=16, bos_token_id=None, tie_word_embeddings=True))
    else:
        model = LlamaForCausalLM(LlamaConfig(**common, bos_token_id=1, tie_word_embeddings=False))
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    return model


def save_vision(folder, kind):
    torch.manual_seed(2)
    if kind == "clip":
        vision = {**SIZES, **PICTURE}
        model = CLIPModel(CLIPConfig(vision_config=vision, text_config={**SIZES, "vocab_size": 50}))
        model.save_pretrained(folder)
        model = model.vision_model
    else:
        model = SiglipVisionModel(SiglipVisionConfig(**SIZES, **PICTURE))
        model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return model


@pytest.mark.parametrize(("vision", "text"), [("clip", "llama"), ("siglip", "qwen3")])
def test_pretrained_parts_keep_their_weights_and_gain_score_tokens(tmp_path, vision, text):
    encoder = save_vision(tmp_path / "vision", vision)
    llm = save_llm(tmp_path / "llm", text)
    parts = {
        "vision": {"pretrained": str(tmp_path / "vision")},
        "text": {"pretrained": str(tmp_path / "llm")},
        "qformer_heads": 2,
    }
    values = {**TINY, "model": {**TINY["model"], **parts, "vocabulary": None}, "language": None}
    recipe = msgspec.convert(values, Recipe)
    model, tokenizer = build_model(recipe, seed=1)
    pixels = torch.randn(1, 3, 32, 32)
    expected = encoder(pixel_values=pixels).last_hidden_state
    assert torch.allclose(model.vision_encoder.model(pixel_values=pixels).last_hidden_state, expected, atol=1e-6)
    ids = torch.tensor([[50, 30, 40]])  # tokens of the text, not of a rating
    assert torch.allclose(model.llm(ids).logits[..., :3], llm(ids).logits[..., :3], atol=1e-5)
    assert model.config.score_token_ids == [tokenizer.token_to_id(token) for token in SCORE_TOKENS]
    assert model.config.technical_token_ids == [tokenizer.token_to_id(token) for token in TECHNICAL_TOKENS]
    rows = model.get_input_embeddings().weight
    assert torch.equal(rows[model.config.technical_token_ids], rows[model.config.score_token_ids])
    spec = photo_spec(recipe)
    assert (spec.size, spec.mean) == (32, (0.5, 0.5, 0.5))
    language_checkpoint(recipe, tmp_path / "start", seed=1)
    again, _, info = load_checkpoint(tmp_path / "start")
    assert info.photo == spec
    assert again.aligner.cues.features.abs().sum() > 0
    assert torch.allclose(again.llm(ids).logits, model.llm(ids).logits, atol=1e-5)


def test_a_missing_pretrained_part_is_named(tmp_path):
    parts = {**TINY["model"], "vision": {"pretrained": str(tmp_path / "nowhere")}}
    with pytest.raises(DataError, match="nowhere.*local folder"):
        build_model(msgspec.convert({**TINY, "model": parts}, Recipe), seed=1)
