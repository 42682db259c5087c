"""CIE L*a*b*: distances between colours as people see them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from calm_runtime.retouch import Rgb, to_linear

# Linear sRGB -> XYZ (IEC 61966-2-1), divided by the D65 white.
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
) / np.array([[0.95047], [1.0], [1.08883]])
EPSILON, KAPPA = 216 / 24389, 24389 / 27


def to_lab(rgb: Rgb) -> npt.NDArray[np.float32]:
    """sRGB-encoded [..., 3] -> CIE L*a*b* [..., 3] (D65); L* is 0..100."""
    scaled = to_linear(rgb) @ TO_XYZ.T.astype(np.float32)
    root = np.where(scaled > EPSILON, np.cbrt(scaled), (KAPPA * scaled + 16) / 116)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)


def mean_chroma(rgb: Rgb) -> float:
    """Mean distance from grey: below about 1 a picture is black and white."""
    return float(np.hypot(*to_lab(rgb)[..., 1:].reshape(-1, 2).T).mean())
