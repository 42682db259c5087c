"""Data for self-supervised training: photos from a folder, pairs of views, padded batches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from calm_runtime.attributes import SCALES
from calm_runtime.errors import DataError, PhotoError
from calm_runtime.photo import PHOTO_SUFFIXES, PhotoSpec, load_photo, to_pixel_values
from calm_runtime.prompt import Prompt, split_prompt
from calm_runtime.score import SCORE_TOKENS
from calm_train.pretext.edits import EDITS
from calm_train.pretext.texts import comment_text, cue_text, question_and_answer, suggestion_text
from calm_train.pretext.view import DIFFERENT, View, make_pair

logger = logging.getLogger(__name__)

TRAINING_SIDE = 432  # photos are kept in memory at this longer side: about 0.4 MB each


class PromptEncoder:
    """The runtime's view of a tokenizer (`calm_runtime.prompt.TextEncoder`), for training."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        tokenizer.encode_special_tokens = True
        self.bos_token_id: int = tokenizer.token_to_id("<s>")
        self.eos_token_id: int = tokenizer.token_to_id("</s>")
        self.pad_token_id: int = tokenizer.token_to_id("<pad>")
        self.score_token_ids: list[int] = [tokenizer.token_to_id(token) for token in SCORE_TOKENS]

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer: one space, the text, end of sequence."""
        return [*self.encode(" " + text), self.eos_token_id]


def find_photos(folder: str | Path) -> list[Path]:
    """All photo files below a folder, sorted. Raises DataError when there are none."""
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of photos")
    found = sorted(p for p in root.rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES and p.is_file())
    if not found:
        raise DataError(f"{root}: no photos there (looked for {', '.join(sorted(PHOTO_SUFFIXES))})")
    return found


def load_pictures(paths: Sequence[Path]) -> list[np.ndarray]:
    """Decode photos once, scaled to TRAINING_SIDE; broken ones are skipped, counted and logged."""
    pictures, broken = [], 0
    for path in paths:
        try:
            picture = load_photo(path, PhotoSpec(size=TRAINING_SIDE))
        except PhotoError as error:
            broken += 1
            logger.warning("skipped: %s", error)
            continue
        picture.thumbnail((TRAINING_SIDE, TRAINING_SIDE), Image.Resampling.BICUBIC)
        pictures.append(np.asarray(picture))
    if broken:
        logger.warning("%d of %d photos are broken and were skipped", broken, len(paths))
    if not pictures:
        raise DataError("none of the photos can be read")
    return pictures


class PairDataset(Dataset[dict[str, Any]]):
    """Item i is a pair of views, drawn from (seed, i) alone: the same item whatever worker or restart makes it.

    An item: pixel_values [2, 3, S, S], levels [2, A], ratings [2], severities [2, E], different (bool: the first must
    rank higher), and texts for the generation objectives.
    """

    def __init__(self, pictures: Sequence[np.ndarray], spec: PhotoSpec, length: int, seed: int) -> None:
        self.pictures = pictures
        self.spec = spec
        self.length = length
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        epoch, position = divmod(index, len(self.pictures))
        order = np.random.default_rng((self.seed, 7, epoch)).permutation(len(self.pictures))
        views = make_pair(self.pictures[order[position]], rng)
        return {
            "pixel_values": torch.stack([self._pixels(view) for view in views]),
            "levels": torch.tensor([view.levels for view in views]),
            "ratings": torch.tensor([view.rating for view in views]),
            "severities": torch.stack([_severities(view) for view in views]),
            "different": views[1].damage - views[0].damage > DIFFERENT,
            "texts": [_texts(view, rng) for view in views],
        }

    def _pixels(self, view: View) -> Tensor:
        return torch.from_numpy(to_pixel_values(Image.fromarray(view.picture), self.spec))


def _severities(view: View) -> Tensor:
    """Severity of each edit of `EDITS`, 0 where it was not made: [E]."""
    made = {edit.name: edit.severity for edit in view.edits}
    return torch.tensor([made.get(name, 0.0) for name in EDITS])


def _texts(view: View, rng: np.random.Generator) -> dict[str, Any]:
    """One instruction with its answer, and one cue per scale."""
    kind = rng.choice(["comment", "suggest", "ask"], p=[0.5, 0.3, 0.2])
    question, answer = None, ""
    if kind == "comment":
        answer = comment_text(view.levels, rng)
    elif kind == "suggest":
        answer = suggestion_text(view)
    else:
        question, answer = question_and_answer(view.levels, rng)
    cues = {scale: cue_text(view.levels, scale, rng) for scale in SCALES}
    return {"task": str(kind), "question": question, "answer": answer, "cues": cues}


class PairCollator:
    """Items -> one batch; views are flattened to [2P, ...] with the better view of pair p at 2p.

    text_every: every n-th view also carries a text task (generation costs far more tokens than scoring).
    """

    def __init__(self, encoder: PromptEncoder, prompts: dict[str, Prompt], text_every: int) -> None:
        self.encoder = encoder
        self.prompts = prompts
        self.text_every = text_every
        self.score_ids = split_prompt(prompts["score"], encoder)

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        texts = [text for item in items for text in item["texts"]]
        rows = list(range(0, len(texts), self.text_every))
        instructions, labels = [], []
        cues, cue_labels, cue_scales = [], [], []
        for n, row in enumerate(rows):
            text = texts[row]
            _, after = split_prompt(self.prompts[text["task"]], self.encoder, text["question"])
            answer = self.encoder.answer(text["answer"])
            instructions.append([*after, *answer])
            labels.append([-100] * len(after) + answer)
            scale = n % len(SCALES)
            cue = self.encoder.answer(text["cues"][SCALES[scale]])
            cues.append(cue)
            cue_labels.append(cue)
            cue_scales.append(scale)
        return {
            "pixel_values": torch.cat([item["pixel_values"] for item in items]),
            "levels": torch.cat([item["levels"] for item in items]),
            "ratings": torch.cat([item["ratings"] for item in items]),
            "severities": torch.cat([item["severities"] for item in items]),
            "different": torch.tensor([item["different"] for item in items]),
            "before": torch.tensor(self.score_ids[0]),
            "score_after": torch.tensor(self.score_ids[1]),
            "text_rows": torch.tensor(rows),
            "text_ids": pad_right(instructions, self.encoder.pad_token_id),
            "text_labels": pad_right(labels, -100),
            "cue_ids": pad_right(cues, self.encoder.pad_token_id),
            "cue_labels": pad_right(cue_labels, -100),
            "cue_scales": torch.tensor(cue_scales),
        }


def pad_right(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of different length -> [N, longest] int64, padded at the end."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])
