"""Noise and fine detail of a picture, beside what is usual among untouched photos."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from calm_runtime.mending import mending_info
from calm_runtime.retouch import LUMA, noise_level, to_floats

SIZE = 224  # pixels of the longer side at which both are measured
_LEAST = 1e-4


def fine_detail(values: npt.NDArray[np.uint8]) -> float:
    """Mean luma difference between neighbours, relative to the contrast; of [H, W, 3] uint8."""
    luma = to_floats(values) @ LUMA
    steps = np.abs(np.diff(luma, axis=0)).mean() + np.abs(np.diff(luma, axis=1)).mean()
    return float(steps / (luma.std() + 0.02))


def measure_detail(picture: Image.Image) -> tuple[float, float]:
    """Noise level and fine detail of an RGB picture at SIZE."""
    small = picture.copy()
    small.thumbnail((SIZE, SIZE))
    values = np.asarray(small)
    return noise_level(values), fine_detail(values)


def detail_faults(picture: Image.Image) -> tuple[float, float]:
    """How far a picture lies beyond nine tenths of the untouched ones, in (noise, softness): logarithms, negative within."""
    noise, detail = measure_detail(picture)
    usual = mending_info()
    return math.log((noise + _LEAST) / usual.noisy), math.log((usual.soft + _LEAST) / (detail + _LEAST))
