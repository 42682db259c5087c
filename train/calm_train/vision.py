"""The vision encoder as CALM uses it: four hidden states, one per alignment branch, and one vector per photo."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from calm_train.config import CalmConfig
from calm_train.feature_maps import open_map_encoder, read_maps

STATISTICS = 2  # tokens ahead of the grid of a map: its mean and its spread


class HiddenStates(NamedTuple):
    """Encoder hidden states per branch, each [B, N, C]: the grid's P * P tokens last, before them those of the whole picture.

    photo_embeds [B, E]: the photo as one vector, for personal profiles; no branch reads it.
    """

    low: Tensor
    middle: Tensor
    high: Tensor
    thematic: Tensor
    photo_embeds: Tensor


class TokenEncoder(nn.Module):
    """A CLIP/SigLIP-style vision model, read at the taps of the config."""

    def __init__(self, config: CalmConfig) -> None:
        super().__init__()
        self.side = config.tap_shapes.sides[3]
        self.taps = (*config.taps, config.thematic_tap)
        self.model: PreTrainedModel = AutoModel.from_config(config.vision_config)

    @property
    def backbones(self) -> list[PreTrainedModel]:
        """The Hugging Face models inside."""
        return [self.model]

    def set_backbone(self, index: int, model: PreTrainedModel) -> None:
        """Replace the encoder by one with its own weights."""
        self.model = model

    def forward(self, pixel_values: Tensor) -> HiddenStates:
        """pixel_values [B, 3, S, S] -> hidden states [B, N, C]; photo_embeds [B, C], the mean of the thematic patches."""
        states = self.model(pixel_values=pixel_values, output_hidden_states=True).hidden_states
        photo = patch_grid(states[self.taps[-1]], self.side).mean(dim=(1, 2))
        return HiddenStates(*[*(states[tap] for tap in self.taps), photo])


class MapSummary(NamedTuple):
    """What of a feature map [B, C, H, W] goes on: grid [B, C, P, P] (pooled), mean and spread [B, C] over the whole map."""

    grid: Tensor
    mean: Tensor
    spread: Tensor


def summarise(feature_map: Tensor, pool: int) -> MapSummary:
    """[B, C, H, W] -> its summary, the grid averaged over pool x pool cells."""
    mean = feature_map.mean(dim=(2, 3))
    # Not Tensor.std: its gradient is infinite where a channel is the same everywhere
    spread = ((feature_map - mean[:, :, None, None]).square().mean(dim=(2, 3)) + 1e-4).sqrt()
    return MapSummary(nn.functional.avg_pool2d(feature_map, pool) if pool > 1 else feature_map, mean, spread)


class Neck(nn.Module):
    """One tap: standardised channels, projected to one width (the lateral 1x1 convolution of FPN, Lin et al. 2017).

    The map's mean and spread come along as tokens of their own: what a picture is like as a whole is read from them.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.standardise = nn.BatchNorm2d(channels, affine=False, momentum=0.05)
        self.folded = False  # in a graph for serving: into the lateral convolution
        self.lateral = nn.Conv2d(channels, width, 1)
        self.mean = nn.Linear(channels, width)
        self.spread = nn.Linear(channels, width)

    def forward(self, summary: MapSummary) -> tuple[Tensor, Tensor]:
        """A summary of [B, C, P, P] -> tokens [B, STATISTICS + P * P, W], and the standardised mean [B, C]."""
        values = summary.grid if self.folded else self.standardise(summary.grid)
        grid = self.lateral(values).flatten(2).transpose(1, 2)
        centre, scale = self.standardise.running_mean, self.standardise.running_var
        assert centre is not None and scale is not None  # it keeps statistics
        deviation = (scale + self.standardise.eps).sqrt()
        mean = (summary.mean - centre) / deviation
        statistics = [self.mean(mean), self.spread(summary.spread / deviation)]
        return torch.cat([torch.stack(statistics, dim=1), grid], dim=1), mean


class MapEncoder(nn.Module):
    """One or two encoders of feature maps side by side; maps of the same size are joined channel by channel.

    Batch norms of the encoders keep the statistics of their own training.
    """

    def __init__(self, config: CalmConfig) -> None:
        super().__init__()
        self.taps = [taps for _, taps in config.encoder_taps]
        self.pools = config.neck_pools
        self.backbones = nn.ModuleList(open_map_encoder(encoder) for encoder, _ in config.encoder_taps)
        self.necks = nn.ModuleList(Neck(channels, config.neck_width) for channels in config.tap_shapes.channels)

    def set_backbone(self, index: int, model: PreTrainedModel) -> None:
        """Replace an encoder by one with its own weights."""
        self.backbones[index] = model.eval()

    def train(self, mode: bool = True) -> MapEncoder:
        """As of any module, but for the encoders, which stay as they are when serving."""
        super().train(mode)
        self.backbones.eval()
        return self

    def forward(self, pixel_values: Tensor) -> HiddenStates:
        """pixel_values [B, 3, S, S] -> hidden states [B, 2 + P * P, W] per tap; photo_embeds [B, C], of the deepest maps."""
        return self.project(self.summaries(pixel_values))

    def summaries(self, pixel_values: Tensor) -> list[MapSummary]:
        """pixel_values [B, 3, S, S] -> of the joined maps at the four taps."""
        maps = [read_maps(encoder, pixel_values) for encoder in self.backbones]  # type: ignore[arg-type]
        return [
            summarise(torch.cat([own[taps[tap]] for own, taps in zip(maps, self.taps, strict=True)], dim=1), pool)
            for tap, pool in enumerate(self.pools)
        ]

    def project(self, summaries: list[MapSummary]) -> HiddenStates:
        """Summaries of the four taps -> hidden states. Where the encoders do not learn, summaries may be made once."""
        states, photo = [], summaries[-1].mean
        for neck, summary in zip(self.necks, summaries, strict=True):
            tokens, photo = neck(summary)
            states.append(tokens)
        low, middle, high, thematic = states
        return HiddenStates(low, middle, high, thematic, photo)


VisionEncoder = TokenEncoder | MapEncoder


def open_vision_encoder(config: CalmConfig) -> VisionEncoder:
    """The encoder a config describes, with weights yet to be loaded."""
    return MapEncoder(config) if config.reads_maps else TokenEncoder(config)


def patch_grid(hidden_state: Tensor, side: int) -> Tensor:
    """Drop the tokens of the whole picture, if any, and restore the grid: [B, N, C] -> [B, P, P, C]."""
    patches = hidden_state[:, hidden_state.shape[1] - side**2 :]
    return patches.reshape(patches.shape[0], side, side, patches.shape[-1])


def pool_patches(grid: Tensor, factor: int) -> Tensor:
    """Merge factor x factor neighbours into one token: [B, P, P, C] -> [B, ceil(P/f)^2, C*f*f]."""
    batch, side, _, width = grid.shape
    short = -side % factor
    if short:
        grid = torch.nn.functional.pad(grid, (0, 0, 0, short, 0, short))
        side += short
    cells = grid.reshape(batch, side // factor, factor, side // factor, factor, width)
    return cells.permute(0, 1, 3, 2, 4, 5).reshape(batch, (side // factor) ** 2, factor * factor * width)
