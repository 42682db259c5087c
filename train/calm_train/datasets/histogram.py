"""Votes as histograms on the scale of `calm_runtime.score`."""

from __future__ import annotations

from collections.abc import Iterable

from calm_runtime.score import SCORE_LEVELS, SCORE_LOW


def rating_histogram(votes: Iterable[tuple[float, float]]) -> tuple[float, ...]:
    """Votes (rating on 1..10, positive weight) -> probability of each whole rating, 10 values.

    A rating between two whole ones is shared linearly between them, so the histogram keeps the mean of the votes.
    """
    weights = [0.0] * SCORE_LEVELS
    for rating, weight in votes:
        position = rating - SCORE_LOW
        lower = min(int(position), SCORE_LEVELS - 2)
        share = position - lower
        weights[lower] += weight * (1 - share)
        weights[lower + 1] += weight * share
    total = sum(weights)
    return tuple(weight / total for weight in weights)
