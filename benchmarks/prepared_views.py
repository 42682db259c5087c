"""Views of photos made once, seen once by the frozen encoders, and kept for many trainings of what lies behind them.

Used by train_nano.py. Made and encoded anew in every run, views would cost most of its time on a CPU: the encoders of
calm-nano do not learn. ONNX Runtime runs them several times faster than PyTorch does here.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import Dataset

from calm_runtime.photo import PhotoSpec
from calm_train.data import PairDataset
from calm_train.feature_maps import read_maps
from calm_train.library import Picture
from calm_train.taste_teacher import SIGHTS, TasteTeacher, order_pairs
from calm_train.vision import MapEncoder, summarise

CHUNK = 16  # pairs encoded together
SUMMARY = ("grid", "mean", "spread")
TAPS = 3  # the thematic branch reads the deepest map, as the high one does

_dataset: PairDataset | None = None  # of the processes that make views: forked, so that pictures are not copied


class _Summaries(nn.Module):
    def __init__(self, encoder: MapEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return tuple(value for summary in self.encoder.summaries(pixels)[:TAPS] for value in summary)


class _Pooled(nn.Module):
    """Mean and spread of the tapped maps, as `TasteTeacher.features` has them; NIMA's votes too, where asked for."""

    def __init__(self, encoder: nn.Module, taps: Sequence[int]) -> None:
        super().__init__()
        self.encoder, self.taps = encoder, taps

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        maps = read_maps(self.encoder, pixels)  # type: ignore[arg-type]
        parts = [v for tap in self.taps for v in summarise(maps[tap], 1)[1:]]
        return torch.cat(parts, dim=1), maps[-1].mean(dim=(2, 3))


def _session(module: nn.Module, path: Path, threads: int) -> Any:
    import onnxruntime

    torch.onnx.export(
        module.eval(), (torch.rand(2, 3, 224, 224),), str(path), dynamo=True, input_names=["pixels"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), external_data=False, verbose=False,
    )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class FrozenEncoders:
    """The model's encoders and the teacher's, in ONNX Runtime."""

    def __init__(self, encoder: MapEncoder, teacher: TasteTeacher, folder: Path, threads: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.teacher = teacher
        self.encoder = _session(_Summaries(encoder), folder / "summaries.onnx", threads)
        self.parts = [
            _session(_Pooled(part, info.taps), folder / f"part-{n}.onnx", threads)
            for n, (part, info) in enumerate(zip(teacher.encoders, teacher.info.parts, strict=True))
        ]

    def summaries(self, pixels: np.ndarray) -> list[np.ndarray]:
        """pixels [B, 3, S, S] uint8 -> grid, mean and spread of each tap."""
        found: list[np.ndarray] = self.encoder.run(None, {"pixels": _normalise(pixels)})
        return found

    def opinion(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """pixels [B, 3, 3, S, S] uint8 of `teacher_pixels` -> NIMA's votes [B, 10] and the teacher's features [B, F]."""
        _, last = self.parts[0].run(None, {"pixels": _normalise(pixels[:, SIGHTS.index("nearest")])})
        logits = torch.from_numpy(last) @ self.teacher.votes_weight.T + self.teacher.votes_bias
        features = [
            session.run(None, {"pixels": _normalise(pixels[:, SIGHTS.index(sight)])})[0]
            for session, info in zip(self.parts, self.teacher.info.parts, strict=True)
            for sight in info.sights
        ]
        return logits.softmax(dim=-1).numpy(), np.concatenate(features, axis=1)


def _normalise(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32) / np.float32(127.5) - 1


def _make(index: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    assert _dataset is not None
    item = _dataset[index]
    pixels = item.pop("pixel_values") * 0.5 + 0.5
    item["pixels"] = (pixels * 255).round().to(torch.uint8).numpy()
    item["teacher_pixels"] = item["teacher_pixels"].numpy()
    return {key: value.numpy() if isinstance(value, Tensor) else value for key, value in item.items()}


def _chunks(count: int, workers: int) -> Iterator[list[dict[str, Any]]]:
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        chunk: list[dict[str, Any]] = []
        for item in pool.imap(_make, range(count), chunksize=CHUNK):
            chunk.append(item)
            if len(chunk) == CHUNK:
                yield chunk
                chunk = []


def prepare(
    pictures: Sequence[Picture], spec: PhotoSpec, encoders: FrozenEncoders, count: int, seed: int, workers: int,
    folder: Path,
) -> None:  # fmt: skip
    """Write `count` pairs of views (a multiple of CHUNK) to a folder. The spec must normalise with mean and spread 0.5."""
    global _dataset
    assert spec.mean == spec.std == (0.5,) * 3
    _dataset = PairDataset(pictures, spec, count, seed, taught=True)
    files: dict[str, np.ndarray] = {}

    def put(name: str, start: int, values: np.ndarray) -> None:
        if name not in files:
            shape = (count, 2, *values.shape[1:])
            files[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float16, shape)
        files[name][start : start + CHUNK] = values.reshape(CHUNK, 2, *values.shape[1:])

    facts = []
    for number, chunk in enumerate(track(_chunks(count, workers), "views", total=count // CHUNK)):
        summaries = encoders.summaries(np.concatenate([item.pop("pixels") for item in chunk]))
        for index, values in enumerate(summaries):
            put(f"{SUMMARY[index % 3]}_{index // 3}", number * CHUNK, values)
        votes, features = encoders.opinion(np.concatenate([item.pop("teacher_pixels") for item in chunk]))
        put("nima", number * CHUNK, votes)
        put("features", number * CHUNK, features)
        facts += [{k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in i.items()} for i in chunk]
    for values in files.values():
        values.flush()  # type: ignore[attr-defined]
    torch.save(facts, folder / "facts.pt")


class PreparedDataset(Dataset[dict[str, Any]]):
    """Items of a run: the pairs it may see, over and over, in an order of its own."""

    def __init__(self, folder: Path, votes: Tensor, allowed: np.ndarray, length: int, seed: int) -> None:
        """votes [pairs, 2, 10]: what the run's teacher says of the views. allowed: numbers of pairs."""
        self.facts = torch.load(folder / "facts.pt", weights_only=True)
        self.arrays = {
            f"{part}_{tap}": np.load(folder / f"{part}_{tap}.npy", mmap_mode="r")
            for tap in range(TAPS)
            for part in SUMMARY
        }
        self.votes, self.allowed, self.length, self.seed = votes, allowed, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> dict[str, Any]:
        epoch, position = divmod(number, len(self.allowed))
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.allowed))
        index = int(self.allowed[order[position]])
        arrays = {name: torch.from_numpy(np.array(values[index])) for name, values in self.arrays.items()}
        return self.facts[index] | arrays | {"votes": self.votes[index]}


class PreparedCollator:
    """A `BatchCollator` that takes summaries in place of pixels. taps: which of them each of the four branches reads."""

    def __init__(self, collator: Any, taps: tuple[int, ...] = (0, 1, 2, 2)) -> None:
        self.collator, self.taps = collator, taps

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        read = {f"{part}_{tap}" for tap in self.taps for part in SUMMARY}
        found = {name: torch.cat([item[name] for item in items]) for name in read}
        ready = {f"{part}_{n}": found[f"{part}_{tap}"] for n, tap in enumerate(self.taps) for part in SUMMARY}
        nothing = torch.zeros(2, 0)
        batch: dict[str, Tensor] = self.collator([item | {"pixel_values": nothing} for item in items])
        return batch | ready


class PreparedTeacher:
    """Hands the labels of prepared views to the stage."""

    def pair_histograms(self, batch: dict[str, Tensor]) -> Tensor:
        """votes [2P, 10] of a batch -> [2P, 10]."""
        return order_pairs(batch["votes"], batch)
