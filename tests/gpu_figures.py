"""How far two batches are apart, and how long a call takes: what both suites for a GPU measure."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from calm_runtime.session import Array


def cosine(one: Array, other: Array) -> float:
    """Smallest cosine of the rows of two batches."""
    a, b = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (one, other))
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def seconds(work: Callable[[], object], runs: int = 30) -> float:
    """Median time of a call, after three to warm up."""
    times = []
    for _ in range(runs + 3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times[3:]))
