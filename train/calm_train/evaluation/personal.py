"""Personalised assessment (PIAA): does a profile learnt from k of a rater's photos order the rest as the rater does?

Measured side by side: the runtime's light head (`calm_runtime.taste`), the model's in-context reading of the rated photos
(`calm_runtime.in_context`), and the blend of both that `calm score --profile` gives.
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
from calm_runtime.in_context import standardise
from calm_runtime.profile import blend, example_rows, photo_features
from calm_runtime.taste import Features, learn_taste, personal_ratings
from calm_train.datasets import RatedPhoto, photo_input
from calm_train.datasets.records import PhotoSource

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]
COUNTS = (10, 100)  # ratings known of a rater, as the literature reports
PARTS = ("personal", "head", "context", "base")
LEAST_TESTED = 5  # photos a rater must have rated beyond them
BATCH = 8


@dataclass(frozen=True)
class RaterAgreement:
    """One rater: SRCC of each repeat on the photos left over.

    personal: of the profile; head, context: of its two parts; base: of the base score.
    """

    ratings: int
    personal: tuple[float, ...]
    head: tuple[float, ...]
    context: tuple[float, ...]
    base: tuple[float, ...]


@dataclass(frozen=True)
class PersonalAgreement:
    """All raters with enough ratings, at one number of known ratings `count`.

    personal, head, context, base: mean over the raters of each rater's mean SRCC over the repeats; *_std: standard
    deviation over the raters. None when no rater has enough ratings, context also when the bundle reads no examples. untaught: share of repeats whose known ratings were all equal, so
    that the base score had to stand in for the profile.
    """

    count: int
    raters: int
    personal: float | None
    personal_std: float | None
    head: float | None
    head_std: float | None
    context: float | None
    context_std: float | None
    base: float | None
    base_std: float | None
    untaught: float | None
    by_rater: dict[str, RaterAgreement]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Seen:
    """What the model saw in all photos: row of each photo, features, base scores [N], query tokens [N, 3Q, D]."""

    rows: dict[PhotoSource, int]
    features: Features
    scores: Array
    queries: npt.NDArray[np.float32]


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
    seen = look(calm, sorted({photo for own in enough.values() for photo in own}, key=str))
    readable = {rater: {p: r for p, r in own.items() if p in seen.rows} for rater, own in enough.items()}
    return len(seen.rows), [_agreement(calm, seen, readable, count, repeats, seed) for count in counts]


def _by_rater(ratings: Iterable[RatedPhoto]) -> dict[str, dict[PhotoSource, float]]:
    found: dict[str, dict[PhotoSource, list[float]]] = {}
    for rating in ratings:
        if rating.rater is not None:
            found.setdefault(rating.rater, {}).setdefault(rating.path, []).append(rating.mean)
    return {rater: {photo: float(np.mean(values)) for photo, values in found[rater].items()} for rater in sorted(found)}


def look(calm: Calm, photos: Sequence[PhotoSource]) -> Seen:
    rows: dict[PhotoSource, int] = {}
    features, scores, queries, broken = [], [], [], []
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
            found, blocks, looked = photo_features(calm, np.stack(pixels))
            features.append(blocks)
            queries.append(calm.in_context.queries(looked.aligned.image_embeds))
            scores += [score.mean for score in found]
    if broken:
        logger.warning("%d of %d photos could not be read, the first: %s", len(broken), len(photos), broken[0])
    if not rows:
        raise DataError("none of the rated photos can be read")
    return Seen(
        rows, Features(*map(np.concatenate, zip(*features, strict=True))), np.array(scores), np.concatenate(queries)
    )


def _agreement(
    calm: Calm, seen: Seen, raters: dict[str, dict[PhotoSource, float]], count: int, repeats: int, seed: int
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
        found: dict[str, list[float]] = {part: [] for part in PARTS}
        for repeat in range(repeats):
            order = np.random.default_rng((seed, count, number, repeat)).permutation(len(own))
            known, tested = order[:count], order[count:]
            if np.ptp(truth[tested]) == 0:
                continue  # no order to agree with
            drawn += 1
            base = seen.scores[rows[tested]]
            ways: dict[str, Array] = dict.fromkeys(PARTS, base)
            if np.ptp(truth[known]) == 0:
                untaught += 1
            else:
                ways |= learn_ways(calm, seen, rows[known], truth[known], rows[tested])
            for part, expected in ways.items():
                found[part].append(srcc(expected, truth[tested]))
        if found["base"]:
            by_rater[rater] = RaterAgreement(len(own), **{part: tuple(values) for part, values in found.items()})
    summary: dict[str, float | None] = {}
    for part in PARTS:
        means = [float(np.mean(getattr(agreement, part))) for agreement in by_rater.values()]
        told = bool(means) and (part != "context" or calm.in_context.most_examples > 0)
        summary |= {
            part: float(np.mean(means)) if told else None,
            f"{part}_std": float(np.std(means)) if told else None,
        }
    return PersonalAgreement(
        count, len(by_rater), **summary, untaught=untaught / drawn if by_rater else None, by_rater=by_rater
    )


def learn_ways(
    calm: Calm, seen: Seen, known: npt.NDArray[np.intp], ratings: Array, tested: npt.NDArray[np.intp]
) -> dict[str, Array]:
    """Expected ratings of the photos in rows `tested`, learnt from those in rows `known`, by each way."""
    features, reader = _at(seen.features, known), calm.in_context
    taste = learn_taste(features, ratings)
    head = personal_ratings(taste, _at(seen.features, tested))
    if reader.most_examples == 0:
        return {"personal": head, "head": head}
    shown, opinion = example_rows(features, ratings, reader.most_examples), standardise(ratings)
    queries = seen.queries[known[shown]]
    context = reader.rate(seen.queries[tested], reader.read(queries, opinion[shown]))
    weight = reader.earned_weight(queries, opinion[shown])
    return {"personal": blend(taste, head, context, weight), "head": head, "context": context}


def _at(features: Features, rows: npt.NDArray[np.intp]) -> Features:
    return Features(*(block[rows] for block in features))


def srcc(expected: Array, truth: Array) -> float:
    """Spearman's correlation; scores that are all equal order nothing: 0."""
    return 0.0 if np.ptp(expected) == 0 else float(spearmanr(expected, truth).statistic)
