"""What the model itself says about a photo's faults: attribute probabilities and its written suggestion."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from calm_runtime.retouch import Edit, WhiteBalance
from calm_runtime.score import AttributeReading

SURE = 0.5

# Part of an edit -> attribute, the level that asks for more of it, the level that asks for less.
_ASKED_BY: dict[str, tuple[str, str, str | None]] = {
    "exposure": ("brightness", "dark", "bright"),
    "contrast": ("contrast", "flat", "strong"),
    "saturation": ("colourfulness", "muted", "vivid"),
    "warmth": ("warmth", "cool", "warm"),
    "tint": ("tint", "green", "magenta"),
    "rotation": ("horizon", "tilted right", "tilted left"),
    "sharpening": ("sharpness", "blurred", None),
    "denoise": ("noise", "noisy", None),
}
_TOWARDS = {"yellow": ("warmth", 1), "blue": ("warmth", -1), "magenta": ("tint", 1), "green": ("tint", -1)}
_SUBJECTS = {"exposure": "exposure", "contrast": "contrast", "haze": "contrast", "saturation": "saturation",
             "sharpen": "sharpening", "noise": "denoise"}  # fmt: skip
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_MOST_STOPS, _MOST_DEGREES = 3.0, 25.0


@dataclass(frozen=True)
class Opinion:
    """What the model asks for.

    asked: part of an edit -> probability that more of it is needed minus probability of less, -1..1.
    named: part -> +1 or -1, when the written suggestion names it. stops, degrees: amounts in that suggestion, 0 for
    none; degrees counter-clockwise.
    """

    asked: Mapping[str, float] = field(default_factory=dict)
    named: Mapping[str, int] = field(default_factory=dict)
    stops: float = 0.0
    degrees: float = 0.0

    def of(self, edit: Edit) -> float:
        """How much the model asks for an edit in this direction; negative when for the opposite."""
        if isinstance(edit, WhiteBalance):
            total = abs(edit.warmth) + abs(edit.tint)
            return (edit.warmth * self._wish("warmth") + edit.tint * self._wish("tint")) / total if total else 0.0
        amount = edit.amount
        sign = 1.0 if not isinstance(amount, float | int) else float((amount > 0) - (amount < 0))
        return sign * self._wish(edit.name)

    def direction(self, part: str) -> int:
        """+1 or -1 when the model is sure that more or less of this part is needed, 0 otherwise."""
        wish = self._wish(part)
        return 0 if abs(wish) < SURE else 1 if wish > 0 else -1

    def _wish(self, part: str) -> float:
        return self.asked.get(part, 0.0) + self.named.get(part, 0)


def read_opinion(attributes: Mapping[str, AttributeReading], words: str) -> Opinion:
    """From a score's attributes and the answer to "suggest". Attributes and sentences it does not know say nothing."""
    asked = {}
    for part, (attribute, more, less) in _ASKED_BY.items():
        if attribute in attributes:
            probabilities = attributes[attribute].probabilities
            asked[part] = probabilities.get(more, 0.0) - (probabilities.get(less, 0.0) if less else 0.0)
    named: dict[str, int] = {}
    amounts = {"exposure": 0.0, "rotation": 0.0}
    for sentence in re.split(r"\.(?:\s|$)", words.lower()):
        wanted, sign = _read_sentence(sentence)
        if wanted:
            named[wanted] = sign
            number = _NUMBER.search(sentence)
            if number and wanted in amounts:
                amounts[wanted] = sign * float(number.group())
    stops = max(-_MOST_STOPS, min(_MOST_STOPS, amounts["exposure"]))
    degrees = max(-_MOST_DEGREES, min(_MOST_DEGREES, amounts["rotation"]))
    return Opinion(asked, named, stops, degrees)


def _read_sentence(sentence: str) -> tuple[str | None, int]:
    """The part a sentence wants changed and in which direction."""
    if "white balance" in sentence:
        return next((target for colour, target in _TOWARDS.items() if f"towards {colour}" in sentence), (None, 0))
    if "rotate" in sentence:
        return "rotation", 1 if "counter-clockwise" in sentence else -1
    for word, part in _SUBJECTS.items():
        if word in sentence:
            return part, -1 if sentence.startswith("lower") else 1
    return None, 0
