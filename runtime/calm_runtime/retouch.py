"""Edits applied to a photo: what a suggestion says, done to pixels.

Tones are RGB [H, W, 3] float32, sRGB-encoded, 0..1. Every edit is one frozen value with its magnitude; radii are
shares of the longer side, so that an edit means the same on a thumbnail and on the full photo. The inverse of an
edit with magnitude m is the same edit with -m (exposure, white balance, rotation) or 1/m (contrast, saturation);
it is exact where nothing was clipped or cut off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Rgb = npt.NDArray[np.float32]
Amount = float | dict[str, float] | list[float]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601, on encoded values
LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)  # Rec. 709, on linear light
WARMTH_AXIS = np.array([0.5, 0.0, -0.5], np.float32)
TINT_AXIS = np.array([1 / 3, -2 / 3, 1 / 3], np.float32)
_SHARPENING_SIGMA = 1 / 224
_DENOISE_RADIUS = 1 / 112
_BAND_PIXELS = 1 << 21
_NOISE_BLOCK, _NOISE_WINDOW = 12, 1448


@dataclass(frozen=True)
class Frame:
    """What a neighbourhood edit must know of the whole picture while it sees a band of it.

    longer: longer side in pixels. noise: standard deviation of the noise, 0..1.
    """

    longer: int
    noise: float


def to_linear(rgb: Rgb) -> Rgb:
    """sRGB-encoded 0..1 -> linear light 0..1 (IEC 61966-2-1)."""
    return np.where(rgb <= 0.04045, rgb / 12.92, ((np.maximum(rgb, 0) + 0.055) / 1.055) ** 2.4).astype(np.float32)


def to_encoded(linear: Rgb) -> Rgb:
    """Linear light -> sRGB-encoded, clipped to 0..1 (IEC 61966-2-1)."""
    light = np.clip(linear, 0, 1)
    encoded = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.asarray(encoded, np.float32)


@dataclass(frozen=True)
class Exposure:
    """Linear light times 2 ** stops."""

    stops: float
    name: ClassVar[str] = "exposure"
    unit: ClassVar[str] = "EV"

    @property
    def amount(self) -> Amount:
        return round(self.stops, 2)

    def apply(self, rgb: Rgb, frame: Frame) -> Rgb:
        return to_encoded(to_linear(rgb) * np.float32(2.0**self.stops))


@dataclass(frozen=True)
class WhiteBalance:
    """Channel gains in linear light that keep the luminance of a grey to first order.

    warmth: stops of red over blue; positive is towards yellow. tint: stops of red and blue over green; positive is
    towards magenta.
    """

    warmth: float
    tint: float
    name: ClassVar[str] = "white balance"
    unit: ClassVar[str] = "EV"

    @property
    def amount(self) -> Amount:
        return {"warmth": round(self.warmth, 2), "tint": round(self.tint, 2)}

    @property
    def gains(self) -> Rgb:
        """Factors of red, green and blue [3] in linear light; those of the inverse are their reciprocals."""
        stops = self.warmth * WARMTH_AXIS + self.tint * TINT_AXIS
        return np.asarray(2.0 ** (stops - stops @ LUMINANCE), np.float32)

    def apply(self, rgb: Rgb, frame: Frame) -> Rgb:
        return to_encoded(to_linear(rgb) * self.gains)


@dataclass(frozen=True)
class Contrast:
    """Distance of encoded values to `pivot` times `factor`. A levels stretch is the same with another pivot."""

    factor: float
    pivot: float
    name: ClassVar[str] = "contrast"
    unit: ClassVar[str] = "%"

    @property
    def amount(self) -> Amount:
        return round((self.factor - 1) * 100)

    def apply(self, rgb: Rgb, frame: Frame) -> Rgb:
        pivot = np.float32(self.pivot)
        return np.asarray(np.clip(pivot + (rgb - pivot) * np.float32(self.factor), 0, 1), np.float32)


@dataclass(frozen=True)
class Saturation:
    """Distance of encoded values to their luma times `factor`."""

    factor: float
    name: ClassVar[str] = "saturation"
    unit: ClassVar[str] = "%"

    @property
    def amount(self) -> Amount:
        return round((self.factor - 1) * 100)

    def apply(self, rgb: Rgb, frame: Frame) -> Rgb:
        grey = (rgb @ LUMA)[..., None]  # [H, W, 1]
        return np.clip(grey + (rgb - grey) * np.float32(self.factor), 0, 1)


@dataclass(frozen=True)
class Sharpening:
    """Unsharp mask on luma: adds `strength` times what a Gaussian blur takes away."""

    strength: float
    name: ClassVar[str] = "sharpening"
    unit: ClassVar[str] = "%"

    @property
    def amount(self) -> Amount:
        return round(self.strength * 100)

    def reach(self, frame: Frame) -> int:
        return math.ceil(4 * self._sigma(frame))

    def apply(self, rgb: Rgb, frame: Frame) -> Rgb:
        luma = rgb @ LUMA  # [H, W]
        blurred = Image.fromarray(_to_bytes(luma)).filter(ImageFilter.GaussianBlur(self._sigma(frame)))
        detail = luma - np.asarray(blurred, np.float32) / np.float32(255)
        return np.clip(rgb + np.float32(self.strength) * detail[..., None], 0, 1)

    def _sigma(self, frame: Frame) -> float:
        return max(0.5, _SHARPENING_SIGMA * frame.longer)


@dataclass(frozen=True)
class Denoise:
    """Self-guided filter (He, Sun & Tang 2013): flat areas are averaged, edges above the noise stay.

    strength: multiple of the picture's own noise below which a difference counts as noise.
    """

    strength: float
    name: ClassVar[str] = "denoise"
    unit: ClassVar[str] = "%"

    @property
    def amount(self) -> Amount:
        return round(self.strength * 100)

    def reach(self, frame: Frame) -> int:
        return 2 * self._radius(frame)

    def apply(self, rgb: Rgb, frame: Frame) -> Rgb:
        radius, noise = self._radius(frame), np.float32((self.strength * frame.noise) ** 2 + 1e-8)
        mean = box_mean(rgb, radius)
        variance = np.maximum(box_mean(rgb * rgb, radius) - mean * mean, 0)
        keep = np.asarray(variance / (variance + noise), np.float32)
        calm = np.asarray((1 - keep) * mean, np.float32)
        return np.asarray(np.clip(box_mean(keep, radius) * rgb + box_mean(calm, radius), 0, 1), np.float32)

    def _radius(self, frame: Frame) -> int:
        return max(1, round(_DENOISE_RADIUS * frame.longer))


@dataclass(frozen=True)
class Rotation:
    """Turn about the centre and keep the largest frame of the same aspect without empty corners.

    degrees: positive is counter-clockwise. The inverse restores the level, not what the frame cut off.
    """

    degrees: float
    name: ClassVar[str] = "rotation"
    unit: ClassVar[str] = "degrees counter-clockwise"

    @property
    def amount(self) -> Amount:
        return round(self.degrees, 1)

    def frame(self, picture: Image.Image) -> Image.Image:
        """The rotated picture, smaller than the given one."""
        width, height = picture.size
        sine, cosine = math.sin(math.radians(abs(self.degrees))), math.cos(math.radians(self.degrees))
        zoom = min(width / (width * cosine + height * sine), height / (height * cosine + width * sine))
        turned = picture.rotate(self.degrees, Image.Resampling.BICUBIC)
        return turned.crop(_centred_box(width, height, zoom))


@dataclass(frozen=True)
class Crop:
    """Keep a box; its edges are shares of the width and height, from the upper left corner."""

    left: float
    top: float
    right: float
    bottom: float
    name: ClassVar[str] = "crop"
    unit: ClassVar[str] = "left, top, right, bottom as shares of the sides"

    @property
    def amount(self) -> Amount:
        return [round(edge, 3) for edge in (self.left, self.top, self.right, self.bottom)]

    def frame(self, picture: Image.Image) -> Image.Image:
        """The part inside the box, one pixel at least."""
        width, height = picture.size
        left, top = min(round(self.left * width), width - 1), min(round(self.top * height), height - 1)
        return picture.crop((left, top, max(left + 1, round(self.right * width)),
                             max(top + 1, round(self.bottom * height))))  # fmt: skip


Tone = Exposure | WhiteBalance | Contrast | Saturation | Sharpening | Denoise
Framing = Rotation | Crop
Edit = Tone | Framing


def retouch(picture: Image.Image, edits: Sequence[Edit]) -> Image.Image:
    """Apply edits to an RGB picture of any size: framing first, then tones in the given order.

    Tones are computed in float32 in bands of rows, so that memory stays bounded, and rounded to 8 bits once.
    """
    for edit in edits:
        if isinstance(edit, Framing):
            picture = edit.frame(picture)
    tones = [edit for edit in edits if isinstance(edit, Tone)]
    if not tones:
        return picture
    values = np.asarray(picture)  # [H, W, 3] uint8
    frame = frame_of(values)
    halo = sum(edit.reach(frame) for edit in tones if isinstance(edit, Sharpening | Denoise))
    height, width = values.shape[:2]
    rows = max(1, 2 * halo, _BAND_PIXELS // width)
    result = np.empty_like(values)
    for start in range(0, height, rows):
        first, last = max(0, start - halo), min(height, start + rows + halo)
        band = apply_tones(to_floats(values[first:last]), tones, frame)
        result[start : start + rows] = _to_bytes(band[start - first : start - first + rows])
    return Image.fromarray(result)


def apply_tones(rgb: Rgb, tones: Sequence[Tone], frame: Frame) -> Rgb:
    """Apply tone edits in order to one array [H, W, 3]."""
    for edit in tones:
        rgb = edit.apply(rgb, frame)
    return rgb


def to_floats(values: npt.NDArray[np.uint8]) -> Rgb:
    """8-bit values -> float32 0..1."""
    return values.astype(np.float32) / np.float32(255)


def to_picture(rgb: Rgb) -> Image.Image:
    """Tones [H, W, 3] -> RGB picture, rounded."""
    return Image.fromarray(_to_bytes(rgb))


def frame_of(values: npt.NDArray[np.uint8]) -> Frame:
    """Size and noise of a picture [H, W, 3] uint8."""
    return Frame(max(values.shape[:2]), noise_level(values))


def noise_level(values: npt.NDArray[np.uint8]) -> float:
    """Standard deviation of the noise in luma, 0..1 (Immerkaer 1996, in blocks, with the median of the response).

    Noise is where the picture is calm: the calmest fifth of the blocks tells it, clipped ones left out. At most some
    two million pixels are looked at, from the middle of the picture.
    """
    height, width = values.shape[:2]
    top, left = max(0, (height - _NOISE_WINDOW) // 2), max(0, (width - _NOISE_WINDOW) // 2)
    grey = to_floats(values[top : top + _NOISE_WINDOW, left : left + _NOISE_WINDOW]) @ LUMA
    rows = grey[:-2] - 2 * grey[1:-1] + grey[2:]
    response = rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]
    levels = np.median(np.abs(_blocks(response)), axis=-1) / (0.6745 * 6)
    brightness = _blocks(grey[1:-1, 1:-1]).mean(axis=-1)
    usable = levels[(brightness > 0.04) & (brightness < 0.96)]
    return float(np.percentile(usable, 20)) if len(usable) else 0.0


def _blocks(values: Rgb) -> Rgb:
    """Whole blocks [n, side * side] of [h, w]."""
    down, across = (length // _NOISE_BLOCK for length in values.shape)
    whole = values[: down * _NOISE_BLOCK, : across * _NOISE_BLOCK]
    tiles = whole.reshape(down, _NOISE_BLOCK, across, _NOISE_BLOCK).transpose(0, 2, 1, 3)
    return tiles.reshape(down * across, _NOISE_BLOCK**2)


def _to_bytes(values: Rgb) -> npt.NDArray[np.uint8]:
    return np.asarray(np.rint(np.clip(values, 0, 1) * 255), np.uint8)


def _centred_box(width: int, height: int, share: float) -> tuple[int, int, int, int]:
    inner_width, inner_height = max(1, math.floor(width * share)), max(1, math.floor(height * share))
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    return left, top, left + inner_width, top + inner_height


def box_mean(values: Rgb, radius: int) -> Rgb:
    """Mean over a (2 radius + 1) square around each pixel of [H, W, 3], edges repeated."""
    width = 2 * radius + 1
    for axis in (0, 1):
        padding = [(radius + 1, radius) if a == axis else (0, 0) for a in range(3)]
        total = np.cumsum(np.pad(values, padding, mode="edge"), axis=axis, dtype=np.float64)
        length = values.shape[axis]
        late, early = (np.take(total, np.arange(start, start + length), axis=axis) for start in (width, 0))
        values = ((late - early) / width).astype(np.float32)
    return values
