"""Many trainings of one model on the same views: made once by all cores, labelled once, then read by every run.

Used by train_nano.py. A view costs a CPU core some 30 ms and a GPU under one; 15 runs that each make their own views
would wait for them most of the time.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from calm_runtime.photo import PhotoSpec
from calm_train.data import PairDataset
from calm_train.library import Picture
from calm_train.taste_teacher import TasteTeacher, order_pairs

_dataset: PairDataset | None = None  # of the process that makes views: forked, so that pictures are not copied


def _make(index: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    assert _dataset is not None
    item = _dataset[index]
    pixels = item.pop("pixel_values") * 0.5 + 0.5
    item["pixels"] = (pixels * 255).round().to(torch.uint8).numpy()
    item["teacher_pixels"] = item["teacher_pixels"].numpy()
    return {key: value.numpy() if isinstance(value, Tensor) else value for key, value in item.items()}


def make_items(pictures: Sequence[Picture], spec: PhotoSpec, count: int, seed: int, workers: int) -> list[dict[str, Any]]:
    """`count` pairs of views by `workers` processes. The spec must normalise with mean and spread 0.5."""
    global _dataset
    assert spec.mean == spec.std == (0.5,) * 3
    _dataset = PairDataset(pictures, spec, count, seed, taught=True)
    started = time.monotonic()
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        items = list(pool.imap(_make, range(count), chunksize=16))
    print(f"{count} pairs in {time.monotonic() - started:.0f} s", flush=True)
    return items


@torch.no_grad()
def teacher_features(teacher: TasteTeacher, pixels: Sequence[np.ndarray], batch: int = 64) -> tuple[Tensor, Tensor]:
    """Of pictures as `teacher_pixels` gives them: NIMA's votes [N, 10] and the regression's features [N, F], on the CPU."""
    device = next(teacher.encoders.parameters()).device
    votes, features = [], []
    for start in range(0, len(pixels), batch):
        part = torch.from_numpy(np.stack(pixels[start : start + batch])).to(device)
        votes.append(teacher.nima_votes(part).cpu())
        features.append(teacher.features(part).half().cpu())
    return torch.cat(votes), torch.cat(features)


class PreparedDataset(Dataset[dict[str, Any]]):
    """Items of a run: the pairs it may see, over and over, in an order of its own."""

    def __init__(self, items: list[dict[str, Any]], votes: Tensor, allowed: np.ndarray, length: int, seed: int) -> None:
        """votes [items, 2, 10]: what the run's teacher says of the views. allowed: indices of items."""
        self.items, self.votes, self.allowed, self.length, self.seed = items, votes, allowed, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> dict[str, Any]:
        epoch, position = divmod(number, len(self.allowed))
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.allowed))
        index = int(self.allowed[order[position]])
        item = self.items[index]
        tensors = {key: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for key, v in item.items()}
        pixels = tensors.pop("pixels").float() / 255
        return tensors | {"pixel_values": (pixels - 0.5) / 0.5, "votes": self.votes[index]}


class PreparedTeacher:
    """Hands the labels of prepared views to the stage."""

    def pair_histograms(self, batch: dict[str, Tensor]) -> Tensor:
        """votes [2P, 10] of a batch -> [2P, 10]."""
        return order_pairs(batch["votes"], batch)
