"""The aligner: hidden states of four depths to visual tokens and attribute levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calm_runtime.session import Array, Session


class Aligned(NamedTuple):
    """What the aligner gives for a batch.

    image_embeds: [B, T, D] f32, visual tokens in prompt order low, middle, high, thematic.
    attribute_logits: [B, A, 3] f32; softmax over the last axis gives each attribute's level probabilities.
    """

    image_embeds: npt.NDArray[np.float32]
    attribute_logits: npt.NDArray[np.float32]


class PhotoFeatures(NamedTuple):
    """What is known of a batch before the LLM reads it.

    photo_embeds: [B, E] f32, each photo as one vector; on a GPU it stays there until it is read. timings: milliseconds
    per stage, each photo's share.
    """

    aligned: Aligned
    photo_embeds: Array
    timings: dict[str, float]


class Aligner:
    """hidden_low, hidden_middle, hidden_high, hidden_thematic [B, N, C] -> Aligned."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __call__(self, hidden: Mapping[str, Array]) -> Aligned:
        wanted = self._session.input_dtypes
        out = self._session.run({name: hidden[name] for name in wanted})
        return Aligned(
            out["image_embeds"].astype(np.float32, copy=False), out["attribute_logits"].astype(np.float32, copy=False)
        )

    def close(self) -> None:
        self._session.close()
