"""Personalised assessment in context (arXiv 2412.11952): a person's rated photos stand before the photo in the prompt.

The examples are read once. What the LLM made of them, its KV cache, is the profile; a new photo adds only its own query
tokens and the words of the prompt. `calm_train.personal` trains this form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from calm_runtime.errors import ProfileError
from calm_runtime.llm import KvCache, LanguageModel
from calm_runtime.prompt import EXAMPLE, PERSONAL, TextEncoder, split_prompt
from calm_runtime.rank_correlation import srcc
from calm_runtime.score import SCORE_HIGH, SCORE_LEVELS, SCORE_LOW, histogram_moments, score_histogram

if TYPE_CHECKING:
    from calm_runtime.bundle import Manifest

RATING_MIDDLE, RATING_SPREAD = 5.5, 2.2  # a person's mean rating, and one standard deviation, on the score scale
MOST_EXAMPLES = 47  # of a training sequence, less the photo to be rated
MOST_CACHE_BYTES = 32_000_000
MOST_WEIGHT = 0.5  # of an in-context reading that orders a person's photos as the person does
FOLDS = 5

Array = npt.NDArray[np.float64]
Embeds = npt.NDArray[np.float32]


@dataclass(frozen=True)
class InContextReader:
    """The parts of a bundle that read rated photos."""

    llm: LanguageModel
    text: TextEncoder
    manifest: Manifest

    @property
    def most_examples(self) -> int:
        """Examples that fit: the context, the sequences the model was trained on, and the file; 0 without such prompts."""
        prompts, spec = self.manifest.prompts, self.manifest.llm
        if PERSONAL not in prompts or EXAMPLE not in prompts:
            return 0
        segment = self._queries + len(self._text(EXAMPLE)) + 1
        room = (spec.context_length - segment - 1) // segment
        # Keys and values of every layer, two bytes a number.
        cached = MOST_CACHE_BYTES // (segment * spec.layers * spec.kv_heads * spec.head_dim * 2 * 2)
        return max(0, min(MOST_EXAMPLES, room, cached))

    def queries(self, image_embeds: Embeds) -> Embeds:
        """Of a photo's visual tokens [B, T, D] those of the three Q-Formers, [B, 3Q, D]."""
        return image_embeds[:, : self._queries]

    def read(self, queries: Embeds, standardised: Array) -> KvCache:
        """Read rated photos: queries [K, 3Q, D], ratings [K] in standard deviations from the person's mean.

        Raises UsageError when they do not fit into the context.
        """
        bos, _ = split_prompt(self.manifest.prompts[PERSONAL], self.text)
        ratings = np.rint(RATING_MIDDLE + RATING_SPREAD * standardised).clip(SCORE_LOW, SCORE_HIGH).astype(int)
        tokens = self.llm.embed([self.manifest.score.token_ids[rating - SCORE_LOW] for rating in ratings])  # [K, D]
        words = np.repeat(self.llm.embed(self._text(EXAMPLE))[None], len(ratings), axis=0)  # [K, S, D]
        segments = np.concatenate([queries, words, tokens[:, None]], axis=1)
        rows = segments.reshape(-1, segments.shape[-1])
        _, cache = self.llm.prefill(np.concatenate([self.llm.embed(bos), rows])[None])
        return cache

    def rate(self, image_embeds: Embeds, cache: KvCache) -> Array:
        """Expected ratings [B] of photos [B, T, D], in standard deviations from the person's mean.

        One photo after the other: the decoder extends a cache by several tokens for a single row only.
        Raises EngineError, or ScoreError when a number is not finite.
        """
        words = self.llm.embed(self._text(PERSONAL))
        rows = []
        for photo in self.queries(image_embeds):
            logits = self.llm.logits(np.concatenate([photo, words])[None], cache)
            rows.append(logits[0, list(self.manifest.score.token_ids)])
        means, _ = histogram_moments(score_histogram(np.array(rows, np.float32).reshape(-1, SCORE_LEVELS)))
        return np.asarray((means - RATING_MIDDLE) / RATING_SPREAD)

    def earned_weight(self, queries: Embeds, standardised: Array) -> float:
        """How much the in-context reading of a person's photos may count, 0 to MOST_WEIGHT: as far as it has proved itself.

        Parts of the rated photos [K, 3Q, D], [K] take turns at being rated from the others; the weight grows with the rank
        correlation of those ratings with the person's own, above the one standard error that chance reaches.
        """
        count = len(standardised)
        if count <= FOLDS or np.ptp(standardised) == 0:
            return 0.0
        folds = [np.arange(start, count, FOLDS) for start in range(FOLDS)]
        told = np.zeros(count)
        for asked in folds:
            others = np.setdiff1d(np.arange(count), asked)
            told[asked] = self.rate(queries[asked], self.read(queries[others], standardised[others]))
        if np.ptp(told) == 0:
            return 0.0
        return MOST_WEIGHT * max(0.0, srcc(told, standardised) - 1 / math.sqrt(count - 1))

    def unpack(self, tensors: dict[str, npt.NDArray[np.float16]]) -> KvCache:
        """The cache of `pack_cache`, as the decoder takes it. Raises ProfileError when it cannot be of this bundle."""
        spec = self.manifest.llm
        layers = []
        for layer in range(spec.layers):
            pair = [tensors.get(f"cache.{layer}.{name}") for name in ("key", "value")]
            for values in pair:
                wanted = (1, spec.kv_heads, spec.head_dim)
                if values is None or values.ndim != 4 or (*values.shape[:2], values.shape[3]) != wanted:
                    raise ProfileError("the profile's examples were not read by this bundle's LLM; build it again")
            layers.append(tuple(values.astype(self.llm.cache_dtype) for values in pair if values is not None))
        lengths = {values.shape[2] for pair in layers for values in pair}
        if len(lengths) != 1 or (length := lengths.pop()) >= spec.context_length:
            raise ProfileError("the profile's examples do not fit this bundle's LLM; build it again")
        return KvCache(tuple((key, value) for key, value in layers), length)

    @property
    def _queries(self) -> int:
        layout = self.manifest.visual_tokens
        return layout.low + layout.middle + layout.high

    def _text(self, prompt: str) -> list[int]:
        return split_prompt(self.manifest.prompts[prompt], self.text)[1]


def choose_examples(features: Array, standardised: Array, most: int) -> list[int]:
    """Which of N rated photos to show, at most `most`: diverse ones, in the order they were rated.

    Greedily the photo that differs most from those chosen (Gonzalez 1985), in what it looks like (features [N, F],
    standardised here) and, as much, in its rating; the first is the most ordinary one.
    """
    if most <= 0 or len(standardised) <= most:
        return list(range(min(len(standardised), max(most, 0))))
    looks = (features - features.mean(0)) / (features.std(0) + 1e-6) / np.sqrt(features.shape[1])
    space = np.concatenate([looks, standardised[:, None]], axis=1)
    chosen = [int(np.linalg.norm(space - space.mean(0), axis=1).argmin())]
    nearest = np.linalg.norm(space - space[chosen[0]], axis=1)
    while len(chosen) < most:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(space - space[chosen[-1]], axis=1))
    return sorted(chosen)


def pack_cache(cache: KvCache) -> dict[str, npt.NDArray[np.float16]]:
    """The cache as float16 tensors by name, for a file."""
    return {
        f"cache.{layer}.{name}": np.asarray(values, np.float16)
        for layer, pair in enumerate(cache.layers)
        for name, values in zip(("key", "value"), pair, strict=True)
    }


def standardise(ratings: Sequence[float] | Array) -> Array:
    """Ratings (not all equal) in standard deviations from their mean."""
    values = np.asarray(ratings, np.float64)
    return np.asarray((values - values.mean()) / values.std())
