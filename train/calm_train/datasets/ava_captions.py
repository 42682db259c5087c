"""AVA-Captions: the comments of dpchallenge.com's users about AVA's photos, cleaned.

Ghosal, Rana, Smolic: Aesthetic image captioning from weakly-labelled photographs, ICCV workshops 2019. The form is
that of the published scripts that write the file (V-Sense/Aesthetic-Image-Captioning-ICCVW-2019); the file itself was
not seen.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from calm_train.datasets.ava import PHOTO_FOLDERS, TEST_LIST, read_image_ids
from calm_train.datasets.json_files import read_json
from calm_train.datasets.photo_index import PhotoIndex
from calm_train.datasets.records import CaptionedPhoto

CAPTIONS = "CLEAN_AVA_FULL_AFTER_SUBJECTIVE_CLEANING.json"
LAYOUT = (
    f"{CAPTIONS} ({{'images': [{{'filename', 'split', 'sentences': [{{'raw', 'clean'}}]}}]}}), images/<image id>.jpg "
    f"and {TEST_LIST} in AVA's folder"
)


class _Sentence(msgspec.Struct):
    raw: str = ""
    clean: str = ""


class _Image(msgspec.Struct):
    filename: str
    sentences: list[_Sentence]
    split: Literal["train", "val", "test"] | None = None


class _Captions(msgspec.Struct):
    images: list[_Image]


def read_ava_captions(root: Path, test_list: Path | None = None) -> list[CaptionedPhoto]:
    """The cleaned comments (the raw one where a comment has no cleaned form), in the folder of AVA itself.

    Images in AVA's test list are left out whatever split the file gives them: its split is drawn without regard to
    AVA's, and a model that read their comments would have seen the test photos. test_list: file of image ids, by
    default the official generic test list, which must exist. Raises DataError.
    """
    test_ids = read_image_ids(test_list or root / TEST_LIST)
    content = read_json(root / CAPTIONS, _Captions, LAYOUT)
    photos = PhotoIndex("AVA-Captions", root, PHOTO_FOLDERS, LAYOUT)
    records = []
    for number, image in enumerate(content.images):
        texts = tuple(text for s in image.sentences if (text := (s.clean or s.raw).strip()))
        if PurePosixPath(image.filename).stem in test_ids or not texts:
            continue
        path = photos.find(f"{root / CAPTIONS}, image {number}", image.filename)
        if path is not None:
            records.append(CaptionedPhoto(path, texts, image.split))
    photos.report()
    return records
