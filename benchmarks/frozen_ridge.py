"""The floor for a model that learns from rated photos: ridge regression on pooled features of two frozen encoders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from nano_runs import Array
from PIL import Image

from calm_runtime.photo import PhotoSpec, fit_picture
from calm_train.pretrained.open import open_part

ENCODERS = {"nima-mobilenet": 224, "efficientnet-lite2": 260}  # and the side that each was trained on
PENALTIES = np.logspace(-2, 2, 17)  # beside a kernel whose diagonal is about 1
BATCH = 16


@torch.inference_mode()
def frozen_features(pictures: Sequence[Image.Image]) -> Array:
    """RGB pictures, squashed to squares -> [N, 2304], NIMA's before EfficientNet-lite2's. Raises DataError without the parts."""
    parts = []
    for name, size in ENCODERS.items():
        encoder, spec = open_part(name), PhotoSpec(size=size, fit="stretch")
        rows = []
        for start in range(0, len(pictures), BATCH):
            squares = np.stack([np.asarray(fit_picture(p, spec)) for p in pictures[start : start + BATCH]])
            pixels = torch.from_numpy(squares).permute(0, 3, 1, 2).float() / 127.5 - 1
            rows.append(encoder(pixel_values=pixels).pooler_output.double().numpy())
        parts.append(np.concatenate(rows))
    return np.concatenate(parts, axis=1)


def ridge_held_out(features: Array, target: Array, folds: npt.NDArray[np.int64]) -> Array:
    """Each photo's target as a ridge fitted to the other folds expects it; features [N, F], target and folds [N] -> [N].

    The penalty of each fit is that of the least leave-one-out error on the photos it is fitted to.
    """
    expected = np.empty(len(target))
    for fold in np.unique(folds):
        asked = folds == fold
        known, others = features[~asked], features[asked]
        mean, spread = known.mean(0), known.std(0) + 1e-6
        known, others = (known - mean) / spread, (others - mean) / spread
        kernel, across = (side @ known.T / known.shape[1] for side in (known, others))
        middle = target[~asked].mean()
        weight = _weights(kernel, target[~asked] - middle)
        expected[asked] = middle + across @ weight
    return expected


def _weights(kernel: Array, target: Array) -> Array:
    """Dual weights [N] of the penalty with the least leave-one-out error, whose closed form is weight / diagonal of inverse."""
    values, vectors = np.linalg.eigh(kernel)
    best, least = np.zeros(len(target)), np.inf
    for penalty in PENALTIES:
        inverse = (vectors / (values + penalty)) @ vectors.T
        weight = inverse @ target
        error = float(((weight / inverse.diagonal()) ** 2).mean())
        if error < least:
            best, least = weight, error
    return best
