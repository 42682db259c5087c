"""Someone's ratings of their own photos: a CSV file with the columns `path` and `rating`."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from calm_runtime.errors import DataError
from calm_runtime.score import SCORE_HIGH, SCORE_LOW

_Rating = TypeVar("_Rating", float, npt.NDArray[np.float64])

COLUMNS = ("path", "rating")
MAX_BYTES = 50_000_000


@dataclass(frozen=True)
class PhotoRating:
    """One photo and the rating it was given, on whatever scale the person used."""

    path: Path
    rating: float


def read_ratings(file: str | Path) -> list[PhotoRating]:
    """Ratings in file order; relative paths start at the file's own folder.

    Raises DataError naming the file, the line and what was expected.
    """
    source = Path(file)
    try:
        if source.stat().st_size > MAX_BYTES:
            raise DataError(f"{source}: larger than {MAX_BYTES // 1_000_000} MB, which no list of ratings is")
        text = source.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: is not UTF-8 text; save it as CSV") from error
    rows = csv.DictReader(text.splitlines(), skipinitialspace=True)
    missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise DataError(f"{source}:1: no column {' or '.join(missing)}; the first line must name path,rating")
    ratings = [_rating(source, rows.line_num, row) for row in rows]
    if not ratings:
        raise DataError(f"{source}: holds no rating below its first line")
    return ratings


def _rating(source: Path, line: int, row: dict[str, str | None]) -> PhotoRating:
    path, value = (row[name] or "" for name in COLUMNS)
    if not path.strip():
        raise DataError(f"{source}:{line}: the path is empty")
    try:
        rating = float(value)
    except ValueError:
        raise DataError(f"{source}:{line}: rating {value!r} is not a number") from None
    if not math.isfinite(rating):
        raise DataError(f"{source}:{line}: rating {value!r} is not a finite number")
    return PhotoRating(source.parent / path.strip(), rating)


def to_score_scale(rating: _Rating, low: float, high: float) -> _Rating:
    """A rating on low..high (or an array of them), mapped linearly to the score scale."""
    return SCORE_LOW + (rating - low) * (SCORE_HIGH - SCORE_LOW) / (high - low)
