"""The teacher of taste: votes that people would give a photo, from frozen encoders and what rated photos taught.

NIMA (Talebi & Milanfar 2018) tells the shape of a vote histogram. A ridge regression on the features of several frozen
encoders, fitted on rated photos, moves its mean. A student on one set of pixels is taught by it on any crop or edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from calm_runtime.errors import DataError
from calm_runtime.score import SCORE_HIGH, SCORE_LOW
from calm_train.feature_maps import read_maps

SIZE = 224  # of the pictures a teacher sees, squashed to a square
MANIFEST, WEIGHTS = "teacher.json", "teacher.safetensors"
CLAMP = 2.5  # standard deviations: no edit or crop is beyond what people's ratings span
LEAST_DROP, FULL_DROP = 0.1, 1.3  # points that a disliked degradation costs at least, and with its full gap


class TeacherPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One frozen encoder of a teacher: its name or folder, and which of its maps are read."""

    pretrained: str
    taps: tuple[int, ...]


class TeacherInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a teacher says about itself.

    parts: the encoders of the regression; the first is NIMA's, whose votes give the histogram.
    nima: mean and spread of NIMA's mean votes over the rated photos. nima_weight: of its standardised mean beside the
    regression's. votes: mean and spread of the scores on the rating scale. note: what it was fitted on.
    """

    parts: tuple[TeacherPart, ...]
    nima: tuple[float, float]
    nima_weight: float
    votes: tuple[float, float]
    note: str


def teacher_pixels(picture: npt.NDArray[np.uint8]) -> Tensor:
    """RGB [H, W, 3] uint8 -> [2, 3, SIZE, SIZE] uint8: nearest neighbour, as NIMA was trained, and antialiased."""
    image = Image.fromarray(picture)
    kinds = (Image.Resampling.NEAREST, Image.Resampling.BICUBIC)
    squashed = np.stack([np.asarray(image.resize((SIZE, SIZE), kind)) for kind in kinds])
    return torch.from_numpy(squashed).permute(0, 3, 1, 2)


class TasteTeacher(nn.Module):
    """Pictures as `teacher_pixels` gives them -> vote histograms."""

    feature_mean: Tensor
    feature_std: Tensor
    weight: Tensor
    votes_weight: Tensor
    votes_bias: Tensor

    def __init__(self, info: TeacherInfo, encoders: Sequence[PreTrainedModel], tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.info = info
        self.encoders = nn.ModuleList(encoders)
        for name, value in tensors.items():
            self.register_buffer(name, value)
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """A teacher's folder. Raises DataError when it is none, or when an encoder it names cannot be had."""
        from calm_train.pretrained.open import open_part

        root = Path(folder)
        try:
            info = msgspec.json.decode((root / MANIFEST).read_bytes(), type=TeacherInfo)
            tensors = load_file(root / WEIGHTS)
        except (OSError, msgspec.DecodeError, ValueError) as error:
            raise DataError(f"{root}: not a teacher of taste ({error}); make one with `calm train teacher`") from error
        return cls(info, [open_part(part.pretrained) for part in info.parts], tensors)

    def save(self, folder: str | Path) -> None:
        """Write teacher.json and teacher.safetensors; the encoders stay where they come from."""
        root = Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        (root / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(self.info), indent=2) + b"\n")
        own = {name: value.contiguous() for name, value in self.named_buffers(recurse=False)}
        save_file(own, str(root / WEIGHTS))

    def train(self, mode: bool = True) -> Self:
        """A teacher does not learn."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B, 2, 3, SIZE, SIZE] uint8 -> vote histograms [B, 10] float32."""
        votes, standing = self.standing(pixels)
        mean, spread = self.info.votes
        return tilt_histogram(votes, mean + spread * standing)

    @torch.no_grad()
    def pair_histograms(self, pixels: Tensor, disliked_gap: Tensor) -> Tensor:
        """Of pairs: pixels [2P, 2, 3, SIZE, SIZE], disliked_gap [P] in 0..1 -> [2P, 10].

        Where the second view is degraded in a way that people dislike, it stays below the first, whatever the encoders
        make of pixels they were never trained on.
        """
        histograms = self(pixels)
        means = histograms @ _scale(histograms)
        first, second = means[0::2], means[1::2]
        drop = (LEAST_DROP + FULL_DROP * disliked_gap) * (disliked_gap > 0)
        bound = torch.where(disliked_gap > 0, torch.minimum(second, first - drop), second).clamp(min=SCORE_LOW + 0.5)
        lowered = tilt_histogram(histograms[1::2], bound)
        return torch.stack([histograms[0::2], lowered], dim=1).flatten(0, 1)

    @torch.no_grad()
    def standing(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """NIMA's vote histograms [B, 10] and where each photo stands among rated ones, in standard deviations [B]."""
        nearest = read_maps(self.encoders[0], _normalise(pixels[:, 0]))[-1].float()  # type: ignore[arg-type]
        logits = nearest.mean(dim=(2, 3)) @ self.votes_weight.T + self.votes_bias
        votes = logits.softmax(dim=-1)
        mean, spread = self.info.nima
        standardised = ((votes @ _scale(votes)) - mean) / spread
        features = (self.features(pixels) - self.feature_mean) / self.feature_std
        own = features @ self.weight + self.info.nima_weight * standardised
        return votes, own.clamp(-CLAMP, CLAMP)

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Mean and spread of the tapped maps of every encoder: [B, 2, 3, SIZE, SIZE] uint8 -> [B, F] float32."""
        parts = []
        for encoder, part in zip(self.encoders, self.info.parts, strict=True):
            maps = read_maps(encoder, _normalise(pixels[:, 1]))  # type: ignore[arg-type]
            for tap in part.taps:
                parts += [maps[tap].float().mean(dim=(2, 3)), maps[tap].float().std(dim=(2, 3))]
        return torch.cat(parts, dim=1)


def tilt_histogram(histogram: Tensor, mean: Tensor) -> Tensor:
    """The histogram [B, 10] multiplied by exp(a * rating), with a such that its mean is `mean` [B].

    Of all histograms with that mean it is the nearest to the first in relative entropy (Csiszar 1975).
    """
    scale = _scale(histogram)
    wanted = mean.clamp(SCORE_LOW + 0.05, SCORE_HIGH - 0.05)
    low, high = (torch.full_like(wanted, bound) for bound in (-8.0, 8.0))
    logits = histogram.clamp(min=1e-8).log()
    for _ in range(40):  # bisection: the mean grows with a
        middle = 0.5 * (low + high)
        found = (logits + middle[:, None] * scale).softmax(dim=-1) @ scale
        low, high = torch.where(found < wanted, middle, low), torch.where(found < wanted, high, middle)
    return (logits + middle[:, None] * scale).softmax(dim=-1)


def _normalise(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1


def _scale(like: Tensor) -> Tensor:
    return torch.arange(SCORE_LOW, SCORE_HIGH + 1, device=like.device, dtype=torch.float32)
