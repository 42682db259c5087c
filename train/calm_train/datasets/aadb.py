"""AADB: ten thousand Flickr photos with a score and eleven attributes.

Kong, Shen, Lin, Mech, Fowlkes: Photo aesthetics ranking network with attributes and content adaptation, ECCV 2016.
Confirmed by the public loaders of several projects; the files themselves were not seen.
"""

from __future__ import annotations

from pathlib import Path

from calm_runtime.ratings import to_score_scale
from calm_train.datasets.photo_index import PhotoIndex
from calm_train.datasets.records import RatedPhoto
from calm_train.datasets.tables import first_file, read_fields

PHOTO_FOLDERS = (
    "datasetImages_originalSize",
    "datasetImages_warp256",
    "AADB_newtest_originalSize",
    "AADB_newtest",
)
# The revised test list, where there is one, replaces the first one: it is the one the literature reports on.
LISTS = {"train": ("Train",), "val": ("Validation",), "test": ("TestNew", "Test")}
LAYOUT = (
    "imgListFiles_label/imgListTrainRegression_score.txt, imgListValidationRegression_score.txt and "
    f"imgListTestNewRegression_score.txt or imgListTestRegression_score.txt, and the photos in {', '.join(PHOTO_FOLDERS)}"
)


def read_aadb(root: Path) -> list[RatedPhoto]:
    """imgList<split>Regression_score.txt: file name and score, separated by a space. Scores are mapped from 0..1.

    The photos of AADB_newtest may carry their score before their name ("0.500_farm1_...jpg"). Raises DataError.
    """
    photos = PhotoIndex("AADB", root, PHOTO_FOLDERS, LAYOUT)
    records = []
    for split, names in LISTS.items():
        places = [f"imgListFiles_label/imgList{name}Regression_score.txt" for name in names]
        for row in read_fields(first_file(root, places, LAYOUT), ("file", "score"), LAYOUT):
            score = row.number("score", 0, 1)
            name = row.text("file")
            path = photos.find(row.where, name, f"{score:.3f}_{name}")
            if path is not None:
                records.append(RatedPhoto(path, to_score_scale(score, 0, 1), split=split))
    photos.report()
    return records
