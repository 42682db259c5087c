"""Photos as training reads them: found in a folder, decoded once where they fit in memory, broken ones passed over."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console
from rich.progress import track

from calm_runtime.errors import DataError, PhotoError
from calm_runtime.photo import PHOTO_SUFFIXES, PhotoSpec, load_photo
from calm_train.datasets.records import PhotoSource, photo_input

logger = logging.getLogger(__name__)

Picture = npt.NDArray[np.uint8]  # RGB [H, W, 3]

TRAINING_SIDE = 432  # longer side of a photo in training, so that a crop still fills the model's input
IN_MEMORY = 6000  # photos kept decoded, about 0.4 MB each
NAMED = 5  # broken photos named in a message


def find_photos(folder: str | Path) -> list[Path]:
    """All photo files below a folder, sorted. Raises DataError when there are none."""
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of photos")
    found = sorted(p for p in root.rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES and p.is_file())
    if not found:
        raise DataError(f"{root}: no photos there (looked for {', '.join(sorted(PHOTO_SUFFIXES))})")
    return found


def read_picture(source: PhotoSource) -> Picture:
    """Decode a photo, upright and in sRGB, to a longer side of at most TRAINING_SIDE. Raises PhotoError."""
    picture = load_photo(photo_input(source), PhotoSpec(size=TRAINING_SIDE))
    picture.thumbnail((TRAINING_SIDE, TRAINING_SIDE), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def load_pictures(sources: Sequence[PhotoSource]) -> list[Picture]:
    """Decode photos; broken ones are skipped, counted and logged. Raises DataError when none is left."""
    pictures, broken = [], []
    bar = Console(stderr=True)
    for source in track(sources, "photos", console=bar, transient=True, disable=not bar.is_terminal):
        try:
            pictures.append(read_picture(source))
        except PhotoError as error:
            broken.append(str(error))
    if broken:
        listed = "\n  ".join(broken[:NAMED] + ["..."] * (len(broken) > NAMED))
        logger.warning("%d of %d photos are broken and were skipped:\n  %s", len(broken), len(sources), listed)
    if not pictures:
        raise DataError("none of the photos can be read")
    return pictures


class PictureLibrary(Sequence[Picture]):
    """Photos by number. Few are decoded at once and kept; of many, each is decoded when asked for.

    A photo of a large set that turns out to be broken is replaced by the next readable one, with a warning.
    """

    def __init__(self, sources: Sequence[PhotoSource]) -> None:
        self._sources = sources
        self._kept = load_pictures(sources) if len(sources) <= IN_MEMORY else None

    def __len__(self) -> int:
        return len(self._sources if self._kept is None else self._kept)

    def __getitem__(self, index: int) -> Picture:  # type: ignore[override]
        if self._kept is not None:
            return self._kept[index]
        for step in range(len(self._sources)):
            try:
                return read_picture(self._sources[(index + step) % len(self._sources)])
            except PhotoError as error:
                logger.warning("skipped: %s", error)
        raise DataError("none of the photos can be read")
