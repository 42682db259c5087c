"""Photos for the parity gate: a folder's, or seeded edits of the examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from calm_runtime.errors import ExportError, PhotoError
from calm_runtime.photo import PHOTO_SUFFIXES, PhotoSpec, leave_out_frame, load_photo

PARITY_PHOTOS = 100
_SEED = 20
_DRAWN = 8


class GatePhoto(NamedTuple):
    """One photo of the gate: what to call it, and its RGB picture."""

    name: str
    picture: Image.Image


def photo_files(folder: Path) -> list[Path]:
    """Photo files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES and path.is_file())


def parity_photos(spec: PhotoSpec, photos: Path | None, examples: Sequence[Path]) -> Iterator[GatePhoto]:
    """Photos for the gate: all readable ones of `photos`, or PARITY_PHOTOS edits of `examples`.

    Raises ExportError when the folder has fewer than PARITY_PHOTOS readable photos.
    """
    if photos is None:
        given = [GatePhoto(path.name, leave_out_frame(load_photo(path, spec), spec)[0]) for path in examples]
        yield from _edited(given or [GatePhoto(f"drawing {seed}", _draw(seed)) for seed in range(_DRAWN)])
        return
    count = 0
    for path in photo_files(photos):
        try:
            picture, _ = leave_out_frame(load_photo(path, spec), spec)
        except PhotoError:
            continue
        count += 1
        yield GatePhoto(path.relative_to(photos).as_posix(), picture)
    if count < PARITY_PHOTOS:
        raise ExportError(f"{photos}: {count} readable photos, the parity gate needs {PARITY_PHOTOS} or more")


def _edited(given: Sequence[GatePhoto]) -> Iterator[GatePhoto]:
    """The photos themselves, then crops and edits of them drawn from a fixed seed."""
    rng = np.random.default_rng(_SEED)
    yield from given[:PARITY_PHOTOS]
    for index in range(PARITY_PHOTOS - len(given)):
        name, picture = given[index % len(given)]
        yield GatePhoto(f"{name}, edit {index + 1}", _edit(picture, rng))


def _edit(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    share = rng.uniform(0.4, 1.0, 2)
    width, height = (max(32, int(side * part)) for side, part in zip(picture.size, share, strict=True))
    left, top = (int(rng.integers(0, max(1, a - b))) for a, b in zip(picture.size, (width, height), strict=True))
    edited = picture.crop((left, top, left + width, top + height))
    if rng.random() < 0.5:
        edited = ImageOps.mirror(edited)
    edited = ImageEnhance.Brightness(edited).enhance(float(rng.uniform(0.3, 1.8)))
    edited = ImageEnhance.Contrast(edited).enhance(float(rng.uniform(0.4, 1.6)))
    edited = ImageEnhance.Color(edited).enhance(float(rng.uniform(0.0, 2.0)))
    if rng.random() < 0.3:
        edited = edited.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 5.0))))
    if rng.random() < 0.3:
        grain = rng.normal(0, rng.uniform(4, 30), (*edited.size[::-1], 1))
        edited = Image.fromarray((np.asarray(edited, np.float32) + grain).clip(0, 255).astype(np.uint8))
    return edited


def _draw(seed: int) -> Image.Image:
    """A stand-in where no example is at hand: a gradient with discs."""
    rng = np.random.default_rng(seed)
    side = 320
    top, bottom = rng.integers(0, 256, (2, 3))
    ramp = np.linspace(0, 1, side)[:, None, None]  # [H, 1, 1]
    picture = Image.fromarray(np.broadcast_to(top * (1 - ramp) + bottom * ramp, (side, side, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(6):
        x, y, radius = (int(v) for v in rng.integers((0, 0, 10), (side, side, 90)))
        draw.ellipse(
            [x - radius, y - radius, x + radius, y + radius], fill=tuple(int(c) for c in rng.integers(0, 256, 3))
        )
    return picture
