"""TAD66K: 66,000 Flickr photos of 47 themes, rated by the criteria of their theme.

He, Zhang, Xie, Jiang, Ming: Rethinking image aesthetics assessment, IJCAI 2022. Confirmed by the label files the
authors publish (woshidandan/TANet-image-aesthetics-and-quality-assessment): scores run from 1.13 to 9.46 and the
authors divide them by 10. That the scale begins at 0 is taken from that division; it is not stated.
"""

from __future__ import annotations

from pathlib import Path

from calm_runtime.errors import DataError
from calm_runtime.ratings import to_score_scale
from calm_train.datasets.photo_index import PhotoIndex, check_name
from calm_train.datasets.records import RatedPhoto
from calm_train.datasets.tables import first_file, read_table

PHOTO_FOLDERS = ("TAD66K", "imgs", "images")
LAYOUT = (
    "labels/merge/train.csv and labels/merge/test.csv (image,score), labels/unmerge/<split>/<theme>.csv and "
    "TAD66K/<image>"
)


def read_tad66k(root: Path, theme: str | None = None) -> list[RatedPhoto]:
    """labels/merge/train.csv and test.csv: image, score (mapped from 0..10); the published split has no "val".

    theme: read labels/unmerge/<split>/<theme>.csv instead, the photos of one theme. Raises DataError.
    """
    if theme is not None:
        check_name(theme, str(root))
    part = "merge/{split}.csv" if theme is None else f"unmerge/{{split}}/{theme}.csv"
    photos = PhotoIndex("TAD66K", root, PHOTO_FOLDERS, LAYOUT)
    records = []
    for split in ("train", "test"):
        places = [f"{folder}/{part.format(split=split)}" for folder in ("labels", "dataset")]
        for row in read_table(first_file(root, places, LAYOUT), ("image", "score"), LAYOUT):
            mean = to_score_scale(row.number("score", 0, 10), 0, 10)
            path = photos.find(row.where, row.text("image"))
            if path is not None:
                records.append(RatedPhoto(path, mean, split=split))
    photos.report()
    return records


def tad66k_themes(root: Path) -> list[str]:
    """Names of the themes, sorted. Raises DataError when there are none."""
    for folder in ("labels", "dataset"):
        themes = sorted(path.stem for path in (root / folder / "unmerge" / "train").glob("*.csv"))
        if themes:
            return themes
    raise DataError(f"{root / 'labels/unmerge/train'}: no themes there; expected {LAYOUT}")
