"""Dense self-supervision: what every patch of a photo holds, computed from its own pixels.

A vision encoder trained from scratch must learn to see detail, noise and edge direction before it can name them. The
statistics of each patch are a target for every token, where an attribute level is one target per photo.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from calm_train.pretext.measures import UPRIGHT_WITHIN

RADIAL, ORIENTATIONS = 4, 6
DIRECTIONS = 36
LINES = 8
STATISTICS = RADIAL * ORIENTATIONS + DIRECTIONS + LINES + 3 + 2 + 2


@cache
def _bands(patch: int) -> Tensor:
    """Membership of each frequency of a patch's half spectrum in (radius, orientation) bands, [bands, p*(p/2+1)]."""
    fy = torch.fft.fftfreq(patch)[:, None].expand(patch, patch // 2 + 1)
    fx = torch.fft.rfftfreq(patch)[None].expand(patch, patch // 2 + 1)
    radius = (fx**2 + fy**2).sqrt()
    edges = torch.tensor([0.5 / patch, 0.12, 0.22, 0.34, 1.0])
    ring = torch.bucketize(radius, edges) - 1
    sector = ((torch.atan2(fy, fx) / math.pi + 0.5) * ORIENTATIONS + 0.5).long() % ORIENTATIONS
    index = torch.where((ring >= 0) & (ring < RADIAL), ring * ORIENTATIONS + sector, -1)
    masks = torch.stack([(index == k).flatten().float() for k in range(RADIAL * ORIENTATIONS)])
    return masks / masks.sum(dim=1, keepdim=True).clamp(min=1)


def _gradient(gray: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbours along x and y: [B, N, p, p] -> [B, N, p-2, p-2] each."""
    return gray[..., 1:-1, 2:] - gray[..., 1:-1, :-2], gray[..., 2:, 1:-1] - gray[..., :-2, 1:-1]


def _line(dx: Tensor, dy: Tensor) -> Tensor:
    """The patch as one line: coherence, direction at 2, 4 and 8 times its angle, and how upright or level it is.

    From the structure tensor (Bigun & Granlund 1987): [B, N, p-2, p-2] each -> [B, N, LINES].
    """
    xx, yy, xy = ((a * b).mean((-2, -1)) for a, b in ((dx, dx), (dy, dy), (dx, dy)))
    coherence = torch.hypot(xx - yy, 2 * xy) / (xx + yy + 2e-3)
    angle = 0.5 * torch.atan2(2 * xy, xx - yy)
    turns = [f(k * angle) * coherence for k in (2, 4, 8) for f in (torch.cos, torch.sin)]
    off = torch.remainder(angle + math.pi / 4, math.pi / 2) - math.pi / 4  # radians from the nearest axis
    upright = coherence**2 * torch.exp(-0.5 * (off / math.radians(UPRIGHT_WITHIN)) ** 2)
    return torch.stack([coherence, *turns, upright], dim=-1)


def _gradient_directions(dx: Tensor, dy: Tensor) -> Tensor:
    """Mean gradient magnitude by direction, in DIRECTIONS bins over half a turn: -> [B, N, DIRECTIONS].

    Fine enough to tell a level photo from one turned by a few degrees: upright edges leave the upright bin.
    """
    magnitude = (dx**2 + dy**2).sqrt().flatten(2)
    index = ((torch.atan2(dy, dx).flatten(2) / math.pi + 1) * DIRECTIONS + 0.5).long() % DIRECTIONS
    bins = torch.zeros((*dx.shape[:2], DIRECTIONS), device=dx.device)
    return bins.scatter_add(-1, index, magnitude) / magnitude.shape[-1]


def patch_statistics(pixel_values: Tensor, patch: int) -> Tensor:
    """pixel_values [B, 3, S, S] -> [B, (S/patch)^2, STATISTICS], each statistic standardised over the batch.

    Log power of luma in 4 radial x 6 orientation bands, log gradient in 36 directions, the patch as one line (8), mean
    colour (3), log spread of two opponent colours (2), and the extremes of luma (2).
    """
    batch, channels, size, _ = pixel_values.shape
    side = size // patch
    cells = pixel_values.float().reshape(batch, channels, side, patch, side, patch)
    cells = cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, side * side, channels, patch, patch)
    red, green, blue = cells.unbind(2)
    gray = 0.299 * red + 0.587 * green + 0.114 * blue  # [B, N, p, p]
    window = torch.hann_window(patch, periodic=False, device=gray.device)
    spectrum = torch.fft.rfft2((gray - gray.mean((-2, -1), keepdim=True)) * window * window[:, None])
    power = spectrum.abs().square().flatten(-2) @ _bands(patch).to(gray.device).T  # [B, N, bands]
    dx, dy = _gradient(gray)
    direction = _gradient_directions(dx, dy)  # [B, N, DIRECTIONS]
    opponent = torch.stack([red - green, 0.5 * (red + green) - blue], dim=2)
    statistics = torch.cat(
        [
            (power + 1e-2).log(),
            (direction + 1e-2).log(),
            _line(dx, dy),
            cells.mean((-2, -1)),
            (opponent.var((-2, -1)) + 1e-3).log(),
            torch.stack([gray.amax((-2, -1)), gray.amin((-2, -1))], dim=-1),
        ],
        dim=-1,
    )
    mean, std = statistics.mean((0, 1)), statistics.std((0, 1))
    return (statistics - mean) / (std + 1e-2)
