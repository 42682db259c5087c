"""What a run of train_nano.py left behind, read back, and agreement with the people who rated the photos."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from calm_runtime.errors import DataError

Array = npt.NDArray[np.float64]
SCORES = "scores.npz"
NOT_DEGRADATIONS = ("rated", "rated mirrored", "rated grey", "clean", "teacher", "kept")
MANY_THEMES = 15  # a set with more is split by theme: its photos of one theme resemble each other
RESAMPLES = 1000


@dataclass(frozen=True)
class Run:
    """rated [N, 2], score and technical rating of each rated photo; teacher [N]; kept [N] bool, whether the run was taught
    on it; clean [M, 2] and degraded, each [M, 2]: of the held-out photos and their copies.
    """

    rated: Array
    teacher: Array
    kept: npt.NDArray[np.bool_]
    clean: Array
    degraded: dict[str, Array]


def read_run(folder: Path, photos: int) -> Run:
    """The run in a folder, on `photos` rated photos. Raises DataError when it is none, or of other photos."""
    path = folder / SCORES
    try:
        with np.load(path) as stored:
            values = {name: np.array(stored[name]) for name in stored.files}
        run = Run(
            rated=values["rated"].astype(np.float64),
            teacher=values["teacher"].astype(np.float64),
            kept=values["kept"].astype(bool),
            clean=values["clean"].astype(np.float64),
            degraded={k: v.astype(np.float64) for k, v in values.items() if k not in NOT_DEGRADATIONS},
        )
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a run's scores ({error}); make them with benchmarks/train_nano.py") from error
    if not len(run.rated) == len(run.teacher) == len(run.kept) == photos:
        raise DataError(
            f"{path}: scores of {len(run.rated)} rated photos, ratings.csv has {photos}; give its own --rated"
        )
    return run


def sets_of(rows: Sequence[dict[str, str]]) -> npt.NDArray[np.str_]:
    """Which set each rated photo is of: the first folder of its path."""
    return np.array([row["path"].split("/")[0] for row in rows])


def resampled_units(rows: Sequence[dict[str, str]]) -> npt.NDArray[np.int64]:
    """What a bootstrap draws as one, by number [N]: a theme where a set has many, else a single photo."""
    sets, themes = sets_of(rows), np.array([row["theme"] for row in rows])
    many = {name: len(set(themes[sets == name])) > MANY_THEMES for name in set(sets)}
    names = [f"{s}/{t}" if many[s] else row["path"] for s, t, row in zip(sets, themes, rows, strict=True)]
    return np.unique(names, return_inverse=True)[1]


def agreement(scores: Array, ratings: Array, units: npt.NDArray[np.int64]) -> dict[str, list[float]]:
    """SRCC and PLCC of N photos, each with the ends of its 95% bootstrap interval: [value, low, high].

    units [N]: photos of one number are drawn together. Raises ValueError when scores or ratings are all equal.
    """
    if np.ptp(scores) == 0 or np.ptp(ratings) == 0:
        raise ValueError("no correlation: all scores, or all ratings, are equal")
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(units == unit) for unit in np.unique(units)]
    draws: list[tuple[float, float]] = []
    while len(draws) < RESAMPLES:
        drawn = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        if np.ptp(scores[drawn]) and np.ptp(ratings[drawn]):
            draws.append(correlations(scores[drawn], ratings[drawn]))
    ends = np.percentile(draws, (2.5, 97.5), axis=0).T.tolist()
    values = correlations(scores, ratings)
    return {name: [value, *end] for name, value, end in zip(("srcc", "plcc"), values, ends, strict=True)}


def correlations(scores: Array, ratings: Array) -> tuple[float, float]:
    """Spearman's and Pearson's, of N photos that are not all equal."""
    pearson = [np.corrcoef(*pair)[0, 1] for pair in ((rankdata(scores), rankdata(ratings)), (scores, ratings))]
    return float(pearson[0]), float(pearson[1])
