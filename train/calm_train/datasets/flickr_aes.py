"""FLICKR-AES: forty thousand Flickr photos, each rated by five of 210 people.

Ren, Shen, Lin, Mech, Foran: Personalized image aesthetics, ICCV 2017. Confirmed by the data set's page
(alanspike/personalizedImageAesthetics) and public loaders; the files themselves were not seen. The paper's split by
raters is in no published file.
"""

from __future__ import annotations

from pathlib import Path

from calm_runtime.ratings import to_score_scale
from calm_train.datasets.photo_index import PhotoIndex
from calm_train.datasets.records import RatedPhoto
from calm_train.datasets.tables import first_file, read_fields, read_table

PHOTO_FOLDERS = ("40K", "FLICKR-AES-001/40K")
SCORES = "FLICKR-AES_image_score.txt"
WORKERS = "FLICKR-AES_image_labeled_by_each_worker.csv"
LAYOUT = f"{SCORES} (name, score), {WORKERS} (worker, imagePair, score) and 40K/<name>"


def read_flickr_aes(root: Path) -> list[RatedPhoto]:
    """FLICKR-AES_image_score.txt: file name and weighted average score, separated by a space, mapped from 0..1.

    Raises DataError.
    """
    table = _table(root, SCORES)
    photos = PhotoIndex("FLICKR-AES", root, PHOTO_FOLDERS, LAYOUT)
    records = []
    for row in read_fields(table, ("name", "score"), LAYOUT):
        mean = to_score_scale(row.number("score", 0, 1), 0, 1)
        path = photos.find(row.where, row.text("name"))
        if path is not None:
            records.append(RatedPhoto(path, mean))
    photos.report()
    return records


def read_flickr_aes_raters(root: Path) -> list[RatedPhoto]:
    """FLICKR-AES_image_labeled_by_each_worker.csv: one record per rating, with its rater.

    Columns: worker, imagePair (a file name), score (mapped from 1..5), with spaces after the commas. Raises DataError.
    """
    table = _table(root, WORKERS)
    photos = PhotoIndex("FLICKR-AES", root, PHOTO_FOLDERS, LAYOUT)
    records = []
    for row in read_table(table, ("worker", "imagePair", "score"), LAYOUT):
        rating = to_score_scale(row.number("score", 1, 5), 1, 5)
        path = photos.find(row.where, row.text("imagePair"))
        if path is not None:
            records.append(RatedPhoto(path, rating, rater=row.text("worker")))
    photos.report()
    return records


def _table(root: Path, name: str) -> Path:
    return first_file(root, (name, f"FLICKR-AES-001/{name}"), LAYOUT)
