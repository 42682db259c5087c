"""Measures: properties computed on a photo, and the thresholds that turn them into attribute levels.

Every measure takes RGB [3, H, W] float32 in 0..1 (sRGB-encoded) and returns one number. Photos are measured at a
longer side of `MEASURE_SIZE`, so that a measure means the same for every source resolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MEASURE_SIZE = 224
GRID = 14
LINE_CELL = 10  # pixels: the neighbourhood whose edges make one line
UPRIGHT_WITHIN = 5.0  # degrees from the horizontal or the vertical
_SOBEL = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8


def luma(rgb: Tensor) -> Tensor:
    """Rec. 601 luma [..., H, W] of RGB [..., 3, H, W]."""
    red, green, blue = rgb.unbind(-3)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def brightness(rgb: Tensor) -> Tensor:
    """Mean luma."""
    return luma(rgb).mean()


def contrast(rgb: Tensor) -> Tensor:
    """Standard deviation of luma (RMS contrast)."""
    return luma(rgb).std()


def colourfulness(rgb: Tensor) -> Tensor:
    """Hasler & Suesstrunk 2003: spread plus mean offset of the opponent channels, on the 0..1 scale."""
    red, green, blue = rgb
    rg, yb = red - green, 0.5 * (red + green) - blue
    return (rg.var() + yb.var()).sqrt() + 0.3 * (rg.mean() ** 2 + yb.mean() ** 2).sqrt()


def warmth(rgb: Tensor) -> Tensor:
    """Mean of red minus blue, relative to brightness: positive is warm."""
    red, _, blue = rgb
    return (red - blue).mean() / (rgb.mean() + 0.05)


def tint(rgb: Tensor) -> Tensor:
    """Mean of (red + blue)/2 minus green, relative to brightness: positive is magenta."""
    red, green, blue = rgb
    return (0.5 * (red + blue) - green).mean() / (rgb.mean() + 0.05)


def _gradient(gray: Tensor) -> Tensor:
    """Gradient magnitude [H-1, W-1] of [H, W]."""
    dx = gray[:-1, 1:] - gray[:-1, :-1]
    dy = gray[1:, :-1] - gray[:-1, :-1]
    return (dx**2 + dy**2).sqrt()


def _grid(values: Tensor) -> Tensor:
    """Mean over GRID x GRID cells of [H, W]."""
    return F.adaptive_avg_pool2d(values[None, None], GRID)[0, 0]


def clutter(rgb: Tensor) -> Tensor:
    """Share of cells that hold clear edges (edge density)."""
    cells = _grid((_gradient(luma(rgb)) > 0.06).float())
    return cells.mean()


def symmetry(rgb: Tensor) -> Tensor:
    """Correlation of the coarse luma with its left-right mirror image."""
    gray = F.adaptive_avg_pool2d(luma(rgb)[None, None], 28)[0, 0]
    centred = gray - gray.mean()
    return (centred * centred.flip(-1)).mean() / (centred.var() + 1e-4)


def saliency(rgb: Tensor) -> Tensor:
    """Coarse saliency [GRID, GRID], sums to one: colour distance from the frame's border, times local contrast."""
    cells = F.adaptive_avg_pool2d(rgb[None], GRID)[0]  # [3, G, G]
    border = torch.cat([cells[:, 0], cells[:, -1], cells[:, :, 0], cells[:, :, -1]], dim=1).mean(dim=1)
    distance = (cells - border[:, None, None]).norm(dim=0)
    energy = _grid(_gradient(luma(rgb)))
    weight = (distance / (distance.mean() + 1e-3)) * (energy / (energy.mean() + 1e-3)).sqrt()
    weight = F.avg_pool2d(F.pad(weight[None, None], (1, 1, 1, 1), mode="replicate"), 3, stride=1)[0, 0] ** 1.5
    return weight / (weight.sum() + 1e-6)


def placement(rgb: Tensor) -> Tensor:
    """Horizontal centre of the saliency, -1 (left edge) .. 1 (right edge)."""
    position = torch.linspace(-1, 1, GRID)
    return (saliency(rgb).sum(dim=0) * position).sum()


def subject(rgb: Tensor) -> Tensor:
    """How concentrated the saliency is: share of it held by the strongest fifth of the cells."""
    cells = saliency(rgb).flatten()
    return cells.sort(descending=True).values[: cells.numel() // 5].sum()


def depth(rgb: Tensor) -> Tensor:
    """Evenness of fine detail: entropy of the local gradient energy, 1 = spread over all cells."""
    cells = _grid(_gradient(luma(rgb)) ** 2).flatten() + 1e-6
    share = cells / cells.sum()
    return -(share * share.log()).sum() / torch.tensor(float(cells.numel())).log()


def tonal_balance(rgb: Tensor) -> Tensor:
    """Mean luma of the lower half minus the upper half."""
    gray = luma(rgb)
    half = gray.shape[0] // 2
    return gray[half:].mean() - gray[:half].mean()


def mood(rgb: Tensor) -> Tensor:
    """Brightness plus colourfulness: dark and grey is sombre, bright and colourful is lively."""
    return brightness(rgb) + 0.8 * colourfulness(rgb)


def detail(rgb: Tensor) -> Tensor:
    """Logarithm of the mean step between neighbouring pixels of luma: falls with blur, grows with noise."""
    return (_gradient(luma(rgb)).mean() + 1e-3).log()


def uprightness(rgb: Tensor) -> Tensor:
    """Share of clear lines that are upright or level, 0..1: what a tilt takes away.

    Direction and coherence of cells from the structure tensor (Bigun & Granlund 1987).
    """
    kernels = torch.stack([_SOBEL, _SOBEL.T])[:, None]
    dx, dy = F.conv2d(luma(rgb)[None, None], kernels)[0][:, 2:-2, 2:-2]
    xx, yy, xy = F.avg_pool2d(torch.stack([dx * dx, dy * dy, dx * dy])[None], LINE_CELL)[0]
    energy = xx + yy
    coherence = torch.hypot(xx - yy, 2 * xy) / (energy + 1e-3)
    angle = torch.rad2deg(0.5 * torch.atan2(2 * xy, xx - yy)).abs()  # of the gradient, 0..90
    off = torch.minimum(angle, 90 - angle)
    weight = coherence**2 * energy**0.25
    return (weight * torch.exp(-0.5 * (off / UPRIGHT_WITHIN) ** 2)).sum() / (weight.sum() + 1e-6)


@dataclass(frozen=True)
class Measure:
    """How one attribute is read off a photo: below `lower` its first level, above `upper` its third.

    edited: measured after photometric edits (a property of the picture) or before (a property of the scene).
    """

    attribute: str
    function: Callable[[Tensor], Tensor]
    lower: float
    upper: float
    edited: bool

    def level(self, value: float) -> int:
        """Level index of a measured value."""
        return int(value >= self.lower) + int(value > self.upper)

    def standardised(self, value: float) -> float:
        """A measured value on the scale of its thresholds, -0.5 .. 0.5 between them; outliers are cut at 2."""
        return max(-2.0, min(2.0, (value - 0.5 * (self.lower + self.upper)) / (self.upper - self.lower)))


# Thresholds: thirds of the unedited training photos for scene properties, perceptual bands for picture properties.
MEASURES: tuple[Measure, ...] = (
    Measure("brightness", brightness, 0.33, 0.56, True),
    Measure("contrast", contrast, 0.16, 0.24, True),
    Measure("colourfulness", colourfulness, 0.1, 0.19, True),
    Measure("warmth", warmth, -0.02, 0.28, True),
    Measure("tint", tint, -0.09, 0.03, True),
    Measure("mood", mood, 0.5, 0.63, True),
    Measure("clutter", clutter, 0.2, 0.33, False),
    Measure("symmetry", symmetry, 0.15, 0.45, False),
    Measure("placement", placement, -0.05, 0.05, False),
    Measure("depth", depth, 0.88, 0.925, False),
    Measure("tonal balance", tonal_balance, -0.08, 0.03, False),
    Measure("subject", subject, 0.39, 0.49, False),
)
DETAIL = Measure("detail", detail, -3.2, -2.85, True)
UPRIGHTNESS = Measure("uprightness", uprightness, 0.21, 0.36, False)
QUANTITIES = (*MEASURES, DETAIL, UPRIGHTNESS)  # all that is told as a number; the last two have no levels of their own


def resize_for_measure(rgb: Tensor) -> Tensor:
    """Scale [3, H, W] to a longer side of MEASURE_SIZE with antialiasing."""
    scale = MEASURE_SIZE / max(rgb.shape[-2:])
    size = [max(GRID, round(side * scale)) for side in rgb.shape[-2:]]
    return F.interpolate(rgb[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]


def measure(rgb: Tensor, *, edited: bool) -> dict[str, float]:
    """Attribute name -> value, for the measures taken after (edited) or before photometric edits."""
    small = resize_for_measure(rgb)
    return {m.attribute: float(m.function(small)) for m in QUANTITIES if m.edited == edited}
