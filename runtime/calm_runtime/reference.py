"""A reference set of photographs: what a score means among others."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
import numpy as np

STEPS = 100  # quantiles in steps of one percent: 0, 1, ..., 100


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Scores of the photographs a percentile compares with.

    name: which photographs. photos: how many. quantiles: STEPS + 1 scores, ascending, from the lowest to the highest.
    """

    name: str
    photos: int
    quantiles: tuple[float, ...]

    def __post_init__(self) -> None:
        """Raises ValueError, which msgspec turns into its own when it decodes one."""
        ascending = list(self.quantiles) == sorted(self.quantiles) and all(map(math.isfinite, self.quantiles))
        if len(self.quantiles) != STEPS + 1 or not ascending:
            raise ValueError(f"a reference has {STEPS + 1} ascending quantiles")

    def percentile(self, score: float) -> float:
        """Share of the reference photographs below a score, 0 to 100, linear between two quantiles.

        0 below the first quantile, 100 above the last; of equal quantiles the last counts.
        """
        return float(np.interp(score, self.quantiles, np.linspace(0.0, 100.0, len(self.quantiles))))


def reference_of(name: str, scores: Iterable[float]) -> Reference:
    """The reference that a set of scores (one or more, finite) makes."""
    values = np.fromiter(scores, np.float64)
    quantiles = np.quantile(values, np.linspace(0.0, 1.0, STEPS + 1))
    return Reference(name, len(values), tuple(round(value, 4) for value in quantiles.tolist()))
