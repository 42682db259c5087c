"""Where a photo enters: file or bytes -> checked, upright sRGB picture -> pixel_values. (decoding follows)"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image


class PhotoSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a picture becomes pixel_values.

    The picture is scaled so that its longer side is `size` (never below one pixel), centred on a `size` x `size`
    canvas of `pad_color`, divided by 255, and normalised with `mean` and `std` per RGB channel.
    """

    size: int = 224
    resample: Literal["bicubic"] = "bicubic"
    pad_color: tuple[int, int, int] = (122, 116, 104)
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


def to_pixel_values(picture: Image.Image, spec: PhotoSpec) -> npt.NDArray[np.float32]:
    """RGB picture -> pixel_values [3, size, size] float32."""
    scale = spec.size / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (spec.size, spec.size), spec.pad_color)
    canvas.paste(resized, ((spec.size - width) // 2, (spec.size - height) // 2))
    pixels = np.asarray(canvas, dtype=np.float32) / np.float32(255.0)  # [H, W, 3]
    normalised = (pixels - np.asarray(spec.mean, np.float32)) / np.asarray(spec.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))  # [3, H, W]
