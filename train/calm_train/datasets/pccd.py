"""PCCD: four thousand photos of gurushots.com with a professional's critique and score of seven aspects.

Chang, Lu, Chen: Aesthetic critiques generation for photos, ICCV 2017. The keys are confirmed by records of the data set
published with mediatechnologycenter/Aestheval, the folders by public loaders. That scores run from 1 to 10 was not
confirmed, nor whether file names end in .jpg where titles do not: both are looked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from calm_runtime.errors import DataError
from calm_train.datasets.json_files import read_json
from calm_train.datasets.photo_index import PhotoIndex
from calm_train.datasets.records import CaptionedPhoto, RatedPhoto
from calm_train.datasets.tables import first_file

ASPECTS = (
    "general_impression",
    "subject_of_photo",
    "composition",
    "use_of_camera",
    "depth_of_field",
    "color_lighting",
    "focus",
)
LAYOUT = "raw.json or guru.json (a list of {title, overall, " + ", ".join(ASPECTS) + "}) and images/full/<title>"


class _Review(msgspec.Struct):
    title: str
    overall: str | float | None = None
    general_impression: str | None = None
    subject_of_photo: str | None = None
    composition: str | None = None
    use_of_camera: str | None = None
    depth_of_field: str | None = None
    color_lighting: str | None = None
    focus: str | None = None


def read_pccd(root: Path) -> list[RatedPhoto]:
    """The overall score of each review, 1..10 as it is. Reviews without one are passed over. Raises DataError."""
    records = []
    for where, path, review in _reviews(root):
        text = "" if review.overall is None else str(review.overall).strip()
        if text in ("", "N"):  # "N" is how the site writes "no score"
            continue
        try:
            records.append(RatedPhoto(path, float(text)))
        except ValueError as error:  # DataError is one as well
            raise DataError(f"{where}: expected overall as a number of 1 to 10, found '{text}'") from error
    if not records:
        raise DataError(f"{root}: no review has an overall score; expected {LAYOUT}")
    return records


def read_pccd_critiques(root: Path) -> list[CaptionedPhoto]:
    """The critiques of each review, in the order of `ASPECTS`, without the empty ones. Raises DataError."""
    records = []
    for _, path, review in _reviews(root):
        texts = tuple(text for aspect in ASPECTS if (text := (getattr(review, aspect) or "").strip()))
        if texts:
            records.append(CaptionedPhoto(path, texts))
    if not records:
        raise DataError(f"{root}: no review holds a critique; expected {LAYOUT}")
    return records


def _reviews(root: Path) -> Iterator[tuple[str, Path, _Review]]:
    file = first_file(root, ("raw.json", "guru.json"), LAYOUT)
    photos = PhotoIndex("PCCD", root, ("images/full",), LAYOUT)
    for number, review in enumerate(read_json(file, list[_Review], LAYOUT)):
        where = f"{file}, item {number} (items count from 0)"
        path = photos.find(where, review.title, f"{review.title}.jpg")
        if path is not None:
            yield where, path, review
    photos.report()
