"""Which edits are worth trying on a photo, and how strongly: from what can be measured and what the model says.

Tones: `mending` reads what would bring the photo back. Noise, softness and tilted lines are measured. The model's own
attributes and words add to the support of an edit, and ask for edits the measurements do not show.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from calm_runtime.advice import Opinion
from calm_runtime.detail import detail_faults
from calm_runtime.framing import crops, tilt
from calm_runtime.lab import mean_chroma
from calm_runtime.mending import KINDS, SIDE, Mending, mean_tone, mend, tone_thumbnail
from calm_runtime.retouch import (
    Contrast,
    Crop,
    Denoise,
    Edit,
    Exposure,
    Frame,
    Rotation,
    Saturation,
    Sharpening,
    Tone,
    WhiteBalance,
    apply_tones,
)

STRENGTHS = (0.6, 1.0, 1.4)  # of the measured magnitude
OPINION_WEIGHT = 1.0
MOST_SUPPORT = 4.0
_GREY_CHROMA = 0.8  # mean chroma below which there is no colour to correct
# Below these a change is not worth an edit: stops, stops of warmth or tint, logarithms of factors.
_LEAST = {"exposure": 0.12, "white balance": 0.08, "contrast": 0.06, "saturation": 0.08}
_COLOUR = ("white balance", "saturation")
# What is tried when the model names a fault that the measurements do not show.
_FIRST_STEP: dict[str, tuple[Tone, Tone]] = {
    "exposure": (Exposure(0.6), Exposure(-0.6)),
    "contrast": (Contrast(1.28, 0.5), Contrast(0.78, 0.5)),
    "saturation": (Saturation(1.35), Saturation(0.74)),
    "warmth": (WhiteBalance(0.4, 0.0), WhiteBalance(-0.4, 0.0)),
    "tint": (WhiteBalance(0.0, 0.25), WhiteBalance(0.0, -0.25)),
}


@dataclass(frozen=True)
class Candidate:
    """An edit to try. support: log odds, before the model's verdict, that it mends the photo."""

    edit: Edit
    support: float


def propose(picture: Image.Image, opinion: Opinion) -> list[Candidate]:
    """Edits worth trying on an RGB picture (decoded for the model: `load_photo`), with their support."""
    tones = tone_thumbnail(picture)
    mending, middle = mend(tones), mean_tone(tones)
    coloured = mean_chroma(tones) > _GREY_CHROMA
    found: list[Candidate] = []
    for kind in KINDS:
        if kind in _COLOUR and not coloured:
            continue
        if is_worth_it(mending, kind):
            found += [
                _weighed(mending.edit(kind, middle, strength), mending.support[kind], opinion) for strength in STRENGTHS
            ]
    found += [_weighed(edit, 0.0, opinion) for edit in _wished(mending, opinion, coloured)]
    return found + _detail_candidates(picture, opinion) + _framing_candidates(picture, opinion)


def mend_tones(picture: Image.Image, strength: float = 1.0) -> list[Tone]:
    """All that the tones need, to be made in this order; kinds that are not worth an edit are left out."""
    tones = tone_thumbnail(picture)
    mending, coloured = mend(tones), mean_chroma(tones) > _GREY_CHROMA
    edits: list[Tone] = []
    for kind in KINDS:
        if (coloured or kind not in _COLOUR) and is_worth_it(mending, kind):
            edits.append(mending.edit(kind, mean_tone(tones), strength))
            tones = apply_tones(tones, edits[-1:], Frame(SIDE, 0.0))
    return edits


def is_worth_it(mending: Mending, kind: str) -> bool:
    """Whether the magnitude of a kind of edit is one that can be seen."""
    size = {
        "exposure": abs(mending.stops),
        "white balance": max(abs(mending.warmth), abs(mending.tint)),
        "contrast": abs(mending.log_contrast),
        "saturation": abs(mending.log_saturation),
    }[kind]
    return size >= _LEAST[kind]


def _weighed(edit: Edit, support: float, opinion: Opinion) -> Candidate:
    whole = support + OPINION_WEIGHT * opinion.of(edit)
    return Candidate(edit, max(-MOST_SUPPORT, min(MOST_SUPPORT, whole)))


def _wished(mending: Mending, opinion: Opinion, coloured: bool) -> list[Edit]:
    """What the model asks for where the measurements do not go that way."""
    measured = {
        "exposure": mending.stops,
        "contrast": mending.log_contrast,
        "saturation": mending.log_saturation,
        "warmth": mending.warmth,
        "tint": mending.tint,
    }
    least = {**_LEAST, "warmth": _LEAST["white balance"], "tint": _LEAST["white balance"]}
    wished: list[Edit] = [Exposure(opinion.stops)] if opinion.stops else []
    for part, steps in _FIRST_STEP.items():
        direction = opinion.direction(part)
        colour = part in ("saturation", "warmth", "tint")
        if direction and direction * measured[part] < least[part] and (coloured or not colour):
            wished.append(steps[0] if direction > 0 else steps[1])
    return wished


def _detail_candidates(picture: Image.Image, opinion: Opinion) -> list[Candidate]:
    """Sharpening and noise reduction, where the picture is outside what is usual or the model sees the fault."""
    noise, softness = detail_faults(picture)
    found: list[Candidate] = []
    both: tuple[tuple[tuple[Edit, Edit], float], ...] = (
        ((Denoise(1.5), Denoise(3.0)), noise),
        ((Sharpening(0.6), Sharpening(1.4)), softness),
    )
    for edits, measured in both:
        if measured > 0 or opinion.of(edits[0]) > 0.5:
            found += [_weighed(edit, 2 * measured, opinion) for edit in edits]
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
    found = [_weighed(Rotation(turn), support, opinion) for turn, support in turns.items()]
    return found + [Candidate(Crop(*box), support) for box, support in crops(picture)]
