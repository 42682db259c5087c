"""From the model's numbers to a Score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from calm_runtime.attributes import Attribute
from calm_runtime.bundle import Manifest
from calm_runtime.errors import ScoreError
from calm_runtime.score import AttributeReading, Score, histogram_moments, score_histogram


def read_scores(
    logits: npt.NDArray[np.float32],
    attribute_logits: npt.NDArray[np.float32],
    manifest: Manifest,
    timings: Sequence[dict[str, float]],
) -> list[Score]:
    """One Score per row.

    logits: [B, V] at the answer position. attribute_logits: [B, A, 3]. timings: milliseconds per stage, per row.
    Raises ScoreError when a number of any row is not finite.
    """
    histograms = score_histogram(logits[:, list(manifest.score.token_ids)])  # [B, 10]
    means, stds = histogram_moments(histograms)
    return [
        Score(
            mean=float(means[row]),
            std=float(stds[row]),
            histogram=tuple(float(p) for p in histograms[row]),
            scale=(manifest.score.low, manifest.score.high),
            attributes=read_attributes(attribute_logits[row], manifest.attributes),
            model=f"{manifest.model.name} {manifest.model.version}",
            bundle=manifest.digest,
            timings=timings[row],
        )
        for row in range(len(logits))
    ]


def read_attributes(
    attribute_logits: npt.NDArray[np.float32], attributes: Sequence[Attribute]
) -> dict[str, AttributeReading]:
    """Attribute logits [A, 3] -> readings in the bundle's order. Raises ScoreError when one is not finite."""
    logits = attribute_logits.astype(np.float64)
    if not np.isfinite(logits).all():
        raise ScoreError("the model produced attributes that are not finite; the engine or the bundle is faulty")
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = exp / exp.sum(axis=-1, keepdims=True)
    readings = {}
    for attribute, row in zip(attributes, probabilities, strict=True):
        names = [level.name for level in attribute.levels]
        readings[attribute.name] = AttributeReading(
            scale=attribute.scale,
            level=names[int(row.argmax())],
            probabilities={name: float(p) for name, p in zip(names, row, strict=True)},
        )
    return readings
