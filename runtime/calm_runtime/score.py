"""The score: what leaves the model. Scale, read-out of the score tokens, and provenance."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt

from calm_runtime.errors import ScoreError

SCORE_LOW = 1
SCORE_HIGH = 10
SCORE_LEVELS = SCORE_HIGH - SCORE_LOW + 1
SCORE_TOKENS = tuple(f"<score_{k}>" for k in range(SCORE_LOW, SCORE_HIGH + 1))
TECHNICAL_TOKENS = tuple(f"<technical_{k}>" for k in range(SCORE_LOW, SCORE_HIGH + 1))  # read on the same scale

Frame = tuple[float, float, float, float]


@dataclass(frozen=True)
class AttributeReading:
    """One named attribute of a photo.

    `level` is the most probable of the attribute's levels; `probabilities` maps every level to its probability.
    """

    scale: str
    level: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Score:
    """The aesthetic score of one photo, with everything needed to know what the number means.

    mean: what people would vote: expectation of the rating histogram, in `scale` units.
    std: its standard deviation, in the same units.
    histogram: probability of each whole rating from scale[0] to scale[1]; sums to one.
    technical: how undamaged the picture is, in `scale` units: free of blur, noise and compression, well exposed.
    percentile: where the score lies among the bundle's reference photographs, 0 to 100.
    attributes: attribute name -> reading, in the bundle's order.
    model: "name version" of the model; bundle: digest of the bundle that produced the score.
    frame: border that was left out of what the model read, as shares (left, top, right, bottom) of the picture's width
    and height; None when none was.
    timings: milliseconds per stage.
    personal: what the person of a profile would give, in `scale` units; None without a profile.
    """

    mean: float
    technical: float
    percentile: float
    std: float
    histogram: tuple[float, ...]
    scale: tuple[int, int]
    attributes: dict[str, AttributeReading]
    model: str
    bundle: str
    frame: Frame | None = None
    timings: dict[str, float] = field(default_factory=dict)
    personal: float | None = None

    @property
    def quality(self) -> float:
        """Mean of score and technical: what edits are judged by, so that neither rating is bought with the other."""
        return 0.5 * (self.mean + self.technical)

    def to_json(self) -> dict[str, object]:
        """The record `calm score --json` prints (without the path)."""
        personal = {} if self.personal is None else {"personal": self.personal}
        return {
            "score": self.mean,
            **personal,
            "technical": self.technical,
            "percentile": self.percentile,
            "std": self.std,
            "histogram": list(self.histogram),
            "scale": list(self.scale),
            "frame": None if self.frame is None else list(self.frame),
            "attributes": {name: asdict(reading) for name, reading in self.attributes.items()},
            "model": self.model,
            "bundle": self.bundle,
            "ms": self.timings,
        }


def score_histogram(score_logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Softmax over the logits of the score tokens at the answer position.

    score_logits: [..., 10], any float dtype. Returns [..., 10] float64.
    Raises ScoreError when a logit is not finite.
    """
    logits = np.asarray(score_logits, dtype=np.float64)
    if not np.isfinite(logits).all():
        raise ScoreError("the model produced score logits that are not finite; the engine or the bundle is faulty")
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exp / exp.sum(axis=-1, keepdims=True))


def histogram_moments(
    histogram: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and standard deviation of rating histograms [..., 10] on the 1..10 scale (the NIMA read-out)."""
    ratings = np.arange(SCORE_LOW, SCORE_HIGH + 1, dtype=np.float64)
    mean = histogram @ ratings
    variance = histogram @ ratings**2 - mean**2
    return mean, np.sqrt(np.maximum(variance, 0.0))
