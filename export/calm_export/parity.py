"""The parity gate: torch and the exported graphs must see the same thing in the same photos."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from calm_export.figures import cosine_per_photo
from calm_runtime.aligner import Aligner
from calm_runtime.bundle import ParityRow, Precision
from calm_runtime.errors import ExportError
from calm_runtime.llm import LanguageModel
from calm_runtime.onnx_session import OnnxSession
from calm_runtime.photo import PhotoSpec, to_pixel_values
from calm_runtime.prompt import Prompt, split_prompt
from calm_runtime.rank_correlation import srcc
from calm_runtime.score import histogram_moments, score_histogram
from calm_runtime.text import TextTokenizer
from calm_runtime.vision import VISION_OUTPUTS, VisionEncoder
from calm_train.config import CalmConfig
from calm_train.model import CalmForConditionalGeneration

Array = npt.NDArray[np.float32]

MIN_COSINE = {
    "fp32": 0.9999,
    "fp16": 0.999,
    "bf16": 0.999,
    "int8": 0.99,
    "int8-dynamic": 0.99,
    "fp8": 0.99,
    "int4": 0.99,
}
MAX_SCORE_DIFFERENCE = {"fp32": 0.02, "fp16": 0.05, "int8": 0.15, "int8-dynamic": 0.15, "fp8": 0.15, "int4": 0.15}
MIN_SRCC = 0.99
RATINGS = ("score", "technical")
_BATCH = 4

logger = logging.getLogger(__name__)


class Ratings(NamedTuple):
    """Expected ratings of photos, on the rating scale: scores [P] and technical [P] f64."""

    scores: npt.NDArray[np.float64]
    technical: npt.NDArray[np.float64]


class RatingIds(NamedTuple):
    """Ids of the tokens that ratings are read from, lowest rating first."""

    scores: tuple[int, ...]
    technical: tuple[int, ...]


@dataclass(frozen=True)
class Seen:
    """What one side makes of the gate's photos. features: name -> [P, ...] f32; ratings: what the LLM reads in them."""

    features: dict[str, Array]
    ratings: Ratings


def pixel_batch(pictures: Iterable[Image.Image], spec: PhotoSpec) -> Array:
    """RGB pictures -> pixel_values [P, 3, S, S] f32."""
    return np.stack([to_pixel_values(picture, spec) for picture in pictures])


def torch_side(model: CalmForConditionalGeneration, pixels: Array, prompt: Prompt, text: TextTokenizer) -> Seen:
    """The reference: pixel_values [P, 3, S, S] through the torch model."""
    parts: dict[str, list[Array]] = {}
    for start in range(0, len(pixels), _BATCH):
        for name, value in torch_features(model, pixels[start : start + _BATCH]).items():
            parts.setdefault(name, []).append(value)
    features = {name: np.concatenate(values) for name, values in parts.items()}
    return Seen(features, torch_ratings(model, features["image_embeds"], prompt, text))


def torch_features(model: CalmForConditionalGeneration, pixels: Array) -> dict[str, Array]:
    """The torch model's features of one batch: pixel_values [B, 3, S, S] -> name -> [B, ...] f32."""
    with torch.inference_mode():
        hidden = model.vision_encoder(torch.from_numpy(pixels))
        aligned = model.aligner(hidden)
        outputs = dict(zip(VISION_OUTPUTS, hidden, strict=True))
        outputs |= {"image_embeds": aligned.image_embeds, "attribute_logits": model.attribute_logits(aligned)}
        return {name: value.numpy() for name, value in outputs.items()}


def onnx_features(vision: Path, aligner: Path, pixels: Array) -> dict[str, Array]:
    """Features of pixel_values [P, 3, S, S] by the exported graphs, through the runtime's own classes."""
    encoder, mfam = VisionEncoder(OnnxSession(vision)), Aligner(OnnxSession(aligner))
    parts: dict[str, list[Array]] = {}
    for start in range(0, len(pixels), _BATCH):
        for name, value in bundle_features(encoder, mfam, pixels[start : start + _BATCH]).items():
            parts.setdefault(name, []).append(value)
    return {name: np.concatenate(values) for name, values in parts.items()}


def bundle_features(encoder: VisionEncoder, mfam: Aligner, pixels: Array) -> dict[str, Array]:
    """The exported graphs' features of one batch: pixel_values [B, 3, S, S] -> name -> [B, ...] f32."""
    hidden = encoder(pixels)
    return {**hidden, **mfam(hidden)._asdict()}


def onnx_ratings(
    llm: LanguageModel,
    image_embeds: Array,
    prompt: Prompt,
    text: TextTokenizer,
    ids: RatingIds,
    *,
    token_by_token: bool = False,
) -> Ratings:
    """Ratings of image_embeds [P, T, D] by the exported LLM, one photo at a time as a user would ask."""
    before, after = split_prompt(prompt, text)
    read = decode_logits if token_by_token else prefill_logits
    return ratings_of(np.stack([read(llm, embeds, before, after) for embeds in image_embeds]), ids)


def prefill_logits(llm: LanguageModel, image_embeds: Array, before: Sequence[int], after: Sequence[int]) -> Array:
    """Logits [V] after a prompt with image_embeds [T, D], read at once."""
    logits, _ = llm.prefill(np.concatenate([llm.embed(before), image_embeds, llm.embed(after)])[None])
    row: Array = logits[0]
    return row


def decode_logits(llm: LanguageModel, image_embeds: Array, before: Sequence[int], after: Sequence[int]) -> Array:
    """The same with what follows the image read token by token, by the graph that reads what the LLM writes."""
    _, cache = llm.prefill(np.concatenate([llm.embed(before), image_embeds])[None])
    read = llm.decoder(cache, len(after))
    row: Array = [read(token) for token in after][-1][0]
    return row


def torch_ratings(
    model: CalmForConditionalGeneration, image_embeds: Array, prompt: Prompt, text: TextTokenizer
) -> Ratings:
    """Ratings of image_embeds [P, T, D] by the torch LLM: what the graphs before it cost, the LLM's own rounding aside."""
    before, after = split_prompt(prompt, text)
    logits: list[Array] = []
    with torch.inference_mode():
        for start in range(0, len(image_embeds), _BATCH):
            batch = torch.from_numpy(image_embeds[start : start + _BATCH])
            ids = [torch.tensor([side]).expand(len(batch), -1) for side in (before, after)]
            read = model.llm(inputs_embeds=model.prompt_embeds(batch, *ids)).logits[:, -1]
            logits.append(read.numpy())
    return ratings_of(np.concatenate(logits), rating_ids(model.config))


def rating_ids(config: CalmConfig) -> RatingIds:
    """The checkpoint's tokens of both questions."""
    return RatingIds(tuple(config.score_token_ids), tuple(config.technical_token_ids))


def coarser(left: Precision, right: Precision) -> Precision:
    """Of two precisions in one chain the coarser one, whose gates hold for both."""
    return max(left, right, key=list(MAX_SCORE_DIFFERENCE).index)  # from fine to coarse


def ratings_of(logits: Array, ids: RatingIds) -> Ratings:
    """What logits [P, V] at the answer position say."""
    return Ratings(*(scores_of(logits[:, list(tokens)]) for tokens in ids))


def scores_of(logits: Array) -> npt.NDArray[np.float64]:
    """Mean ratings [P] of the logits [P, 10] of one scale's tokens."""
    mean, _ = histogram_moments(score_histogram(logits))
    return mean


def feature_rows(reference: Seen, features: dict[str, Array], precision: str) -> list[ParityRow]:
    """One row per feature: the smallest cosine over the photos."""
    rows = []
    for name, value in features.items():
        stage = "vision_encoder" if name in VISION_OUTPUTS else "aligner"
        cosine = float(cosine_per_photo(reference.features[name], value).min())
        rows.append(_row(stage, f"{name} cosine min", cosine, MIN_COSINE[precision], True, len(value)))
    return rows


def rating_rows(reference: Seen, ratings: Ratings, precision: str) -> list[ParityRow]:
    """Largest difference, and rank correlation, of the scores and of the technical ratings."""
    rows = []
    for what, expected, found in zip(RATINGS, reference.ratings, ratings, strict=True):
        difference, gate = float(np.abs(expected - found).max()), MAX_SCORE_DIFFERENCE[precision]
        rows.append(_row("llm", f"{what} difference max", difference, gate, False, len(found)))
        rows.append(_row("llm", f"{what} SRCC", srcc(expected, found), MIN_SRCC, True, len(found)))
    return rows


def golden_rows(reference: Seen, ratings: Ratings, precision: str) -> list[ParityRow]:
    """How far the finished bundle's ratings of the examples are from the torch model's."""
    rows = []
    for what, expected, found in zip(RATINGS, reference.ratings, ratings, strict=True):
        difference, gate = float(np.abs(expected - found).max()), MAX_SCORE_DIFFERENCE[precision]
        rows.append(_row("bundle", f"golden {what} difference max", difference, gate, False, len(found)))
    return rows


def describe(rows: Iterable[ParityRow]) -> str:
    """The rows that missed their gate, in words."""
    missed = [f"{r.stage} {r.metric} is {r.value:.5f}, the gate is {r.gate}" for r in rows if not r.passed]
    return "; ".join(missed)


def require(rows: Iterable[ParityRow], what: str) -> None:
    """Raise ExportError with the numbers unless every row met its gate."""
    missed = describe(rows)
    if missed:
        raise ExportError(f"{what} misses the parity gate: {missed}")


def _row(stage: str, metric: str, value: float, gate: float, at_least: bool, photos: int) -> ParityRow:
    # A NaN compares false both ways: it never passes
    passed = value >= gate if at_least else value <= gate
    logger.info("parity %s %s: %.6f (gate %s)", stage, metric, value, gate)
    return ParityRow(stage, metric, round(value, 6), gate, bool(passed), photos)
