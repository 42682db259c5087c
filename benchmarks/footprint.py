"""Start-up and memory of the runtime: import, cold start of `calm score`, resident memory, and its slope over a loop.

python benchmarks/footprint.py --photos DIR [--loop 2000]     writes footprint.json and footprint.md beside itself

Every start-up figure is the median of fresh processes (files in the page cache). The loop scores the photos of --photos
over and over in one process; its slope is a straight line fitted to resident memory over the second half.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from itertools import cycle, islice
from pathlib import Path

import click
import numpy as np

HERE = Path(__file__).parent
STARTS = 9
PROFILED = 200
EVERY = 20  # photos between two readings of memory
PEAK = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"


def seconds(command: list[str]) -> float:
    """Median wall time of a command in fresh processes, after one that fills the page cache."""
    spent = []
    for _ in range(STARTS + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        spent.append(time.perf_counter() - start)
    return statistics.median(spent[1:])


def peak_mb(code: str) -> float:
    """Peak resident memory of a fresh Python process that runs `code`, in MB."""
    done = subprocess.run([sys.executable, "-c", f"{code}\n{PEAK}"], check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1]) * 1024 / 1e6


def resident_mb() -> float:
    """Resident memory of this process now, in MB (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def loop(photos: list[Path], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Score `count` photos. Returns photos scored and resident MB at each reading."""
    from calm_runtime import Calm

    seen, memory = [], []
    with Calm.load() as calm:
        for number, _ in enumerate(calm.score_many(islice(cycle(photos), count)), start=1):
            if number % EVERY == 0:
                seen.append(number)
                memory.append(resident_mb())
    return np.array(seen), np.array(memory)


def profile_cost(photos: list[Path]) -> float:
    """Median time of a score with a profile over that of a plain one, taken in turns."""
    from calm_runtime import Calm
    from calm_runtime.profile import PersonalScorer, build_profile
    from calm_runtime.ratings import PhotoRating

    with Calm.load() as calm:
        profile, _ = build_profile(calm, [PhotoRating(path, n % 5) for n, path in enumerate(photos[:30])])
        personal = PersonalScorer(calm, profile)
        spent: dict[str, list[float]] = {"plain": [], "personal": []}
        for path in islice(cycle(photos), PROFILED):
            for name, score in (("plain", calm.score), ("personal", personal.score)):
                start = time.perf_counter()
                score(path)
                spent[name].append(time.perf_counter() - start)
    return statistics.median(spent["personal"]) / statistics.median(spent["plain"])


@click.command(help=__doc__)
@click.option("--photos", type=click.Path(path_type=Path), required=True)
@click.option("--loop", "count", default=2000, show_default=True)
def main(photos: Path, count: int) -> None:
    paths = sorted(p for p in photos.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    one = str(paths[0])
    bare = seconds([sys.executable, "-c", "pass"])
    package = seconds([sys.executable, "-c", "import calm_runtime"])
    imported = seconds([sys.executable, "-c", "import calm_runtime; calm_runtime.Calm"])
    cold = seconds([str(Path(sys.executable).with_name("calm")), "score", one])
    loaded = peak_mb("from calm_runtime import Calm; Calm.load()")
    scored = peak_mb(f"from calm_runtime import Calm; Calm.load().score({one!r})")
    seen, memory = loop(paths, count)
    half = seen > count / 2
    slope = float(np.polyfit(seen[half], memory[half], 1)[0]) * 1000
    figures = {
        "import of calm_runtime, s": round(package - bare, 3),
        "import of calm_runtime.Calm, s": round(imported - bare, 3),
        "cold start of `calm score` to the printed result, s": round(cold, 3),
        "peak memory after loading, MB": round(loaded, 1),
        "peak memory after one score, MB": round(scored, 1),
        f"resident memory after {count // 2} photos, MB": round(float(memory[seen.searchsorted(count // 2)]), 1),
        f"resident memory after {count} photos, MB": round(float(memory[-1]), 1),
        "slope over the second half, MB per 1,000 photos": round(slope, 3),
        "time of a score with a profile, relative to one without": round(profile_cost(paths), 2),
    }
    header = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    (HERE / "footprint.json").write_text(json.dumps({**header, "figures": figures}, indent=2) + "\n")
    lines = ["# Start-up and memory, calm-nano", "", f"{header['date']}, {header['machine']}.", ""]
    lines += ["| figure | value |", "| --- | ---: |", *(f"| {name} | {value} |" for name, value in figures.items())]
    text = "\n".join(lines) + "\n"
    (HERE / "footprint.md").write_text(text)
    click.echo(text)


if __name__ == "__main__":
    main()
