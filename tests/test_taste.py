"""The light head on synthetic people: near the base score from three ratings, better than it from a hundred, honest about it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from calm_runtime.taste import BASE_WEIGHT, Features, fit_kinds, learn_taste, personal_ratings
from calm_runtime.worth import LEAST_USEFUL, TELLING, Worth, profile_worth, verdict

PHOTOS, VISUAL, STATISTICS = 400, 300, 14
RATERS = 12


def people(seed: int = 0, own_taste: float = 0.6) -> tuple[Features, np.ndarray]:
    """Features of PHOTOS and the ratings of RATERS people [RATERS, PHOTOS].

    Each follows the base score a little, their own direction in `visual` by a variance of `own_taste`, and a mood.
    """
    rng = np.random.default_rng(seed)
    # Photos differ in few ways and a rest, as embeddings do.
    visual = rng.normal(size=(PHOTOS, 10)) @ rng.normal(size=(10, VISUAL)) + rng.normal(size=(PHOTOS, VISUAL))
    features = Features(rng.normal(size=(PHOTOS, 1)), visual, rng.normal(size=(PHOTOS, STATISTICS)))
    likes = rng.normal(size=(RATERS, VISUAL)) @ visual.T / np.sqrt((visual**2).sum(1).mean())
    noise = rng.normal(size=(RATERS, PHOTOS))
    felt = BASE_WEIGHT * features.score[:, 0] + np.sqrt(own_taste) * likes + 0.7 * noise
    return features, 4 + 1.3 * felt


def rows(features: Features, part: slice | np.ndarray) -> Features:
    return Features(*(block[part] for block in features))


def correlation(left: np.ndarray, right: np.ndarray) -> float:
    return float(spearmanr(left, right).statistic)


def gains(features: Features, ratings: np.ndarray, count: int) -> np.ndarray:
    """Of each rater, how much better a profile from the first `count` ratings orders the last 200 photos than the score."""
    known, tested = slice(0, count), slice(200, None)
    found = []
    for own in ratings:
        expected = personal_ratings(learn_taste(rows(features, known), own[known]), rows(features, tested))
        found.append(correlation(expected, own[tested]) - correlation(features.score[tested, 0], own[tested]))
    return np.array(found)


def test_profiles_are_better_the_more_ratings_they_are_learnt_from():
    features, ratings = people()
    mean = {count: gains(features, ratings, count).mean() for count in (3, 10, 30, 100)}
    assert mean[3] > -0.03
    assert 0.02 < mean[10] < mean[30] < mean[100]
    assert mean[100] > 0.25
    assert (gains(features, ratings, 100) > -0.05).all()


def test_three_ratings_leave_the_order_near_that_of_the_base_score():
    features, _ = people()
    # Whatever the three ratings say, even the contrary of the base score.
    orders = []
    for seed in range(20):
        known = np.random.default_rng(seed).choice(PHOTOS, 3, replace=False)
        expected = personal_ratings(learn_taste(rows(features, known), -features.score[known, 0]), features)
        orders.append(correlation(expected, features.score[:, 0]))
    assert np.mean(orders) > 0.5
    assert min(orders) > 0.25


def test_who_has_no_taste_beside_the_base_score_keeps_most_of_its_order():
    features, ratings = people(own_taste=0.0)
    base = np.mean([correlation(features.score[200:, 0], own[200:]) for own in ratings])
    for count in (3, 10, 30, 100):
        assert gains(features, ratings, count).mean() > -base / 2


def test_a_plain_taste_in_light_and_colour_is_found_by_the_evidence():
    features, _ = people()
    own = 3 + features.statistics[:, 2] - 0.5 * features.statistics[:, 4]
    known, tested = slice(0, 30), slice(200, None)
    expected = personal_ratings(learn_taste(rows(features, known), own[known]), rows(features, tested))
    assert correlation(expected, own[tested]) > 0.9
    assert fit_kinds(rows(features, known), own[known]).weight[1] > 0.9


def test_learning_is_deterministic_and_knows_no_scale_of_ratings_or_embeddings():
    features, ratings = people()
    known = slice(0, 20)
    first = personal_ratings(learn_taste(rows(features, known), ratings[0][known]), features)
    assert (first == personal_ratings(learn_taste(rows(features, known), ratings[0][known]), features)).all()
    other = features._replace(visual=50 * features.visual + 7)
    again = personal_ratings(learn_taste(rows(other, known), 100 + 10 * ratings[0][known]), other)
    assert again == pytest.approx(100 + 10 * first, abs=1e-6)


def test_identical_photos_teach_nothing_and_break_nothing():
    features, ratings = people()
    same = rows(features, np.zeros(5, int))
    expected = personal_ratings(learn_taste(same, ratings[0][:5] + np.arange(5)), features)
    assert np.isfinite(expected).all()
    worth = profile_worth(same, ratings[0][:5] + np.arange(5))
    assert worth.base == 0.5


def test_worth_is_what_learning_without_each_pair_gives():
    features, ratings = people()
    known, own = rows(features, slice(0, 9)), ratings[1][:9]
    fit = fit_kinds(known, own)
    covariances = np.linalg.inv(fit.precision)
    right = []
    for i, j in zip(*np.triu_indices(9, 1), strict=True):
        if own[i] == own[j]:
            continue
        rest = np.setdiff1d(np.arange(9), [i, j])
        order = BASE_WEIGHT * (known.score[i, 0] - known.score[j, 0])
        for covariance, weight in zip(covariances, fit.weight, strict=True):
            told = covariance[np.ix_([i, j], rest)] @ np.linalg.solve(covariance[np.ix_(rest, rest)], fit.target[rest])
            order += weight * (told[0] - told[1])
        right.append((order > 0) == (own[i] > own[j]))
    assert profile_worth(known, own).profile == pytest.approx(np.mean(right))


def test_worth_foretells_the_order_of_photos_not_seen():
    features, ratings = people()
    misses = []
    for own in ratings:
        known, tested = slice(0, 100), slice(200, None)
        worth = profile_worth(rows(features, known), own[known])
        expected = personal_ratings(learn_taste(rows(features, known), own[known]), rows(features, tested))
        pairs = np.triu(own[tested][:, None] > own[tested][None], 0) | np.tril(own[tested][:, None] > own[tested][None])
        found = [(values[:, None] > values[None])[pairs].mean() for values in (expected, features.score[tested, 0])]
        misses.append((worth.gain - (found[0] - found[1])) / worth.error)
    assert 0.3 < np.sqrt(np.mean(np.square(misses))) < 1.8
    assert abs(np.mean(misses)) < 1


@pytest.mark.parametrize(
    ("ratings", "worth", "said"),
    [
        (3, Worth(1.0, 0.0, 0.0), "Rate 7 more"),
        (LEAST_USEFUL, Worth(0.7, 0.6, 0.15), "Not proven"),
        (LEAST_USEFUL, Worth(0.8, 0.6, 0.15), "Useful"),
        (TELLING, Worth(0.6, 0.6, 0.05), "No clear gain"),
        (100, Worth(0.68, 0.61, 0.04), "68% (the base score in 61%; the gain is +7 ± 4 points)"),
    ],
)
def test_the_verdict_says_when_a_profile_is_not_yet_useful(ratings, worth, said):
    assert said in verdict(ratings, worth)
