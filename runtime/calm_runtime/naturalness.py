"""How much a picture's tones look like those of an untouched photo: a t distribution of tone statistics.

`natural_photos.json` holds the mean and covariance of the statistics over untouched photos, and the ranges of their
noise and fine detail; `benchmarks/natural_photos.py` measures it.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from calm_runtime.retouch import LUMA, Rgb, to_floats, to_linear

TONE_SIZE = 64
_FREEDOM = 8.0  # photos lie further from the mean than a normal distribution has it
DISTRIBUTION = Path(__file__).with_name("natural_photos.json")

# Linear sRGB -> XYZ (IEC 61966-2-1), divided by the D65 white.
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
) / np.array([[0.95047], [1.0], [1.08883]])
_EPSILON, _KAPPA = 216 / 24389, 24389 / 27

STATISTICS = (
    "lightness", "contrast", "black point", "median lightness", "white point",
    "log chroma", "log strong chroma",
    "a", "b", "a of shadows", "b of shadows", "a of lights", "b of lights", "a by lightness",
    "log spread of a", "log spread of b",
)  # fmt: skip


class Distribution(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Statistics of untouched photos.

    mean [n], covariance [n][n] of `tone_statistics`. noisy: noise level above that of 90% of the photos at
    `detail_size` pixels. soft: fine detail below that of 90% of them.
    """

    photos: int
    source: str
    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    detail_size: int
    noisy: float
    soft: float


def to_lab(rgb: Rgb) -> npt.NDArray[np.float32]:
    """sRGB-encoded [..., 3] -> CIE L*a*b* [..., 3] (D65); L* is 0..100."""
    scaled = to_linear(rgb) @ _TO_XYZ.T.astype(np.float32)
    root = np.where(scaled > _EPSILON, np.cbrt(scaled), (_KAPPA * scaled + 16) / 116)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)


def tone_thumbnail(picture: Image.Image) -> Rgb:
    """RGB picture -> tones [h, w, 3] with a longer side of at most `TONE_SIZE`."""
    small = picture.copy()
    small.thumbnail((TONE_SIZE, TONE_SIZE), Image.Resampling.BICUBIC)
    return to_floats(np.asarray(small))


def tone_statistics(rgb: Rgb) -> npt.NDArray[np.float64]:
    """Tones [h, w, 3] of a thumbnail -> the numbers named in `STATISTICS`, in L*a*b* units or their logarithms."""
    lightness, a, b = to_lab(rgb).reshape(-1, 3).astype(np.float64).T
    black, dark, middle, light, white = np.percentile(lightness, [2, 10, 50, 90, 98])
    chroma = np.hypot(a, b)
    shadows, lights = lightness <= dark, lightness >= light
    return np.array([
        lightness.mean(), lightness.std(), black, middle, white,
        np.log(chroma.mean() + 1.5), np.log(np.percentile(chroma, 90) + 2),
        a.mean(), b.mean(), a[shadows].mean(), b[shadows].mean(), a[lights].mean(), b[lights].mean(),
        (a * lightness).mean() / (lightness.mean() + 1e-3), np.log(a.std() + 1), np.log(b.std() + 1),
    ])  # fmt: skip


def mean_chroma(rgb: Rgb) -> float:
    """Mean distance from grey in L*a*b*: below about 1 a picture is black and white."""
    return float(np.hypot(*to_lab(rgb)[..., 1:].reshape(-1, 2).T).mean())


def fine_detail(values: npt.NDArray[np.uint8]) -> float:
    """Mean luma difference between neighbours, relative to the contrast; of [H, W, 3] uint8."""
    luma = to_floats(values) @ LUMA
    steps = np.abs(np.diff(luma, axis=0)).mean() + np.abs(np.diff(luma, axis=1)).mean()
    return float(steps / (luma.std() + 0.02))


@cache
def natural_photos() -> Distribution:
    """The distribution that ships with the package."""
    return msgspec.json.decode(DISTRIBUTION.read_bytes(), type=Distribution)


@cache
def _precision() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    known = natural_photos()
    covariance = np.array(known.covariance)
    ridge = np.diag(0.02 * np.diag(covariance))  # statistics that nearly follow from each other must not explode
    return np.array(known.mean), np.asarray(np.linalg.inv(covariance + ridge), np.float64)


def log_naturalness(rgb: Rgb) -> float:
    """Log density (multivariate t) of a thumbnail's tones among untouched photos, up to a constant."""
    mean, precision = _precision()
    offset = tone_statistics(rgb) - mean
    squared = float(offset @ precision @ offset)
    return -0.5 * (_FREEDOM + len(offset)) * math.log1p(squared / _FREEDOM)
