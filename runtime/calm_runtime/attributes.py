"""The aesthetic attributes: names, scales, levels and the phrases that name each level.

Training makes pseudo-labels and text cues from this list, the bundle carries it, the runtime reads it back.
How an attribute is measured on a photo or made by an edit belongs to training (`calm_train.pretext`).
"""

from __future__ import annotations

from typing import Literal

import msgspec

Scale = Literal["low", "middle", "high"]
SCALES: tuple[Scale, ...] = ("low", "middle", "high")
LEVELS_PER_ATTRIBUTE = 3


class Level(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One level of an attribute. polarity: +1 speaks for the photo, -1 against it, 0 neither."""

    name: str
    polarity: int
    phrases: tuple[str, ...]


class Attribute(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named property with three levels, ordered along its axis where it has one."""

    name: str
    scale: Scale
    levels: tuple[Level, ...]

    def level_index(self, name: str) -> int:
        """Index of a level by name; KeyError if there is none."""
        for index, level in enumerate(self.levels):
            if level.name == name:
                return index
        raise KeyError(name)


def _attribute(name: str, scale: Scale, *levels: tuple[str, int, tuple[str, ...]]) -> Attribute:
    return Attribute(name, scale, tuple(Level(*level) for level in levels))


ATTRIBUTES: tuple[Attribute, ...] = (
    _attribute(
        "brightness", "low",
        ("dark", -1, (
            "The picture is dark.", "Little light reaches the picture.",
            "The exposure is low.", "The tones sit in the shadows.")),
        ("balanced", 1, (
            "The brightness is balanced.", "The exposure is even.",
            "The light is neither too strong nor too weak.", "The tones sit in the middle.")),
        ("bright", 0, (
            "The picture is bright.", "A lot of light fills the picture.",
            "The exposure is high.", "The tones sit in the highlights.")),
    ),
    _attribute(
        "contrast", "low",
        ("flat", -1, (
            "The contrast is flat.", "The tones lie close together.",
            "Lights and darks hardly differ.", "The tonal range is narrow.")),
        ("moderate", 1, (
            "The contrast is moderate.", "The tones are well separated.",
            "Lights and darks differ in a natural way.", "The tonal range is comfortable.")),
        ("strong", 0, (
            "The contrast is strong.", "The tones lie far apart.",
            "Lights and darks differ sharply.", "The tonal range is wide.")),
    ),
    _attribute(
        "colourfulness", "low",
        ("muted", -1, (
            "The colours are muted.", "There is hardly any colour.",
            "The saturation is low.", "The palette is pale.")),
        ("natural", 1, (
            "The colours are natural.", "There is a fair amount of colour.",
            "The saturation is moderate.", "The palette is restrained.")),
        ("vivid", 1, (
            "The colours are vivid.", "There is rich colour.",
            "The saturation is high.", "The palette is lively.")),
    ),
    _attribute(
        "warmth", "low",
        ("cool", 0, (
            "The colours are cool.", "Blue tones lead.",
            "The white balance leans to blue.", "The light feels cold.")),
        ("neutral", 1, (
            "The colour temperature is neutral.", "Neither warm nor cold tones lead.",
            "The white balance is neutral.", "The light feels like plain daylight.")),
        ("warm", 0, (
            "The colours are warm.", "Yellow and orange tones lead.",
            "The white balance leans to yellow.", "The light feels warm.")),
    ),
    _attribute(
        "tint", "low",
        ("green", -1, (
            "There is a green tint.", "The colours lean to green.",
            "Green lies over the picture.", "The white balance drifts to green.")),
        ("none", 1, (
            "There is no tint.", "The colours lean to neither green nor magenta.",
            "Greys stay free of tint.", "The white balance has no drift.")),
        ("magenta", -1, (
            "There is a magenta tint.", "The colours lean to magenta.",
            "Magenta lies over the picture.", "The white balance drifts to magenta.")),
    ),
    _attribute(
        "sharpness", "low",
        ("blurred", -1, (
            "The picture is blurred.", "Fine detail is lost to blur.",
            "Edges are smeared.", "Nothing is in focus.")),
        ("soft", 0, (
            "The picture is slightly soft.", "Fine detail is weak.",
            "Edges are a little soft.", "The focus is not quite right.")),
        ("crisp", 1, (
            "The picture is crisp.", "Fine detail is clear.",
            "Edges are well defined.", "The focus is right.")),
    ),
    _attribute(
        "noise", "low",
        ("noisy", -1, (
            "The picture is noisy.", "Noise covers the detail.",
            "Heavy grain lies over the picture.", "Smooth areas are full of specks.")),
        ("grainy", 0, (
            "The picture is slightly grainy.", "Some noise is visible.",
            "A light grain lies over the picture.", "Smooth areas show a few specks.")),
        ("clean", 1, (
            "The picture is clean.", "No noise is visible.",
            "There is no grain.", "Smooth areas stay smooth.")),
    ),
    _attribute(
        "compression", "low",
        ("blocky", -1, (
            "Compression artefacts are plain to see.", "The picture breaks up into blocks.",
            "Heavy compression spoils the detail.", "Blocks and ringing surround the edges.")),
        ("traces", 0, (
            "There are traces of compression.", "Some blocks can be seen.",
            "Compression costs a little detail.", "There is some ringing at the edges.")),
        ("invisible", 1, (
            "No compression artefacts are visible.", "The picture is free of blocks.",
            "Compression does no harm.", "Edges are free of ringing.")),
    ),
    _attribute(
        "horizon", "middle",
        ("tilted left", -1, (
            "The picture tilts to the left.", "The horizon drops to the left.",
            "The camera was turned clockwise.", "Verticals lean to the left.")),
        ("level", 1, (
            "The picture is level.", "The horizon is straight.",
            "The camera was held level.", "Verticals stand upright.")),
        ("tilted right", -1, (
            "The picture tilts to the right.", "The horizon drops to the right.",
            "The camera was turned counter-clockwise.", "Verticals lean to the right.")),
    ),
    _attribute(
        "clutter", "middle",
        ("simple", 1, (
            "The composition is simple.", "Large calm areas give room.",
            "There is little clutter.", "The frame is uncluttered.")),
        ("moderate", 0, (
            "The composition has some detail.", "Calm and busy areas are mixed.",
            "There is some clutter.", "The frame is moderately filled.")),
        ("busy", 0, (
            "The composition is busy.", "Detail fills the whole frame.",
            "There is a lot of clutter.", "The frame is crowded.")),
    ),
    _attribute(
        "symmetry", "middle",
        ("asymmetric", 0, (
            "The composition is asymmetric.", "Left and right differ strongly.",
            "There is no mirror symmetry.", "The two halves do not match.")),
        ("partial", 0, (
            "The composition is partly symmetric.", "Left and right are somewhat alike.",
            "There is a hint of symmetry.", "The two halves match in part.")),
        ("symmetric", 1, (
            "The composition is symmetric.", "Left and right mirror each other.",
            "There is clear mirror symmetry.", "The two halves match.")),
    ),
    _attribute(
        "placement", "middle",
        ("left", 0, (
            "The weight lies on the left.", "The eye is drawn to the left.",
            "The main interest is on the left.", "The left side carries the picture.")),
        ("centre", 0, (
            "The weight lies in the centre.", "The eye is drawn to the centre.",
            "The main interest is in the centre.", "The middle carries the picture.")),
        ("right", 0, (
            "The weight lies on the right.", "The eye is drawn to the right.",
            "The main interest is on the right.", "The right side carries the picture.")),
    ),
    _attribute(
        "depth", "middle",
        ("isolated", 1, (
            "The depth of field is shallow.", "A sharp subject stands before a soft ground.",
            "Focus isolates one part.", "Sharpness is held in a small area.")),
        ("mixed", 0, (
            "The depth of field is medium.", "Sharp and soft areas are mixed.",
            "Focus favours some parts.", "Sharpness covers part of the frame.")),
        ("deep", 0, (
            "The depth of field is deep.", "Detail is spread over the whole frame.",
            "Focus favours no part.", "Sharpness covers the frame evenly.")),
    ),
    _attribute(
        "vignetting", "middle",
        ("strong", -1, (
            "The corners are dark.", "Strong vignetting closes in the frame.",
            "The light falls off heavily to the corners.", "The frame fades to black at its corners.")),
        ("slight", 0, (
            "The corners are slightly dark.", "Slight vignetting frames the picture.",
            "The light falls off a little to the corners.", "The corners are a shade darker.")),
        ("none", 1, (
            "The corners are not darkened.", "There is no vignetting.",
            "The light is even up to the corners.", "The frame is evenly lit.")),
    ),
    _attribute(
        "tonal balance", "middle",
        ("bright top", 0, (
            "The upper half is brighter.", "Light comes from the top of the frame.",
            "The lower half carries the dark tones.", "The tones grow darker downwards.")),
        ("even", 1, (
            "Upper and lower half are equally bright.", "Light is shared by both halves.",
            "The tones are balanced from top to bottom.", "Dark and light are spread evenly.")),
        ("bright bottom", 0, (
            "The lower half is brighter.", "Light comes from the bottom of the frame.",
            "The upper half carries the dark tones.", "The tones grow lighter downwards.")),
    ),
    _attribute(
        "impression", "high",
        ("poor", -1, (
            "Overall the picture is poor.", "The technique spoils the picture.",
            "This photo needs work.", "The overall impression is weak.")),
        ("fair", 0, (
            "Overall the picture is fair.", "The technique has some faults.",
            "This photo could be better.", "The overall impression is mixed.")),
        ("good", 1, (
            "Overall the picture is good.", "The technique supports the picture.",
            "This photo works.", "The overall impression is good.")),
    ),
    _attribute(
        "mood", "high",
        ("sombre", 0, (
            "The mood is sombre.", "The picture feels heavy.",
            "The atmosphere is dark and quiet.", "A serious mood prevails.")),
        ("calm", 0, (
            "The mood is calm.", "The picture feels composed.",
            "The atmosphere is gentle.", "A quiet mood prevails.")),
        ("lively", 1, (
            "The mood is lively.", "The picture feels cheerful.",
            "The atmosphere is bright and colourful.", "A fresh mood prevails.")),
    ),
    _attribute(
        "subject", "high",
        ("open", 0, (
            "It is an open view without one subject.", "No single subject leads.",
            "The scene as a whole is the subject.", "Attention wanders over the frame.")),
        ("several", 0, (
            "Several things share the attention.", "A few subjects compete.",
            "The subject is spread out.", "Attention is divided.")),
        ("single", 1, (
            "One clear subject leads.", "A single subject holds the attention.",
            "The subject stands out.", "Attention goes to one place.")),
    ),
)  # fmt: skip

ATTRIBUTE_NAMES: tuple[str, ...] = tuple(a.name for a in ATTRIBUTES)


def attributes_of(scale: Scale) -> tuple[Attribute, ...]:
    """The attributes taught to one Q-Former, in list order."""
    return tuple(a for a in ATTRIBUTES if a.scale == scale)
