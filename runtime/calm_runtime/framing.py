"""Framing that can be measured: the tilt of a picture's lines, empty bars, and crops around what stands out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from calm_runtime.retouch import LUMA, box_mean, to_floats

Box = tuple[float, float, float, float]

_MOST_TILT = 20.0  # degrees; beyond, a slanted line is more likely meant
_LEAST_TILT = 1.0
_BIN = 0.5
_CLEAR_PEAK = 2.2  # times the mean of the histogram
_CROP_SIDES = (0.88, 0.75)
_KEPT_INTEREST = 0.85
_CROP_SUPPORT = -0.5  # a crop is a matter of taste: it has to gain more than a correction
_BAR_SUPPORT = 2.0
_GRID = 14


def tilt(picture: Image.Image) -> tuple[float, float]:
    """Tilt of an RGB picture's lines in degrees, counter-clockwise, and how clearly they show it (0: not at all).

    Peak of the histogram of edge directions about the horizontal and the vertical, from the structure tensor
    (Bigun & Granlund 1987), each pixel weighted by its gradient and the coherence of its neighbourhood.
    """
    # Differences of neighbours measure the angle of a hard edge wrongly; those of a smooth one rightly.
    luma = to_floats(np.asarray(picture.filter(ImageFilter.GaussianBlur(1.5)))) @ LUMA
    dy, dx = np.gradient(luma)
    margin = 3
    dy, dx = dy[margin:-margin, margin:-margin], dx[margin:-margin, margin:-margin]
    if min(dx.shape) < 8:
        return 0.0, 0.0
    tensor = box_mean(np.stack([dx * dx, dy * dy, dx * dy], axis=-1).astype(np.float32), 2)  # [h, w, 3]
    xx, yy, xy = tensor[..., 0], tensor[..., 1], tensor[..., 2]
    difference = np.hypot(xx - yy, 2 * xy)
    coherence = difference / (xx + yy + 1e-4)
    angle = np.degrees(0.5 * np.arctan2(2 * xy, xx - yy))  # of the gradient, -90..90, y downwards
    slant = (angle + 45) % 90 - 45
    weight = np.sqrt(difference) * coherence**4
    edges = np.arange(-45, 45 + _BIN, _BIN)
    histogram, _ = np.histogram(slant, bins=edges, weights=weight)
    kernel = np.exp(-0.5 * (np.arange(-4, 5) / 1.5) ** 2)
    smooth = np.convolve(np.concatenate([histogram[-4:], histogram, histogram[:4]]), kernel / kernel.sum(), "valid")
    centres = edges[:-1] + _BIN / 2
    near = np.abs(centres) <= _MOST_TILT
    peak = int(np.argmax(np.where(near, smooth, 0)))
    window = slice(max(0, peak - 2), peak + 3)
    degrees = float((centres[window] * smooth[window]).sum() / (smooth[window].sum() + 1e-12))
    clearness = float(np.log(smooth[peak] / (smooth.mean() + 1e-12) / _CLEAR_PEAK + 1e-6))
    if abs(degrees) < _LEAST_TILT or clearness <= 0:
        return 0.0, 0.0
    return -degrees, clearness


def crops(picture: Image.Image) -> list[tuple[Box, float]]:
    """Boxes worth trying and their support: without black or white bars, and closer around what stands out."""
    values = np.asarray(picture)
    inner = _without_bars(values)
    if inner != (0.0, 0.0, 1.0, 1.0):
        return [(inner, _BAR_SUPPORT)]
    interest = saliency(values)
    return [(box, _CROP_SUPPORT) for side in _CROP_SIDES if (box := _around(interest, side)) is not None]


def saliency(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """What stands out of [H, W, 3] uint8, on a grid [14, 14] that sums to one.

    Distance of a cell's colour from the mean colour of the frame's border, times the root of its detail.
    """
    small = Image.fromarray(values).resize((_GRID * 8, _GRID * 8), Image.Resampling.BOX)
    rgb = to_floats(np.asarray(small))
    cells = rgb.reshape(_GRID, 8, _GRID, 8, 3)
    colour = cells.mean(axis=(1, 3))  # [G, G, 3]
    border = np.concatenate([colour[0], colour[-1], colour[:, 0], colour[:, -1]]).mean(axis=0)
    distance = np.linalg.norm(colour - border, axis=-1)
    detail = (rgb @ LUMA).reshape(_GRID, 8, _GRID, 8).std(axis=(1, 3))
    interest = (distance + 0.02) * np.sqrt(detail + 1e-4)
    return np.asarray(interest / interest.sum(), np.float64)


def _around(interest: npt.NDArray[np.float64], side: float) -> Box | None:
    """A box of the same aspect whose centre or nearest third holds the interest; None if much would be cut off."""
    centres = (np.arange(_GRID) + 0.5) / _GRID
    edges = []
    for axis in (0, 1):
        position = float(interest.sum(axis=axis) @ centres)  # axis 0 leaves columns: x first
        anchor = min((1 / 3, 1 / 2, 2 / 3), key=lambda share: abs(share - position))
        start = min(max(0.0, position - anchor * side), 1 - side)
        edges.append((start, start + side))
    (left, right), (top, bottom) = edges
    columns = (centres >= left) & (centres <= right)
    rows = (centres >= top) & (centres <= bottom)
    kept = interest[np.ix_(rows, columns)].sum()
    return (left, top, right, bottom) if kept >= _KEPT_INTEREST else None


def _without_bars(values: npt.NDArray[np.uint8]) -> Box:
    """The part inside black or white bars, which come in pairs: above and below, or left and right."""
    height, width = values.shape[:2]
    box = [0.0, 0.0, 1.0, 1.0]
    for axis, length in ((1, height), (0, width)):
        low, high = values.min(axis=(axis, 2)), values.max(axis=(axis, 2))
        plain = (high <= 12) | (low >= 243)
        inside = np.flatnonzero(~plain)
        if not len(inside):
            continue
        first, last = int(inside[0]), int(inside[-1]) + 1
        if min(first, length - last) >= 0.01 * length and last - first >= 0.4 * length:
            start, end = (1, 3) if axis == 1 else (0, 2)
            # A blurred pixel of the bar must not stay.
            box[start], box[end] = (first + 1) / length, (last - 1) / length
    return (box[0], box[1], box[2], box[3])
