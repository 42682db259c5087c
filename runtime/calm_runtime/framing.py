"""Framing that can be measured: the tilt of a picture's lines, empty bars, and crops around what stands out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from calm_runtime.retouch import LUMA, to_floats

Box = tuple[float, float, float, float]

_LINE_SIZE, _CELL = 224, 10  # pixels: where lines are looked for, and what one line is seen in
_MOST_TILT = 16.0  # degrees; beyond, a slanted line is more likely meant
_TILT_DOUBT = 0.15  # log odds against the largest tilt, beside none
_LEAST_TILT = 1.0
_BIN, _GATHERED = 0.5, 1.5  # degrees: of the histogram, and standard deviation of what counts as one direction
_CENTRES = np.arange(-45, 45.01, _BIN)
_APART = np.abs(_CENTRES[:, None] - _CENTRES[None])
_GATHER = np.exp(-0.5 * (np.minimum(_APART, 90 - _APART) / _GATHERED) ** 2)
_CROP_SIDES = (0.88, 0.75)
_KEPT_INTEREST = 0.85
_CROP_SUPPORT = -0.5  # a crop is a matter of taste: it has to gain more than a correction
_BAR_SUPPORT = 2.0
_GRID = 14


def tilt(picture: Image.Image) -> tuple[float, float]:
    """Tilt of an RGB picture's lines in degrees, counter-clockwise, and how clearly they show it (0: not at all).

    The turn about the horizontal and the vertical that gathers most lines: directions of small cells from the structure
    tensor (Bigun & Granlund 1987), weighted by coherence. clearness: log ratio of the lines gathered there and at 0.
    """
    small = picture.copy()
    small.thumbnail((_LINE_SIZE, _LINE_SIZE), Image.Resampling.BICUBIC)
    gathered = _slants(to_floats(np.asarray(small)) @ LUMA) @ _GATHER
    evidence = np.log(gathered + 1e-3 * gathered.sum() + 1e-9) - _TILT_DOUBT * (_CENTRES / _MOST_TILT) ** 2
    best = int(np.argmax(np.where(np.abs(_CENTRES) <= _MOST_TILT, evidence, -np.inf)))
    degrees, clearness = float(_CENTRES[best]), float(evidence[best] - evidence[len(_CENTRES) // 2])
    return (-degrees, clearness) if abs(degrees) >= _LEAST_TILT and clearness > 0 else (0.0, 0.0)


def _slants(luma: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Weight of the lines of luma [H, W] by their slant: a histogram over _CENTRES."""
    across, down = luma[1:-1], luma[:, 1:-1]
    dx = (2 * (across[:, 2:] - across[:, :-2]) + (luma[:-2, 2:] - luma[:-2, :-2]) + (luma[2:, 2:] - luma[2:, :-2])) / 8
    dy = (2 * (down[2:] - down[:-2]) + (luma[2:, :-2] - luma[:-2, :-2]) + (luma[2:, 2:] - luma[:-2, 2:])) / 8
    dx, dy = dx[2:-2, 2:-2], dy[2:-2, 2:-2]  # the frame's own edge is no line
    found = np.zeros(len(_CENTRES))
    for top, left in np.ndindex(2, 2):  # cells, and cells half way between them
        xx, yy, xy = (_cells(p[top * _CELL // 2 :, left * _CELL // 2 :]) for p in (dx * dx, dy * dy, dx * dy))
        energy = xx + yy
        coherence = np.hypot(xx - yy, 2 * xy) / (energy + 1e-3)
        angle = np.degrees(0.5 * np.arctan2(2 * xy, xx - yy))  # of the gradient, -90..90, y downwards
        slant = (angle + 45) % 90 - 45
        edges = np.append(_CENTRES - _BIN / 2, 45 + _BIN / 2)
        found += np.histogram(slant, bins=edges, weights=coherence**2 * energy**0.25)[0]
    return found


def _cells(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Means of whole _CELL x _CELL cells."""
    rows, columns = values.shape[0] // _CELL, values.shape[1] // _CELL
    whole = values[: rows * _CELL, : columns * _CELL]
    return np.asarray(whole.reshape(rows, _CELL, columns, _CELL).mean(axis=(1, 3)), np.float32)


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
