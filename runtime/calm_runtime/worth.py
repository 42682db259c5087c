"""What a profile is worth: does it order photos it was not told about better than the base score, and how sure is that?"""

from __future__ import annotations

import math

import msgspec
import numpy as np
import numpy.typing as npt

from calm_runtime.taste import BASE_WEIGHT, Array, Features, fit_kinds

Rows = npt.NDArray[np.intp]

# Of real raters' profiles from 5 ratings more than a quarter order photos worse than the base score, from 10 less than a
# fifth, from 30 a tenth, from 100 one in thirty.
LEAST_USEFUL = 10
TELLING = 50  # ratings at which the gain of a usual person outgrows its error
# Pairs are ordered by what they teach one another, so their plain error is too small: the gain on photos left out lies 1.2 to
# 1.6 of it away (19 real raters, 20 to 100 ratings).
_SHARED = 1.4


class Worth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of two photos that the person rated differently, how often the order is right, 0 to 1.

    profile: by a profile learnt from the person's other photos. base: by the base score. error: standard error of the
    difference, over the person's photos; with fewer than LEAST_USEFUL ratings it says nothing.
    """

    profile: float
    base: float
    error: float

    @property
    def gain(self) -> float:
        """How much oftener the profile is right than the base score."""
        return self.profile - self.base


def profile_worth(features: Features, ratings: Array) -> Worth:
    """Every pair of the rated photos [N] (not all equal) is ordered by what the others teach.

    Pairs are left out, not photos (Airola 2011): without one photo the mean of the rest shifts away from its rating, which
    would count against the profile.
    """
    fit = fit_kinds(features, ratings)
    first, second = np.nonzero(np.triu(ratings[:, None] != ratings[None], 1))
    truth = np.sign(ratings[first] - ratings[second])
    score = features.score[:, 0]
    base = score[first] - score[second]
    learnt = BASE_WEIGHT * base
    for precision, weight in zip(fit.precision, fit.weight, strict=True):
        # Without a pair the fit misses its two ratings by (precision of the pair)^-1 @ (precision @ target of the pair).
        own, pull = np.diag(precision), precision @ fit.target
        a, b, c = own[first], precision[first, second], own[second]
        missed = ((c + b) * pull[first] - (a + b) * pull[second]) / (a * c - b * b)
        learnt += weight * (fit.target[first] - fit.target[second] - missed)
    right, expected = _right(learnt, truth), _right(base, truth)
    return Worth(float(right.mean()), float(expected.mean()), _error(right - expected, first, second, len(ratings)))


def verdict(ratings: int, worth: Worth) -> str:
    """One or two lines of English: whether a profile from so many ratings is useful, and how many more would tell."""
    if ratings < LEAST_USEFUL:
        return (
            f"Not yet useful: with {ratings} ratings it orders photos nearly as the base score does. Rate "
            f"{LEAST_USEFUL - ratings} more; {TELLING} in all show how well it knows you."
        )
    found = (
        f"Of two photos you rated differently it finds your order in {worth.profile:.0%} (the base score in "
        f"{worth.base:.0%}; the gain is {100 * worth.gain:+.0f} ± {100 * worth.error:.0f} points)."
    )
    if worth.gain > worth.error:
        return f"{found}\nUseful: it knows more of your taste than the base score."
    if ratings < TELLING:
        return f"{found}\nNot proven: it may help, but so few ratings cannot show it. Rate {TELLING - ratings} more."
    return f"{found}\nNo clear gain: the base score orders your photos about as well. More ratings may or may not help."


def _right(difference: Array, truth: Array) -> Array:
    """1 where the order is right, 0 where it is wrong, a half where there is none."""
    return 0.5 + 0.5 * np.sign(difference) * truth


def _error(gain: Array, first: Rows, second: Rows, count: int) -> float:
    """Standard error of the mean gain of pairs (first, second) of `count` photos (Hoeffding 1948: a U-statistic)."""
    away = gain - gain.mean()
    by_photo = np.bincount(first, away, count) + np.bincount(second, away, count)
    pairs = (np.bincount(first, minlength=count) + np.bincount(second, minlength=count)).mean()
    # Each pair counts with both of its photos, hence the 2.
    return _SHARED * 2 * math.sqrt(float(((by_photo / pairs) ** 2).sum()) / (count - 1) / count)
