"""Map encoders: convolutional models and backbones that give feature maps of falling resolution."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AutoBackbone, AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING


class MapShapes(NamedTuple):
    """Channels and side of the square maps at the four taps: low, middle, high, thematic."""

    channels: tuple[int, ...]
    sides: tuple[int, ...]


def gives_maps(config: PretrainedConfig) -> bool:
    """Whether an encoder of this config gives maps: all but those that cut a picture into patches of one size."""
    return getattr(config, "patch_size", None) is None or hasattr(config, "hidden_sizes")


def open_map_encoder(config: PretrainedConfig) -> PreTrainedModel:
    """The encoder with weights yet to be loaded: an `AutoBackbone` where its config names stages to give, else an `AutoModel`."""
    kind = AutoBackbone if is_backbone(config) else AutoModel
    encoder: PreTrainedModel = kind.from_config(config)
    return encoder


def read_maps(encoder: PreTrainedModel, pixel_values: Tensor) -> tuple[Tensor, ...]:
    """pixel_values [B, 3, S, S] -> all maps the encoder gives, each [B, C, P, P]."""
    if is_backbone(encoder.config):
        maps: tuple[Tensor, ...] = tuple(encoder(pixel_values).feature_maps)
    else:
        maps = tuple(encoder(pixel_values, output_hidden_states=True).hidden_states)
    return maps


def map_shapes(config: PretrainedConfig, taps: tuple[int, ...], size: int) -> MapShapes:
    """Shapes at the taps for pictures of `size` pixels. Raises ValueError for a tap or a map that cannot be used."""
    return _map_shapes(json.dumps(config.to_dict(), default=str, sort_keys=True), config.model_type, taps, size)


@lru_cache(maxsize=32)
def _map_shapes(config: str, model_type: str, taps: tuple[int, ...], size: int) -> MapShapes:
    values = json.loads(config)
    values.pop("model_type")
    with torch.device("meta"), torch.no_grad():
        encoder = open_map_encoder(AutoConfig.for_model(model_type, **values)).eval()
        maps = read_maps(encoder, torch.empty(1, 3, size, size))
    if any(not -len(maps) <= tap < len(maps) for tap in taps):
        raise ValueError(f"{model_type}: gives {len(maps)} maps, the taps are {list(taps)}")
    chosen = [maps[tap] for tap in taps]
    if any(m.dim() != 4 or m.shape[-1] != m.shape[-2] for m in chosen):
        raise ValueError(f"{model_type}: does not give square feature maps at its taps")
    return MapShapes(tuple(int(m.shape[1]) for m in chosen), tuple(int(m.shape[-1]) for m in chosen))


def is_backbone(config: PretrainedConfig) -> bool:
    """Whether an encoder of this config opens as an `AutoBackbone`, which gives the maps of its `out_indices`."""
    return type(config) in MODEL_FOR_BACKBONE_MAPPING and bool(getattr(config, "out_indices", None))
