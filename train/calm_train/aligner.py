"""MFAM, the multi-scale feature alignment module: three Q-Formers and the thematic branch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from calm_runtime.attributes import SCALES
from calm_train.config import CalmConfig
from calm_train.cues import CueSpace
from calm_train.vision import HiddenStates, patch_grid, pool_patches


class Aligned(NamedTuple):
    """What MFAM gives: visual tokens for the LLM and, per scale, the Q-Former's query outputs.

    image_embeds [B, T, D] in the order low, middle, high, thematic; query_states: scale -> [B, Q, C].
    """

    image_embeds: Tensor
    query_states: dict[str, Tensor]


class QFormer(nn.Module):
    """One scale: learnable queries attend to each other and to one hidden state of the vision encoder."""

    def __init__(self, config: CalmConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.query_tokens = nn.Parameter(torch.randn(1, config.queries, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.qformer = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=width,
                encoder_hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=config.qformer_layers,
                num_attention_heads=config.qformer_heads,
                cross_attention_frequency=1,
                hidden_dropout_prob=config.qformer_dropout,
                attention_probs_dropout_prob=config.qformer_dropout,
                layer_norm_eps=1e-6,
            )
        )

    def forward(self, hidden_state: Tensor) -> Tensor:
        """hidden_state [B, N, C] -> query outputs [B, Q, C]."""
        queries = self.query_tokens.expand(hidden_state.shape[0], -1, -1)
        output = self.qformer(query_embeds=queries, encoder_hidden_states=self.norm(hidden_state))
        return output.last_hidden_state


class Thematic(nn.Module):
    """The fully connected branch: penultimate patches, merged n x n, to LLM width."""

    def __init__(self, config: CalmConfig) -> None:
        super().__init__()
        self.side = config.tap_shapes.sides[3]
        self.pool = config.thematic_pool
        merged = config.hidden_size * config.thematic_pool**2
        self.norm = nn.LayerNorm(config.hidden_size)
        self.fc1 = nn.Linear(merged, config.text_config.hidden_size)
        self.fc2 = nn.Linear(config.text_config.hidden_size, config.text_config.hidden_size)
        self.whole = nn.Linear(config.hidden_size, config.text_config.hidden_size) if config.reads_maps else None

    def forward(self, hidden_state: Tensor) -> Tensor:
        """hidden_state [B, N, C] -> thematic tokens [B, T, D]."""
        grid = patch_grid(self.norm(hidden_state), self.side)
        merged = pool_patches(grid, self.pool)  # [B, T, C*n*n]
        tokens = self.fc2(nn.functional.gelu(self.fc1(merged)))
        if self.whole is None:
            return tokens
        # Of maps, what the picture is like as a whole reaches the LLM straight, not only through queries
        return torch.cat([self.whole(hidden_state[:, : -(self.side**2)]), tokens], dim=1)


class MFAM(nn.Module):
    """Hidden states of the vision encoder -> visual tokens of the LLM (arXiv 2412.11952, figure of the model)."""

    def __init__(self, config: CalmConfig) -> None:
        super().__init__()
        width, llm_width = config.hidden_size, config.text_config.hidden_size
        self.qformers = nn.ModuleDict({scale: QFormer(config) for scale in SCALES})
        self.projections = nn.ModuleDict({scale: nn.Linear(width, llm_width) for scale in SCALES})
        self.thematic = Thematic(config)
        self.cues = CueSpace(config)

    def forward(self, hidden: HiddenStates) -> Aligned:
        """Four hidden states [B, N, C] -> visual tokens and query outputs."""
        states: dict[str, Tensor] = {scale: self.qformers[scale](getattr(hidden, scale)) for scale in SCALES}
        tokens = [self.projections[scale](states[scale]) for scale in SCALES]
        tokens.append(self.thematic(hidden.thematic))
        return Aligned(torch.cat(tokens, dim=1), states)
