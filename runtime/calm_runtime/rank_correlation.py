"""Spearman's rank correlation (SRCC), for a runtime that does without SciPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.floating]


def srcc(left: Values, right: Values) -> float:
    """Spearman's rank correlation of two vectors; NaN when one side is constant."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(_ranks(left), _ranks(right))[0, 1])


def _ranks(values: Values) -> npt.NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[inverse])
