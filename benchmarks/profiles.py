"""Do personal profiles learn a taste? Real people's own ratings, and simulated raters of one plain taste each.

python benchmarks/profiles.py --rated DIR     writes profiles.json and profiles.md beside itself

DIR holds photographs and raters.csv (columns rater,path,rating; any scale). Of each rater k ratings are known and the rest
are tested, as with FLICKR-AES: rank correlation (SRCC) with the rater's own, mean over repeats, then mean and spread over
the raters. Beside the profile stand the base score and, as what can be reached without knowing the person, the mean of all
other raters. A simulated rater rates the same photos 1 to 5 by one measured property, with a fifth of a standard deviation
of noise.
"""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image, ImageFilter
from scipy.stats import rankdata

from calm_runtime import Calm
from calm_runtime.photo import load_photo
from calm_runtime.ratings import to_score_scale
from calm_train.datasets import RatedPhoto
from calm_train.evaluation.personal import PersonalAgreement, RaterAgreement, evaluate_personal, srcc

HERE = Path(__file__).parent
COUNTS = (3, 5, 10, 30, 100)
REPEATS = 10
LIKES = "likes "


def _saturation(picture: Image.Image) -> float:
    return float(np.asarray(picture.convert("HSV"))[..., 1].mean())


def _brightness(picture: Image.Image) -> float:
    return float(np.asarray(picture.convert("L")).mean())


def _sharpness(picture: Image.Image) -> float:
    edges = picture.convert("L").filter(ImageFilter.FIND_EDGES)
    return float(np.asarray(edges, np.float64)[2:-2, 2:-2].std())


def _symmetry(picture: Image.Image) -> float:
    gray = np.asarray(picture.convert("L").resize((32, 32)), np.float64)
    return float(np.corrcoef(gray.ravel(), gray[:, ::-1].ravel())[0, 1])


TASTES: dict[str, Callable[[Image.Image], float]] = {
    "saturated": _saturation,
    "muted": lambda p: -_saturation(p),
    "bright": _brightness,
    "dark": lambda p: -_brightness(p),
    "soft": lambda p: -_sharpness(p),
    "symmetric": _symmetry,
}


def read_raters(folder: Path) -> list[RatedPhoto]:
    """raters.csv of a folder; the least and the greatest rating in it are the ends of the scale."""
    with (folder / "raters.csv").open(newline="", encoding="utf-8") as file:
        rows = [(row["rater"], folder / row["path"], float(row["rating"])) for row in csv.DictReader(file)]
    low, high = (end(rating for _, _, rating in rows) for end in (min, max))
    return [RatedPhoto(path, to_score_scale(rating, low, high), rater=rater) for rater, path, rating in rows]


def simulate_raters(photos: list[Path]) -> list[RatedPhoto]:
    """Ratings 1..5 by fifths of a noisy property."""
    ratings = []
    pictures = [load_photo(photo) for photo in photos]
    for number, (taste, measure) in enumerate(TASTES.items()):
        values = np.array([measure(picture) for picture in pictures])
        noisy = values + 0.2 * values.std() * np.random.default_rng(number).normal(size=len(values))
        stars = np.ceil(5 * rankdata(noisy) / len(noisy)).clip(1, 5)
        ratings += [RatedPhoto(p, float(s), rater=LIKES + taste) for p, s in zip(photos, stars, strict=True)]
    return ratings


def others_agreement(ratings: list[RatedPhoto]) -> list[float]:
    """SRCC of each rater with the mean of all other raters of the same photos."""
    own: dict[str, dict[object, float]] = {}
    for rating in ratings:
        own.setdefault(str(rating.rater), {})[rating.path] = rating.mean
    found = []
    for rater, mine in own.items():
        rest = {p: [of[p] for name, of in own.items() if name != rater and p in of] for p in mine}
        shared = [photo for photo, values in rest.items() if values]
        if len(shared) > 1:
            found.append(
                srcc(np.array([np.mean(rest[photo]) for photo in shared]), np.array([mine[p] for p in shared]))
            )
    return found


def summarise(raters: list[RaterAgreement]) -> dict[str, float]:
    """Mean and spread over raters of base, profile and gain; in what share of repeats the profile ordered worse."""
    base, personal = (np.array([np.mean(getattr(r, part)) for r in raters]) for part in ("base", "personal"))
    worse = [np.mean(np.array(rater.personal) < np.array(rater.base)) for rater in raters]
    gain = personal - base
    return {
        "raters": len(raters),
        "base": float(base.mean()),
        "base_std": float(base.std()),
        "personal": float(personal.mean()),
        "personal_std": float(personal.std()),
        "gain": float(gain.mean()),
        "gain_std": float(gain.std()),
        "worse": float(np.mean(worse)),
    }


@click.command(help=__doc__)
@click.option("--rated", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
def main(rated: Path) -> None:
    calm = Calm.load()
    people = read_raters(rated)
    simulated = simulate_raters(sorted({Path(str(rating.path)) for rating in people}))
    photos, agreements = evaluate_personal(calm, [*people, *simulated], REPEATS, counts=COUNTS)
    others = others_agreement(people)
    result = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "bundle": calm.bundle.digest,
        "photos": photos,
        "repeats": REPEATS,
        "others": float(np.mean(others)),
        "others_std": float(np.std(others)),
        "people": {str(a.count): summarise(_raters(a, simulated=False)) for a in agreements},
        "simulated": {str(a.count): summarise(_raters(a, simulated=True)) for a in agreements},
        "by_rater": {
            str(a.count): {name: summarise([rater]) for name, rater in a.by_rater.items()} for a in agreements
        },
    }
    (HERE / "profiles.json").write_text(json.dumps(result, indent=2) + "\n")
    text = report(result)
    (HERE / "profiles.md").write_text(text)
    click.echo(text)


def _raters(agreement: PersonalAgreement, simulated: bool) -> list[RaterAgreement]:
    return [rater for name, rater in agreement.by_rater.items() if name.startswith(LIKES) == simulated]


def report(result: dict[str, Any]) -> str:
    """Markdown: a row per number of ratings."""
    lines = [
        "# Personal profiles",
        "",
        f"{result['date']}, {result['machine']}, bundle `{str(result['bundle'])[:12]}`. {result['photos']} photos; SRCC with a",
        "rater's own ratings of those that the profile did not learn from, mean ± spread over raters,",
        f"{result['repeats']} repeats. Worse: share of profiles that order them worse than the base score does.",
    ]
    titles = {
        "people": f"Real people; the mean of the other raters reaches {result['others']:.2f} ± {result['others_std']:.2f}",
        "simulated": f"Simulated raters, who like photos that are {', '.join(TASTES)}",
    }
    for part, title in titles.items():
        lines += ["", f"## {title}", "", "| ratings | raters | base score | profile | gain | worse |"]
        lines.append("| ---: | ---: | ---: | ---: | ---: | ---: |")
        for count, row in result[part].items():
            cells = [f"{row[k]:.2f} ± {row[k + '_std']:.2f}" for k in ("base", "personal")]
            cells.append(f"{row['gain']:+.3f} ± {row['gain_std']:.3f}")
            lines.append(f"| {count} | {row['raters']} | {' | '.join(cells)} | {row['worse']:.0%} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
