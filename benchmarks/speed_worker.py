"""One engine in a fresh process: loads it, times it, prints one JSON object. `speed.py` starts it."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

PROMPT = 256  # tokens of the LLM's prefill, much as a photo and its question take
DECODED = 32
BATCH = 8
LONGEST = 2.0  # seconds for the repeats of one figure


def timed(call: Callable[[], object], at_least: int = 3, at_most: int = 30) -> float:
    """Median milliseconds of a call, warm."""
    spent: list[float] = []
    while len(spent) < at_least or (sum(spent) < LONGEST and len(spent) < at_most):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return 1e3 * median(spent)


def peak_mb() -> float:
    """Peak resident memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure(name: str, folder: Path, threads: int, started: float) -> dict[str, Any]:
    """All figures of an engine. started: `time.monotonic` when the process was asked for."""
    import numpy as np
    from speed_engines import open_engine
    from speed_models import read_shape

    shape = read_shape(folder)
    rng = np.random.default_rng(0)
    engine = open_engine(name, folder, shape, threads)
    row: dict[str, Any] = {"load_s": time.monotonic() - started}
    if engine.score is not None:
        pixels = rng.standard_normal((BATCH, 3, shape.photo_size, shape.photo_size), np.float32)
        engine.score(pixels[:1])
        row["cold_s"] = time.monotonic() - started
        row["score_ms"] = timed(lambda: engine.score(pixels[:1]))
        row["peak_mb"] = peak_mb()
    if engine.prefill is not None and engine.decode is not None:
        embeds = 0.05 * rng.standard_normal((1, PROMPT, shape.llm.hidden_size), np.float32)
        engine.prefill(embeds)
        row["prefill_tok_s"] = 1e3 * PROMPT / timed(lambda: engine.prefill(embeds))
        engine.decode(2)
        rates = []
        for _ in range(3):
            engine.prefill(embeds)
            start = time.perf_counter()
            engine.decode(DECODED)
            rates.append(DECODED / (time.perf_counter() - start))
        row["decode_tok_s"] = median(rates)
        row["text_peak_mb"] = peak_mb()
        row.setdefault("peak_mb", row["text_peak_mb"])
    if engine.score is not None:
        engine.score(pixels)
        row["batch_ms"] = timed(lambda: engine.score(pixels), at_least=2) / BATCH
        row["batch_peak_mb"] = peak_mb()
    return row


if __name__ == "__main__":
    engine_name, place, count, begun = sys.argv[1:]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(count)])
    print(json.dumps(measure(engine_name, Path(place), int(count), float(begun))))
