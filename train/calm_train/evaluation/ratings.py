"""Agreement of scores with human ratings, in the measures of the field."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console
from rich.progress import track
from scipy.stats import pearsonr, spearmanr

from calm_runtime.errors import DataError, PhotoError
from calm_runtime.photo import load_photo
from calm_runtime.score import histogram_moments
from calm_train.datasets import RatedPhoto, photo_input
from calm_train.evaluation.scorer import Scorer

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]
GOOD = 5.0  # AVA's convention: a mean rating above it makes a good photo
DECODED = 64  # photos decoded at a time


@dataclass(frozen=True)
class RatingAgreement:
    """Scores against ratings. None where a measure is not defined: constant scores, or no histograms.

    srcc, plcc: Spearman's and Pearson's correlation of the means. mae, rmse: of the means, in points of the scale.
    accuracy: share of photos on the right side of 5. emd: earth mover's distance of the histograms with r = 2
    (NIMA, arXiv 1709.05424), mean over the photos. photos: number compared; failed: photos that could not be read.
    """

    photos: int
    failed: int
    srcc: float | None
    plcc: float | None
    mae: float
    rmse: float
    accuracy: float
    emd: float | None


def compare(scores: Array, ratings: Array, emd: float | None, failed: int) -> RatingAgreement:
    """scores [N], ratings [N] on the 1..10 scale -> agreement."""
    difference = scores - ratings
    return RatingAgreement(
        photos=len(scores),
        failed=failed,
        srcc=_correlation(spearmanr, scores, ratings),
        plcc=_correlation(pearsonr, scores, ratings),
        mae=float(np.abs(difference).mean()),
        rmse=float(np.sqrt((difference**2).mean())),
        accuracy=float(((scores > GOOD) == (ratings > GOOD)).mean()),
        emd=emd,
    )


def earth_movers_distance(predicted: Array, truth: Array) -> Array:
    """Per photo, between histograms [N, 10]: root mean square of the difference of the cumulative distributions."""
    gap = predicted.cumsum(-1) - truth.cumsum(-1)
    return np.asarray(np.sqrt((gap**2).mean(-1)))


def evaluate_ratings(scorer: Scorer, photos: Sequence[RatedPhoto]) -> RatingAgreement:
    """Score all photos and compare. Broken photos are counted and named in the log; DataError when none is left."""
    histograms, kept, broken = [], [], []
    bar = Console(stderr=True)
    starts = range(0, len(photos), DECODED)
    for start in track(starts, "scoring", console=bar, transient=True, disable=not bar.is_terminal):
        pictures: list[Image.Image] = []
        for photo in photos[start : start + DECODED]:
            try:
                pictures.append(load_photo(photo_input(photo.path), scorer.spec))
                kept.append(photo)
            except PhotoError as error:
                broken.append(str(error))
        if pictures:
            histograms.append(scorer(pictures).histograms)
    if broken:
        logger.warning("%d of %d photos could not be read, the first: %s", len(broken), len(photos), broken[0])
    if not kept:
        raise DataError("none of the rated photos can be read")
    predicted = np.concatenate(histograms)
    known = [i for i, photo in enumerate(kept) if photo.histogram is not None]
    emd = None
    if known:
        truth = np.array([kept[i].histogram for i in known], dtype=np.float64)
        emd = float(earth_movers_distance(predicted[known], truth).mean())
    ratings = np.array([photo.mean for photo in kept])
    return compare(histogram_moments(predicted)[0], ratings, emd, len(broken))


def _correlation(measure: Any, scores: Array, ratings: Array) -> float | None:
    if len(scores) < 2 or np.ptp(scores) == 0 or np.ptp(ratings) == 0:
        return None
    value = float(measure(scores, ratings).statistic)
    return value if math.isfinite(value) else None
