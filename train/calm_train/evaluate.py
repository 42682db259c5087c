"""Held-out evaluation without human ratings: does a spoiled photo score lower, are attribute levels named right?

The spoiling here is written with Pillow and NumPy on 8-bit pictures, apart from the edits used in training, so that
the figures do not depend on one implementation of an edit.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageEnhance, ImageFilter
from rich.progress import track
from tokenizers import Tokenizer

from calm_runtime import Calm
from calm_runtime.attributes import ATTRIBUTES
from calm_runtime.photo import PhotoSpec, to_pixel_values
from calm_runtime.prompt import split_prompt
from calm_runtime.score import histogram_moments, score_histogram
from calm_train.checkpoint import load_checkpoint
from calm_train.data import PromptEncoder
from calm_train.model import CalmForConditionalGeneration
from calm_train.pretext.view import View, make_view, plan_edits, random_frame, to_tensor

Picture = Image.Image
# pictures -> scores [N] and attribute probabilities [N, A, 3]
Scorer = Callable[[Sequence[Picture]], tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]


def _levels(picture: Picture, change: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]) -> Picture:
    values = change(np.asarray(picture, np.float64) / 255)
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def _jpeg(picture: Picture, quality: int) -> Picture:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def _noise(picture: Picture, sigma: float) -> Picture:
    rng = np.random.default_rng(picture.width * 7919 + picture.height)
    return _levels(picture, lambda x: x + rng.normal(0, sigma, x.shape))


def _tilt_cropped(picture: Picture, degrees: float) -> Picture:
    """Rotate and cut the largest centred frame of the same aspect without corners."""
    angle, (w, h) = math.radians(abs(degrees)), picture.size
    zoom = min(w / (w * math.cos(angle) + h * math.sin(angle)), h / (h * math.cos(angle) + w * math.sin(angle)))
    turned = picture.rotate(degrees, Image.Resampling.BICUBIC)
    box = (w * (1 - zoom) / 2, h * (1 - zoom) / 2, w * (1 + zoom) / 2, h * (1 + zoom) / 2)
    return turned.crop(tuple(round(v) for v in box))


SPOILED: dict[str, Callable[[Picture], Picture]] = {
    "blur": lambda p: p.filter(ImageFilter.GaussianBlur(4)),
    "noise": lambda p: _noise(p, 0.15),
    "under-exposure": lambda p: _levels(p, lambda x: (x**2.2 / 6) ** (1 / 2.2)),
    "over-exposure": lambda p: _levels(p, lambda x: (x**2.2 * 4) ** (1 / 2.2)),
    "low contrast": lambda p: ImageEnhance.Contrast(p).enhance(0.3),
    "colour cast": lambda p: _levels(p, lambda x: x * np.array([1.35, 1.0, 0.6])),
    "colour cast (green)": lambda p: _levels(p, lambda x: x * np.array([0.75, 1.2, 0.75])),
    "desaturation": lambda p: ImageEnhance.Color(p).enhance(0.1),
    "jpeg": lambda p: _jpeg(p, 6),
    "tilt (black corners)": lambda p: p.rotate(12, Image.Resampling.BICUBIC),
    "tilt (cropped)": lambda p: _tilt_cropped(p, -12),
}


@dataclass(frozen=True)
class AttributeResult:
    """Accuracy of one attribute's level beside the share of its most frequent level, on the same pictures."""

    accuracy: float
    majority: float
    balanced: float


def torch_scorer(model: CalmForConditionalGeneration, tokenizer: Tokenizer, spec: PhotoSpec) -> Scorer:
    """Score with the PyTorch model."""
    from calm_runtime.prompt import PROMPTS

    before, after = split_prompt(PROMPTS["score"], PromptEncoder(tokenizer))

    @torch.inference_mode()
    def score(pictures: Sequence[Picture]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        means, attributes = [], []
        for start in range(0, len(pictures), 16):
            batch = pictures[start : start + 16]
            pixels = torch.from_numpy(np.stack([to_pixel_values(p, spec) for p in batch]))
            output = model(
                pixels, torch.tensor([before]).expand(len(batch), -1), torch.tensor([after]).expand(len(batch), -1)
            )
            logits = output.logits[:, -1, model.config.score_token_ids]
            means.append(histogram_moments(score_histogram(logits.float().numpy()))[0])
            attributes.append(model.attribute_logits(output.aligned).softmax(-1).double().numpy())
        return np.concatenate(means), np.concatenate(attributes)

    return score


def bundle_scorer(calm: Calm) -> Scorer:
    """Score with an exported bundle through the runtime."""
    spec = calm.bundle.manifest.photo

    def score(pictures: Sequence[Picture]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        scores = []
        for start in range(0, len(pictures), 8):
            batch = np.stack([to_pixel_values(p, spec) for p in pictures[start : start + 8]])
            scores += calm.score_pixels(batch, [{} for _ in batch])
        attributes = [[list(r.probabilities.values()) for r in s.attributes.values()] for s in scores]
        return np.array([s.mean for s in scores]), np.array(attributes)

    return score


def open_scorer(source: Path) -> Scorer:
    """Scorer of a checkpoint (PyTorch) or of a bundle (runtime), told apart by what the folder holds."""
    if (source / "manifest.json").is_file():
        return bundle_scorer(Calm.load(source))
    model, tokenizer, info = load_checkpoint(source)
    return torch_scorer(model, tokenizer, info.photo)


def pairwise_edits(scorer: Scorer, pictures: Sequence[Picture]) -> dict[str, float]:
    """Per edit, the share of photos that score higher than their spoiled copy; ties count as wrong."""
    originals, _ = scorer(pictures)
    results = {}
    for name, spoil in track(SPOILED.items(), description="edits"):
        spoiled, _ = scorer([spoil(p) for p in pictures])
        results[name] = float((originals > spoiled).mean())
    results["all"] = float(np.mean(list(results.values())))
    return results


def held_out_views(pictures: Sequence[Picture], per_photo: int, seed: int) -> list[View]:
    """Seeded random views of held-out photos: half of them with one edit, some with two, some untouched."""
    views = []
    for index, picture in enumerate(pictures):
        for n in range(per_photo):
            rng = np.random.default_rng((seed, index, n))
            frame = random_frame(to_tensor(np.asarray(picture)), rng)
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
