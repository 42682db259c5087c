"""Held-out evaluation without human ratings: does a spoiled photo score lower, are attribute levels named right?

The spoiling here is written with Pillow and NumPy on 8-bit pictures, apart from the edits used in training, so that
the figures do not depend on one implementation of an edit.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter
from rich.console import Console
from rich.progress import track

from calm_runtime.attributes import ATTRIBUTES
from calm_runtime.score import histogram_moments
from calm_train.evaluation.scorer import Scorer
from calm_train.pretext.view import View, make_view, measure_frame, plan_edits, random_frame, to_tensor

Picture = Image.Image


def levels(picture: Picture, change: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]) -> Picture:
    """A picture with `change` made to its values [H, W, 3] of 0..1."""
    values = change(np.asarray(picture, np.float64) / 255)
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def _jpeg(picture: Picture, quality: int) -> Picture:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def noise(picture: Picture, sigma: float) -> Picture:
    """Gaussian noise, the same for every picture of one size. sigma: in parts of the value range."""
    rng = np.random.default_rng(picture.width * 7919 + picture.height)
    return levels(picture, lambda x: x + rng.normal(0, sigma, x.shape))


def _tilt_cropped(picture: Picture, degrees: float) -> Picture:
    """Rotate and cut the largest centred frame of the same aspect without corners."""
    angle, (w, h) = math.radians(abs(degrees)), picture.size
    zoom = min(w / (w * math.cos(angle) + h * math.sin(angle)), h / (h * math.cos(angle) + w * math.sin(angle)))
    turned = picture.rotate(degrees, Image.Resampling.BICUBIC)
    box = (w * (1 - zoom) / 2, h * (1 - zoom) / 2, w * (1 + zoom) / 2, h * (1 + zoom) / 2)
    left, top, right, bottom = (round(v) for v in box)
    return turned.crop((left, top, right, bottom))


SPOILED: dict[str, Callable[[Picture], Picture]] = {
    "blur": lambda p: p.filter(ImageFilter.GaussianBlur(4)),
    "noise": lambda p: noise(p, 0.15),
    "under-exposure": lambda p: levels(p, lambda x: (x**2.2 / 6) ** (1 / 2.2)),
    "over-exposure": lambda p: levels(p, lambda x: (x**2.2 * 4) ** (1 / 2.2)),
    "low contrast": lambda p: ImageEnhance.Contrast(p).enhance(0.3),
    "colour cast": lambda p: levels(p, lambda x: x * np.array([1.35, 1.0, 0.6])),
    "colour cast (green)": lambda p: levels(p, lambda x: x * np.array([0.75, 1.2, 0.75])),
    "desaturation": lambda p: ImageEnhance.Color(p).enhance(0.1),
    "jpeg": lambda p: _jpeg(p, 6),
    "low resolution": lambda p: p.resize((max(8, p.width // 5), max(8, p.height // 5))).resize(p.size),
    "tilt (black corners)": lambda p: p.rotate(12, Image.Resampling.BICUBIC),
    "tilt (cropped)": lambda p: _tilt_cropped(p, -12),
}


# What costs a photo votes, too: people mind these, but not black and white, warm light or a slight turn.
DISLIKED = ("blur", "noise", "under-exposure", "over-exposure", "low contrast", "jpeg", "low resolution")


@dataclass(frozen=True)
class AttributeResult:
    """Accuracy of one attribute's level beside the share of its most frequent level, on the same pictures."""

    accuracy: float
    majority: float
    balanced: float


def pairwise_edits(scorer: Scorer, pictures: Sequence[Picture]) -> dict[str, float]:
    """Per edit, the share of photos that score higher than their spoiled copy; ties count as wrong."""
    originals = _means(scorer, pictures)
    results = {}
    bar = Console(stderr=True)
    for name, spoil in track(SPOILED.items(), "edits", console=bar, transient=True, disable=not bar.is_terminal):
        spoiled = _means(scorer, [spoil(p) for p in pictures])
        results[name] = float((originals > spoiled).mean())
    results["all"] = float(np.mean(list(results.values())))
    return results


def _means(scorer: Scorer, pictures: Sequence[Picture]) -> npt.NDArray[np.float64]:
    histograms, _ = scorer(pictures)
    return histogram_moments(histograms)[0]


def held_out_views(pictures: Sequence[Picture], per_photo: int, seed: int) -> list[View]:
    """Seeded random views of held-out photos: half of them with one edit, some with two, some untouched."""
    views = []
    for index, picture in enumerate(pictures):
        for n in range(per_photo):
            rng = np.random.default_rng((seed, index, n))
            frame = measure_frame(random_frame(to_tensor(np.asarray(picture)), rng))
            views.append(make_view(frame, plan_edits(rng, int(rng.choice([0, 1, 2], p=[0.2, 0.5, 0.3]))), rng))
    return views


def attribute_accuracy(scorer: Scorer, views: Sequence[View]) -> dict[str, AttributeResult]:
    """Per attribute: accuracy of the most probable level, the majority class, and the mean recall over levels."""
    _, probabilities = scorer([Image.fromarray(view.picture) for view in views])
    truth = np.array([view.levels for view in views])  # [N, A]
    named = probabilities.argmax(-1)
    results = {}
    for a, attribute in enumerate(ATTRIBUTES):
        shares = np.bincount(truth[:, a], minlength=3) / len(views)
        recalls = [(named[truth[:, a] == k, a] == k).mean() for k in range(3) if shares[k] > 0]
        results[attribute.name] = AttributeResult(
            float((named[:, a] == truth[:, a]).mean()), float(shares.max()), float(np.mean(recalls))
        )
    return results
