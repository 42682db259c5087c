"""The teacher of taste: votes that people would give a photo, from frozen encoders and what rated photos taught.

NIMA (Talebi & Milanfar 2018) tells the shape of a vote histogram. A kernel regression on the features of several frozen
encoders, fitted on rated photos, moves its mean. A student on one set of pixels is taught by it on any crop or edit.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, Self

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from calm_runtime.errors import DataError
from calm_runtime.photo import PhotoSpec, fit_picture
from calm_runtime.score import SCORE_HIGH, SCORE_LOW
from calm_train.feature_maps import read_maps
from calm_train.pretrained.open import open_part
from calm_train.vision import summarise

SIZE = 224  # of the pictures a teacher sees
MANIFEST, WEIGHTS = "teacher.json", "teacher.safetensors"
CLAMP = 2.5  # standard deviations: no edit or crop is beyond what people's ratings span
LEAST_DROP, FULL_DROP = 0.1, 1.3  # points that a disliked degradation costs at least, and with its full gap more

Sight = Literal["nearest", "stretch", "pad"]
SIGHTS: tuple[Sight, ...] = ("nearest", "stretch", "pad")


class TeacherPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One frozen encoder of a teacher: its name or folder, and which of its maps are read, for each way to see a photo."""

    pretrained: str
    taps: tuple[int, ...]
    sights: tuple[Sight, ...] = ("stretch", "pad")


class TeacherInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a teacher says about itself.

    parts: the encoders of the regression; the first is NIMA's, whose votes on nearest-neighbour pixels give the histogram.
    nima: mean and spread of NIMA's mean votes over the rated photos. nima_weight: of its standardised mean beside the
    regression's. width: of the kernel, a squared distance. votes: mean and spread of the scores on the rating scale.
    note: what it was fitted on.
    """

    parts: tuple[TeacherPart, ...]
    nima: tuple[float, float]
    nima_weight: float
    width: float
    votes: tuple[float, float]
    note: str


class Teacher(Protocol):
    """Labels pairs of views with the votes people would give."""

    def pair_histograms(self, batch: dict[str, Tensor]) -> Tensor:
        """A batch of `BatchCollator` -> vote histograms [2P, 10]."""
        ...


def teacher_pixels(picture: npt.NDArray[np.uint8]) -> Tensor:
    """RGB [H, W, 3] uint8 -> [3, 3, SIZE, SIZE] uint8, one picture per entry of SIGHTS.

    NIMA was trained on nearest-neighbour pixels; the others are antialiased, squashed or padded.
    """
    image = Image.fromarray(picture)
    seen = [
        image.resize((SIZE, SIZE), Image.Resampling.NEAREST),
        fit_picture(image, PhotoSpec(size=SIZE, fit="stretch")),
        fit_picture(image, PhotoSpec(size=SIZE, fit="pad", pad_color=(127, 127, 127))),
    ]
    return torch.from_numpy(np.stack([np.asarray(one) for one in seen])).permute(0, 3, 1, 2)


class TasteTeacher(nn.Module):
    """Pictures as `teacher_pixels` gives them -> vote histograms.

    Buffers: centre, scale [F] standardise the features; support [N, F] are those of the rated photos and weight [N]
    theirs in the regression; votes_weight [10, C], votes_bias [10]: NIMA's own dense layer.
    """

    centre: Tensor
    scale: Tensor
    support: Tensor
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

    def pair_histograms(self, batch: dict[str, Tensor]) -> Tensor:
        """Of pairs: teacher_pixels [2P, 3, 3, SIZE, SIZE] uint8 -> [2P, 10]."""
        return order_pairs(self(batch["teacher_pixels"]), batch)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, 3, SIZE, SIZE] uint8 -> vote histograms [B, 10] float32."""
        votes = self.nima_votes(pixels)
        mean, spread = self.info.votes
        return tilt_histogram(votes, mean + spread * self.standing(votes, self.features(pixels)))

    @torch.no_grad()
    def standing(self, votes: Tensor, features: Tensor) -> Tensor:
        """Where each photo stands among the rated ones, in standard deviations [B]; votes [B, 10], features [B, F]."""
        mean, spread = self.info.nima
        own = self.info.nima_weight * ((votes @ _ratings(votes)) - mean) / spread
        distance = torch.cdist((features - self.centre) * self.scale, self.support).square()
        return (own + torch.exp(-distance / self.info.width) @ self.weight).clamp(-CLAMP, CLAMP)

    @torch.no_grad()
    def nima_votes(self, pixels: Tensor) -> Tensor:
        """NIMA's vote histograms [B, 10]."""
        last = read_maps(self.encoders[0], _normalise(pixels[:, SIGHTS.index("nearest")]))[-1]  # type: ignore[arg-type]
        return (last.float().mean(dim=(2, 3)) @ self.votes_weight.T + self.votes_bias).softmax(dim=-1)

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Mean and spread of the tapped maps of every encoder: [B, 3, 3, SIZE, SIZE] uint8 -> [B, F] float32."""
        parts: list[Tensor] = []
        for encoder, part in zip(self.encoders, self.info.parts, strict=True):
            for sight in part.sights:
                maps = read_maps(encoder, _normalise(pixels[:, SIGHTS.index(sight)]))  # type: ignore[arg-type]
                for tap in part.taps:
                    parts += summarise(maps[tap].float(), 1)[1:]
        return torch.cat(parts, dim=1)


class OwnTeacher:
    """A finished model that keeps its own taste while it learns something else: a frozen copy of it labels the views."""

    def __init__(self, model: nn.Module, before: Tensor, after: Tensor) -> None:
        """before, after: token ids of the score prompt around the photo."""
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.before, self.after = before, after

    @torch.no_grad()
    def pair_histograms(self, batch: dict[str, Tensor]) -> Tensor:
        """Of pairs: pixel_values [2P, 3, S, S] -> [2P, 10]."""
        pixels = batch["pixel_values"]
        self.model.to(pixels.device)
        ids = [side.to(pixels.device).expand(len(pixels), -1) for side in (self.before, self.after)]
        logits = self.model.score_logits(pixels, *ids)  # type: ignore[operator]
        return order_pairs(logits.float().softmax(dim=-1), batch)


def order_pairs(histograms: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Of pairs: histograms [2P, 10]; of the batch disliked_gap [P] in 0..1 and harmless [P] bool -> [2P, 10].

    A second view is the first with more degradations. It never gets more votes, whatever the encoders make of pixels they
    were never trained on; fewer where people dislike the degradation, the same where it is harmless.
    """
    means = histograms @ _ratings(histograms)
    first, second = means[0::2], means[1::2]
    gap = batch["disliked_gap"]
    bound = first - torch.where(gap > 0, LEAST_DROP + FULL_DROP * gap, 0.0)
    wanted = torch.where(batch["harmless"], first, torch.minimum(second, bound)).clamp(min=SCORE_LOW + 0.5)
    return torch.stack([histograms[0::2], tilt_histogram(histograms[1::2], wanted)], dim=1).flatten(0, 1)


def tilt_histogram(histogram: Tensor, mean: Tensor) -> Tensor:
    """The histogram [B, 10] multiplied by exp(a * rating), with a such that its mean is `mean` [B].

    Of all histograms with that mean it is the nearest to the first in relative entropy (Csiszar 1975).
    """
    ratings = _ratings(histogram)
    wanted = mean.clamp(SCORE_LOW + 0.05, SCORE_HIGH - 0.05)
    logits = histogram.clamp(min=1e-8).log()
    low, high = (torch.full_like(wanted, bound) for bound in (-8.0, 8.0))
    for _ in range(30):  # bisection: the mean grows with a
        middle = 0.5 * (low + high)
        below = (logits + middle[:, None] * ratings).softmax(dim=-1) @ ratings < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (logits + 0.5 * (low + high)[:, None] * ratings).softmax(dim=-1)


def _normalise(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1


def _ratings(like: Tensor) -> Tensor:
    return torch.arange(SCORE_LOW, SCORE_HIGH + 1, device=like.device, dtype=torch.float32)
