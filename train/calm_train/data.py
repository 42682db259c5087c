"""Training items and batches: pairs of views of unlabelled photos, and what labelled flows add to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PretrainedConfig

from calm_runtime.attributes import SCALES
from calm_runtime.photo import PhotoSpec, to_pixel_values
from calm_runtime.prompt import EXAMPLE, Prompt, split_prompt
from calm_train.flows import Flow
from calm_train.library import Picture
from calm_train.pretext.edits import EDITS
from calm_train.pretext.texts import comment_text, cue_text, question_and_answer, suggestion_text
from calm_train.pretext.view import DIFFERENT, LIKED, View, make_pair
from calm_train.taste_teacher import teacher_pixels


class PromptEncoder:
    """The runtime's view of a tokenizer (`calm_runtime.prompt.TextEncoder`), for training.

    config: of the LLM, for its special token ids (`calm_train.build` makes sure that they are set).
    """

    def __init__(self, tokenizer: Tokenizer, config: PretrainedConfig) -> None:
        self.tokenizer = tokenizer
        tokenizer.encode_special_tokens = True
        self.bos_token_id: int = config.bos_token_id
        self.eos_token_id: int = config.eos_token_id
        self.pad_token_id: int = config.pad_token_id

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer: one space, the text, end of sequence."""
        return [*self.encode(" " + text), self.eos_token_id]


class PairDataset(Dataset[dict[str, Any]]):
    """Item i is a pair of views, drawn from (seed, i) alone: the same item whatever worker or restart makes it.

    An item: photo (its number), pixel_values [2, 3, S, S], levels [2, A], quantities [2, M], ratings [2], severities [2, E], gap and
    disliked_gap (0..1: how much it counts that the first ranks higher, technically and in people's votes), harmless
    (whether people would vote alike), texts for the
    generation objectives, `labelled` photos of each flow and, for a teacher, teacher_pixels [2, 3, 3, 224, 224] uint8.

    taught: whether a teacher will label the views. mask: in every other pair up to this share of the patches is hidden, the same ones in both views. patch: their side.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        spec: PhotoSpec,
        length: int,
        seed: int,
        flows: Sequence[Flow] = (),
        labelled: int = 1,
        mask: float = 0.0,
        patch: int = 16,
        taught: bool = False,
    ) -> None:
        self.pictures = pictures
        self.spec = spec
        self.length = length
        self.seed = seed
        self.flows = flows
        self.labelled = labelled
        self.mask = mask
        self.patch = patch
        self.taught = taught

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        epoch, position = divmod(index, len(self.pictures))
        order = np.random.default_rng((self.seed, 7, epoch)).permutation(len(self.pictures))
        photo = int(order[position])
        views = make_pair(self.pictures[photo], rng)
        numbers = range(index * self.labelled, (index + 1) * self.labelled)
        pixels = torch.stack([self._pixels(view) for view in views])
        taught = (
            {"teacher_pixels": torch.stack([teacher_pixels(view.picture) for view in views])} if self.taught else {}
        )
        return taught | {
            "photo": photo,
            "pixel_values": pixels * self._shown(rng),
            "levels": torch.tensor([view.levels for view in views]),
            "quantities": torch.tensor([view.quantities for view in views]),
            "ratings": torch.tensor([view.rating for view in views]),
            "severities": torch.stack([_severities(view) for view in views]),
            "gap": min(1.0, (views[1].damage - views[0].damage) / DIFFERENT),
            "disliked_gap": min(1.0, (views[1].disliked - views[0].disliked) / DIFFERENT),
            "harmless": _harmless(views),
            "texts": [_texts(view, rng) for view in views],
            "labelled": [flow[number] for flow in self.flows for number in numbers],
        }

    def _shown(self, rng: np.random.Generator) -> Tensor:
        """1 where a pixel is shown, 0 (the mean colour) in hidden patches: [S, S]."""
        share = self.mask * float(rng.uniform()) if self.mask and rng.integers(2) else 0.0
        side = self.spec.size // self.patch
        kept = torch.from_numpy(rng.random((side, side)) >= share).float()
        grown = kept.repeat_interleave(self.patch, 0).repeat_interleave(self.patch, 1)
        return F.pad(grown, (0, self.spec.size - grown.shape[1], 0, self.spec.size - grown.shape[0]), value=1.0)

    def _pixels(self, view: View) -> Tensor:
        return torch.from_numpy(to_pixel_values(Image.fromarray(view.picture), self.spec))


def _harmless(views: tuple[View, View]) -> bool:
    """Whether what the second view has more than the first costs no votes."""
    first = {edit.name for edit in views[0].edits}
    return all(edit.name in first or edit.name in LIKED for edit in views[1].edits)


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


class BatchCollator:
    """Items -> one batch; views are flattened to [2P, ...] with the better view of pair p at 2p.

    text_every: every n-th view also carries a text task (generation costs far more tokens than scoring).
    longest: tokens of an answer beyond this are cut.
    """

    def __init__(
        self, encoder: PromptEncoder, prompts: Mapping[str, Prompt], text_every: int, longest: int = 512
    ) -> None:
        self.encoder = encoder
        self.prompts = prompts
        self.text_every = text_every
        self.longest = longest
        self.score_ids = split_prompt(prompts["score"], encoder)
        self.example_ids = split_prompt(prompts[EXAMPLE], encoder) if EXAMPLE in prompts else ([], [])

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        texts = [text for item in items for text in item["texts"]]
        rows = list(range(0, len(texts), self.text_every))
        cues = [
            self.encoder.answer(texts[row]["cues"][SCALES[n % len(SCALES)]])[: self.longest]
            for n, row in enumerate(rows)
        ]
        text_ids, text_labels = self._instructions([texts[row] for row in rows])
        batch = {
            "pixel_values": torch.cat([item["pixel_values"] for item in items]),
            "levels": torch.cat([item["levels"] for item in items]),
            "quantities": torch.cat([item["quantities"] for item in items]),
            "ratings": torch.cat([item["ratings"] for item in items]),
            "severities": torch.cat([item["severities"] for item in items]),
            "gap": torch.tensor([item["gap"] for item in items]),
            "disliked_gap": torch.tensor([item["disliked_gap"] for item in items]),
            "harmless": torch.tensor([item["harmless"] for item in items]),
            "before": torch.tensor(self.score_ids[0]),
            "score_after": torch.tensor(self.score_ids[1]),
            "example_after": torch.tensor(self.example_ids[1], dtype=torch.int64),
            "text_rows": torch.tensor(rows),
            "text_ids": text_ids,
            "text_labels": text_labels,
            "cue_ids": pad_right(cues, self.encoder.pad_token_id),
            "cue_labels": pad_right(cues, -100),
            "cue_scales": torch.tensor([n % len(SCALES) for n in range(len(rows))]),
        }
        for key in ("teacher_pixels", "votes"):  # what a teacher looks at, or what it said before
            if key in items[0]:
                batch[key] = torch.cat([item[key] for item in items])
        return batch | self._labelled([example for item in items for example in item["labelled"]])

    def _labelled(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        rated = [example for example in examples if example["histogram"] is not None]
        told = [example for example in examples if example["histogram"] is None]
        batch = {}
        if rated:
            batch["rated_pixels"] = torch.stack([example["pixel_values"] for example in rated])
            batch["rated_histograms"] = torch.stack([example["histogram"] for example in rated])
        if told:
            batch["told_pixels"] = torch.stack([example["pixel_values"] for example in told])
            batch["told_ids"], batch["told_labels"] = self._instructions(told)
        return batch

    def _instructions(self, texts: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """Token ids after the photo [N, S] and labels [N, S], -100 where nothing is to be learnt."""
        ids, labels = [], []
        for text in texts:
            _, after = split_prompt(self.prompts[text["task"]], self.encoder, text["question"])
            answer = self.encoder.answer(text["answer"])[: self.longest]
            ids.append([*after, *answer])
            labels.append([-100] * len(after) + answer)
        return pad_right(ids, self.encoder.pad_token_id), pad_right(labels, -100)


def pad_right(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of different length -> [N, longest] int64, padded at the end."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])
