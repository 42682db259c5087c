"""The improved picture on disk: the composition applied to the full photo, scored again as it was written."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from PIL import Image

from calm_runtime.errors import PhotoError, PhotoTooLarge, UsageError
from calm_runtime.photo import leave_out_frame, load_photo, to_pixel_values
from calm_runtime.retouch import Edit, retouch

if TYPE_CHECKING:
    from calm_runtime.pipeline import Calm
    from calm_runtime.suggest import Suggestions

BEFORE_AFTER_FOLDER = "before-after"
_ORIENTATION = 0x0112
_PREVIEW_SIDE = 960
_GAP = 12
_OPTIONS: dict[str, dict[str, object]] = {
    "JPEG": {"quality": 95, "subsampling": 0, "optimize": True},
    "PNG": {},
    "WEBP": {"quality": 95},
    "TIFF": {"compression": "tiff_deflate"},
    "BMP": {},
}
_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".png": "PNG", ".webp": "WEBP", ".tif": "TIFF",
            ".tiff": "TIFF", ".bmp": "BMP"}  # fmt: skip


@dataclass(frozen=True)
class Improved:
    """What was written for one photo.

    edits: those that were applied, none when nothing gained. quality: of the written picture, read back.
    """

    path: Path
    before_after: Path
    edits: tuple[Edit, ...]
    quality: float

    def to_json(self) -> dict[str, object]:
        edits = [{"edit": edit.name, "amount": edit.amount, "unit": edit.unit} for edit in self.edits]
        return {"path": str(self.path), "before_after": str(self.before_after), "edits": edits, "quality": self.quality}


def plan_outputs(photos: Sequence[tuple[str, str]], folder: Path) -> dict[str, Path]:
    """(photo, its name under the folder) pairs -> where the improved picture of each goes.

    A name without a suffix that can be written gets `.jpg` added. Raises UsageError when two photos would share a
    file, or when a photo itself would be overwritten.
    """
    outputs: dict[str, Path] = {}
    owners: dict[str, str] = {}
    originals = {os.path.realpath(photo): photo for photo, _ in photos}
    for photo, name in photos:
        target = folder / name
        if target.suffix.lower() not in _FORMATS:
            target = target.with_name(target.name + ".jpg")
        real = os.path.realpath(target)
        if real in originals:
            raise UsageError(f"{folder}: would overwrite {originals[real]}; give another folder to --apply")
        if owners.setdefault(real, photo) != photo:
            raise UsageError(f"{owners[real]} and {photo} have the same name; improve them into different folders")
        outputs[photo] = target
    return outputs


def write_improved(calm: Calm, photo: str | Path, found: Suggestions, target: Path) -> Improved:
    """Apply the composition at full resolution, and write the picture and its before/after picture.

    The written picture is of higher quality than the photo, or has no edits: if what the search measured does not hold at
    full resolution, the last edits are left out. Both files appear whole or not at all.
    Raises PhotoError, also when a file is in the way that `write_improved` did not write.
    """
    spec = calm.bundle.manifest.photo
    # A size no photo reaches: nothing is shrunk while decoding.
    full = load_photo(photo, msgspec.structs.replace(spec, size=calm.limits.max_pixels), calm.limits)
    preview = target.parent / BEFORE_AFTER_FOLDER / f"{target.stem}.before-after.jpg"
    if target.exists() and not preview.exists():
        raise PhotoError(f"{target}: a file that is no earlier result is in the way; give another folder to --apply")
    exif = _exif_without_orientation(full)
    edits = found.composition
    while True:
        edited = retouch(full, edits)
        data = _encode(edited, target, exif)
        limits = replace(calm.limits, max_bytes=len(data), min_side=1)
        read, _ = leave_out_frame(load_photo(data, spec, limits), spec)
        quality = calm.score_pixels(to_pixel_values(read, spec)[None], [{}])[0].quality
        if not edits or quality > found.score.quality:
            break
        edits = edits[:-1]
    _write(target, data)
    _write(preview, _encode(_side_by_side(full, edited), preview, None))
    return Improved(target, preview, tuple(edits), quality)


def _exif_without_orientation(picture: Image.Image) -> bytes | None:
    """The photo's EXIF block for the upright picture; None if it has none or a broken one. No thumbnail is kept."""
    try:
        exif = picture.getexif()
        exif.pop(_ORIENTATION, None)
        return exif.tobytes() if len(exif) else None
    except Exception:  # noqa: BLE001 - a broken EXIF block must not cost the photo
        return None


def _encode(picture: Image.Image, target: Path, exif: bytes | None) -> bytes:
    kind = _FORMATS[target.suffix.lower()]
    options = dict(_OPTIONS[kind])
    if exif and kind in ("JPEG", "PNG", "WEBP"):
        options["exif"] = exif
    bare = picture.copy()
    bare.info = {}  # the pixels are sRGB now: the photo's colour profile must not be written with them
    buffer = io.BytesIO()
    try:
        bare.save(buffer, kind, **options)
    except (OSError, ValueError) as error:
        raise PhotoTooLarge(f"{target}: cannot be written as {kind} ({error}); name the photo .png") from error
    return buffer.getvalue()


def _side_by_side(before: Image.Image, after: Image.Image) -> Image.Image:
    """Before on the left, after on the right, on white."""
    pair = []
    for picture in (before, after):
        small = picture.copy()
        small.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
        pair.append(small)
    width = pair[0].width + _GAP + pair[1].width
    canvas = Image.new("RGB", (width, max(p.height for p in pair)), "white")
    canvas.paste(pair[0], (0, 0))
    canvas.paste(pair[1], (pair[0].width + _GAP, 0))
    return canvas


def _write(target: Path, data: bytes) -> None:
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        os.replace(part, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise PhotoError(f"{target}: cannot be written ({error}); check the folder and the disk") from error
