"""Where a photo enters: file or bytes -> checked, upright sRGB picture -> without its frame -> pixel_values.

Photos come from strangers: every limit is checked before the work it protects from, and every fault of a file
becomes a PhotoError that names the file, the cause and the remedy.
"""

from __future__ import annotations

import importlib
import os
import stat
import threading
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps

from calm_runtime.colour import to_srgb
from calm_runtime.errors import PhotoFormatRefused, PhotoNotFound, PhotoTooLarge, PhotoTooSmall, PhotoUnreadable
from calm_runtime.frame import crop_frame, find_frame, frame_shares
from calm_runtime.score import Frame

PHOTO_FORMATS: tuple[str, ...] = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "HEIF")
PHOTO_SUFFIXES: frozenset[str] = frozenset(
    {".jpg", ".jpeg", ".jpe", ".mpo", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".heic", ".heif", ".hif"}
)

_PLUGINS = {"JPEG": "Jpeg", "MPO": "Mpo", "PNG": "Png", "WEBP": "WebP", "TIFF": "Tiff", "BMP": "Bmp", "GIF": "Gif"}
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
# Pictures people do have, and what to call them when they are refused.
_REFUSED_SIGNATURES = (
    (0, b"8BPS", "a Photoshop document"),
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"\x00\x00\x01\x00", "an icon"),
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (4, b"JXL ", "a JPEG XL picture"),
    (4, b"jP  ", "a JPEG 2000 picture"),
    (4, b"ftypavif", "an AVIF picture"),
    (4, b"ftypcrx", "a camera raw file"),
    (4, b"ftyp", "a video"),
    (0, b"FUJIFILMCCD-RAW", "a camera raw file"),
    (0, b"II*\x00\x10\x00\x00\x00CR", "a camera raw file"),
    (0, b"IIRO", "a camera raw file"),
    (0, b"IIU\x00", "a camera raw file"),
)  # fmt: skip
_TIFF_NEW_SUBFILE_TYPE, _TIFF_DNG_VERSION = 254, 50706
# These shrink by averaging whole pixels without a change of meaning (not so palettes, bits and wide integers).
_SHRINKABLE = frozenset({"L", "RGB", "CMYK", "YCbCr"})

_heif_lock = threading.Lock()


class PhotoSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a picture becomes pixel_values.

    fit "pad": the picture is scaled so that its longer side is `size` (never below one pixel) and centred on a `size` x
    `size` canvas of `pad_color`; "stretch": both its sides become `size`. Then it is divided by 255, and normalised with
    `mean` and `std` per RGB channel. leave_out_frames: a plain border around the photograph is cut off first.
    """

    size: int = 224
    resample: Literal["bicubic"] = "bicubic"
    pad_color: tuple[int, int, int] = (122, 116, 104)
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    fit: Literal["pad", "stretch"] = "pad"
    leave_out_frames: bool = True


@dataclass(frozen=True)
class PhotoLimits:
    """What is admitted. Sizes are those of the file and its header, checked before anything is decoded.

    formats: Pillow format names; "HEIF" also needs the extra `calm-edge[heif]`.
    """

    max_bytes: int = 100_000_000
    max_pixels: int = 200_000_000
    min_side: int = 32
    formats: tuple[str, ...] = PHOTO_FORMATS


def load_photo(
    source: str | Path | bytes, spec: PhotoSpec | None = None, limits: PhotoLimits | None = None
) -> Image.Image:
    """Decode one photo: upright, sRGB, mode RGB, first frame, transparency laid over `spec.pad_color`.

    The picture may be smaller than the file's (never below twice `spec.size` on the longer side unless the file
    is): photos are shrunk while decoding. The format is told by content, never by the name.
    Raises PhotoNotFound, PhotoUnreadable, PhotoFormatRefused, PhotoTooLarge or PhotoTooSmall.
    """
    spec = spec or PhotoSpec()
    limits = limits or PhotoLimits()
    name = photo_name(source)
    data = read_photo(source, limits)
    with _open(data, name, limits) as picture:
        _check_header(picture, name, limits)
        longer = max(picture.size)
        wanted = tuple(max(1, side * 2 * spec.size // longer) for side in picture.size)
        try:
            if longer > 2 * spec.size:
                picture.draft(None, (wanted[0], wanted[1]))
            picture.load()
            shrunk = _shrink(picture, 2 * spec.size)
            return to_srgb(_upright(shrunk), spec.pad_color)
        except Image.DecompressionBombError as error:
            raise PhotoTooLarge(f"{name}: {error}; save it smaller") from error
        except MemoryError as error:
            raise PhotoTooLarge(f"{name}: not enough memory to decode it; save it smaller") from error
        except Exception as error:  # decoders meet hostile bytes: any exception of theirs means a bad file
            raise PhotoUnreadable(
                f"{name}: the {picture.format} data is truncated or corrupt ({error}); copy or export the photo again"
            ) from error


def photo_name(source: str | Path | bytes) -> str:
    """How messages and results call a source: its path, or "<N bytes>"."""
    return f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source)


def leave_out_frame(picture: Image.Image, spec: PhotoSpec) -> tuple[Image.Image, Frame | None]:
    """An upright RGB picture -> what of it the model reads, and the border left out as shares of width and height.

    None, and the picture itself, where there is no border or the spec keeps it.
    """
    box = find_frame(picture) if spec.leave_out_frames else None
    return (picture, None) if box is None else (crop_frame(picture, box), frame_shares(box, picture.size))


def to_model_size(picture: Image.Image, spec: PhotoSpec) -> Image.Image:
    """The picture at the size the model reads it in, without padding; scaling the result again changes nothing."""
    if spec.fit == "stretch":
        return picture.resize((spec.size, spec.size), Image.Resampling.BICUBIC)
    scale = spec.size / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def to_pixel_values(picture: Image.Image, spec: PhotoSpec) -> npt.NDArray[np.float32]:
    """RGB picture -> pixel_values [3, size, size] float32."""
    pixels = np.asarray(fit_picture(picture, spec), dtype=np.float32) / np.float32(255.0)  # [H, W, 3]
    normalised = (pixels - np.asarray(spec.mean, np.float32)) / np.asarray(spec.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))  # [3, H, W]


def fit_picture(picture: Image.Image, spec: PhotoSpec) -> Image.Image:
    """RGB picture -> the square of `spec.size` that the model reads, not yet normalised."""
    resized = to_model_size(picture, spec)
    if resized.size == (spec.size, spec.size):
        return resized
    canvas = Image.new("RGB", (spec.size, spec.size), spec.pad_color)
    canvas.paste(resized, ((spec.size - resized.width) // 2, (spec.size - resized.height) // 2))
    return canvas


def read_photo(source: str | Path | bytes, limits: PhotoLimits) -> bytes:
    """The bytes of a photo, undecoded. Raises PhotoNotFound, PhotoUnreadable or PhotoTooLarge."""
    name = photo_name(source)
    if isinstance(source, bytes):
        size, data = len(source), source
    else:
        try:
            with open(source, "rb", opener=_open_regular) as handle:
                # One byte over the cap is enough to know, even when the file grows while it is read.
                data = handle.read(limits.max_bytes + 1)
                size = max(len(data), Path(source).stat().st_size)
        except FileNotFoundError as error:
            raise PhotoNotFound(f"{name}: no such file; check the path") from error
        except IsADirectoryError as error:
            raise PhotoUnreadable(f"{name}: is a folder, not a photo; give the photos in it") from error
        except PermissionError as error:
            if Path(source).is_dir():  # Windows' answer for a folder
                raise PhotoUnreadable(f"{name}: is a folder, not a photo; give the photos in it") from error
            raise PhotoUnreadable(f"{name}: not allowed to read it; change the file's permissions") from error
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
            raise PhotoUnreadable(f"{name}: cannot be read ({error}); check the path and the disk") from error
    if size == 0:
        raise PhotoUnreadable(f"{name}: the file is empty; copy the photo again")
    if size > limits.max_bytes:
        raise PhotoTooLarge(f"{name}: {size:,} bytes, the limit is {limits.max_bytes:,}; save it smaller")
    return data


def _open_regular(path: str, flags: int) -> int:
    # A pipe or a device would block for ever; O_NONBLOCK lets it open so that it can be told apart.
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(path)
    raise OSError("not a regular file")


def _open(data: bytes, name: str, limits: PhotoLimits) -> ImageFile.ImageFile:
    """Parse the header with the allowed formats' plugins only; nothing is decoded."""
    heif = data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and "HEIF" in limits.formats
    if heif:
        _register_heif(name)
    prefix = data[:16]
    for kind in limits.formats:
        if kind in _PLUGINS:
            importlib.import_module(f"PIL.{_PLUGINS[kind]}ImagePlugin")
        # Image.open would do, were it not for its pixel cap: a process-wide variable, below ours, with a warning.
        factory, accept = Image.OPEN.get(kind, (None, None))
        if factory is None or (accept is not None and accept(prefix) in (False, None)):
            continue
        try:
            picture = factory(BytesIO(data), "")
        except Image.DecompressionBombError as error:
            raise PhotoTooLarge(f"{name}: {error}; save it smaller") from error
        except SyntaxError:  # Pillow's way to say "not my format"
            continue
        except Exception as error:
            raise PhotoUnreadable(
                f"{name}: the {kind} header is corrupt ({error}); copy or export the photo again"
            ) from error
        if picture.format in limits.formats:
            return picture
        picture.close()
        raise PhotoFormatRefused(f"{name}: is {picture.format}, only {', '.join(limits.formats)} are admitted")
    for kind, plugin in _PLUGINS.items():
        if kind not in limits.formats:
            importlib.import_module(f"PIL.{plugin}ImagePlugin")
            _, accept = Image.OPEN.get(kind, (None, None))
            if accept is not None and accept(prefix) is True:
                raise PhotoFormatRefused(f"{name}: is {kind}, only {', '.join(limits.formats)} are admitted")
    if heif:
        raise PhotoUnreadable(f"{name}: the HEIF header is truncated or corrupt; copy or export the photo again")
    for offset, signature, what in _REFUSED_SIGNATURES:
        if data[offset:].startswith(signature):
            raise PhotoFormatRefused(f"{name}: is {what}; export it as JPEG, PNG, TIFF or WebP")
    raise PhotoUnreadable(
        f"{name}: not a picture of an admitted format ({', '.join(limits.formats)}); export it as JPEG"
    )


def _register_heif(name: str) -> None:
    with _heif_lock:
        if "HEIF" in Image.OPEN:
            return
        try:
            heif = importlib.import_module("pillow_heif")
        except ImportError as error:
            raise PhotoFormatRefused(
                f"{name}: HEIF photos need one more package; pip install calm-edge[heif], or export it as JPEG"
            ) from error
        heif.register_heif_opener(thumbnails=False)


def _check_header(picture: ImageFile.ImageFile, name: str, limits: PhotoLimits) -> None:
    width, height = picture.size
    if width * height > limits.max_pixels:
        raise PhotoTooLarge(f"{name}: {width} x {height} pixels, the limit is {limits.max_pixels:,}; save it smaller")
    if min(width, height) < limits.min_side:
        raise PhotoTooSmall(f"{name}: {width} x {height} pixels, the shorter side must be {limits.min_side} or more")
    if picture.format == "TIFF":
        tags = getattr(picture, "tag_v2", {})
        # The first picture of a raw file in TIFF clothes is a thumbnail: scoring it would be silently wrong.
        if _TIFF_DNG_VERSION in tags or int(tags.get(_TIFF_NEW_SUBFILE_TYPE, 0)) & 1:
            raise PhotoFormatRefused(f"{name}: is a camera raw file; export it as JPEG, PNG, TIFF or WebP")


def _shrink(picture: Image.Image, at_least: int) -> Image.Image:
    """Do for every format what draft mode does for JPEG: a cheap reduction by 2, 4 or 8 to `at_least` or more."""
    factor = next((f for f in (8, 4, 2) if max(picture.size) // f >= at_least), 1)
    if factor == 1 or picture.mode not in _SHRINKABLE or picture.has_transparency_data:
        return picture
    return picture.reduce(factor)


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # noqa: BLE001 - a broken EXIF block must not cost the photo
        return picture
