"""Do personal profiles learn a taste? Simulated raters of opposite tastes, at 10, 30 and 100 ratings.

python benchmarks/profiles.py --rated DIR --held-out DIR     writes profiles.json and profiles.md beside itself

A rater rates 1 to 5 by one measured property of a photo (the fifth of the photos that have most of it gets 5), with
a fifth of a standard deviation of noise. Profiles learn from k photos of --rated; the rank correlation (SRCC) with
the rater's own ratings is taken on all photos of --held-out, mean over repeats with other photos. Beside the profile
stand its two parts: the light head, and the model's in-context reading of the rated photos.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageFilter
from scipy.stats import rankdata

from calm_runtime import Calm
from calm_runtime.photo import load_photo
from calm_train.evaluation.personal import learn_ways, look, srcc
from calm_train.library import find_photos

HERE = Path(__file__).parent
COUNTS = (10, 30, 100)
REPEATS = 5


def _saturation(picture: Image.Image) -> float:
    return float(np.asarray(picture.convert("HSV"))[..., 1].mean())


def _brightness(picture: Image.Image) -> float:
    return float(np.asarray(picture.convert("L")).mean())


def _sharpness(picture: Image.Image) -> float:
    gray = picture.convert("L")
    return float(np.asarray(gray.filter(ImageFilter.FIND_EDGES), np.float64)[2:-2, 2:-2].std())


def _framing(picture: Image.Image) -> float:
    """How much of the detail lies in the middle half: a subject far away, as against one that fills the frame."""
    edges = np.asarray(picture.convert("L").filter(ImageFilter.FIND_EDGES), np.float64)[2:-2, 2:-2]
    height, width = edges.shape
    middle = edges[height // 4 : height - height // 4, width // 4 : width - width // 4]
    return float(middle.sum() / (edges.sum() + 1))


def _symmetry(picture: Image.Image) -> float:
    gray = np.asarray(picture.convert("L").resize((32, 32)), np.float64)
    return float(np.corrcoef(gray.ravel(), gray[:, ::-1].ravel())[0, 1])


def _warmth(picture: Image.Image) -> float:
    red, _, blue = np.asarray(picture, np.float64).mean(axis=(0, 1))
    return float((red - blue) / (red + blue + 1))


TASTES: dict[str, Callable[[Image.Image], float]] = {
    "saturated": _saturation,
    "muted": lambda p: -_saturation(p),
    "bright": _brightness,
    "dark": lambda p: -_brightness(p),
    "sharp": _sharpness,
    "soft": lambda p: -_sharpness(p),
    "symmetric": _symmetry,
    "wide": _framing,
    "tight": lambda p: -_framing(p),
    "warm": _warmth,
}


def rate(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ratings 1..5 by fifths of a noisy property."""
    noisy = values + 0.2 * values.std() * rng.normal(size=len(values))
    return np.ceil(5 * rankdata(noisy) / len(noisy)).clip(1, 5)


@click.command(help=__doc__)
@click.option("--rated", type=click.Path(path_type=Path), required=True)
@click.option("--held-out", type=click.Path(path_type=Path), required=True)
def main(rated: Path, held_out: Path) -> None:
    calm = Calm.load()
    paths, others = find_photos(rated), find_photos(held_out)
    seen = look(calm, [*paths, *others])
    known, tested = (np.array([seen.rows[path] for path in group if path in seen.rows]) for group in (paths, others))
    pictures = {path: load_photo(path) for path in seen.rows}
    in_order = [list(seen.rows)[row] for row in (*known, *tested)]
    table: dict[str, dict[str, dict[str, float]]] = {}
    for taste, measure in TASTES.items():
        values = np.array([measure(pictures[path]) for path in in_order])
        truth = rate(values[len(known) :], np.random.default_rng(0))
        base = srcc(seen.scores[tested], truth)
        table[taste] = {}
        for count in COUNTS:
            found: dict[str, list[float]] = {}
            for repeat in range(REPEATS):
                rng = np.random.default_rng((count, repeat))
                chosen = rng.choice(len(known), count, replace=False)
                ratings = rate(values[: len(known)], rng)[chosen]
                for way, expected in learn_ways(calm, seen, known[chosen], ratings, tested).items():
                    found.setdefault(way, []).append(srcc(expected, truth))
            table[taste][str(count)] = {"base": base, **{way: float(np.mean(found[way])) for way in found}}
        click.echo(f"{taste}: {table[taste]}", err=True)
    header = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "rated": len(known),
        "held_out": len(tested),
        "repeats": REPEATS,
        "bundle": calm.bundle.digest,
    }
    (HERE / "profiles.json").write_text(json.dumps({**header, "srcc": table}, indent=2) + "\n")
    text = report(header, table)
    (HERE / "profiles.md").write_text(text)
    click.echo(text)


def report(header: dict[str, object], table: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown: a row per taste; in each cell profile (light head / in context)."""
    lines = [
        "# Personal profiles against simulated raters",
        "",
        f"{header['date']}, {header['machine']}, bundle `{str(header['bundle'])[:12]}`; profiles learnt on k of",
        f"{header['rated']} photos, SRCC on {header['held_out']} held-out photos, mean of {header['repeats']} repeats.",
        "In each cell: the profile, and in brackets its light head alone / its in-context reading alone.",
        "",
        f"| the rater likes | base score | {' | '.join(f'k = {count}' for count in COUNTS)} |",
        f"| --- | ---: |{' ---: |' * len(COUNTS)}",
    ]

    def cell(ways: dict[str, float]) -> str:
        parts = " / ".join(f"{ways[part]:.2f}" for part in ("head", "context") if part in ways)
        return f"{ways['personal']:.2f} ({parts})"

    rows = dict(table)
    rows["**mean**"] = {
        str(count): {
            way: float(np.mean([row[str(count)][way] for row in table.values()])) for way in table["bright"][str(count)]
        }
        for count in COUNTS
    }
    for name, row in rows.items():
        base = row[str(COUNTS[0])]["base"]
        lines.append(f"| {name} | {base:.2f} | {' | '.join(cell(row[str(count)]) for count in COUNTS)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
