"""CALM composes any CLIP/SigLIP-style encoder with any causal LM, and survives saving and loading."""

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
)

from calm_train.config import CalmConfig
from calm_train.model import CalmForConditionalGeneration

ENCODER = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3}
DECODER = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
PAIRS = [
    (CLIPVisionConfig(**ENCODER, image_size=56, patch_size=8), LlamaConfig(**DECODER, **HEADS)),
    (SiglipVisionConfig(**ENCODER, image_size=56, patch_size=8), Qwen2Config(**DECODER, **HEADS)),
    (SiglipVisionConfig(**ENCODER, image_size=48, patch_size=8), Qwen3Config(**DECODER, **HEADS)),
]


def tiny(vision: PretrainedConfig, text: PretrainedConfig, **kwargs) -> CalmForConditionalGeneration:
    torch.manual_seed(0)
    config = CalmConfig(
        vision,
        text,
        taps=(1, 2, 4),
        score_token_ids=tuple(range(3, 13)),
        technical_token_ids=tuple(range(13, 23)),
        **kwargs,
    )
    return CalmForConditionalGeneration(config).eval()


@pytest.mark.parametrize(("vision", "text"), PAIRS, ids=["clip-llama", "siglip-qwen2", "siglip-qwen3"])
def test_round_trip_keeps_every_output(tmp_path, vision, text):
    model = tiny(vision, text)
    pixels = torch.randn(2, 3, vision.image_size, vision.image_size)
    before, after = torch.ones(2, 1, dtype=torch.long), torch.randint(13, 300, (2, 5))
    output = model(pixels, before, after)
    assert output.logits.shape == (2, 1 + model.config.image_tokens + 5, 300)
    assert output.aligned.image_embeds.shape == (2, model.config.image_tokens, 32)
    model.save_pretrained(tmp_path)
    again = CalmForConditionalGeneration.from_pretrained(tmp_path)
    assert type(again.config.vision_config) is type(vision)
    assert torch.equal(again(pixels, before, after).logits, output.logits)
    assert torch.equal(again.attribute_logits(output.aligned), model.attribute_logits(output.aligned))


def test_each_qformer_reads_its_own_tap():
    model = tiny(*PAIRS[0])
    hidden = model.vision_encoder(torch.randn(1, 3, 56, 56))
    reference = model.aligner(hidden)
    changed = model.aligner(hidden._replace(middle=hidden.middle + torch.randn_like(hidden.middle)))
    assert torch.equal(reference.query_states["low"], changed.query_states["low"])
    assert torch.equal(reference.query_states["high"], changed.query_states["high"])
    assert not torch.allclose(reference.query_states["middle"], changed.query_states["middle"])


def test_score_is_read_at_the_answer_position_from_ten_tokens():
    model = tiny(*PAIRS[0])
    pixels = torch.randn(2, 3, 56, 56)
    before, after = torch.ones(2, 1, dtype=torch.long), torch.randint(13, 300, (2, 4))
    logits = model.score_logits(pixels, before, after)
    assert torch.equal(logits, model(pixels, before, after).logits[:, -1, 3:13])


def test_thematic_pooling_handles_odd_grids():
    assert tiny(*PAIRS[0]).config.thematic_tokens == 16  # 7 x 7 patches, padded to 8 x 8, merged 2 x 2
