"""Do suggestions mend what was spoiled? Photos are spoiled here in known ways, and `calm suggest` is asked.

python benchmarks/suggestions.py --photos HELD_OUT_DIR --limit 30     writes suggestions.json and suggestions.md beside itself

The spoiling is written with Pillow and NumPy on 8-bit pictures, apart from the edits that training and suggestions use.
"""

from __future__ import annotations

import io
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import click
import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter

from calm_runtime import Calm
from calm_runtime.cli.inputs import find_photos
from calm_runtime.naturalness import to_lab
from calm_runtime.photo import load_photo
from calm_runtime.retouch import retouch, to_floats
from calm_runtime.suggest import Suggestions

HERE = Path(__file__).parent
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spoiling:
    """A known fault. mended_by: the kind of edit that undoes it. tones: the pixels stay in place."""

    apply: Callable[[Image.Image], Image.Image]
    mended_by: str
    tones: bool = True


def _levels(picture: Image.Image, change: Callable[[Values], Values]) -> Image.Image:
    values = change(np.asarray(picture, np.float64) / 255)
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def _stops(picture: Image.Image, stops: float) -> Image.Image:
    return _levels(picture, lambda x: (x**2.2 * 2**stops).clip(0, 1) ** (1 / 2.2))


def _tilt(picture: Image.Image, degrees: float) -> Image.Image:
    """Turn, and cut the middle 70% of each side: no corner shows up to 15 degrees."""
    turned = picture.rotate(degrees, Image.Resampling.BICUBIC)
    width, height = picture.size
    return turned.crop((round(0.15 * width), round(0.15 * height), round(0.85 * width), round(0.85 * height)))


def _noise(picture: Image.Image, sigma: float) -> Image.Image:
    random = np.random.default_rng(picture.width * 7919 + picture.height)
    return _levels(picture, lambda x: x + random.normal(0, sigma, x.shape))


def _gains(red: float, green: float, blue: float) -> Callable[[Image.Image], Image.Image]:
    return lambda picture: _levels(picture, lambda x: x * np.array([red, green, blue]))


SPOILED: dict[str, Spoiling] = {
    "darker by 1.5 stops": Spoiling(lambda p: _stops(p, -1.5), "exposure"),
    "darker by half": Spoiling(lambda p: ImageEnhance.Brightness(p).enhance(0.5), "exposure"),
    "brighter by 1 stop": Spoiling(lambda p: _stops(p, 1.0), "exposure"),
    "brighter by gamma": Spoiling(lambda p: _levels(p, lambda x: x**0.5), "exposure"),
    "flat": Spoiling(lambda p: ImageEnhance.Contrast(p).enhance(0.45), "contrast"),
    "veiled": Spoiling(lambda p: _levels(p, lambda x: x + (0.85 - x) * 0.4), "contrast"),
    "warm": Spoiling(_gains(1.2, 1.0, 0.7), "white balance"),
    "cool": Spoiling(_gains(0.75, 1.0, 1.2), "white balance"),
    "green": Spoiling(_gains(0.85, 1.12, 0.85), "white balance"),
    "magenta veil": Spoiling(lambda p: _levels(p, lambda x: x + np.array([0.06, -0.06, 0.06])), "white balance"),
    "pale": Spoiling(lambda p: ImageEnhance.Color(p).enhance(0.35), "saturation"),
    "too colourful": Spoiling(lambda p: ImageEnhance.Color(p).enhance(2.2), "saturation"),
    "tilted": Spoiling(lambda p: _tilt(p, 8), "rotation", tones=False),
    "tilted the other way": Spoiling(lambda p: _tilt(p, -5), "rotation", tones=False),
    "noisy": Spoiling(lambda p: _noise(p, 0.1), "denoise"),
    "blurred": Spoiling(lambda p: p.filter(ImageFilter.GaussianBlur(max(p.size) / 200)), "sharpening"),
}


def lab_distance(one: Image.Image, other: Image.Image) -> float:
    """Mean CIE76 difference of two pictures of one size; of another size, `one` is scaled first."""
    if one.size != other.size:
        one = one.resize(other.size, Image.Resampling.BICUBIC)
    return float(
        np.linalg.norm(to_lab(to_floats(np.asarray(one))) - to_lab(to_floats(np.asarray(other))), axis=-1).mean()
    )


def examine(calm: Calm, original: Image.Image, spoiled: Image.Image, mended_by: str) -> dict[str, float]:
    """Ask for suggestions on one spoiled photo, and measure them against the original."""
    buffer = io.BytesIO()
    spoiled.save(buffer, "PNG")
    found: Suggestions = calm.suggest(buffer.getvalue())
    kinds = [s.edit.name for s in found.suggestions]
    before = lab_distance(spoiled, original)
    after = lab_distance(retouch(spoiled, found.composition), original)
    return {
        "first": float(mended_by in kinds[:1]),
        "top2": float(mended_by in kinds[:2]),
        "suggested": float(bool(kinds)),
        "first gains": float(bool(kinds) and found.suggestions[0].gain > 0),
        "composition gains": float(found.score_after > found.score.mean),
        "gain": found.score_after - found.score.mean,
        "nearer": float(after < before),
        "distance before": before,
        "distance after": after,
        "edits": float(len(found.composition)),
    }


@click.command(help=__doc__)
@click.option("--photos", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--limit", type=click.IntRange(min=1), help="Photos, evenly spaced over the folder; default: all.")
@click.option(
    "--bundle", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Default: the built-in one."
)
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), default=HERE, show_default="beside this file"
)
def main(photos: Path, limit: int | None, bundle: Path | None, output: Path) -> None:
    paths = find_photos([str(photos)])
    chosen = (
        [paths[round(i * (len(paths) - 1) / max(1, limit - 1))] for i in range(min(limit, len(paths)))]
        if limit
        else paths
    )
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in (*SPOILED, "untouched")}
    with Calm.load(bundle) as calm:
        size = calm.bundle.manifest.photo.size
        whole = msgspec.structs.replace(calm.bundle.manifest.photo, size=calm.limits.max_pixels)
        for path in chosen:
            original = load_photo(path, whole, calm.limits)
            original.thumbnail((2 * size, 2 * size), Image.Resampling.BICUBIC)
            for name, spoiling in SPOILED.items():
                rows[name].append(examine(calm, original, spoiling.apply(original), spoiling.mended_by))
            rows["untouched"].append(examine(calm, original, original, ""))
        header = {
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, Python {platform.python_version()}",
            "photos": len(chosen),
            "model": f"{calm.bundle.manifest.model.name} {calm.bundle.manifest.model.version}",
            "bundle": calm.bundle.digest,
        }
    results = {name: {key: float(np.mean([r[key] for r in found])) for key in found[0]} for name, found in rows.items()}
    output.mkdir(parents=True, exist_ok=True)
    (output / "suggestions.json").write_text(json.dumps({**header, "results": results}, indent=2) + "\n")
    (output / "suggestions.md").write_text(report(header, results))
    click.echo(report(header, results))


def report(header: dict[str, object], results: dict[str, dict[str, float]]) -> str:
    """A Markdown table, a row per fault."""
    lines = [
        "# Suggestions on photos with one known fault",
        "",
        f"{header['photos']} photos, {header['date']}, {header['machine']},",
        f"{header['model']}, bundle `{str(header['bundle'])[:12]}`.",
        "",
        "Inverse edit: suggested first, and among the first two. Gains: the first suggestion, and the composition that",
        "`--apply` writes, raise the score. Nearer: the improved picture is nearer to the untouched photo than the",
        "spoiled one, by mean distance in L\\*a\\*b\\* (before -> after).",
        "",
        "| fault | inverse first | in top 2 | first gains | composition gains | mean gain | nearer | distance | edits |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    tones = [name for name, spoiling in SPOILED.items() if spoiling.tones and spoiling.mended_by in _TONE_KINDS]
    means = {key: float(np.mean([results[name][key] for name in tones])) for key in results[tones[0]]}
    for name, row in [*results.items(), ("**mean over the tone faults**", means)]:
        known = name != "untouched"
        still = known and (name not in SPOILED or SPOILED[name].tones)
        lines.append(
            f"| {name} | {_share(row['first'], known)} | {_share(row['top2'], known)} | {row['first gains']:.0%} "
            f"| {row['composition gains']:.0%} | {row['gain']:+.2f} | {_share(row['nearer'], still)} "
            f"| {row['distance before']:.1f} -> {row['distance after']:.1f} | {row['edits']:.1f} |"
        )
    return "\n".join(lines) + "\n"


_TONE_KINDS = ("exposure", "contrast", "white balance", "saturation")


def _share(value: float, meaningful: bool) -> str:
    return f"{value:.0%}" if meaningful else "-"


if __name__ == "__main__":
    main()
