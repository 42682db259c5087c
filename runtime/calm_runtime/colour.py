"""Any picture mode and colour profile -> sRGB in mode RGB."""

from __future__ import annotations

import logging
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

logger = logging.getLogger(__name__)

_WIDE_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})


def to_srgb(picture: Image.Image, pad_color: tuple[int, int, int]) -> Image.Image:
    """Decoded picture of any mode -> RGB. Transparent parts show `pad_color`.

    An embedded ICC profile is applied; one that is broken or belongs to another mode is ignored.
    """
    profile: bytes | None = picture.info.get("icc_profile")
    if picture.mode in _WIDE_MODES:
        picture = Image.fromarray(_to_eight_bits(np.asarray(picture)))
    elif picture.mode in ("1", "HSV", "RGBX"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    if picture.mode in ("P", "PA") or picture.has_transparency_data:
        picture = picture.convert("RGBA")
    if picture.mode == "RGBA":
        opaque = _to_srgb_opaque(picture.convert("RGB"), profile)
        canvas = Image.new("RGB", picture.size, pad_color)
        canvas.paste(opaque, mask=picture.getchannel("A"))
        return canvas
    return _to_srgb_opaque(picture, profile)


def _to_srgb_opaque(picture: Image.Image, profile: bytes | None) -> Image.Image:
    if picture.mode == "LAB":
        return _apply_profile(picture, None)
    if profile:
        try:
            return _apply_profile(picture, profile)
        except Exception as error:  # noqa: BLE001 - broken profiles are common, and the pixels still show the photo
            logger.debug("embedded colour profile ignored: %s", error)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _apply_profile(picture: Image.Image, profile: bytes | None) -> Image.Image:
    from PIL import ImageCms

    source = ImageCms.ImageCmsProfile(BytesIO(profile)) if profile else ImageCms.createProfile("LAB")
    if profile and picture.mode == "RGB" and ImageCms.getProfileDescription(source).startswith("sRGB"):
        return picture
    target = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(picture, source, target, outputMode="RGB")
    if converted is None:  # cannot be: only in-place conversion gives none
        raise ValueError("no picture")
    return converted


def _to_eight_bits(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Grey values [H, W] of 16 or 32 bits or float -> uint8 over the full range of the type, never clipped.

    32-bit integers and floats do not say which range they use: the smallest of 1 (floats), 255, 65,535 and the
    type's (integers) or the picture's (floats) largest value that holds the brightest pixel is taken.
    """
    if values.dtype.itemsize == 2:
        full = 65535.0
        grey = values.astype(np.float32)
    else:
        grey = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        peak = float(grey.max(initial=0.0))
        floats = np.issubdtype(values.dtype, np.floating)
        ranges = (*((1.0,) if floats else ()), 255.0, 65535.0, peak if floats else 2.0**31 - 1)
        full = next(r for r in ranges if r >= peak)
    return np.asarray(np.rint(np.clip(grey / full, 0.0, 1.0) * 255.0), dtype=np.uint8)
