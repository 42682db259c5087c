"""EVA: four thousand photos of AVA, each rated by thirty to forty people under control.

Kang, Valenzise, Dufaux: EVA, an explainable visual aesthetics dataset, ATQAM/MAST 2020. Confirmed by the data set's
readme.md (kang-gnak/eva-dataset) and public loaders; whether the cells are quoted was not seen, both are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from calm_runtime.ratings import to_score_scale
from calm_train.datasets.histogram import rating_histogram
from calm_train.datasets.photo_index import PhotoIndex
from calm_train.datasets.records import RatedPhoto
from calm_train.datasets.tables import first_file, read_table

PHOTO_FOLDERS = ("images/EVA_together", "EVA_together", "images")
LAYOUT = "data/votes_filtered.csv (image_id=user_id=score=...) and images/EVA_together/<image id>.jpg"

_PLACES = ("data/votes_filtered.csv", "votes_filtered.csv")


def read_eva(root: Path) -> list[RatedPhoto]:
    """Mean and histogram of each photo's votes, in the order of the file. No split is published. Raises DataError."""
    votes: dict[Path, list[float]] = {}
    for path, rating, _ in _votes(root):
        votes.setdefault(path, []).append(rating)
    return [
        RatedPhoto(path, sum(ratings) / len(ratings), rating_histogram((rating, 1.0) for rating in ratings))
        for path, ratings in votes.items()
    ]


def read_eva_raters(root: Path) -> list[RatedPhoto]:
    """One record per vote, with its rater. Raises DataError."""
    return [RatedPhoto(path, rating, rater=rater) for path, rating, rater in _votes(root)]


def _votes(root: Path) -> Iterator[tuple[Path, float, str]]:
    """Photo, rating and rater of each row; the cells are separated by "=" and scores mapped from 0..10."""
    table = first_file(root, _PLACES, LAYOUT)
    photos = PhotoIndex("EVA", root, PHOTO_FOLDERS, LAYOUT)
    for row in read_table(table, ("image_id", "user_id", "score"), LAYOUT, delimiter="="):
        rating = to_score_scale(row.number("score", 0, 10), 0, 10)
        path = photos.find(row.where, f"{row.text('image_id')}.jpg")
        if path is not None:
            yield path, rating, row.text("user_id")
    photos.report()
