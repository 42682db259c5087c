"""Learning one person's taste from few ratings: Bayesian linear regression on what the model sees in a photo."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calm_runtime.aligner import PhotoFeatures
from calm_runtime.score import SCORE_HIGH, SCORE_LOW, Score

Array = npt.NDArray[np.float64]

MAX_RATINGS = 1000
# Prior shares each block of `Features` may have, and noise of a rating in standard deviations of the ratings; the evidence of
# the ratings themselves picks one combination (MacKay 1992, "Bayesian interpolation").
SHARES = ((0.0, 0.3, 1.0), (0.1, 0.3, 1.0), (0.0, 0.3, 1.0), (0.0, 0.3, 1.0))
NOISES = (0.2, 0.4, 0.7, 1.0)


class Features(NamedTuple):
    """What taste is read from, per photo: score [N, 1], attributes [N, 2A], visual [N, E], statistics [N, S]."""

    score: Array
    attributes: Array
    visual: Array
    statistics: Array


class Taste(NamedTuple):
    """Linear weights [F] on the features, their mean over the rated photos [F], and the ratings' mean and spread."""

    weights: Array
    centre: Array
    mean: float
    std: float


def taste_features(seen: PhotoFeatures, scores: list[Score], statistics: Array) -> Features:
    """Features of a batch. statistics: of `picture_statistics`."""
    middle = (SCORE_LOW + SCORE_HIGH) / 2
    score = np.array([[(s.mean - middle) / (SCORE_HIGH - middle)] for s in scores])
    logits = seen.aligned.attribute_logits.astype(np.float64)  # [N, A, 3]
    axis = np.tanh(0.25 * (logits[..., 2] - logits[..., 0]))
    edge = np.tanh(0.25 * (logits[..., 1] - 0.5 * (logits[..., 0] + logits[..., 2])))
    return Features(score, np.concatenate([axis, edge], axis=1), np.asarray(seen.photo_embeds, np.float64), statistics)


def learn_taste(features: Features, ratings: Array) -> Taste:
    """Fit ratings [N] (not all equal) from features of the same photos."""
    std = float(ratings.std())
    target = (ratings - ratings.mean()) / std
    centres = [block.mean(axis=0) for block in features]
    centred = [block - centre for block, centre in zip(features, centres, strict=True)]
    # Each block's kernel is scaled to a mean diagonal of one, so that shares compare.
    sizes = [max(float((block**2).sum(axis=1).mean()), 1e-12) for block in centred]
    kernels = [block @ block.T / size for block, size in zip(centred, sizes, strict=True)]
    best, chosen = -np.inf, tuple(options[0] for options in SHARES)
    alpha = np.zeros(len(target))
    for shares in itertools.product(*SHARES):
        kernel = sum(share * k for share, k in zip(shares, kernels, strict=True))
        values, vectors = np.linalg.eigh(kernel)
        rotated = vectors.T @ target
        for noise in NOISES:
            spectrum = np.maximum(values, 0) + noise**2
            evidence = -0.5 * float((rotated**2 / spectrum).sum() + np.log(spectrum).sum())
            if evidence > best:
                best, chosen, alpha = evidence, shares, vectors @ (rotated / spectrum)
    weights = [share / size * block.T @ alpha for share, size, block in zip(chosen, sizes, centred, strict=True)]
    return Taste(np.concatenate(weights), np.concatenate(centres), float(ratings.mean()), std)


def personal_ratings(taste: Taste, features: Features) -> Array:
    """Expected ratings [N] of this person, on the scale the taste was learnt on."""
    stacked = np.concatenate(features, axis=1)
    return np.asarray(taste.mean + taste.std * ((stacked - taste.centre) @ taste.weights))
