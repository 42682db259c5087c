"""One way to score for every evaluation: a checkpoint through PyTorch, or a bundle through the runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from calm_runtime import Calm
from calm_runtime.attributes import ATTRIBUTES
from calm_runtime.photo import PhotoSpec, to_pixel_values
from calm_runtime.prompt import split_prompt
from calm_runtime.score import score_histogram
from calm_train.checkpoint import find_checkpoint, load_checkpoint
from calm_train.data import PromptEncoder

Array = npt.NDArray[np.float64]


class Scorer(Protocol):
    """What evaluation needs of a model. identity: model and bundle or checkpoint, for the record; spec: its input."""

    identity: dict[str, str]
    spec: PhotoSpec

    def __call__(self, pictures: Sequence[Image.Image]) -> tuple[Array, Array]:
        """RGB pictures -> rating histograms [N, 10] and attribute probabilities [N, A, 3]."""
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
    def __call__(self, pictures: Sequence[Image.Image]) -> tuple[Array, Array]:
        """RGB pictures -> rating histograms [N, 10] and attribute probabilities [N, A, 3]."""
        histograms, attributes = [], []
        for start in range(0, len(pictures), self.batch_size):
            batch = pictures[start : start + self.batch_size]
            pixels = torch.from_numpy(np.stack([to_pixel_values(p, self.spec) for p in batch])).to(self.device)
            rows = len(batch)
            output = self.model(pixels, self._before.expand(rows, -1), self._after.expand(rows, -1))
            logits = output.logits[:, -1, self.model.config.score_token_ids]
            histograms.append(score_histogram(logits.float().cpu().numpy()))
            attributes.append(self.model.attribute_logits(output.aligned).softmax(-1).double().cpu().numpy())
        return np.concatenate(histograms), np.concatenate(attributes)


class BundleScorer:
    """Scores with an exported bundle through the runtime."""

    def __init__(self, calm: Calm, batch_size: int = 8) -> None:
        self.calm = calm
        self.spec = calm.bundle.manifest.photo
        self.batch_size = batch_size
        model = calm.bundle.manifest.model
        self.identity = {"model": f"{model.name} {model.version}", "bundle": calm.bundle.digest}

    def __call__(self, pictures: Sequence[Image.Image]) -> tuple[Array, Array]:
        """RGB pictures -> rating histograms [N, 10] and attribute probabilities [N, A, 3]."""
        scores = []
        for start in range(0, len(pictures), self.batch_size):
            batch = np.stack([to_pixel_values(p, self.spec) for p in pictures[start : start + self.batch_size]])
            scores += self.calm.score_pixels(batch, [{} for _ in batch])
        attributes = [[list(score.attributes[a.name].probabilities.values()) for a in ATTRIBUTES] for score in scores]
        return np.array([score.histogram for score in scores]), np.array(attributes)


def open_scorer(*, checkpoint: str | Path | None = None, bundle: str | Path | None = None) -> Scorer:
    """Scorer of a checkpoint, of a bundle, or of the built-in bundle when neither is given."""
    if checkpoint is not None:
        return CheckpointScorer(checkpoint)
    return BundleScorer(Calm.load(Path(bundle) if bundle else None))
