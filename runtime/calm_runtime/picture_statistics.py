"""Plain statistics of a picture that a person's taste may follow: light, colour, detail, symmetry, framing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from calm_runtime.photo import PhotoSpec

Array = npt.NDArray[np.float32]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
COARSE = 28  # cells per side on which symmetry is read
_EPSILON = 1e-4

# Statistic -> mean and standard deviation over 1,217 photographs, so that each weighs about the same in a profile.
STATISTICS: dict[str, tuple[float, float]] = {
    "brightness": (0.45, 0.12),
    "contrast": (0.21, 0.06),
    "saturation": (0.15, 0.09),
    "strong colour": (0.28, 0.16),
    "warmth": (0.07, 0.12),
    "tint": (0.02, 0.05),
    "fine detail": (-2.40, 0.43),
    "detail": (-2.56, 0.37),
    "mirror left-right": (0.31, 0.31),
    "mirror top-bottom": (0.09, 0.32),
    "shadows": (0.06, 0.10),
    "highlights": (0.03, 0.08),
    "detail in the middle": (0.17, 0.26),
    "shape": (0.16, 0.33),
}


def picture_statistics(pixel_values: Array, spec: PhotoSpec) -> npt.NDArray[np.float64]:
    """pixel_values [B, 3, S, S] of `photo.to_pixel_values` -> standardised statistics [B, len(STATISTICS)].

    Of a stretched picture "shape" says nothing: it is always that of a square.
    """
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
    rows = [_statistics(_unpad(pixels * std + mean, spec)) for pixels in pixel_values]
    middle, spread = np.array(list(STATISTICS.values())).T
    # Nothing an odd picture does may outweigh the rest.
    return np.asarray(np.clip((np.array(rows, np.float64) - middle) / spread, -3, 3))


def _unpad(rgb: Array, spec: PhotoSpec) -> Array:
    """[3, S, S] in 0..1 -> the photo without the border that made it square."""
    if spec.fit == "stretch":
        return rgb
    pad = np.asarray(spec.pad_color, np.float32)[:, None, None] / 255
    inside = np.abs(rgb - pad).max(axis=0) > 1 / 255  # [S, S]
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if rows.size < COARSE or columns.size < COARSE:
        return rgb  # a picture of the pad colour itself, or nearly
    return rgb[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _statistics(rgb: Array) -> list[float]:
    """[3, H, W] in 0..1 -> the statistics, in the order of STATISTICS."""
    gray = np.tensordot(LUMA, rgb, axes=1)  # [H, W]
    chroma = rgb.max(axis=0) - rgb.min(axis=0)
    red, green, blue = rgb.mean(axis=(1, 2))
    step = np.abs(np.diff(gray, axis=0))[:, :-1] + np.abs(np.diff(gray, axis=1))[:-1]  # [H - 1, W - 1]
    bend = np.abs(4 * gray[1:-1, 1:-1] - gray[:-2, 1:-1] - gray[2:, 1:-1] - gray[1:-1, :-2] - gray[1:-1, 2:])
    height, width = step.shape
    middle = step[height // 4 : height - height // 4, width // 4 : width - width // 4].mean()
    coarse = _coarse(gray)
    return [
        float(gray.mean()),
        float(gray.std()),
        float(chroma.mean()),
        float(np.quantile(chroma, 0.9)),
        float(red - blue),
        float(green - 0.5 * (red + blue)),
        float(np.log(bend.mean() + 1e-3)),
        float(np.log(step.mean() + 1e-3)),
        _mirror(coarse, 1),
        _mirror(coarse, 0),
        float((gray < 0.08).mean()),
        float((gray > 0.95).mean()),
        float(np.log((middle + 1e-3) / (step.mean() + 1e-3))),
        float(np.log(gray.shape[1] / gray.shape[0])),
    ]


def _coarse(gray: Array) -> Array:
    """[H, W] -> means of COARSE x COARSE cells."""
    rows = np.linspace(0, gray.shape[0], COARSE + 1).astype(int)[:-1]
    columns = np.linspace(0, gray.shape[1], COARSE + 1).astype(int)[:-1]
    sums = np.add.reduceat(np.add.reduceat(gray, rows, axis=0), columns, axis=1)
    counts = np.outer(np.diff([*rows, gray.shape[0]]), np.diff([*columns, gray.shape[1]]))
    return np.asarray(sums / counts, np.float32)


def _mirror(cells: Array, axis: int) -> float:
    """Correlation of the cells with their mirror image along an axis."""
    centred = cells - cells.mean()
    return float((centred * np.flip(centred, axis)).mean() / (centred.var() + _EPSILON))
