"""A view: a photo after random edits, with everything that is known about it because we made it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from calm_runtime.attributes import ATTRIBUTES
from calm_runtime.score import SCORE_LOW
from calm_train.pretext.edits import EDITS, to_linear
from calm_train.pretext.faults import FAULTS
from calm_train.pretext.measures import MEASURES, QUANTITIES, UPRIGHTNESS, luma, measure

WHOLE = 0.3  # share of frames that keep the whole photo, as people send it
LEAST_SIDE = 0.55  # of the others: the smallest share of each side that is kept
STRETCHED = 0.25  # largest change of a frame's aspect, as a logarithm: what is upright or level stays so
TURNED = 0.25  # share of frames that stand on another side: their lines are as upright as ever
DIFFERENT = 0.3  # damage difference from which the order of a pair counts in full
# Degradations that cost a photo votes, too. People like black and white and warm light: these are no such faults.
DISLIKED = frozenset({"underexposed", "overexposed", "flat", "hazy", "blurred", "noisy", "compressed", "watermarked"})
LIKED = frozenset({"desaturated"})  # costs no votes at all
UNSEEN_TILT, CLEAR_TILT = 0.15, 0.12  # least part of a tilt's damage; loss of uprightness that shows all of it


@dataclass(frozen=True)
class AppliedEdit:
    """An edit that was made: its name, its severity in 0..1, and the exposure change it caused, in stops."""

    name: str
    severity: float
    stops: float


@dataclass(frozen=True)
class View:
    """An edited photo and its truth.

    picture: RGB [H, W, 3] uint8. levels: level index per attribute of `ATTRIBUTES`. quantities: standardised value per
    measure of `QUANTITIES`. damage: 0 (untouched) .. 1; disliked: the same of the edits in `DISLIKED` alone. rating:
    pseudo rating of the technical quality on the 1..10 scale. edits: strongest first. shift: change of (warmth, tint) by
    the edits.
    """

    picture: npt.NDArray[np.uint8]
    levels: tuple[int, ...]
    quantities: tuple[float, ...]
    damage: float
    disliked: float
    rating: float
    edits: tuple[AppliedEdit, ...]
    shift: tuple[float, float]


def to_tensor(picture: npt.NDArray[np.uint8]) -> Tensor:
    """RGB [H, W, 3] uint8 -> [3, H, W] float32 in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))).float() / 255


def to_picture(rgb: Tensor) -> npt.NDArray[np.uint8]:
    """[3, H, W] float in 0..1 -> RGB [H, W, 3] uint8, rounded."""
    return (rgb.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def random_frame(rgb: Tensor, rng: np.random.Generator) -> Tensor:
    """Another framing of the same photo: whole or a crop, maybe stretched, mirrored or on another side, 240-432 pixels."""
    height, width = rgb.shape[-2:]
    least = 1.0 if rng.uniform() < WHOLE else LEAST_SIDE
    crop_h, crop_w = (round(side * rng.uniform(least, 1.0)) for side in (height, width))
    top, left = int(rng.integers(height - crop_h + 1)), int(rng.integers(width - crop_w + 1))
    frame = rgb[:, top : top + crop_h, left : left + crop_w]
    if rng.integers(2):
        frame = frame.flip(-1)
    if rng.uniform() < TURNED:
        frame = frame.rot90(int(rng.integers(1, 4)), (-2, -1))
    stretch = math.exp(rng.uniform(-STRETCHED, STRETCHED)) if rng.integers(2) else 1.0
    tall, wide = frame.shape[-2], frame.shape[-1] * stretch
    longest = max(tall, wide)
    scale = min(longest, int(rng.integers(240, 433))) / longest
    size = [max(32, round(side * scale)) for side in (tall, wide)]
    if size != list(frame.shape[-2:]):
        frame = F.interpolate(frame[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]
    return frame


def another_rendering(rgb: Tensor, rng: np.random.Generator) -> Tensor:
    """The photo as another camera might have rendered it: a mild, harmless change of tone curve and colours.

    Few photos are seen many times; without this, a model may know each of them by heart and learn nothing of faults.
    """
    rgb = rgb.clamp(0, 1) ** math.exp(rng.normal(0, 0.12))
    gains = torch.tensor(np.exp(rng.normal(0, 0.035, 3)), dtype=torch.float32)
    rgb = (rgb * gains[:, None, None]).clamp(0, 1)
    grey = luma(rgb)
    return (grey + (rgb - grey) * math.exp(rng.normal(0, 0.12))).clamp(0, 1)


def plan_edits(rng: np.random.Generator, count: int) -> list[tuple[str, float]]:
    """Pick `count` different edits, by their shares, with severities; both tilts are never combined."""
    names = list(EDITS)
    shares = np.array([edit.share for edit in EDITS.values()])
    chosen: list[tuple[str, float]] = []
    for index in rng.choice(len(names), size=len(names), replace=False, p=shares / shares.sum()):
        name = names[index]
        if name.startswith("tilt") and any(other.startswith("tilt") for other, _ in chosen):
            continue
        if len(chosen) == count:
            break
        chosen.append((name, float(1.0 - 0.98 * rng.uniform() ** 1.4)))
    return chosen


def damage_of(edits: list[tuple[str, float]], visible_tilt: float = 1.0) -> float:
    """Combined damage in 0..1: independent losses multiply. visible_tilt: how much of a tilt the lines show."""
    kept = 1.0
    for name, severity in edits:
        shown = visible_tilt if EDITS[name].geometric else 1.0
        kept *= 1 - 0.92 * EDITS[name].weight * (0.25 + 0.75 * severity) * shown
    return 1 - kept


def visible_tilt(upright_before: float, upright_after: float) -> float:
    """Part of a tilt's damage that can be seen: a cat on a carpet has no lines to be crooked.

    A score that fell for every tilt alike could only be learnt by heart, photo by photo.
    """
    return min(1.0, max(UNSEEN_TILT, UNSEEN_TILT + (upright_before - upright_after) / CLEAR_TILT))


def base_rating(before: dict[str, float], after: dict[str, float]) -> float:
    """Rating of an unedited photo from measured attributes, 5.6 .. 8.4: no more than a mild, plausible preference."""
    wish = (
        0.5 * math.tanh((after["colourfulness"] - 0.14) / 0.07)
        + 0.4 * math.tanh((after["contrast"] - 0.19) / 0.06)
        - 0.4 * abs(math.tanh((after["brightness"] - 0.46) / 0.16))
        + 0.3 * math.tanh((before["subject"] - 0.43) / 0.08)
        - 0.2 * math.tanh((before["clutter"] - 0.27) / 0.12)
        + 0.5 * math.tanh((before[UPRIGHTNESS.attribute] - 0.28) / 0.15)
    )
    return 7.0 + 0.6 * wish


class Frame(NamedTuple):
    """A frame before any edit: RGB [3, H, W] float32 in 0..1, and what `measure` reads off it, both ways."""

    rgb: Tensor
    picture: dict[str, float]
    scene: dict[str, float]


def measure_frame(rgb: Tensor) -> Frame:
    """Measure a frame once for all views of it."""
    return Frame(rgb, measure(rgb, edited=True), measure(rgb, edited=False))


def make_view(frame: Frame, edits: list[tuple[str, float]], rng: np.random.Generator) -> View:
    """Apply edits to a frame (geometric ones first), measure the result, keep the truth."""
    ordered = sorted(edits, key=lambda edit: not EDITS[edit[0]].geometric)
    scene = rgb = frame.rgb
    applied = []
    untouched, level_scene = frame.picture, frame.scene
    for name, severity in ordered:
        before_light = float(to_linear(rgb).mean())
        rgb = EDITS[name].apply(rgb, severity, rng).clamp(0, 1)
        stops = math.log2((float(to_linear(rgb).mean()) + 1e-4) / (before_light + 1e-4))
        applied.append(AppliedEdit(name, severity, stops))
        if EDITS[name].geometric:
            scene = rgb
    picture = to_picture(rgb)
    before = level_scene if scene is frame.rgb else measure(scene, edited=False)
    after = measure(to_tensor(picture), edited=True)
    severity_of = dict(edits)
    upright = UPRIGHTNESS.attribute
    damage = damage_of(edits, visible_tilt(level_scene[upright], before[upright]))
    found = {m.attribute: m.level((after if m.edited else before)[m.attribute]) for m in MEASURES}
    found |= {fault.attribute: fault.level(severity_of) for fault in FAULTS}
    found["impression"] = 2 if damage < 0.2 else 1 if damage < 0.55 else 0
    start = base_rating(level_scene, untouched)
    return View(
        picture=picture,
        levels=tuple(found[attribute.name] for attribute in ATTRIBUTES),
        quantities=tuple(m.standardised((after if m.edited else before)[m.attribute]) for m in QUANTITIES),
        damage=damage,
        disliked=damage_of([edit for edit in edits if edit[0] in DISLIKED]),
        rating=start - (start - SCORE_LOW - 0.4) * damage,
        edits=tuple(sorted(applied, key=lambda e: -e.severity * EDITS[e.name].weight)),
        shift=(after["warmth"] - untouched["warmth"], after["tint"] - untouched["tint"]),
    )


def make_pair(picture: npt.NDArray[np.uint8], rng: np.random.Generator) -> tuple[View, View]:
    """Two views of one frame: one clean or mildly edited, the other with one to three edits more.

    The first view's edits are repeated in the second, so the second is never the better picture.
    """
    frame = measure_frame(another_rendering(random_frame(to_tensor(picture), rng), rng))
    shared = plan_edits(rng, 1 if rng.uniform() < 0.25 else 0)
    count = int(rng.choice([1, 2, 3], p=[0.75, 0.2, 0.05]))
    extra = [edit for edit in plan_edits(rng, count) if all(_kind(edit[0]) != _kind(s[0]) for s in shared)]
    seed = int(rng.integers(2**31))
    first = make_view(frame, shared, np.random.default_rng(seed))
    second = make_view(frame, shared + extra, np.random.default_rng(seed))
    return first, second


def _kind(name: str) -> str:
    """Edits of one kind undo or hide each other and are not combined across a pair."""
    groups = {"tilt left": "tilt", "tilt right": "tilt", "underexposed": "light", "overexposed": "light"}
    groups |= {"desaturated": "colour", "oversaturated": "colour", "flat": "veil", "hazy": "veil"}
    groups |= {"blurred": "detail", "oversharpened": "detail"}
    return groups.get(name, name)
