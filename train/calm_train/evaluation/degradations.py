"""Held-out evaluation without human ratings: does a degraded photo come after its clean version?

The degradations here are written with Pillow and NumPy on 8-bit pictures, apart from the edits used in training, so that
the figures do not depend on one implementation of an edit.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont
from rich.console import Console
from rich.progress import track
from scipy.ndimage import uniform_filter1d

from calm_train.evaluation.scorer import Scorer

Picture = Image.Image
Array = npt.NDArray[np.float64]


def levels(picture: Picture, change: Callable[[Array], Array]) -> Picture:
    """A picture with `change` made to its values [H, W, 3] of 0..1."""
    values = change(np.asarray(picture, np.float64) / 255)
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def noise(picture: Picture, sigma: float) -> Picture:
    """Gaussian noise, the same for every picture of one size. sigma: in parts of the value range."""
    rng = np.random.default_rng(picture.width * 7919 + picture.height)
    return levels(picture, lambda x: x + rng.normal(0, sigma, x.shape))


def black_and_white(picture: Picture) -> Picture:
    """The picture's luma."""
    return picture.convert("L").convert("RGB")


def _jpeg(picture: Picture, quality: int) -> Picture:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def _motion_blur(picture: Picture) -> Picture:
    """As if the camera moved sideways by a twentieth of the longer side."""
    length = max(3, max(picture.size) // 20)
    return levels(picture, lambda x: uniform_filter1d(x, length, axis=1, mode="nearest"))


def _watermark(picture: Picture) -> Picture:
    """Lettering across the middle, nine tenths of the width, half transparent."""
    text, (width, height) = "SAMPLE", picture.size
    size = 100 * 0.9 * width / ImageFont.load_default(100).getlength(text)
    layer = Image.new("RGBA", picture.size)
    ImageDraw.Draw(layer).text(
        (width / 2, height / 2), text, (255, 255, 255, 140), ImageFont.load_default(size),
        anchor="mm", stroke_width=max(1, round(size / 20)), stroke_fill=(0, 0, 0, 140),
    )  # fmt: skip
    return Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")


def _tilt_cropped(picture: Picture, degrees: float) -> Picture:
    """Rotate and cut the largest centred frame of the same aspect without corners."""
    angle, (w, h) = math.radians(abs(degrees)), picture.size
    zoom = min(w / (w * math.cos(angle) + h * math.sin(angle)), h / (h * math.cos(angle) + w * math.sin(angle)))
    turned = picture.rotate(degrees, Image.Resampling.BICUBIC)
    box = (w * (1 - zoom) / 2, h * (1 - zoom) / 2, w * (1 + zoom) / 2, h * (1 + zoom) / 2)
    left, top, right, bottom = (round(v) for v in box)
    return turned.crop((left, top, right, bottom))


DEGRADATIONS: dict[str, Callable[[Picture], Picture]] = {
    "blur": lambda p: p.filter(ImageFilter.GaussianBlur(4)),
    "motion blur": _motion_blur,
    "noise": lambda p: noise(p, 0.15),
    "under-exposure": lambda p: levels(p, lambda x: (x**2.2 / 6) ** (1 / 2.2)),
    "over-exposure": lambda p: levels(p, lambda x: (x**2.2 * 4) ** (1 / 2.2)),
    "low contrast": lambda p: ImageEnhance.Contrast(p).enhance(0.3),
    "colour cast": lambda p: levels(p, lambda x: x * np.array([1.35, 1.0, 0.6])),
    "colour cast (green)": lambda p: levels(p, lambda x: x * np.array([0.75, 1.2, 0.75])),
    "desaturation": lambda p: ImageEnhance.Color(p).enhance(0.1),
    "jpeg": lambda p: _jpeg(p, 6),
    "low resolution": lambda p: p.resize((max(8, p.width // 5), max(8, p.height // 5))).resize(p.size),
    "watermark": _watermark,
    "tilt (black corners)": lambda p: p.rotate(12, Image.Resampling.BICUBIC),
    "tilt (cropped)": lambda p: _tilt_cropped(p, -12),
}
# What costs a photo votes, too: people mind these, but not black and white, warm light or a slight turn.
DISLIKED = ("blur", "noise", "under-exposure", "over-exposure", "low contrast", "jpeg", "low resolution")
WATERMARK = "watermark"


@dataclass(frozen=True)
class CleanFirst:
    """Share of photos whose clean version comes first, by score and by technical rating; ties count as wrong."""

    score: float
    technical: float


@dataclass(frozen=True)
class DegradationResult:
    """Photos against degraded copies of themselves.

    clean_first: by name of the degradation. all: mean over them. disliked: mean share by score over those of DISLIKED.
    watermark_raises: share of photos that score higher with a large watermark. None where it was not measured.
    black_and_white: mean change of score, in points, of the third of the photos that scores highest. None likewise.
    """

    clean_first: dict[str, CleanFirst]
    all: CleanFirst
    disliked: float
    watermark_raises: float | None = None
    black_and_white: float | None = None


def pairwise_degradations(scorer: Scorer, pictures: Sequence[Picture]) -> DegradationResult:
    """Score photos, their degraded copies, and black-and-white conversions of the best."""
    clean = _ratings(scorer, pictures)
    bar = Console(stderr=True)
    names = track(DEGRADATIONS, "degradations", console=bar, transient=True, disable=not bar.is_terminal)
    degraded = {name: _ratings(scorer, [DEGRADATIONS[name](p) for p in pictures]) for name in names}
    best = best_third(clean[:, 0])
    grey = scorer([black_and_white(pictures[i]) for i in best]).scores
    return compare_degraded(clean, degraded, float((grey - clean[best, 0]).mean()))


def compare_degraded(
    clean: Array, degraded: Mapping[str, Array], black_and_white: float | None = None
) -> DegradationResult:
    """Score and technical rating [N, 2] of photos and, by name of the degradation, of their copies."""
    ahead = {name: CleanFirst(*map(float, (clean > copies).mean(axis=0))) for name, copies in degraded.items()}
    by_score, by_technical = ([getattr(row, what) for row in ahead.values()] for what in ("score", "technical"))
    raised = float((degraded[WATERMARK] > clean)[:, 0].mean()) if WATERMARK in degraded else None
    return DegradationResult(
        clean_first=ahead,
        all=CleanFirst(float(np.mean(by_score)), float(np.mean(by_technical))),
        disliked=float(np.mean([ahead[name].score for name in DISLIKED])),
        watermark_raises=raised,
        black_and_white=black_and_white,
    )


def best_third(scores: Array) -> npt.NDArray[np.intp]:
    """Numbers of the third of N photos that scores highest, at least one; scores [N]."""
    return np.argsort(-scores, kind="stable")[: max(1, len(scores) // 3)]


def _ratings(scorer: Scorer, pictures: Sequence[Picture]) -> Array:
    judged = scorer(pictures)
    return np.stack([judged.scores, judged.technical], axis=1)
