"""Fitting a teacher of taste to rated photos: kernel regression on the features of its frozen encoders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor

from calm_runtime.errors import DataError
from calm_runtime.photo import load_photo
from calm_runtime.ratings import read_ratings
from calm_runtime.score import SCORE_HIGH, SCORE_LOW
from calm_train.feature_maps import map_shapes
from calm_train.pretrained.convert import HEAD
from calm_train.pretrained.open import open_part, part_source
from calm_train.taste_teacher import SIZE, TasteTeacher, TeacherInfo, TeacherPart, teacher_pixels

NIMA = "nima-mobilenet"
PARTS = (
    TeacherPart(NIMA, (9, 21, 25)),
    TeacherPart("efficientnet-lite2", (7, 8)),
    TeacherPart("efficientnet-lite0", (7, 8)),
)
NIMA_WEIGHT = 0.2
RIDGE = 0.1
# AVA's photos have a mean vote of 5.4 with a spread of 0.75 (Murray et al. 2012); a little more tells photos apart better.
VOTES = (5.4, 1.0)


def unfitted_teacher(parts: Sequence[TeacherPart] = PARTS, note: str = "no rated photo") -> TasteTeacher:
    """A teacher that knows NIMA's opinion alone. Raises DataError when a part cannot be had."""
    encoders = [open_part(part.pretrained) for part in parts]
    head = load_file(Path(part_source(parts[0].pretrained)) / HEAD)
    info = TeacherInfo(tuple(parts), (5.3, 0.6), 1.0, 1.0, VOTES, note)
    empty = torch.zeros(0)
    tensors = {
        "centre": empty, "scale": empty, "support": torch.zeros(0, 0), "weight": empty,
        "votes_weight": head["head.weight"], "votes_bias": head["head.bias"],
    }  # fmt: skip
    return TasteTeacher(info, encoders, tensors)


def standardise_sets(ratings: Tensor, sets: Sequence[str]) -> Tensor:
    """Ratings [N] -> standard deviations from the mean of their own set [N]: people of one set share a scale.

    Raises DataError for a set with fewer than 10 photos or one rating.
    """
    result = torch.empty(len(ratings), dtype=torch.float32)
    names = list(dict.fromkeys(sets))
    for name in names:
        members = torch.tensor([other == name for other in sets])
        own = ratings[members].float()
        if len(own) < 10 or float(own.std()) == 0:
            raise DataError(f"{name}: {len(own)} rated photos; a teacher needs 10 or more with different ratings")
        result[members] = (own - own.mean()) / own.std()
    return result


def fit_teacher(teacher: TasteTeacher, votes: Tensor, features: Tensor, target: Tensor, note: str) -> TasteTeacher:
    """The same encoders with a regression fitted to rated photos.

    votes [N, 10], features [N, F]: what the teacher sees in them. target [N]: of `standardise_sets`.
    """
    features = features.double()
    centre, spread = features.mean(0), features.std(0) + 1e-6
    # Every map counts the same, however many channels it has
    sizes = torch.cat([torch.full((n,), n, dtype=torch.float64) for n in block_sizes(teacher)])
    scale = 1 / (spread * (sizes * len(block_sizes(teacher))).sqrt())
    support = (features - centre) * scale
    distance = torch.cdist(support, support).square()
    width = float(distance.median())
    kernel = torch.exp(-distance / width)
    means = votes.double() @ torch.arange(SCORE_LOW, SCORE_HIGH + 1, dtype=torch.float64)
    nima = (float(means.mean()), float(means.std()))
    rest = target.double() - NIMA_WEIGHT * (means - nima[0]) / nima[1]
    weight = torch.linalg.solve(kernel + RIDGE * torch.eye(len(kernel), dtype=torch.float64), rest)
    info = msgspec.structs.replace(teacher.info, nima=nima, nima_weight=NIMA_WEIGHT, width=width, note=note)
    fitted = {
        "centre": centre.float(), "scale": scale.float(), "support": support.float(), "weight": weight.float(),
        "votes_weight": teacher.votes_weight.cpu(), "votes_bias": teacher.votes_bias.cpu(),
    }  # fmt: skip
    return TasteTeacher(info, list(teacher.encoders), fitted)  # type: ignore[arg-type]


def teacher_from_ratings(files: Sequence[Path], output: Path) -> str:
    """Fit a teacher to rated photos, each file a set of its own, and save it. Returns the line that says so.

    Raises DataError for a file, a photo or a set that cannot serve.
    """
    rated = [(str(file), row) for file in files for row in read_ratings(file)]
    lost = [str(row.path) for _, row in rated if not row.path.is_file()]
    if lost:
        raise DataError(f"{len(lost)} of {len(rated)} rated photos are not there, the first is {lost[0]}")
    target = standardise_sets(torch.tensor([row.rating for _, row in rated]), [file for file, _ in rated])
    start = unfitted_teacher()
    bar = Console(stderr=True)
    votes, features = [], []
    for _, row in track(rated, "rated photos", console=bar, transient=True, disable=not bar.is_terminal):
        pixels = teacher_pixels(np.asarray(load_photo(row.path)))[None]
        votes.append(start.nima_votes(pixels))
        features.append(start.features(pixels))
    note = f"{len(rated)} rated photos of {len(files)} sets"
    fit_teacher(start, torch.cat(votes), torch.cat(features), target, note).save(output)
    return f"{output}: teacher of taste from {note}"


def block_sizes(teacher: TasteTeacher) -> list[int]:
    """Lengths of the parts of `TasteTeacher.features` that count alike: one encoder's maps, seen in one way."""
    sizes = []
    for encoder, part in zip(teacher.encoders, teacher.info.parts, strict=True):
        channels = map_shapes(encoder.config, part.taps, SIZE).channels  # type: ignore[arg-type]
        sizes += [2 * sum(channels)] * len(part.sights)
    return sizes
