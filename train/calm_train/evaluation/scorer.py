"""One way to score for every evaluation: a checkpoint through PyTorch, or a bundle through the runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from calm_runtime import Calm
from calm_runtime.attributes import ATTRIBUTES
from calm_runtime.photo import PhotoSpec, leave_out_frame, to_pixel_values
from calm_runtime.prompt import split_prompt
from calm_runtime.score import histogram_moments, score_histogram
from calm_train.checkpoint import find_checkpoint, load_checkpoint
from calm_train.data import PromptEncoder

Array = npt.NDArray[np.float64]


class Judgement(NamedTuple):
    """What a model says of N pictures, float64.

    histograms [N, 10]: shares of the votes 1 to 10. technical [N]: how undamaged, 1 to 10. attributes [N, A, 3]:
    probability of each level of `ATTRIBUTES`.
    """

    histograms: Array
    technical: Array
    attributes: Array

    @property
    def scores(self) -> Array:
        """Mean votes [N]."""
        return histogram_moments(self.histograms)[0]


class Scorer(Protocol):
    """What evaluation needs of a model. identity: model and bundle or checkpoint, for the record; spec: its input."""

    identity: dict[str, str]
    spec: PhotoSpec

    def __call__(self, pictures: Sequence[Image.Image]) -> Judgement:
        """RGB pictures, of any size, with frames or without; a frame is left out as the runtime does."""
        ...


class CheckpointScorer:
    """Scores with the PyTorch model, on the GPU where there is one."""

    def __init__(self, checkpoint: str | Path, batch_size: int = 16) -> None:
        folder = find_checkpoint(checkpoint)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model, tokenizer, info = load_checkpoint(folder)
        nn.Module.to(self.model, self.device)
        self.spec = info.photo
        self.batch_size = batch_size
        encoder = PromptEncoder(tokenizer, self.model.config.text_config)
        before, after = split_prompt(info.prompts["score"], encoder)
        self._before, self._after = (torch.tensor([ids], device=self.device) for ids in (before, after))
        self.identity = {"model": f"{info.model.name} {info.model.version}", "checkpoint": folder.name}

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image]) -> Judgement:
        """RGB pictures, of any size, with frames or without; a frame is left out as the runtime does."""
        config = self.model.config
        votes, technical, attributes = [], [], []
        for start in range(0, len(pictures), self.batch_size):
            pixels = torch.from_numpy(read_pixels(pictures[start : start + self.batch_size], self.spec)).to(self.device)
            rows = len(pixels)
            output = self.model(pixels, self._before.expand(rows, -1), self._after.expand(rows, -1))
            logits = output.logits[:, -1].float().cpu().numpy()
            votes.append(score_histogram(logits[:, config.score_token_ids]))
            technical.append(score_histogram(logits[:, config.technical_token_ids]))
            attributes.append(self.model.attribute_logits(output.aligned).softmax(-1).double().cpu().numpy())
        undamaged, _ = histogram_moments(np.concatenate(technical))
        return Judgement(np.concatenate(votes), undamaged, np.concatenate(attributes))


class BundleScorer:
    """Scores with an exported bundle through the runtime."""

    def __init__(self, calm: Calm, batch_size: int = 8) -> None:
        self.calm = calm
        self.spec = calm.bundle.manifest.photo
        self.batch_size = batch_size
        model = calm.bundle.manifest.model
        self.identity = {"model": f"{model.name} {model.version}", "bundle": calm.bundle.digest}

    def __call__(self, pictures: Sequence[Image.Image]) -> Judgement:
        """RGB pictures, of any size, with frames or without; a frame is left out as the runtime does."""
        scores = []
        for start in range(0, len(pictures), self.batch_size):
            batch = read_pixels(pictures[start : start + self.batch_size], self.spec)
            scores += self.calm.score_pixels(batch, [{} for _ in batch])
        attributes = [[list(score.attributes[a.name].probabilities.values()) for a in ATTRIBUTES] for score in scores]
        votes, technical = [score.histogram for score in scores], [score.technical for score in scores]
        return Judgement(np.array(votes), np.array(technical), np.array(attributes))


def read_pixels(pictures: Sequence[Image.Image], spec: PhotoSpec) -> npt.NDArray[np.float32]:
    """RGB pictures -> pixel_values [N, 3, S, S], without their frames."""
    return np.stack([to_pixel_values(leave_out_frame(picture, spec)[0], spec) for picture in pictures])


def open_scorer(*, checkpoint: str | Path | None = None, bundle: str | Path | None = None) -> Scorer:
    """Scorer of a checkpoint, of a bundle, or of the built-in bundle when neither is given."""
    if checkpoint is not None:
        return CheckpointScorer(checkpoint)
    return BundleScorer(Calm.load(Path(bundle) if bundle else None))
