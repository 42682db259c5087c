"""Which edits are worth trying on a photo, and how strongly: from what can be measured and what the model says.

Every tone edit has a magnitude that makes the picture's statistics most like an untouched photo's. It is the mean of
the posterior over a grid of magnitudes: naturalness of the result, times the change of volume, times a normal prior
around "change nothing". The mean, not the best point, because the best point drags every photo to the average photo.
The change of volume, because an edit that spreads tones apart also thins their density: without it, dull looks likelier.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from calm_runtime.advice import Opinion
from calm_runtime.framing import crops, tilt
from calm_runtime.naturalness import (
    fine_detail,
    log_naturalness,
    mean_chroma,
    natural_photos,
    tone_thumbnail,
)
from calm_runtime.retouch import (
    LUMA,
    Contrast,
    Crop,
    Denoise,
    Edit,
    Exposure,
    Frame,
    Rgb,
    Rotation,
    Saturation,
    Sharpening,
    Tone,
    WhiteBalance,
    noise_level,
)

STRENGTHS = (0.6, 1.0, 1.4)  # of the measured magnitude
TEMPER = 0.7  # the statistics depend on each other in ways the distribution does not know
OPINION_WEIGHT = 1.0
MOST_SUPPORT = 4.0
_VEIL = 0.08  # luma of the darkest tones above which light lies over the picture; below, a stretch is an exposure
_GREY_CHROMA, _PALE_CHROMA = 0.8, 1.6  # below: no saturation can be found again; no white balance can be judged

# Magnitudes, and the standard deviation of the prior around none: stops, log factors, stops.
_STOPS = np.arange(-2.5, 2.51, 0.25)
_LOG_CONTRAST = np.log([0.6, 0.75, 0.87, 1.0, 1.15, 1.3, 1.5, 1.75, 2.0, 2.4, 3.0])
_LOG_SATURATION = np.log([0.5, 0.65, 0.8, 1.0, 1.25, 1.5, 1.8, 2.2, 2.7, 3.3, 4.0])
_WARMTH, _TINT = np.arange(-1.5, 1.51, 0.375), np.arange(-1.0, 1.01, 0.25)
_SPREAD = {"exposure": 1.0, "contrast": 0.5, "saturation": 0.6, "warmth": 0.6, "tint": 0.4}
_LOWERED_SELDOM = ("contrast", "saturation")  # a strong subject is more often meant than a fault
# Logarithm of the volume in the space of the statistics, per unit of magnitude.
_VOLUME = {"exposure": 0.55, "contrast": 4.0, "saturation": 4.0, "white balance": 0.0}
_LEAST = {"exposure": 0.15, "contrast": 0.07, "saturation": 0.1, "white balance": 0.1}
# What is tried when the model names a fault that the statistics do not show.
_FIRST_STEP = {"exposure": 0.6, "contrast": 0.25, "saturation": 0.3, "warmth": 0.4, "tint": 0.25}


@dataclass(frozen=True)
class Candidate:
    """An edit to try. support: log odds, before the model's verdict, that it mends the photo."""

    edit: Edit
    support: float


@dataclass(frozen=True)
class _Axis:
    """One kind of tone edit. to_edit: a magnitude [n] -> the edit. grid [k, n]; spread [n] of the prior."""

    name: str
    to_edit: Callable[[npt.NDArray[np.float64]], Tone]
    grid: npt.NDArray[np.float64]
    spread: npt.NDArray[np.float64]

    def prior(self, magnitudes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Log prior of magnitudes [..., n] and their change of volume; 0 for no change."""
        spread = self.spread * np.where((magnitudes < 0) & (self.name in _LOWERED_SELDOM), 0.5, 1.0)
        normal = -0.5 * ((magnitudes / spread) ** 2).sum(axis=-1)
        return np.asarray(normal + TEMPER * _VOLUME[self.name] * magnitudes[..., 0])


def propose(picture: Image.Image, opinion: Opinion) -> list[Candidate]:
    """Edits worth trying on an RGB picture (decoded for the model: `load_photo`), with their support."""
    thumbnail = tone_thumbnail(picture)
    before = log_naturalness(thumbnail)
    found: list[Candidate] = []
    for axis in _axes(thumbnail):
        found += _tone_candidates(axis, thumbnail, before, opinion)
    return found + _detail_candidates(picture, opinion) + _framing_candidates(picture, opinion)


def _axes(thumbnail: Rgb) -> list[_Axis]:
    """The tone edits that this picture can have."""
    luma = thumbnail @ LUMA
    middle = float(luma.mean())
    dark, light = (float(v) for v in np.percentile(luma, [1, 99]))
    # The fixed point of the stretch that sends the darkest tone to black and the lightest to white.
    veil = dark / max(1 - (light - dark), 1e-3)
    spread = np.array([_SPREAD["contrast"]])
    contrast = _LOG_CONTRAST[:, None]
    axes = [
        _Axis("exposure", lambda m: Exposure(float(m[0])), _STOPS[:, None], np.array([_SPREAD["exposure"]])),
        _Axis("contrast", lambda m: Contrast(math.exp(m[0]), middle), contrast, spread),
    ]
    if dark > _VEIL:
        axes.append(_Axis("contrast", lambda m: Contrast(math.exp(m[0]), veil), contrast[_LOG_CONTRAST >= 0], spread))
    chroma = mean_chroma(thumbnail)
    if chroma > _GREY_CHROMA:
        grid = _LOG_SATURATION[:, None]
        axes.append(_Axis("saturation", lambda m: Saturation(math.exp(m[0])), grid, np.array([_SPREAD["saturation"]])))
    if chroma > _PALE_CHROMA:
        grid = np.stack(np.meshgrid(_WARMTH, _TINT), axis=-1).reshape(-1, 2)
        spread = np.array([_SPREAD["warmth"], _SPREAD["tint"]])
        axes.append(_Axis("white balance", lambda m: WhiteBalance(float(m[0]), float(m[1])), grid, spread))
    return axes


def _tone_candidates(axis: _Axis, thumbnail: Rgb, before: float, opinion: Opinion) -> list[Candidate]:
    frame = Frame(max(thumbnail.shape[:2]), 0.0)

    def evidence(magnitude: npt.NDArray[np.float64]) -> float:
        return TEMPER * (log_naturalness(axis.to_edit(magnitude).apply(thumbnail, frame)) - before)

    posterior = np.array([evidence(m) for m in axis.grid]) + axis.prior(axis.grid)
    weights = np.exp(posterior - posterior.max())
    mean = weights @ axis.grid / weights.sum()  # [n]
    magnitudes: list[npt.NDArray[np.float64]] = []
    if np.abs(mean).max() >= _LEAST[axis.name]:
        limit = np.abs(axis.grid).max(axis=0)
        magnitudes += [np.clip(strength * mean, -limit, limit) for strength in STRENGTHS]
    magnitudes += _wished(axis, mean, opinion)
    return [
        Candidate(edit, _bounded(evidence(m) + float(axis.prior(m)) + OPINION_WEIGHT * opinion.of(edit)))
        for m in magnitudes
        for edit in (axis.to_edit(m),)
    ]


def _wished(axis: _Axis, measured: npt.NDArray[np.float64], opinion: Opinion) -> list[npt.NDArray[np.float64]]:
    """Magnitudes the model asks for, where the measured one does not go that way."""
    parts = ("warmth", "tint") if axis.name == "white balance" else (axis.name,)
    wished = []
    if axis.name == "exposure" and opinion.stops:
        wished.append(np.array([opinion.stops]))
    for index, part in enumerate(parts):
        direction = opinion.direction(part)
        if direction and direction * measured[index] < 0.5 * _FIRST_STEP[part]:
            step = np.zeros(len(parts))
            step[index] = direction * _FIRST_STEP[part]
            wished.append(step)
    return wished


def _detail_candidates(picture: Image.Image, opinion: Opinion) -> list[Candidate]:
    """Sharpening and noise reduction, where the picture is outside what is usual or the model sees the fault."""
    known = natural_photos()
    small = picture.copy()
    small.thumbnail((known.detail_size, known.detail_size))
    values = np.asarray(small)
    noise, detail = noise_level(values), fine_detail(values)
    found: list[Candidate] = []
    for edits, measured in (
        ((Denoise(1.5), Denoise(3.0)), math.log((noise + 1e-4) / known.noisy)),
        ((Sharpening(0.6), Sharpening(1.4)), math.log((known.soft + 1e-4) / (detail + 1e-4))),
    ):
        wish = opinion.of(edits[0])
        if measured > 0 or wish > 0.5:
            found += [Candidate(e, _bounded(2 * measured + OPINION_WEIGHT * wish)) for e in edits]
    return found


def _framing_candidates(picture: Image.Image, opinion: Opinion) -> list[Candidate]:
    """Levelling by the picture's own lines and by the model's word; crops."""
    degrees, clearness = tilt(picture)
    turns: dict[float, float] = {}
    if clearness > 0:
        turns[round(-degrees, 1)] = clearness
    direction = opinion.direction("rotation")
    for wished in (opinion.degrees, 4.0 * direction, 8.0 * direction, 14.0 * direction):
        if wished:
            turns.setdefault(wished, 0.0)
    rotations = [Rotation(turn) for turn in turns]
    found = [
        Candidate(e, _bounded(s + OPINION_WEIGHT * opinion.of(e)))
        for e, s in zip(rotations, turns.values(), strict=True)
    ]
    return found + [Candidate(Crop(*box), support) for box, support in crops(picture)]


def _bounded(support: float) -> float:
    return max(-MOST_SUPPORT, min(MOST_SUPPORT, support))
