"""PARA: thirty thousand photos rated by 438 people, each photo by about 25 of them.

Yang, Xu, Li, Qie, Li, Zhang, Guo: Personalized image aesthetics assessment with rich attributes, CVPR 2022. Folders
and columns are confirmed by the README.md of the data set and public loaders; the files themselves were not seen.
"""

from __future__ import annotations

from pathlib import Path

from calm_runtime.ratings import to_score_scale
from calm_train.datasets.histogram import rating_histogram
from calm_train.datasets.photo_index import PhotoIndex
from calm_train.datasets.records import RatedPhoto
from calm_train.datasets.tables import Row, read_table

LAYOUT = (
    "annotation/PARA-GiaaTrain.csv, annotation/PARA-GiaaTest.csv, annotation/PARA-Images.csv and "
    "imgs/<session id>/<image name>"
)
LISTS = {"train": "annotation/PARA-GiaaTrain.csv", "test": "annotation/PARA-GiaaTest.csv"}

_LEVELS = tuple(k / 2 for k in range(2, 11))  # 1, 1.5, ... 5
_VOTES = {f"aestheticScore_{level:.1f}": level for level in _LEVELS}
_PHOTO = ("sessionId", "imageName")


def read_para(root: Path) -> list[RatedPhoto]:
    """PARA-GiaaTrain.csv and PARA-GiaaTest.csv: per photo the votes for 1, 1.5, ... 5 and their mean.

    Columns read: sessionId, imageName, aestheticScore_1.0 ... aestheticScore_5.0, aestheticScore_mean. Scores are
    mapped from 1..5. The split is the published one, without a "val". Raises DataError.
    """
    photos = PhotoIndex("PARA", root, ("imgs",), LAYOUT)
    records = []
    for split, table in LISTS.items():
        for row in read_table(root / table, (*_PHOTO, *_VOTES, "aestheticScore_mean"), LAYOUT):
            votes = [(level, row.number(column, 0, 1e6)) for column, level in _VOTES.items()]
            if not any(weight for _, weight in votes):
                raise row.error("at least one vote")
            mean = to_score_scale(row.number("aestheticScore_mean", 1, 5), 1, 5)
            path = photos.find(row.where, _name(row))
            if path is not None:
                histogram = rating_histogram((to_score_scale(level, 1, 5), weight) for level, weight in votes)
                records.append(RatedPhoto(path, mean, histogram, split=split))
    photos.report()
    return records


def read_para_raters(root: Path) -> list[RatedPhoto]:
    """PARA-Images.csv: one record per photo and rater, with the split of its photo.

    Columns read: sessionId, imageName, userId, aestheticScore (mapped from 1..5). Raises DataError.
    """
    splits = {_name(row): split for split, table in LISTS.items() for row in read_table(root / table, _PHOTO, LAYOUT)}
    photos = PhotoIndex("PARA", root, ("imgs",), LAYOUT)
    records = []
    for row in read_table(root / "annotation/PARA-Images.csv", (*_PHOTO, "userId", "aestheticScore"), LAYOUT):
        rating = to_score_scale(row.number("aestheticScore", 1, 5), 1, 5)
        path = photos.find(row.where, _name(row))
        if path is not None:
            records.append(RatedPhoto(path, rating, rater=row.text("userId"), split=splits.get(_name(row))))
    photos.report()
    return records


def _name(row: Row) -> str:
    return f"{row.text('sessionId')}/{row.text('imageName')}"
