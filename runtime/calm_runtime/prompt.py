"""Prompts per task. A prompt is a list of parts; images and user text enter by slot, never by scanning text."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from calm_runtime.errors import UsageError

Task = Literal["score", "comment", "suggest", "ask"]
Slot = Literal["bos", "image", "question", "examples", "queries", "rating"]
IMAGE_SLOTS = ("image", "queries")


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Either literal text or a slot; exactly one of the two is set."""

    text: str | None = None
    slot: Slot | None = None


Prompt = tuple[Part, ...]

_IMAGE = (Part(slot="bos"), Part(slot="image"))
_RATED = (Part(slot="queries"), Part(text="\nRating:"))

PERSONAL, EXAMPLE = "personal", "example"

PROMPTS: dict[str, Prompt] = {
    "score": (*_IMAGE, Part(text="\nCan you give me the aesthetic score?\nAnswer:")),
    "comment": (*_IMAGE, Part(text="\nComment on this photo.\nAnswer:")),
    "suggest": (*_IMAGE, Part(text="\nHow can this photo be improved?\nAnswer:")),
    "ask": (*_IMAGE, Part(text="\n"), Part(slot="question"), Part(text="\nAnswer:")),
    # A person's rating of a photo, read as a score is. `queries` is a photo by the tokens of its three Q-Formers alone,
    # so that many fit; `examples` is any number of EXAMPLE segments: photos with the score token of the rating given.
    PERSONAL: (Part(slot="bos"), Part(slot="examples"), *_RATED),
    EXAMPLE: (*_RATED, Part(slot="rating")),
}


class TextEncoder(Protocol):
    """What a prompt needs of a tokenizer."""

    bos_token_id: int

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text: no special token is added, and none is recognised inside the text."""
        ...


def split_prompt(prompt: Prompt, encoder: TextEncoder, question: str | None = None) -> tuple[list[int], list[int]]:
    """Token ids before and after the image slot (`image` or `queries`); `examples` and `rating` are the caller's.

    Raises UsageError when the prompt asks for a question and none (or an empty one) is given.
    """
    before: list[int] = []
    after: list[int] = []
    target = before
    for part in prompt:
        if part.text is not None:
            target.extend(encoder.encode(part.text))
        elif part.slot == "bos":
            target.append(encoder.bos_token_id)
        elif part.slot in IMAGE_SLOTS:
            target = after
        elif part.slot == "question":
            if not question or not question.strip():
                raise UsageError("this task needs a question; give one as text")
            target.extend(encoder.encode(" ".join(question.split())))
    return before, after
