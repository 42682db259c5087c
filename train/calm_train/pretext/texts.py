"""Texts with known truth: cues, critiques, suggestions and answers, written from a view's levels and edits."""

from __future__ import annotations

import numpy as np

from calm_runtime.attributes import ATTRIBUTES, Attribute, Scale, attributes_of
from calm_train.pretext.view import AppliedEdit, View

AMOUNTS = ("slightly", "clearly", "strongly")
NOTHING_TO_DO = "Leave the picture as it is."


def phrase(attribute: Attribute, level: int, rng: np.random.Generator) -> str:
    """One of the paraphrases of a level."""
    phrases = attribute.levels[level].phrases
    return phrases[int(rng.integers(len(phrases)))]


def cue_text(levels: tuple[int, ...], scale: Scale, rng: np.random.Generator, count: int = 3) -> str:
    """A text cue for one scale: `count` of its attributes, in random order."""
    chosen = rng.permutation(len(attributes_of(scale)))[:count]
    members = [(i, a) for i, a in enumerate(ATTRIBUTES) if a.scale == scale]
    return " ".join(phrase(members[c][1], levels[members[c][0]], rng) for c in chosen)


def comment_text(levels: tuple[int, ...], rng: np.random.Generator) -> str:
    """A critique: two or three points on light and colour, one or two on composition, then the impression.

    Faults are named before neutral properties, because they are what a photographer needs to hear.
    """
    parts: list[str] = []
    for scale, count in (("low", int(rng.integers(2, 4))), ("middle", int(rng.integers(1, 3)))):
        members = [(i, a) for i, a in enumerate(ATTRIBUTES) if a.scale == scale]
        order = sorted(
            rng.permutation(len(members)).tolist(),
            key=lambda m: members[m][1].levels[levels[members[m][0]]].polarity != -1,
        )
        parts.extend(phrase(members[m][1], levels[members[m][0]], rng) for m in order[:count])
    high = [(i, a) for i, a in enumerate(ATTRIBUTES) if a.scale == "high"]
    other = high[1 + int(rng.integers(len(high) - 1))]
    parts.append(phrase(other[1], levels[other[0]], rng))
    parts.append(phrase(high[0][1], levels[high[0][0]], rng))
    return " ".join(parts)


def _amount(severity: float) -> str:
    return AMOUNTS[min(2, int(severity * 3))]


def suggestion(edit: AppliedEdit, shift: tuple[float, float]) -> str:
    """The inverse of an edit, in words."""
    how = _amount(edit.severity)
    if edit.name in ("underexposed", "overexposed"):
        stops = max(0.5, round(abs(edit.stops) * 2) / 2)
        verb = "Raise" if edit.name == "underexposed" else "Lower"
        return f"{verb} the exposure by about {stops:g} stops."
    if edit.name.startswith("tilt"):
        degrees = max(5, 5 * round((3 + 19 * edit.severity) / 5))
        turn = "clockwise" if edit.name == "tilt left" else "counter-clockwise"
        return f"Rotate the picture {turn} by about {degrees} degrees."
    if edit.name == "colour cast":
        warm, magenta = shift
        if abs(warm) >= 1.5 * abs(magenta):
            return f"Shift the white balance {how} towards {'blue' if warm > 0 else 'yellow'}."
        return f"Shift the white balance {how} towards {'green' if magenta > 0 else 'magenta'}."
    return {
        "flat": f"Raise the contrast {how}.",
        "hazy": f"Remove the haze {how}.",
        "desaturated": f"Raise the saturation {how}.",
        "oversaturated": f"Lower the saturation {how}.",
        "vignetted": f"Lighten the corners {how}.",
        "blurred": f"Sharpen the picture {how}.",
        "oversharpened": f"Soften the picture {how}.",
        "noisy": f"Reduce the noise {how}.",
        "compressed": f"Reduce the compression {how}.",
        "watermarked": "Remove the lettering.",
    }[edit.name]


def suggestion_text(view: View) -> str:
    """Inverse edits, most damaging first; or the advice to leave the picture alone."""
    return " ".join(suggestion(edit, view.shift) for edit in view.edits) or NOTHING_TO_DO


QUESTIONS = ("How is the {}?", "What about the {}?", "Tell me about the {}.", "Is the {} right?")


def question_and_answer(levels: tuple[int, ...], rng: np.random.Generator) -> tuple[str, str]:
    """A question about one attribute and its answer."""
    index = int(rng.integers(len(ATTRIBUTES)))
    question = QUESTIONS[int(rng.integers(len(QUESTIONS)))].format(ATTRIBUTES[index].name)
    return question, phrase(ATTRIBUTES[index], levels[index], rng)
