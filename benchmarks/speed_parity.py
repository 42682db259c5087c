"""How far the scores of a trained model drift in each written form; in a process of its own, for it needs PyTorch."""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed_engines import open_engine
from speed_models import checkpoint_of, read_shape

from calm_export import parity
from calm_export.photos import parity_photos
from calm_runtime.rank_correlation import srcc
from calm_train.checkpoint import load_checkpoint

PHOTOS = 32  # the examples, then edits of them
BATCH = 8
EXAMPLES = Path(__file__).parents[1] / "examples"


def drift(size: str, folder: Path, threads: int, names: list[str]) -> dict[str, dict[str, Any]]:
    """Per engine: SRCC and difference to PyTorch in fp32, and between a photo alone and in a batch of BATCH."""
    torch.set_num_threads(threads)
    model, _, info = load_checkpoint(checkpoint_of(size, folder))
    shape = read_shape(folder)
    photos = islice(parity_photos(info.photo, None, sorted(EXAMPLES.glob("*.jpg"))), PHOTOS)
    pixels = parity.pixel_batch((photo.picture for photo in photos), info.photo)
    sides = [torch.tensor([side]) for side in (shape.before, shape.after)]
    with torch.inference_mode():
        logits = [model.score_logits(torch.from_numpy(row[None]), *sides).numpy() for row in pixels]
    wanted = parity.scores_of(np.concatenate(logits))
    rows = {}
    for name in names:
        engine = open_engine(name, folder, shape, threads)
        assert engine.score is not None
        alone = parity.scores_of(np.concatenate([engine.score(row[None]) for row in pixels]))
        together = [engine.score(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]
        difference = np.abs(alone - wanted)
        rows[name] = {
            "photos": len(pixels),
            "srcc": srcc(wanted, alone),
            "difference_max": float(difference.max()),
            "difference_mean": float(difference.mean()),
            "batch_difference_max": float(np.abs(alone - parity.scores_of(np.concatenate(together))).max()),
        }
    return rows


if __name__ == "__main__":
    wanted_size, place, count, *engines = sys.argv[1:]
    print(json.dumps(drift(wanted_size, Path(place), int(count), engines)))
