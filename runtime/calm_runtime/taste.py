"""Learning one person's taste from few ratings: what the base score leaves open, by Bayesian linear regression.

A person's rating is their mean, plus the base score with a weight near BASE_WEIGHT, plus what speaks to this person in
the photo. With few ratings the last part is small, so the profile orders photos as the base score does.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calm_runtime.aligner import PhotoFeatures
from calm_runtime.reference import Reference
from calm_runtime.score import Score

Array = npt.NDArray[np.float64]

MAX_RATINGS = 1000
# Prior of the base score's weight: standard deviations of a person's ratings per spread of the reference photographs'
# scores, its mean and deviation. Single people follow a good mean rating no closer (SRCC 0.3 to 0.4).
BASE_WEIGHT, BASE_DEVIATION = 0.35, 0.2
MEAN_DEVIATION = 3.0  # of the person's true mean rating about the ratings' own: as good as unknown


class Kind(NamedTuple):
    """A kind of rater: how common, prior variances of what is read from `visual` and `statistics`, deviation of the noise.

    Variances and deviation are of ratings that have a deviation of one.
    """

    share: float
    visual: float
    statistics: float
    noise: float


# The first is what people are like whose ratings of photographs are known (19 of them; variances from 0.3 to 1 serve alike); the second follows light and colour plainly. The
# evidence of the ratings weighs the two (MacKay 1992, "Bayesian interpolation").
KINDS = (Kind(0.9, 0.6, 0.02, 0.8), Kind(0.1, 0.2, 0.6, 0.4))


class Features(NamedTuple):
    """What taste is read from, per photo: score [N, 1], visual [N, E], statistics [N, S]."""

    score: Array
    visual: Array
    statistics: Array


class Taste(NamedTuple):
    """Linear weights [F] on the features less `centre` [F], and the mean and spread of what they give."""

    weights: Array
    centre: Array
    mean: float
    std: float


class Fit(NamedTuple):
    """What each kind of rater makes of N ratings, in standard deviations from their mean.

    target: the ratings less the base score's share [N]. precision: inverse covariance of the ratings [K, N, N].
    weight: share of each kind in the result [K].
    """

    target: Array
    precision: Array
    weight: Array


def taste_features(seen: PhotoFeatures, scores: list[Score], statistics: Array, reference: Reference) -> Features:
    """Features of a batch. statistics: of `picture_statistics`. reference: what the scores are measured against."""
    low, middle, high = np.interp((16, 50, 84), np.linspace(0, 100, len(reference.quantiles)), reference.quantiles)
    spread = max((high - low) / 2, 1e-3)
    score = np.array([[(s.mean - middle) / spread] for s in scores])
    return Features(score, np.asarray(seen.photo_embeds, np.float64), statistics)


def learn_taste(features: Features, ratings: Array) -> Taste:
    """Fit ratings [N] (not all equal) from features of the same photos."""
    fit = fit_kinds(features, ratings)
    alphas = fit.weight[:, None] * (fit.precision @ fit.target)  # [K, N]
    score, visual, statistics = _centred(features)
    base = BASE_WEIGHT + BASE_DEVIATION**2 * score.T @ alphas.sum(axis=0)
    looks = visual.T @ ([kind.visual for kind in KINDS] @ alphas) / _size(visual)
    light = statistics.T @ ([kind.statistics for kind in KINDS] @ alphas) / statistics.shape[1]
    mean, std = float(ratings.mean()), float(ratings.std())
    offset = MEAN_DEVIATION**2 * float(alphas.sum())
    centre = np.concatenate([block.mean(axis=0) for block in features])
    return Taste(np.concatenate([base, looks, light]), centre, mean + std * offset, std)


def personal_ratings(taste: Taste, features: Features) -> Array:
    """Expected ratings [N] of this person, on the scale the taste was learnt on."""
    stacked = np.concatenate(features, axis=1)
    return np.asarray(taste.mean + taste.std * ((stacked - taste.centre) @ taste.weights))


def fit_kinds(features: Features, ratings: Array) -> Fit:
    """Fit ratings [N] (not all equal) as each of KINDS would give them."""
    score, visual, statistics = _centred(features)
    target = (ratings - ratings.mean()) / ratings.std() - BASE_WEIGHT * score[:, 0]
    looks, light = visual @ visual.T / _size(visual), statistics @ statistics.T / statistics.shape[1]
    common = BASE_DEVIATION**2 * score @ score.T + MEAN_DEVIATION**2
    precisions, evidence = [], []
    for kind in KINDS:
        covariance = common + kind.visual * looks + kind.statistics * light + kind.noise**2 * np.eye(len(target))
        precisions.append(np.linalg.inv(covariance))
        evidence.append(-0.5 * (target @ precisions[-1] @ target + np.linalg.slogdet(covariance)[1]))
    weight = np.exp(np.array(evidence) - max(evidence)) * [kind.share for kind in KINDS]
    return Fit(target, np.array(precisions), weight / weight.sum())


def _centred(features: Features) -> Features:
    return Features(*(block - block.mean(axis=0) for block in features))


def _size(visual: Array) -> float:
    """Mean squared length of centred rows [N, E]: embeddings come in any scale."""
    return max(float((visual**2).sum(axis=1).mean()), 1e-12)
