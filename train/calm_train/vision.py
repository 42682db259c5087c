"""The vision encoder as CALM uses it: four hidden states, one per alignment branch, and one vector per photo."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from calm_train.config import CalmConfig


class HiddenStates(NamedTuple):
    """Encoder hidden states per branch, each [B, N, C] (N counts the class token where the encoder has one).

    photo_embeds [B, E]: the photo as one vector, for personal profiles; no branch reads it.
    """

    low: Tensor
    middle: Tensor
    high: Tensor
    thematic: Tensor
    photo_embeds: Tensor


class VisionEncoder(nn.Module):
    """Any CLIP/SigLIP-style vision model, read at the taps of the config."""

    def __init__(self, config: CalmConfig) -> None:
        super().__init__()
        self.patches_per_side = config.patches_per_side
        self.taps = (*config.taps, config.thematic_tap)
        self.model: PreTrainedModel = AutoModel.from_config(config.vision_config)

    def forward(self, pixel_values: Tensor) -> HiddenStates:
        """pixel_values [B, 3, H, W] -> four hidden states [B, N, C]; photo_embeds [B, C], the mean of the thematic patches."""
        states = self.model(pixel_values=pixel_values, output_hidden_states=True).hidden_states
        photo = patch_grid(states[self.taps[-1]], self.patches_per_side).mean(dim=(1, 2))
        return HiddenStates(*[*(states[tap] for tap in self.taps), photo])


def patch_grid(hidden_state: Tensor, patches_per_side: int) -> Tensor:
    """Drop the class token, if any, and restore the grid: [B, N, C] -> [B, P, P, C]."""
    patches = hidden_state[:, hidden_state.shape[1] - patches_per_side**2 :]
    return patches.reshape(patches.shape[0], patches_per_side, patches_per_side, patches.shape[-1])


def pool_patches(grid: Tensor, factor: int) -> Tensor:
    """Merge factor x factor neighbours into one token: [B, P, P, C] -> [B, ceil(P/f)^2, C*f*f]."""
    batch, side, _, width = grid.shape
    short = -side % factor
    if short:
        grid = torch.nn.functional.pad(grid, (0, 0, 0, short, 0, short))
        side += short
    cells = grid.reshape(batch, side // factor, factor, side // factor, factor, width)
    return cells.permute(0, 1, 3, 2, 4, 5).reshape(batch, (side // factor) ** 2, factor * factor * width)
