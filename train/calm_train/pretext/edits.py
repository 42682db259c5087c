"""Edits with known strength: each spoils a photo in one way, in one of several implementations.

An edit works on RGB [3, H, W] float32 in 0..1 (sRGB-encoded). Its strength is a severity in 0..1, where 1 is a
picture anyone would call spoiled. Several implementations per edit keep the model from learning one filter's traces.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from calm_train.pretext.measures import luma

Apply = Callable[[Tensor, float, np.random.Generator], Tensor]


@dataclass(frozen=True)
class Edit:
    """One way to spoil a photo.

    weight: how much of the score a full-strength edit takes (0..1).
    share: how often it is drawn, relative to the others; what is hard to see is shown more.
    geometric: changes the scene's geometry, hence applied before anything is measured.
    apply(rgb, severity, rng) -> rgb.
    """

    name: str
    weight: float
    share: float
    geometric: bool
    apply: Apply


def to_linear(rgb: Tensor) -> Tensor:
    """sRGB to linear light."""
    return torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp(min=0) + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: Tensor) -> Tensor:
    """Linear light to sRGB, clipped to 0..1."""
    linear = linear.clamp(0, 1)
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp(min=1e-8) ** (1 / 2.4) - 0.055)


def expose(rgb: Tensor, stops: float) -> Tensor:
    """Exposure by `stops` EV in linear light."""
    return to_srgb(to_linear(rgb) * 2.0**stops)


def underexpose(rgb: Tensor, severity: float, rng: np.random.Generator) -> Tensor:
    """Darken: EV in linear light, a gamma above one, or a plain factor."""
    kind = rng.integers(3)
    if kind == 0:
        return expose(rgb, -(0.7 + 2.6 * severity))
    if kind == 1:
        return rgb ** (1.3 + 2.2 * severity)
    return rgb * (0.75 - 0.55 * severity)


def overexpose(rgb: Tensor, severity: float, rng: np.random.Generator) -> Tensor:
    """Brighten until highlights clip: EV, a gamma below one, a factor, or an offset."""
    kind = rng.integers(4)
    if kind == 0:
        return expose(rgb, 0.6 + 1.9 * severity)
    if kind == 1:
        return rgb ** (0.75 - 0.45 * severity)
    if kind == 2:
        return (rgb * (1.3 + 1.2 * severity)).clamp(max=1)
    return (rgb + 0.12 + 0.35 * severity).clamp(max=1)


def flatten_contrast(rgb: Tensor, severity: float, rng: np.random.Generator) -> Tensor:
    """Low contrast: blend towards the mean, mid-grey or a random grey."""
    keep = 0.75 - 0.6 * severity
    grey = (luma(rgb).mean(), torch.tensor(0.5), torch.tensor(float(rng.uniform(0.3, 0.7))))[rng.integers(3)]
    return grey + (rgb - grey) * keep


def haze(rgb: Tensor, severity: float, rng: np.random.Generator) -> Tensor:
    """Veil of bright air, even or denser towards the top."""
    amount = 0.2 + 0.5 * severity
    air = float(rng.uniform(0.75, 0.95))
    if rng.integers(2):
        ramp = torch.linspace(1.2, 0.5, rgb.shape[1])[:, None]
        return rgb + (air - rgb) * (amount * ramp).clamp(max=0.95)
    return rgb + (air - rgb) * amount


def desaturate(rgb: Tensor, severity: float, rng: np.random.Generator) -> Tensor:
    """Take colour away: blend towards luma, channel mean or lightness."""
    keep = 0.65 * (1 - severity) + 0.02
    greys = (luma(rgb), rgb.mean(dim=0), 0.5 * (rgb.amax(dim=0) + rgb.amin(dim=0)))
    grey = greys[rng.integers(3)]
    return grey + (rgb - grey) * keep


def oversaturate(rgb: Tensor, severity: float, rng: np.random.Generator) -> Tensor:
    """Push colour beyond what is natural."""
    grey = luma(rgb)
    return (grey + (rgb - grey) * (1.7 + 1.8 * severity)).clamp(0, 1)


def colour_cast(rgb: Tensor, severity: float, rng: np.random.Generator) -> Tensor:
    """Wrong white balance: channel gains, an offset, or a blend with one colour, towards a random hue."""
    hue = rng.uniform(0, 2 * math.pi)
    if rng.integers(2):  # a white balance is mostly wrong along the line of daylight: towards yellow or blue
        hue = rng.choice([math.pi / 6, 7 * math.pi / 6]) + rng.normal(0, 0.15)
    direction = torch.tensor([math.cos(hue), math.cos(hue - 2.094), math.cos(hue + 2.094)], dtype=torch.float32)
    kind = rng.integers(4)
    strength = 0.16 + 0.32 * severity
    if kind == 0:
        return rgb * (1 + 1.2 * strength * direction)[:, None, None].clamp(min=0.1)
    if kind == 1:
        return rgb + 0.55 * strength * direction[:, None, None]
    if kind == 2:
        colour = (0.5 + 0.5 * direction)[:, None, None]
        return rgb * (1 - 0.8 * strength) + colour * 0.8 * strength
    return to_srgb(to_linear(rgb) * (2.0 ** (2.2 * strength * direction))[:, None, None])


def _convolve(rgb: Tensor, kernel: Tensor) -> Tensor:
    """Depthwise convolution of [3, H, W] with [k, k] (odd k), edges repeated."""
    radius = kernel.shape[0] // 2
    padded = F.pad(rgb[None], (radius,) * 4, mode="replicate")
    return F.conv2d(padded, kernel[None, None].expand(3, 1, -1, -1), groups=3)[0]


def _convolve_separable(rgb: Tensor, line: Tensor) -> Tensor:
    radius = line.shape[0] // 2
    padded = F.pad(rgb[None], (radius,) * 4, mode="replicate")
    once = F.conv2d(padded, line[None, None, None].expand(3, 1, 1, -1), groups=3)
    return F.conv2d(once, line[None, None, :, None].expand(3, 1, -1, 1), groups=3)[0]


def _gaussian(sigma: float) -> Tensor:
    radius = max(1, math.ceil(3 * sigma))
    line = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    return line / line.sum()


def blur(rgb: Tensor, severity: float, rng: np.random.Generator) -> Tensor:
    """Lose focus: Gaussian, box, disk or motion blur, or down-sampling; radius relative to the picture's size."""
    sigma = (1.0 + 3.4 * severity) * max(rgb.shape[-2:]) / 432
    kind = rng.integers(5)
    if kind == 0:
        return _convolve_separable(rgb, _gaussian(sigma))
    if kind == 1:
        width = 2 * max(1, round(1.6 * sigma)) + 1
        return _convolve_separable(rgb, torch.full((width,), 1 / width))
    if kind == 2:
        small = [max(8, round(side / (1 + 1.5 * sigma))) for side in rgb.shape[-2:]]
        tiny = F.interpolate(rgb[None], size=small, mode="bilinear", antialias=True, align_corners=False)
        return F.interpolate(tiny, size=rgb.shape[-2:], mode="bicubic", align_corners=False)[0].clamp(0, 1)
    radius = max(1, round((1.9 if kind == 3 else 3.0) * sigma))
    ys, xs = torch.meshgrid(*(torch.arange(-radius, radius + 1, dtype=torch.float32),) * 2, indexing="ij")
    if kind == 3:
        kernel = (xs**2 + ys**2 <= (radius + 0.5) ** 2).float()
    else:
        angle = rng.uniform(0, math.pi)
        across = (xs * math.sin(angle) - ys * math.cos(angle)).abs()
        kernel = (1 - across).clamp(min=0) * (xs**2 + ys**2 <= (radius + 0.5) ** 2)
    return _convolve(rgb, kernel / kernel.sum())


def noise(rgb: Tensor, severity: float, rng: np.random.Generator) -> Tensor:
    """Sensor noise: Gaussian per channel, luma only, shot noise, coarse grain, or salt and pepper."""
    seed = torch.Generator().manual_seed(int(rng.integers(2**31)))
    sigma = 0.05 + 0.15 * severity
    kind = rng.integers(5)
    if kind == 0:
        return rgb + sigma * torch.randn(rgb.shape, generator=seed)
    if kind == 1:
        return rgb + sigma * torch.randn((1, *rgb.shape[1:]), generator=seed)
    if kind == 2:
        return rgb + 1.5 * sigma * rgb.clamp(min=0.01).sqrt() * torch.randn(rgb.shape, generator=seed)
    if kind == 3:
        half = [(side + 1) // 2 for side in rgb.shape[-2:]]
        grain = torch.randn((1, 3, *half), generator=seed)
        grain = F.interpolate(grain, size=rgb.shape[-2:], mode="bilinear", align_corners=False)[0]
        return rgb + 1.1 * sigma * grain
    share = 0.02 + 0.13 * severity
    dice = torch.rand(rgb.shape[1:], generator=seed)
    spoiled = torch.where(dice < share / 2, torch.zeros(()), rgb)
    return torch.where(dice > 1 - share / 2, torch.ones(()), spoiled)


def compress(rgb: Tensor, severity: float, rng: np.random.Generator) -> Tensor:
    """JPEG or WebP at low quality, at the picture's own or a reduced size."""
    picture = Image.fromarray((rgb.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    size = picture.size
    kind = rng.integers(4)
    buffer = io.BytesIO()
    if kind == 3:
        picture.save(buffer, "WEBP", quality=max(1, round(12 - 11 * severity)), method=0)
    else:
        if kind == 2:
            factor = 1 - 0.35 * severity
            picture = picture.resize((round(size[0] * factor), round(size[1] * factor)), Image.Resampling.BILINEAR)
        quality = max(2, round(16 - 13 * severity))
        picture.save(buffer, "JPEG", quality=quality, subsampling=int(rng.choice([0, 2])))
    with Image.open(buffer) as stored:
        decoded = stored.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(decoded)).permute(2, 0, 1).float() / 255


def oversharpen(rgb: Tensor, severity: float, rng: np.random.Generator) -> Tensor:
    """Unsharp masking until halos show."""
    soft = _convolve_separable(rgb, _gaussian(float(rng.uniform(1.0, 2.5))))
    return (rgb + (1.5 + 4.0 * severity) * (rgb - soft)).clamp(0, 1)


def vignette(rgb: Tensor, severity: float, rng: np.random.Generator) -> Tensor:
    """Fall-off of light to the corners."""
    height, width = rgb.shape[-2:]
    ys = torch.linspace(-1, 1, height)[:, None]
    xs = torch.linspace(-1, 1, width)[None]
    radius = ((xs**2 + ys**2) / 2).sqrt()
    power = float(rng.uniform(1.6, 3.5))
    return rgb * (1 - (0.35 + 0.6 * severity) * radius**power)


def watermark(rgb: Tensor, severity: float, rng: np.random.Generator) -> Tensor:
    """Lettering or a sign laid over the picture: once and large, or repeated all over it."""
    height, width = rgb.shape[-2:]
    layer = Image.new("L", (width, height))
    draw = ImageDraw.Draw(layer)
    text = "".join(chr(int(c)) for c in rng.integers(65, 91, int(rng.integers(4, 10))))
    size = max(8, round(min(height, width) * (0.08 + 0.22 * severity)))
    font = ImageFont.load_default(size)
    if rng.integers(2):
        step = (round(2.2 * size), round(0.6 * size * (len(text) + 2)))
        for row, y in enumerate(range(-size, height + size, step[0])):
            for x in range(-(row % 2) * step[1] // 2, width, step[1]):
                draw.text((x, y), text, 255, font)
        layer = layer.rotate(float(rng.uniform(-40, 40)), Image.Resampling.BILINEAR)
    else:
        place = (float(rng.uniform(0, 0.4)) * width, float(rng.uniform(0.05, 0.85)) * height)
        draw.text(place, text, 255, font)
        if rng.integers(2):
            draw.rectangle(
                (place[0] - size / 4, place[1], place[0] + 0.62 * size * len(text), place[1] + 1.3 * size), None, 255, 2
            )
    share = torch.from_numpy(np.array(layer)).float() / 255 * (0.25 + 0.65 * severity + float(rng.uniform(-0.1, 0.1)))
    ink = (
        torch.full((3, 1, 1), float(rng.choice([0.0, 1.0, 1.0])))
        if rng.integers(3)
        else torch.rand((3, 1, 1), generator=torch.Generator().manual_seed(int(rng.integers(2**31))))
    )
    return rgb * (1 - share) + ink * share


def rotate(rgb: Tensor, degrees: float, fill: str) -> Tensor:
    """Rotate counter-clockwise about the centre. fill: 'crop' zooms in until no corner shows; else pad mode/colour.

    fill: 'crop', 'reflection', 'border', 'black', 'white' or 'mean'.
    """
    height, width = rgb.shape[-2:]
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    zoom = 1.0
    if fill == "crop":
        a = abs(angle)
        zoom = min(
            width / (width * math.cos(a) + height * math.sin(a)), height / (height * math.cos(a) + width * math.sin(a))
        )
    aspect = width / height
    theta = zoom * torch.tensor([[cos, -sin / aspect, 0.0], [sin * aspect, cos, 0.0]])
    grid = F.affine_grid(theta[None], [1, 3, height, width], align_corners=False)
    if fill in ("crop", "reflection", "border"):
        mode = "reflection" if fill == "reflection" else "border"
        return F.grid_sample(rgb[None], grid, mode="bicubic", padding_mode=mode, align_corners=False)[0].clamp(0, 1)
    level = {"black": torch.zeros(3), "white": torch.ones(3)}.get(fill, rgb.mean(dim=(1, 2)))[:, None, None]
    return F.grid_sample((rgb - level)[None], grid, mode="bicubic", align_corners=False)[0].add(level).clamp(0, 1)


FILLS = (*("crop",) * 9, "reflection", "border", "black", "black", "white", "mean")  # people crop the corners away


def tilt(rgb: Tensor, severity: float, rng: np.random.Generator, sign: int = 0) -> Tensor:
    """Turn the picture by 3 to 22 degrees. sign +1 turns counter-clockwise; 0 picks a side."""
    side = sign or int(rng.choice([-1, 1]))
    return rotate(rgb, side * (3 + 19 * severity), FILLS[rng.integers(len(FILLS))])


EDITS: dict[str, Edit] = {
    edit.name: edit
    for edit in (
        Edit("tilt left", 0.75, 4.5, True, lambda rgb, s, rng: tilt(rgb, s, rng, 1)),
        Edit("tilt right", 0.75, 4.5, True, lambda rgb, s, rng: tilt(rgb, s, rng, -1)),
        Edit("underexposed", 0.95, 0.8, False, underexpose),
        Edit("overexposed", 0.90, 1.8, False, overexpose),
        Edit("flat", 0.85, 0.8, False, flatten_contrast),
        Edit("hazy", 0.75, 0.8, False, haze),
        Edit("desaturated", 0.70, 1.2, False, desaturate),
        Edit("oversaturated", 0.60, 0.8, False, oversaturate),
        Edit("colour cast", 0.80, 2.6, False, colour_cast),
        Edit("vignetted", 0.55, 1.0, False, vignette),
        Edit("blurred", 1.00, 1.2, False, blur),
        Edit("oversharpened", 0.55, 0.8, False, oversharpen),
        Edit("noisy", 0.90, 1.6, False, noise),
        Edit("compressed", 0.85, 3.5, False, compress),
        Edit("watermarked", 0.45, 1.2, False, watermark),
    )
}
