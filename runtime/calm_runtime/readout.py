"""From the model's numbers to a Score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from calm_runtime.attributes import Attribute
from calm_runtime.bundle import Manifest
from calm_runtime.errors import ScoreError
from calm_runtime.score import AttributeReading, Frame, Score, histogram_moments, score_histogram


def read_scores(
    logits: npt.NDArray[np.float32],
    attribute_logits: npt.NDArray[np.float32],
    manifest: Manifest,
    timings: Sequence[dict[str, float]],
    frames: Sequence[Frame | None] | None = None,
) -> list[Score]:
    """One Score per row.

    logits: [B, V] at the answer position. attribute_logits: [B, A, 3]. timings: milliseconds per stage, per row.
    frames: what was left out of each photo; None for nothing of any.
    Raises ScoreError when a number of any row is not finite.
    """
    histograms = score_histogram(logits[:, list(manifest.score.token_ids)])  # [B, 10]
    means, stds = (moment.tolist() for moment in histogram_moments(histograms))
    technical, _ = histogram_moments(score_histogram(logits[:, list(manifest.technical.token_ids)]))
    attributes = read_attributes(attribute_logits, manifest.attributes)
    return [
        Score(
            mean=means[row],
            technical=float(technical[row]),
            percentile=manifest.reference.percentile(means[row]),
            std=stds[row],
            histogram=tuple(histograms[row].tolist()),
            scale=(manifest.score.low, manifest.score.high),
            attributes=attributes[row],
            model=f"{manifest.model.name} {manifest.model.version}",
            bundle=manifest.digest,
            frame=frames[row] if frames else None,
            timings=timings[row],
        )
        for row in range(len(logits))
    ]


def read_attributes(
    attribute_logits: npt.NDArray[np.float32], attributes: Sequence[Attribute]
) -> list[dict[str, AttributeReading]]:
    """Attribute logits [B, A, 3] -> per row, readings in the bundle's order. Raises ScoreError when one is not finite.

    The arithmetic is done for the whole batch: on a GPU, reading photo by photo took longer than the model.
    """
    logits = attribute_logits.astype(np.float64)
    if not np.isfinite(logits).all():
        raise ScoreError("the model produced attributes that are not finite; the engine or the bundle is faulty")
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = exp / exp.sum(axis=-1, keepdims=True)  # [B, A, 3]
    named = [(attribute, [level.name for level in attribute.levels]) for attribute in attributes]
    return [
        {
            attribute.name: AttributeReading(attribute.scale, names[best], dict(zip(names, row, strict=True)))
            for (attribute, names), row, best in zip(named, rows, bests, strict=True)
        }
        for rows, bests in zip(probabilities.tolist(), probabilities.argmax(axis=-1).tolist(), strict=True)
    ]
