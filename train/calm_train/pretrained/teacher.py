"""NIMA as a teacher: the votes it expects a photo to get."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel

from calm_runtime.errors import DataError
from calm_train.pretrained.convert import HEAD

SIZE = 224
BATCH = 32


class NimaTeacher(nn.Module):
    """NIMA with its own dense layer and its own way to see a photo: squashed to 224 x 224, nearest neighbour.

    Antialiased pixels would lower its scores: it was trained on these.
    """

    def __init__(self, folder: str | Path) -> None:
        """folder: of `nima-mobilenet`, as `calm train fetch` made it. Raises DataError when it is something else."""
        super().__init__()
        path = Path(folder) / HEAD
        try:
            head = load_file(path)
            self.encoder = AutoModel.from_pretrained(folder, dtype=torch.float32)
            self.register_buffer("weight", head["head.weight"])
            self.register_buffer("bias", head["head.bias"])
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{path}: not NIMA with its votes; make it with `calm train fetch nima-mobilenet`"
            ) from error
        self.requires_grad_(False).eval()

    weight: Tensor
    bias: Tensor

    @torch.no_grad()
    def forward(self, pictures: Sequence[Image.Image]) -> Tensor:
        """RGB pictures of any size -> shares of the votes 1 to 10, [B, 10] float32; each row sums to 1."""
        rows = [self._votes(pictures[start : start + BATCH]) for start in range(0, len(pictures), BATCH)]
        return torch.cat(rows) if rows else self.bias.new_zeros((0, len(self.bias)))

    def _votes(self, pictures: Sequence[Image.Image]) -> Tensor:
        squashed = [np.asarray(p.convert("RGB").resize((SIZE, SIZE), Image.Resampling.NEAREST)) for p in pictures]
        pixels = torch.from_numpy(np.stack(squashed)).to(self.bias.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        pooled = self.encoder(pixel_values=pixels).pooler_output
        return torch.softmax(pooled @ self.weight.T + self.bias, dim=-1)

    def train(self, mode: bool = True) -> NimaTeacher:
        """A teacher stays as it is, even inside a module that learns."""
        return super().train(False)
