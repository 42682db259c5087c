"""Figures that say how far two sides are apart: cosine and signal to noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.floating]


def cosine_per_photo(left: Values, right: Values) -> npt.NDArray[np.float64]:
    """Cosine per photo of [P, ...] features, [P]; NaN where a side is all zero or not finite."""
    a, b = (side.reshape(len(side), -1).astype(np.float64) for side in (left, right))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(axis=1) / norms)


def signal_to_noise(signal: Values, found: Values) -> float:
    """Decibels by which a signal exceeds what was added to it; infinite for equal values, NaN for values not finite."""
    left, right = signal.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(10 * np.log10(np.square(left).sum() / np.square(left - right).sum()))
