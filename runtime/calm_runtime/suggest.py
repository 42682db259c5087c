"""Suggestions that were tried: each edit is applied to the photo, the model scores the result, the gain is reported.

A model's score alone can be gamed, so it is not alone: edits and magnitudes come from `candidates`, the score
verifies them, and the ranking weighs the measured gain with the support the picture's own measurements give.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from calm_runtime.advice import read_opinion
from calm_runtime.candidates import Candidate, mend_tones, propose
from calm_runtime.mending import KINDS
from calm_runtime.photo import PhotoSpec, to_model_size, to_pixel_values
from calm_runtime.retouch import Amount, Edit, Framing, Tone, retouch
from calm_runtime.score import Score

LEAST_GAIN = 0.05  # rating points; below, a gain is not worth a user's time
LEAST_FURTHER_GAIN = 0.1  # of what is added to the tones of a composition
TOGETHER = (1.0, 0.7)  # shares of what the tones need, the first that gains is taken
SUPPORT_WEIGHT = 1.0  # rating points that one unit of support is worth in the ranking
_LEAST_SUPPORT = -3.0  # an edit the measurements speak against is gaming the model, whatever it gains
_FRAMING_SUPPORT = 0.8
_BATCH = 16


@dataclass(frozen=True)
class Suggestion:
    """One edit, verified. quality_after: the model's quality (`Score.quality`) of the edited photo; gain: that minus the quality before.

    support: log odds from the picture's statistics and the model's words that the edit mends the photo.
    """

    edit: Edit
    quality_after: float
    gain: float
    support: float

    @property
    def amount(self) -> Amount:
        """The edit's magnitude in `unit`."""
        return self.edit.amount

    @property
    def unit(self) -> str:
        return self.edit.unit

    @property
    def worth(self) -> float:
        """What suggestions are ranked by, in rating points."""
        return self.gain + SUPPORT_WEIGHT * self.support

    def to_json(self) -> dict[str, object]:
        return {"edit": self.edit.name, "amount": self.amount, "unit": self.unit,
                "quality_after": self.quality_after, "gain": self.gain}  # fmt: skip


@dataclass(frozen=True)
class Suggestions:
    """What to do about one photo, best first; empty when nothing gains.

    composition: the edits to make together, in order. quality_after: the quality with all of them, at model resolution.
    timings: milliseconds; "suggest" is the search.
    """

    photo: str
    score: Score
    suggestions: tuple[Suggestion, ...]
    composition: tuple[Edit, ...]
    quality_after: float
    timings: dict[str, float]

    def to_json(self) -> dict[str, object]:
        """The JSON record of the command line."""
        return {
            "path": self.photo,
            "score": self.score.mean,
            "technical": self.score.technical,
            "quality": self.score.quality,
            "suggestions": [suggestion.to_json() for suggestion in self.suggestions],
            "model": self.score.model,
            "bundle": self.score.bundle,
            "ms": self.timings,
        }


class Scorer(Protocol):
    """What verification needs of a model."""

    def score_pixels(self, pixels: npt.NDArray[np.float32], timings: Sequence[dict[str, float]]) -> list[Score]: ...


def find_suggestions(
    scorer: Scorer, spec: PhotoSpec, photo: str, picture: Image.Image, words: str, score: Score
) -> Suggestions:
    """Search, verify, rank, and compose what to do together.

    picture: as `leave_out_frame` gives it. words: the model's answer to "suggest". score: the untouched photo's.
    Raises EngineError or ScoreError.
    """
    start = perf_counter()
    candidates = propose(picture, read_opinion(score.attributes, words))
    ranked = rank(verify(scorer, spec, picture, candidates, score.quality))
    done, reached = _compose(scorer, spec, picture, ranked, score.quality)
    timings = score.timings | {"suggest": round((perf_counter() - start) * 1e3, 3)}
    timings["total"] = round(sum(ms for stage, ms in timings.items() if stage != "total"), 3)
    return Suggestions(photo, score, tuple(ranked), tuple(done), reached, timings)


def _compose(
    scorer: Scorer, spec: PhotoSpec, picture: Image.Image, ranked: Sequence[Suggestion], before: float
) -> tuple[list[Edit], float]:
    """What to do together, and the score it reaches.

    All that the tones need, if that gains, else the best single edit; then, one by one, detail and framing that are well
    supported and gain on top of it.
    """
    together: list[list[Edit]] = [[*edits] for share in TOGETHER if (edits := mend_tones(picture, share))]
    scores = score_edits(scorer, spec, picture, together)
    done, reached = next(
        ((edits, after) for edits, after in zip(together, scores, strict=True) if after - before >= LEAST_GAIN),
        ([ranked[0].edit], ranked[0].quality_after) if ranked and _composable(ranked[0]) else ([], before),
    )
    for suggestion in ranked:
        if suggestion.edit.name in (*KINDS, *(edit.name for edit in done)) or not _composable(suggestion):
            continue
        after = score_edits(scorer, spec, picture, [[*done, suggestion.edit]])[0]
        if after - reached >= LEAST_FURTHER_GAIN:
            done, reached = [*done, suggestion.edit], after
    return done, reached


def verify(
    scorer: Scorer,
    spec: PhotoSpec,
    picture: Image.Image,
    candidates: Iterable[Candidate],
    before: float,
) -> list[Suggestion]:
    """Apply each candidate to the picture and score the results. before: the picture's own quality."""
    kept = list(candidates)
    scores = score_edits(scorer, spec, picture, [[candidate.edit] for candidate in kept])
    return [
        Suggestion(candidate.edit, after, after - before, candidate.support)
        for candidate, after in zip(kept, scores, strict=True)
    ]


def score_edits(
    scorer: Scorer, spec: PhotoSpec, picture: Image.Image, compositions: Sequence[Sequence[Edit]]
) -> list[float]:
    """The quality of the picture after each list of edits. Tones are applied at model size, framing to the larger picture."""
    prepared = to_model_size(picture, spec)
    pixels = []
    for edits in compositions:
        framing = [edit for edit in edits if isinstance(edit, Framing)]
        framed = to_model_size(retouch(picture, framing), spec) if framing else prepared
        pixels.append(to_pixel_values(retouch(framed, [e for e in edits if isinstance(e, Tone)]), spec))
    scores: list[float] = []
    for start in range(0, len(pixels), _BATCH):
        batch = np.stack(pixels[start : start + _BATCH])  # [B, 3, S, S]
        scores += [score.quality for score in scorer.score_pixels(batch, [{} for _ in batch])]
    return scores


def rank(tried: Iterable[Suggestion]) -> list[Suggestion]:
    """The best magnitude of each kind of edit that gains and is not against the statistics, best kind first."""
    best: dict[str, Suggestion] = {}
    for suggestion in tried:
        if suggestion.gain < LEAST_GAIN or suggestion.support < _LEAST_SUPPORT:
            continue
        known = best.get(suggestion.edit.name)
        if known is None or suggestion.worth > known.worth:
            best[suggestion.edit.name] = suggestion
    return sorted(best.values(), key=lambda suggestion: -suggestion.worth)


def _composable(suggestion: Suggestion) -> bool:
    """Framing needs more support, because what it takes away does not come back; detail needs some."""
    if isinstance(suggestion.edit, Framing):
        return suggestion.support >= _FRAMING_SUPPORT
    return suggestion.edit.name in KINDS or suggestion.support > 0
