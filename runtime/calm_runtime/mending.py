"""What would undo a photo's faults of tone: a small network reads the statistics of its tones and answers with edits.

`calm train mending` trains it: photos are spoiled in known ways, and its edits must bring them back, in L*a*b*. The
weights belong to no bundle; whether an edit helps is for the bundle's model to verify (`suggest.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image
from safetensors import safe_open

from calm_runtime.lab import to_lab
from calm_runtime.retouch import LUMA, Contrast, Exposure, Rgb, Saturation, Tone, WhiteBalance, to_floats

WEIGHTS = Path(__file__).with_name("tone_mending.safetensors")
INFO = "mending"  # key of the file's metadata
SIDE = 48  # pixels: tones are read from a square thumbnail, whatever the photo's shape
KINDS = ("exposure", "white balance", "contrast", "saturation")
# The network's outputs are tanh times these: stops, stops, stops, log factor, share of the tone range, log factor.
REACH = {"stops": 2.5, "warmth": 1.8, "tint": 1.2, "log_contrast": 1.3, "pivot": 0.6, "log_saturation": 1.5}
MOST_FEATURE = 4.0  # standard deviations
_LIGHTNESS_QUANTILES = (0.01, 0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95, 0.99)
_CHROMA_QUANTILES = (0.1, 0.3, 0.5, 0.75, 0.9, 0.98)
_CHANNEL_QUANTILES = (0.02, 0.5, 0.9, 0.99)
_TONE_BANDS, _STRIPES, _HUES = 5, 3, 8
_NEAR_GREY = 8.0  # chroma

Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Mending:
    """Edits that would undo what is wrong with a photo's tones, and how likely each kind is needed.

    Magnitudes as of `calm_runtime.retouch`; pivot: of the contrast, beside the photo's mean tone.
    support: log odds that a fault of the kind is there.
    """

    stops: float
    warmth: float
    tint: float
    log_contrast: float
    pivot: float
    log_saturation: float
    support: dict[str, float]

    def edit(self, kind: str, mean_tone: float, strength: float = 1.0) -> Tone:
        """The edit of a kind at a share of its magnitude. mean_tone: mean luma of the photo, 0..1."""
        made: dict[str, Callable[[], Tone]] = {
            "exposure": lambda: Exposure(strength * self.stops),
            "white balance": lambda: WhiteBalance(strength * self.warmth, strength * self.tint),
            "contrast": lambda: Contrast(math.exp(strength * self.log_contrast), mean_tone + self.pivot),
            "saturation": lambda: Saturation(math.exp(strength * self.log_saturation)),
        }
        return made[kind]()


def tone_thumbnail(picture: Image.Image) -> Rgb:
    """RGB picture -> tones [SIDE, SIDE, 3] in 0..1."""
    return to_floats(np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX)))


def tone_features(tones: Rgb) -> Values:
    """Tones [B, SIDE, SIDE, 3] -> what the network reads of each, [B, F]: quantiles, colours by tone, clipping, hues."""
    batch = len(tones)
    pixels = tones.reshape(batch, -1, 3)
    lab = to_lab(pixels)  # [B, N, 3]
    light, a, b = (np.ascontiguousarray(lab[..., channel]) for channel in range(3))
    chroma = np.hypot(a, b)
    means = [values.mean(1) for values in (light, a, b)]
    off_light, off_a, off_b = (values - mean[:, None] for values, mean in zip((light, a, b), means, strict=True))
    brightest, darkest = pixels.max(2), pixels.min(2)
    clipped = np.stack(
        [(brightest > 0.99).mean(1), (darkest < 0.01).mean(1), (brightest < 0.02).mean(1), (darkest > 0.98).mean(1)]
    )
    greyness = np.exp(-((chroma / _NEAR_GREY) ** 2))
    grey = greyness.sum(1)
    hue = np.arctan2(b, a)
    hues = [
        (chroma * np.maximum(np.cos(hue - turn), 0) ** 4).mean(1) for turn in np.arange(_HUES) * 2 * math.pi / _HUES
    ]
    rows = [
        *(np.quantile(light, _LIGHTNESS_QUANTILES, axis=1) / 50 - 1),
        *(np.log(np.quantile(chroma, _CHROMA_QUANTILES, axis=1) + 1.5) - 2.5),
        *(np.quantile(pixels, _CHANNEL_QUANTILES, axis=1).transpose(0, 2, 1).reshape(-1, batch) * 2 - 1),
        *_by_tone(light, a, b, chroma),
        *(np.log(clipped + 1e-3) / 3 + 1),
        means[0] / 50 - 1,
        light.std(1) / 20 - 1,
        means[1] / 15,
        means[2] / 15,
        np.log(a.std(1) + 1) - 2,
        np.log(b.std(1) + 1) - 2,
        (off_a * off_light).mean(1) / 100,
        (off_b * off_light).mean(1) / 100,
        (off_a * off_b).mean(1) / 100,
        *_by_place(lab.reshape(batch, SIDE, SIDE, 3)),
        (greyness * a).sum(1) / (grey + 1) / 4,
        (greyness * b).sum(1) / (grey + 1) / 4,
        np.log(greyness.mean(1) + 1e-3) / 3 + 1,
        *(np.log(np.stack(hues) + 1) - 1),
    ]
    return np.stack(rows, axis=1).astype(np.float32)


def _by_tone(light: Values, a: Values, b: Values, chroma: Values) -> list[Values]:
    """Mean colour of the darkest fifth of the pixels, ..., of the lightest fifth."""
    order = light.argsort(axis=1, kind="stable")
    count = light.shape[1]
    rows: list[Values] = []
    for band in range(_TONE_BANDS):
        members = order[:, band * count // _TONE_BANDS : (band + 1) * count // _TONE_BANDS]
        mean_a, mean_b, mean_chroma = (np.take_along_axis(v, members, axis=1).mean(1) for v in (a, b, chroma))
        rows += [mean_a / 15, mean_b / 15, mean_chroma / 20 - 0.5]
    return rows


def _by_place(lab: Values) -> list[Values]:
    """Fine contrast, and mean colour of the upper, middle and lower third: of L*a*b* [B, SIDE, SIDE, 3]."""
    light = lab[..., 0]
    steps = np.abs(np.diff(light, axis=1)).mean((1, 2)) + np.abs(np.diff(light, axis=2)).mean((1, 2))
    rows = [np.log(steps + 0.2) - 1]
    height = SIDE // _STRIPES
    for stripe in range(_STRIPES):
        mean = lab[:, stripe * height : (stripe + 1) * height].mean((1, 2))  # [B, 3]
        rows += [mean[:, 0] / 50 - 1, mean[:, 1] / 15, mean[:, 2] / 15]
    return rows


def mend(tones: Rgb) -> Mending:
    """What the tones [SIDE, SIDE, 3] of a photo need."""
    net = _network()
    hidden = np.clip((tone_features(tones[None])[0] - net["mean"]) / net["std"], -MOST_FEATURE, MOST_FEATURE)
    for layer in ("first", "second"):
        hidden = _gelu(net[f"{layer}.weight"] @ hidden + net[f"{layer}.bias"])
    amounts = np.tanh(net["amounts.weight"] @ hidden + net["amounts.bias"])
    support = net["kinds.weight"] @ hidden + net["kinds.bias"]
    magnitudes = {name: float(reach * amount) for (name, reach), amount in zip(REACH.items(), amounts, strict=True)}
    return Mending(**magnitudes, support=dict(zip(KINDS, support.tolist(), strict=True)))


def mean_tone(tones: Rgb) -> float:
    """Mean luma, 0..1."""
    return float((tones @ LUMA).mean())


class MendingInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the weights say about their making.

    photos: untouched photos, source: which, in words; steps: of training. noisy: noise level above that of nine tenths of
    them; soft: fine detail below that of nine tenths (`calm_runtime.detail`).
    """

    photos: int
    source: str
    steps: int
    noisy: float
    soft: float


@cache
def mending_info() -> MendingInfo:
    """What the weights that ship with the package say about themselves."""
    with safe_open(str(WEIGHTS), "numpy") as file:
        return msgspec.json.decode(file.metadata()[INFO], type=MendingInfo)


@cache
def _network() -> dict[str, Values]:
    with safe_open(str(WEIGHTS), "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def _gelu(values: Values) -> Values:
    """The tanh form (Hendrycks & Gimpel 2016)."""
    inner = math.sqrt(2 / math.pi) * (values + 0.044715 * values**3)
    return np.asarray(0.5 * values * (1 + np.tanh(inner)), np.float32)
