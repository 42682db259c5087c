"""Promise of docs/embedding.md: one `Calm` may be shared by threads, and a score does not depend on them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from calm_runtime import Calm
from calm_runtime.score import Score

THREADS = 8


def timeless(score: Score) -> Score:
    return replace(score, timings={})


def test_eight_threads_get_exactly_the_scores_of_one(calm: Calm, example_photos: list[Path]) -> None:
    photos = example_photos[:4]
    alone = [timeless(calm.score(photo)) for photo in photos]
    assert len({score.mean for score in alone}) == len(photos)
    barrier = threading.Barrier(THREADS)

    def work(index: int) -> list[Score]:
        order = [(index + step) % len(photos) for step in range(len(photos))]  # neighbours score different photos
        barrier.wait()
        found = {at: timeless(calm.score(photos[at])) for at in order}
        return [found[at] for at in range(len(photos))]

    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(work, range(THREADS)))
    assert together == [alone] * THREADS
