"""Tiny encoders of feature maps and a model on two of them, for the tests; deterministic, made in a second."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModel, LlamaConfig, MobileNetV1Config, PretrainedConfig, ResNetConfig

from calm_train.config import CalmConfig
from calm_train.model import CalmForConditionalGeneration
from calm_train.pretrained.efficientnet_lite import EfficientNetLiteConfig

SIZE = 64


def mobilenet() -> MobileNetV1Config:
    """Maps of 8, 4 and 2 a side at 9, 21 and 25."""
    return MobileNetV1Config(image_size=SIZE, depth_multiplier=0.25, min_depth=4, hidden_act="relu6", tf_padding=False)


def efficientnet() -> EfficientNetLiteConfig:
    """Maps of 8, 4 and 2 a side at 3, 5 and 8."""
    return EfficientNetLiteConfig(
        image_size=SIZE, stem_width=8, widths=(4, 6, 8, 8, 10, 12, 16), depths=(1,) * 7, hidden_size=32
    )


def backbone() -> ResNetConfig:
    """An `AutoBackbone` whose three maps are 16, 8 and 4 a side."""
    return ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12, 16], depths=[1, 1, 1], layer_type="basic", out_indices=[1, 2, 3],
        image_size=SIZE,
    )  # fmt: skip


def map_config(**changes: object) -> CalmConfig:
    """CalmConfig of two tiny encoders side by side."""
    values: dict[str, object] = {
        "vision_config": mobilenet(), "taps": (9, 21, 25), "thematic_tap": 25,
        "second_vision_config": efficientnet(), "second_taps": (3, 5, 8), "second_thematic_tap": 8,
        "neck_width": 24, "neck_pools": (2, 1, 1, 1), "queries": 2, "qformer_layers": 1, "qformer_heads": 2, "cue_width": 16,
        "text_config": LlamaConfig(
            vocab_size=384, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0, max_position_embeddings=512,
            tie_word_embeddings=True,
        ),
        "score_token_ids": tuple(range(3, 13)), "technical_token_ids": tuple(range(13, 23)),
    }  # fmt: skip
    return CalmConfig(**{**values, **changes})  # type: ignore[arg-type]


def map_model(config: CalmConfig | None = None) -> CalmForConditionalGeneration:
    """A random model whose batch norms have seen some pictures."""
    torch.manual_seed(0)
    model = CalmForConditionalGeneration(config or map_config())
    for module in model.vision_encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    model.aligner.cues.features.normal_()
    return model.eval()


def save_encoder(folder: Path, config: PretrainedConfig) -> Path:
    """A folder for `pretrained: FOLDER` in a recipe."""
    torch.manual_seed(1)
    model = AutoModel.from_config(config).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # take the statistics of the pictures below, so that no channel is dead
    for seed in range(2):
        model(torch.rand(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) * 2 - 1)
    model.eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": SIZE})
    )
    return folder
