"""Do personal profiles learn a taste? Simulated raters of opposite tastes, at 10, 30 and 100 ratings.

python benchmarks/profiles.py --rated DIR --held-out DIR     writes profiles.json and profiles.md beside itself

A rater rates 1 to 5 by one measured property of a photo (the fifth of the photos that have most of it gets 5), with
a fifth of a standard deviation of noise. Profiles learn from k photos of --rated; the rank correlation (SRCC) with
the rater's own ratings is taken on all photos of --held-out, mean over repeats with other photos.
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
from scipy.stats import rankdata, spearmanr

from calm_runtime import Calm
from calm_runtime.photo import PHOTO_SUFFIXES, load_photo
from calm_runtime.picture_statistics import picture_statistics
from calm_runtime.taste import Features, learn_taste, personal_ratings, taste_features

HERE = Path(__file__).parent
COUNTS = (10, 30, 100)
REPEATS = 10


def _saturation(picture: Image.Image) -> float:
    return float(np.asarray(picture.convert("HSV"))[..., 1].mean())


def _brightness(picture: Image.Image) -> float:
    return float(np.asarray(picture.convert("L")).mean())


def _sharpness(picture: Image.Image) -> float:
    gray = picture.convert("L")
    return float(np.asarray(gray.filter(ImageFilter.FIND_EDGES), np.float64)[2:-2, 2:-2].std())


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
    "warm": _warmth,
}


def read(calm: Calm, folder: Path) -> tuple[list[Image.Image], Features, np.ndarray]:
    """Pictures, taste features and base scores of a folder."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES)
    pictures, rows, scores = [], [], []
    for path in paths:
        pictures.append(load_photo(path))
        pixels, _ = calm.decode(path)
        aligned, _ = calm.see(pixels[None])
        score = calm.score_aligned(aligned, [{}])
        manifest = calm.bundle.manifest
        statistics = picture_statistics(pixels[None], manifest.photo)
        rows.append(taste_features(aligned, score, statistics, manifest.visual_tokens.low))
        scores.append(score[0].mean)
    return pictures, Features(*(np.concatenate(b) for b in zip(*rows, strict=True))), np.array(scores)


def rate(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ratings 1..5 by fifths of a noisy property."""
    noisy = values + 0.2 * values.std() * rng.normal(size=len(values))
    return np.ceil(5 * rankdata(noisy) / len(noisy)).clip(1, 5)


@click.command(help=__doc__)
@click.option("--rated", type=click.Path(path_type=Path), required=True)
@click.option("--held-out", type=click.Path(path_type=Path), required=True)
def main(rated: Path, held_out: Path) -> None:
    calm = Calm.load()
    assert isinstance(calm, Calm)
    pictures, features, _ = read(calm, rated)
    others, other_features, base = read(calm, held_out)
    table = {}
    for taste, measure in TASTES.items():
        values = np.array([measure(p) for p in pictures])
        truth = rate(np.array([measure(p) for p in others]), np.random.default_rng(0))
        row = {"base": float(spearmanr(base, truth).statistic)}
        for count in COUNTS:
            found = []
            for repeat in range(REPEATS):
                rng = np.random.default_rng((count, repeat))
                chosen = rng.choice(len(pictures), count, replace=False)
                ratings = rate(values, rng)[chosen]
                learnt = learn_taste(Features(*(block[chosen] for block in features)), ratings)
                found.append(spearmanr(personal_ratings(learnt, other_features), truth).statistic)
            row[str(count)] = float(np.mean(found))
        table[taste] = row
    header = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "rated": len(pictures),
        "held_out": len(others),
        "repeats": REPEATS,
        "bundle": calm.bundle.digest,
    }
    (HERE / "profiles.json").write_text(json.dumps({**header, "srcc": table}, indent=2) + "\n")
    lines = [
        "# Personal profiles against simulated raters",
        "",
        (
            f"{header['date']}, {header['machine']}, bundle `{calm.bundle.digest[:12]}`; profiles learnt on k of {len(pictures)} "
            f"photos, SRCC on {len(others)} held-out photos, mean of {REPEATS} repeats."
        ),
        "",
        "| the rater likes | base score | k = 10 | k = 30 | k = 100 |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [f"| {name} | {' | '.join(f'{v:.2f}' for v in row.values())} |" for name, row in table.items()]
    mean = {key: np.mean([row[key] for row in table.values()]) for key in ("base", *map(str, COUNTS))}
    lines.append(f"| **mean** | {' | '.join(f'{v:.2f}' for v in mean.values())} |")
    text = "\n".join(lines) + "\n"
    (HERE / "profiles.md").write_text(text)
    click.echo(text)


if __name__ == "__main__":
    main()
