"""What a run would do, before it does it: settings, parameters, memory, tokens, data."""

from __future__ import annotations

from typing import Any

import msgspec
import torch
import yaml

from calm_train.build import describe_config
from calm_train.config import CalmConfig
from calm_train.model import CalmForConditionalGeneration
from calm_train.precision import usable_precision
from calm_train.recipe import Recipe, StageRecipe

PARTS = ("vision_encoder", "aligner", "llm")
TEXT_TOKENS = 90  # instruction and answer of a typical critique
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
ADAM_BYTES = 16  # fp32 weight, gradient and two moments per trainable parameter


def count_parameters(config: CalmConfig, settings: StageRecipe) -> dict[str, tuple[int, int]]:
    """Part -> (total, trainable) parameters, counted on a model without memory (PyTorch's meta device)."""
    with torch.device("meta"):
        model = CalmForConditionalGeneration(config)
    counts = {}
    for part in PARTS:
        total = sum(p.numel() for p in getattr(model, part).parameters())
        trainable = 0 if part in settings.frozen else total
        if part == "llm" and settings.lora is not None:
            trainable = sum(
                settings.lora.rank * (module.in_features + module.out_features)
                for name, module in model.llm.named_modules()
                if name.split(".")[-1] in settings.lora.targets
            )
        counts[part] = (total, trainable)
    return counts


def activation_bytes(config: CalmConfig, settings: StageRecipe, views: int) -> int:
    """Rough activations of one micro-batch: about 34 bytes per token, layer and unit of width in 16 bits
    (Korthikanti et al. 2022, without the attention maps), a tenth of it with gradient checkpointing."""
    text = config.text_config
    factor = 34 * BYTES[usable_precision(settings.precision)] / 2 * (0.1 if settings.gradient_checkpointing else 1.0)
    encoder = sum(_map_values(config)) if config.reads_maps else _token_values(config)
    decoder = (config.image_tokens + TEXT_TOKENS) * text.hidden_size * text.num_hidden_layers
    if any(part.startswith("vision_encoder") for part in settings.frozen):
        encoder = config.tap_shapes.sides[0] ** 2 * config.hidden_size
    return int(factor * views * (encoder + decoder))


def _token_values(config: CalmConfig) -> int:
    """Values of all layers' outputs of a token encoder."""
    return int(config.tap_shapes.sides[0] ** 2 * config.hidden_size * config.vision_config.num_hidden_layers)


def _map_values(config: CalmConfig) -> list[int]:
    """Values of the tapped maps: of a map encoder's other layers the configuration does not tell."""
    return [channels * side**2 for channels, side in zip(*config.tap_shapes, strict=True)]


def plan(recipe: Recipe, settings: StageRecipe, data: dict[str, int], processes: int) -> dict[str, Any]:
    """The whole plan as plain data."""
    config = describe_config(recipe)
    counts = count_parameters(config, settings)
    total = sum(t for t, _ in counts.values())
    trainable = sum(t for _, t in counts.values())
    views = 2 * settings.pairs // (processes * settings.accumulate)
    weights = total * BYTES["fp32"] + trainable * (ADAM_BYTES - BYTES["fp32"])
    shards = processes if settings.sharding == "full" else 1
    photos = max(1, data.get("photos", 0))
    return {
        "recipe": msgspec.to_builtins(recipe.model),
        "stage": msgspec.to_builtins(settings),
        "parameters": {part: {"total": t, "trainable": n} for part, (t, n) in counts.items()},
        "tokens": {
            "image": config.image_tokens,
            "score_prompt": config.image_tokens + 20,
            "critique": config.image_tokens + TEXT_TOKENS,
        },
        "memory_gb": {
            "weights_and_optimiser": round(weights / shards / 1e9, 2),
            "activations": round(activation_bytes(config, settings, views) / 1e9, 2),
        },
        "steps": settings.steps,
        "views_per_step": 2 * settings.pairs,
        "processes": processes,
        "data": data,
        "passes_over_photos": round(settings.steps * settings.pairs / photos, 1),
    }


def render(values: dict[str, Any]) -> str:
    """The plan as YAML: what a recipe is written in."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
