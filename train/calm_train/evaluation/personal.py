"""Personalised assessment (PIAA): does a profile learnt from k of a rater's photos order the rest as the rater does?

What is measured is the runtime's light head (`calm_runtime.taste`: linear regression on what the model sees), not
in-context learning, which this project has not trained.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from scipy.stats import spearmanr

from calm_runtime import Calm
from calm_runtime.errors import DataError, PhotoError
from calm_runtime.profile import photo_features
from calm_runtime.taste import Features, learn_taste, personal_ratings
from calm_train.datasets import RatedPhoto, photo_input
from calm_train.datasets.records import PhotoSource

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]
COUNTS = (10, 100)  # ratings known of a rater, as the literature reports
LEAST_TESTED = 5  # photos a rater must have rated beyond them
BATCH = 8


@dataclass(frozen=True)
class RaterAgreement:
    """One rater: SRCC of each repeat on the photos left over, with the profile and with the base score."""

    ratings: int
    personal: tuple[float, ...]
    base: tuple[float, ...]


@dataclass(frozen=True)
class PersonalAgreement:
    """All raters with enough ratings, at one number of known ratings `count`.

    personal, base: mean over the raters of each rater's mean SRCC over the repeats; *_std: standard deviation over the
    raters. None when no rater has enough ratings. untaught: share of repeats whose known ratings were all equal, so
    that the base score had to stand in for the profile.
    """

    count: int
    raters: int
    personal: float | None
    personal_std: float | None
    base: float | None
    base_std: float | None
    untaught: float | None
    by_rater: dict[str, RaterAgreement]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class _Seen:
    """What the model saw in all photos: row of each photo, features, base scores [N]."""

    rows: dict[PhotoSource, int]
    features: Features
    scores: Array


def evaluate_personal(
    calm: Calm, ratings: Iterable[RatedPhoto], repeats: int = 10, seed: int = 1, counts: Sequence[int] = COUNTS
) -> tuple[int, list[PersonalAgreement]]:
    """Number of photos read, and the agreement for each of `counts`. Every photo is looked at once.

    A repeat draws the known photos at random from (seed, count, rater, repeat). Several ratings of one photo by one
    rater count as their mean. Raises DataError when no rater has enough ratings, or no photo can be read.
    """
    raters = _by_rater(ratings)
    enough = {rater: own for rater, own in raters.items() if len(own) >= min(counts) + LEAST_TESTED}
    if not enough:
        most = max((len(own) for own in raters.values()), default=0)
        raise DataError(
            f"no rater rated {min(counts) + LEAST_TESTED} photos or more ({len(raters)} raters, the busiest rated "
            f"{most}): {min(counts)} to learn from and {LEAST_TESTED} to test on are needed"
        )
    seen = _look(calm, sorted({photo for own in enough.values() for photo in own}, key=str))
    readable = {rater: {p: r for p, r in own.items() if p in seen.rows} for rater, own in enough.items()}
    return len(seen.rows), [_agreement(seen, readable, count, repeats, seed) for count in counts]


def _by_rater(ratings: Iterable[RatedPhoto]) -> dict[str, dict[PhotoSource, float]]:
    found: dict[str, dict[PhotoSource, list[float]]] = {}
    for rating in ratings:
        if rating.rater is not None:
            found.setdefault(rating.rater, {}).setdefault(rating.path, []).append(rating.mean)
    return {rater: {photo: float(np.mean(values)) for photo, values in found[rater].items()} for rater in sorted(found)}


def _look(calm: Calm, photos: Sequence[PhotoSource]) -> _Seen:
    rows: dict[PhotoSource, int] = {}
    features, scores, broken = [], [], []
    bar = Console(stderr=True)
    for start in track(
        range(0, len(photos), BATCH), "photos", console=bar, transient=True, disable=not bar.is_terminal
    ):
        pixels = []
        for photo in photos[start : start + BATCH]:
            try:
                pixels.append(calm.decode(photo_input(photo))[0])
                rows[photo] = len(rows)
            except PhotoError as error:
                broken.append(str(error))
        if pixels:
            found, blocks = photo_features(calm, np.stack(pixels))
            features.append(blocks)
            scores += [score.mean for score in found]
    if broken:
        logger.warning("%d of %d photos could not be read, the first: %s", len(broken), len(photos), broken[0])
    if not rows:
        raise DataError("none of the rated photos can be read")
    return _Seen(rows, Features(*map(np.concatenate, zip(*features, strict=True))), np.array(scores))


def _agreement(
    seen: _Seen, raters: dict[str, dict[PhotoSource, float]], count: int, repeats: int, seed: int
) -> PersonalAgreement:
    by_rater: dict[str, RaterAgreement] = {}
    untaught = drawn = 0
    bar = Console(stderr=True)
    numbered = list(enumerate(raters.items()))
    for number, (rater, own) in track(
        numbered, f"raters, k = {count}", console=bar, transient=True, disable=not bar.is_terminal
    ):
        if len(own) < count + LEAST_TESTED:
            continue
        rows = np.array([seen.rows[photo] for photo in own])
        truth = np.array(list(own.values()))
        personal, base = [], []
        for repeat in range(repeats):
            order = np.random.default_rng((seed, count, number, repeat)).permutation(len(own))
            known, tested = order[:count], order[count:]
            if np.ptp(truth[tested]) == 0:
                continue  # no order to agree with
            drawn += 1
            expected = seen.scores[rows[tested]]
            base.append(_srcc(expected, truth[tested]))
            if np.ptp(truth[known]) == 0:
                untaught += 1
            else:
                taste = learn_taste(_at(seen.features, rows[known]), truth[known])
                expected = personal_ratings(taste, _at(seen.features, rows[tested]))
            personal.append(_srcc(expected, truth[tested]))
        if personal:
            by_rater[rater] = RaterAgreement(len(own), tuple(personal), tuple(base))
    means = np.array([[np.mean(r.personal), np.mean(r.base)] for r in by_rater.values()]).reshape(-1, 2)  # [R, 2]
    if not len(means):
        return PersonalAgreement(count, 0, None, None, None, None, None, {})
    (personal_mean, base_mean), (personal_std, base_std) = means.mean(0).tolist(), means.std(0).tolist()
    return PersonalAgreement(
        count, len(means), personal_mean, personal_std, base_mean, base_std, untaught / drawn, by_rater
    )


def _at(features: Features, rows: npt.NDArray[np.intp]) -> Features:
    return Features(*(block[rows] for block in features))


def _srcc(expected: Array, truth: Array) -> float:
    """Spearman's correlation; scores that are all equal order nothing: 0."""
    return 0.0 if np.ptp(expected) == 0 else float(spearmanr(expected, truth).statistic)
