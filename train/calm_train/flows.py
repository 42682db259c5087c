"""Labelled flows beside the unlabelled one: rated photos (S), image-text pairs (G), comments (C) and questions.

Each labelled photo becomes an `Example`: a picture with a rating histogram, or with an instruction and its answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from calm_runtime.errors import DataError, PhotoError
from calm_runtime.photo import PhotoSpec, to_pixel_values
from calm_train.datasets import CaptionedPhoto, Conversation, RatedPhoto
from calm_train.datasets.records import PhotoSource
from calm_train.library import logger, read_picture
from calm_train.objectives import ScoreObjective

RATING_SPREAD = 1.4  # standard deviation given to a bare mean: what AVA's histograms have on average
WINDOW = 50  # batches sorted by length together
DESCRIBE = "Describe this photo."


@dataclass(frozen=True)
class Example:
    """One labelled photo. Either `histogram` [10], or `task`, `question` and `answer`, are set."""

    source: PhotoSource
    histogram: Tensor | None = None
    task: str = "ask"
    question: str | None = None
    answer: str = ""


def rated_examples(photos: Sequence[RatedPhoto]) -> list[Example]:
    """Ratings as histograms; a bare mean is smoothed by a Gaussian of RATING_SPREAD."""
    smooth = ScoreObjective(RATING_SPREAD).target
    return [
        Example(
            photo.path,
            histogram=torch.tensor(photo.histogram, dtype=torch.float32)
            if photo.histogram
            else smooth(torch.tensor([photo.mean]))[0],
        )
        for photo in photos
    ]


def told_examples(records: Sequence[CaptionedPhoto | Conversation], *, aesthetic: bool) -> list[Example]:
    """Texts as instruction and answer: critiques under the comment prompt, captions and questions under `ask`."""
    examples = []
    for record in records:
        if isinstance(record, Conversation):
            asked, told = record.turns[0::2], record.turns[1::2]
            examples += [
                Example(record.path, question=question.text.strip() or DESCRIBE, answer=answer.text)
                for question, answer in zip(asked, told, strict=True)
            ]
        elif aesthetic:
            examples += [Example(record.path, task="comment", answer=text) for text in record.texts]
        else:
            examples += [Example(record.path, question=DESCRIBE, answer=text) for text in record.texts]
    return examples


def length_grouped(lengths: Sequence[int], batch: int, rng: np.random.Generator) -> list[int]:
    """A random order in which neighbours have similar lengths: sorted inside windows, batches shuffled."""
    order = rng.permutation(len(lengths))
    size = batch * WINDOW
    windows = [sorted(order[i : i + size], key=lambda k: lengths[k]) for i in range(0, len(order), size)]
    batches = [window[i : i + batch] for window in windows for i in range(0, len(window), batch)]
    return [int(k) for b in rng.permutation(len(batches)) for k in batches[b]]


class Flow:
    """Examples in a seeded order, endlessly: number n is the same whatever process asks for it."""

    def __init__(self, examples: Sequence[Example], spec: PhotoSpec, batch: int, seed: int) -> None:
        if not examples:
            raise DataError("a labelled flow holds no photo")
        self.examples = examples
        self.spec = spec
        self.batch = batch
        self.seed = seed
        self._orders: dict[int, list[int]] = {}

    def __getitem__(self, number: int) -> dict[str, Any]:
        epoch, position = divmod(number, len(self.examples))
        for step in range(len(self.examples)):
            example = self.examples[self._order(epoch)[(position + step) % len(self.examples)]]
            try:
                picture = Image.fromarray(read_picture(example.source))
            except PhotoError as error:
                logger.warning("skipped: %s", error)
                continue
            if example.histogram is not None and np.random.default_rng((self.seed, 3, number)).integers(2):
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            return {
                "pixel_values": torch.from_numpy(to_pixel_values(picture, self.spec)),
                "histogram": example.histogram,
                "task": example.task,
                "question": example.question,
                "answer": example.answer,
            }
        raise DataError("none of the labelled photos can be read")

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            rng = np.random.default_rng((self.seed, 5, epoch))
            lengths = [len(e.answer) + len(e.question or "") for e in self.examples]
            self._orders = {epoch: length_grouped(lengths, self.batch, rng)}
        return self._orders[epoch]
