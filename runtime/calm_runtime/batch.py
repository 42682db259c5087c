"""Many photos: decoded ahead in threads, scored in batches, given back in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from calm_runtime.errors import CalmError, UsageError
from calm_runtime.photo import photo_name
from calm_runtime.score import Frame, Score

_DECODE_THREADS = min(4, os.cpu_count() or 1)
Timings = Sequence[dict[str, float]]  # per photo: milliseconds per stage so far
Frames = Sequence[Frame | None] | None  # per photo: the border that was left out; None for none of any


class Decoded(NamedTuple):
    """One photo as the model reads it: pixel_values [3, S, S] f32, {"decode": ms}, and the border that was left out."""

    pixels: npt.NDArray[np.float32]
    timings: dict[str, float]
    frame: Frame | None = None


@dataclass(frozen=True)
class Scored:
    """One photo's outcome: either `score` or `error` is set."""

    path: str
    score: Score | None = None
    error: CalmError | None = None


class BatchScorer(Protocol):
    """What batching needs of a model."""

    def decode(self, photo: str | Path | bytes) -> Decoded: ...

    def score_pixels(self, pixels: npt.NDArray[np.float32], timings: Timings, frames: Frames = None) -> list[Score]: ...


def score_in_batches(calm: BatchScorer, photos: Iterable[str | Path | bytes], batch_size: int = 8) -> Iterator[Scored]:
    """Yield one `Scored` per photo, in order; at most two batches of photos are held decoded.

    Neither a bad photo nor a failing batch costs a neighbour its score: a batch that fails is scored one by one.
    Raises UsageError at once when batch_size is below 1.
    """
    if batch_size < 1:
        raise UsageError(f"batch size must be 1 or more, not {batch_size}")
    return _score_in_batches(calm, iter(photos), batch_size)


def _score_in_batches(calm: BatchScorer, photos: Iterator[str | Path | bytes], batch_size: int) -> Iterator[Scored]:
    pool = ThreadPoolExecutor(_DECODE_THREADS, thread_name_prefix="decode")
    waiting: deque[tuple[str, Future[Decoded]]] = deque()

    def fill() -> None:
        while len(waiting) < 2 * batch_size:
            try:
                photo = next(photos)
            except StopIteration:
                return
            waiting.append((photo_name(photo), pool.submit(calm.decode, photo)))

    try:
        fill()
        while waiting:
            names: list[str] = []
            outcomes: list[Decoded | CalmError] = []
            good = 0
            # Bad photos do not count, or a folder of damaged files would be scored in batches of one.
            while waiting and good < batch_size and len(outcomes) < 2 * batch_size:
                name, future = waiting.popleft()
                outcome = _decoded(future)
                good += not isinstance(outcome, CalmError)
                names.append(name)
                outcomes.append(outcome)
                fill()
            scores = iter(_score(calm, [o for o in outcomes if not isinstance(o, CalmError)]))
            for name, outcome in zip(names, outcomes, strict=True):
                result = outcome if isinstance(outcome, CalmError) else next(scores)
                yield Scored(name, error=result) if isinstance(result, CalmError) else Scored(name, result)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _decoded(future: Future[Decoded]) -> Decoded | CalmError:
    try:
        return future.result()
    except CalmError as error:
        return error


def _score(calm: BatchScorer, decoded: list[Decoded]) -> list[Score | CalmError]:
    if not decoded:
        return []
    try:
        pixels = np.stack([one.pixels for one in decoded])  # [B, 3, S, S]
        return list(calm.score_pixels(pixels, [one.timings for one in decoded], [one.frame for one in decoded]))
    except CalmError as error:
        if len(decoded) == 1:
            return [error]
        return [outcome for one in decoded for outcome in _score(calm, [one])]
