"""AVA: a quarter of a million photos of dpchallenge.com with the histogram of their votes.

Murray, Marchesotti, Perronnin: AVA, a large-scale database for aesthetic visual analysis, CVPR 2012. Confirmed by the
README.txt and lists of the June 2012 release.
"""

from __future__ import annotations

import logging
from pathlib import Path

from calm_runtime.errors import DataError
from calm_runtime.score import SCORE_HIGH, SCORE_LOW
from calm_train.datasets.photo_index import PhotoIndex
from calm_train.datasets.records import CaptionedPhoto, RatedPhoto
from calm_train.datasets.tables import read_fields, require_file

logger = logging.getLogger(__name__)

PHOTO_FOLDERS = ("images", "image")
TEST_LIST = "aesthetics_image_lists/generic_test.jpgl"
LAYOUT = f"AVA.txt, images/<image id>.jpg and {TEST_LIST} in AVA's folder"
STYLE_LAYOUT = "style_image_lists/ with styles.txt, train.jpgl, train.lab, test.jpgl and test.multilab, and images/ in AVA's folder"

_COUNTS = tuple(f"votes for {k}" for k in range(SCORE_LOW, SCORE_HIGH + 1))
_COLUMNS = ("index", "image id", *_COUNTS, "first tag", "second tag", "challenge")


def read_ava(root: Path, test_list: Path | None = None) -> list[RatedPhoto]:
    """AVA.txt: 15 fields per line: index, image id, counts of the votes 1 to 10, two tag ids, challenge id.

    Ratings are 1..10 already. test_list: file of image ids; by default the official generic test list, whose images
    are "test" and all others "train", as the literature splits AVA. Without a list every split is None.
    Raises DataError.
    """
    test_ids: frozenset[str] | None = None
    if test_list is not None or (root / TEST_LIST).is_file():
        test_ids = read_image_ids(test_list or root / TEST_LIST)
    else:
        logger.warning("%s: no such file, so the photos of AVA's test set cannot be told apart", root / TEST_LIST)
    require_file(root / "AVA.txt", LAYOUT)
    photos = PhotoIndex("AVA", root, PHOTO_FOLDERS, LAYOUT)
    records = []
    for row in read_fields(root / "AVA.txt", _COLUMNS, LAYOUT):
        image = str(row.count("image id"))
        counts = [row.count(column) for column in _COUNTS]
        if not any(counts):
            raise row.error("at least one vote")
        path = photos.find(row.where, f"{image}.jpg")
        if path is None:
            continue
        votes = sum(counts)
        mean = sum(k * n for k, n in enumerate(counts, SCORE_LOW)) / votes
        histogram = tuple(n / votes for n in counts)
        split = None if test_ids is None else "test" if image in test_ids else "train"
        records.append(RatedPhoto(path, mean, histogram, split=split))
    photos.report()
    return records


def read_ava_styles(root: Path) -> list[CaptionedPhoto]:
    """The photographic styles of AVA's style lists, as texts such as "Rule of Thirds".

    styles.txt: style id and name. train.jpgl and train.lab: image id and its one style id, line by line. test.jpgl and
    test.multilab: image id and, per style in the order of styles.txt, 1 where the photo has it; a photo of the test
    list may have several or none. Raises DataError.
    """
    folder = root / "style_image_lists"
    rows = read_fields(folder / "styles.txt", ("style id", "name"), STYLE_LAYOUT)
    styles = {row.count("style id"): row.text("name").replace("_", " ") for row in rows}
    photos = PhotoIndex("AVA styles", root, PHOTO_FOLDERS, STYLE_LAYOUT)
    records = []

    train = [(row, row.count("image id")) for row in read_fields(folder / "train.jpgl", ("image id",), STYLE_LAYOUT)]
    labels = list(read_fields(folder / "train.lab", ("style id",), STYLE_LAYOUT))
    _same_length(folder / "train.lab", len(labels), len(train))
    for (row, image), label in zip(train, labels, strict=True):
        if label.count("style id") not in styles:
            raise label.error(f"a style id of styles.txt, found '{label.cells['style id']}'")
        path = photos.find(row.where, f"{image}.jpg")
        if path is not None:
            records.append(CaptionedPhoto(path, (styles[label.count("style id")],), "train"))

    test = [(row, row.count("image id")) for row in read_fields(folder / "test.jpgl", ("image id",), STYLE_LAYOUT)]
    names = tuple(styles.values())
    marks = list(read_fields(folder / "test.multilab", names, STYLE_LAYOUT))
    _same_length(folder / "test.multilab", len(marks), len(test))
    for (row, image), mark in zip(test, marks, strict=True):
        texts = tuple(name for name in names if mark.number(name, 0, 1) == 1)
        path = photos.find(row.where, f"{image}.jpg")
        if path is not None:
            records.append(CaptionedPhoto(path, texts, "test"))
    photos.report()
    return records


def read_image_ids(path: Path) -> frozenset[str]:
    """A list of image ids, one per line, as AVA's *.jpgl files are. Raises DataError."""
    return frozenset(str(row.count("image id")) for row in read_fields(path, ("image id",), LAYOUT))


def _same_length(path: Path, found: int, expected: int) -> None:
    if found != expected:
        raise DataError(f"{path}: expected {expected} lines, one per image of the list beside it, found {found}")
