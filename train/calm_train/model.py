"""CalmForConditionalGeneration: vision encoder -> MFAM -> LLM."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel

from calm_train.aligner import MFAM, Aligned
from calm_train.config import CalmConfig
from calm_train.vision import VisionEncoder, open_vision_encoder


class CalmOutput(NamedTuple):
    """logits [B, S, V] of the whole sequence (visual tokens included); aligned: MFAM's outputs."""

    logits: Tensor
    aligned: Aligned


class CalmForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """The multimodal model (arXiv 2412.11952) from Hugging Face parts.

    Any vision encoder with `hidden_states` and square patches, any causal LM that takes `inputs_embeds`.
    """

    config: CalmConfig
    config_class = CalmConfig
    base_model_prefix = "calm"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: CalmConfig) -> None:
        super().__init__(config)
        self.vision_encoder: VisionEncoder = open_vision_encoder(config)
        self.aligner = MFAM(config)
        self.llm: PreTrainedModel = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Parts initialise themselves; only the projections between them are ours, with PyTorch's defaults."""

    def get_input_embeddings(self) -> torch.nn.Module:
        """The LLM's token embeddings."""
        return self.llm.get_input_embeddings()

    def get_output_embeddings(self) -> torch.nn.Module:
        """The LLM's output head."""
        return self.llm.get_output_embeddings()

    def look(self, pixel_values: Tensor) -> Aligned:
        """pixel_values [B, 3, H, W] -> visual tokens [B, T, D] and query outputs."""
        return self.aligner(self.vision_encoder(pixel_values))

    def attribute_logits(self, aligned: Aligned) -> Tensor:
        """Logits of each attribute's levels, [B, A, 3]."""
        return self.aligner.cues(aligned.query_states)

    def prompt_embeds(self, image_embeds: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Place visual tokens by slot: before [B, S0] ids, image_embeds [B, T, D], after [B, S1] ids -> [B, S, D]."""
        embed = self.get_input_embeddings()
        parts = embed(before), embed(after)
        return torch.cat([parts[0], image_embeds.to(parts[0].dtype), parts[1]], dim=1)

    def forward(self, pixel_values: Tensor, before: Tensor, after: Tensor, **kwargs: Any) -> CalmOutput:
        """Logits for `before` ids + photo + `after` ids (right-padded rows: causal attention keeps them exact)."""
        aligned = self.look(pixel_values)
        logits = self.llm(inputs_embeds=self.prompt_embeds(aligned.image_embeds, before, after), **kwargs).logits
        return CalmOutput(logits, aligned)

    def score_logits(self, pixel_values: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Logits of the ten score tokens at the answer position, [B, 10]; read with `calm_runtime.score`."""
        logits = self(pixel_values, before, after).logits  # [B, S, V]
        return logits[:, -1, self.config.score_token_ids]
