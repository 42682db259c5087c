"""Do suggestions mend known faults? Photos are degraded in known ways, and `calm suggest` is asked.

The faults are made with Pillow and NumPy on 8-bit pictures, apart from the edits that training and suggestions use.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from rich.console import Console
from rich.progress import track

from calm_runtime import Calm
from calm_runtime.errors import DataError, PhotoError
from calm_runtime.lab import to_lab
from calm_runtime.photo import load_photo
from calm_runtime.retouch import retouch, to_floats
from calm_train.evaluation.degradations import Picture, levels, noise

logger = logging.getLogger(__name__)

Row = dict[str, float]
UNTOUCHED = "untouched"
TONES = "tone faults"
_TONE_KINDS = ("exposure", "contrast", "white balance", "saturation")


@dataclass(frozen=True)
class Fault:
    """A known fault. mended_by: the kind of edit that undoes it. tones: the pixels stay in place."""

    apply: Callable[[Picture], Picture]
    mended_by: str
    tones: bool = True


def _stops(picture: Picture, stops: float) -> Picture:
    return levels(picture, lambda x: (x**2.2 * 2**stops).clip(0, 1) ** (1 / 2.2))


def _tilt(picture: Picture, degrees: float) -> Picture:
    """Turn, and cut the middle 70% of each side: no corner shows up to 15 degrees, and every tilt costs the same frame."""
    turned = picture.rotate(degrees, Image.Resampling.BICUBIC)
    width, height = picture.size
    return turned.crop((round(0.15 * width), round(0.15 * height), round(0.85 * width), round(0.85 * height)))


def _gains(red: float, green: float, blue: float) -> Callable[[Picture], Picture]:
    return lambda picture: levels(picture, lambda x: x * np.array([red, green, blue]))


FAULTS: dict[str, Fault] = {
    "darker by 1.5 stops": Fault(lambda p: _stops(p, -1.5), "exposure"),
    "darker by half": Fault(lambda p: ImageEnhance.Brightness(p).enhance(0.5), "exposure"),
    "brighter by 1 stop": Fault(lambda p: _stops(p, 1.0), "exposure"),
    "brighter by gamma": Fault(lambda p: levels(p, lambda x: x**0.5), "exposure"),
    "flat": Fault(lambda p: ImageEnhance.Contrast(p).enhance(0.45), "contrast"),
    "veiled": Fault(lambda p: levels(p, lambda x: x + (0.85 - x) * 0.4), "contrast"),
    "warm": Fault(_gains(1.2, 1.0, 0.7), "white balance"),
    "cool": Fault(_gains(0.75, 1.0, 1.2), "white balance"),
    "green": Fault(_gains(0.85, 1.12, 0.85), "white balance"),
    "magenta veil": Fault(lambda p: levels(p, lambda x: x + np.array([0.06, -0.06, 0.06])), "white balance"),
    "pale": Fault(lambda p: ImageEnhance.Color(p).enhance(0.35), "saturation"),
    "too colourful": Fault(lambda p: ImageEnhance.Color(p).enhance(2.2), "saturation"),
    "tilted": Fault(lambda p: _tilt(p, 8), "rotation", tones=False),
    "tilted the other way": Fault(lambda p: _tilt(p, -5), "rotation", tones=False),
    "noisy": Fault(lambda p: noise(p, 0.1), "denoise"),
    "blurred": Fault(lambda p: p.filter(ImageFilter.GaussianBlur(max(p.size) / 200)), "sharpening"),
}


def evenly_spaced(photos: Sequence[Path], limit: int | None) -> list[Path]:
    """At most `limit` photos, evenly spaced over all of them; None: all."""
    if limit is None or limit >= len(photos):
        return list(photos)
    return [photos[round(i * (len(photos) - 1) / max(1, limit - 1))] for i in range(limit)]


def evaluate_suggestions(calm: Calm, photos: Sequence[Path]) -> tuple[int, dict[str, Row]]:
    """Number of photos read, and per fault (and `untouched`) the means of what `examine` measures.

    The row `TONES` is the mean over the faults of exposure, contrast, white balance and saturation. Photos that cannot
    be read are left out with a warning. Raises DataError when none is left.
    """
    found: dict[str, list[Row]] = {name: [] for name in (*FAULTS, UNTOUCHED)}
    broken: list[str] = []
    bar = Console(stderr=True)
    for path in track(photos, "suggestions", console=bar, transient=True, disable=not bar.is_terminal):
        try:
            original = _original(calm, path)
        except PhotoError as error:
            broken.append(str(error))
            continue
        for name, fault in FAULTS.items():
            found[name].append(examine(calm, original, fault.apply(original), fault.mended_by))
        found[UNTOUCHED].append(examine(calm, original, original, ""))
    if broken:
        logger.warning("%d of %d photos could not be read, the first: %s", len(broken), len(photos), broken[0])
    read = len(photos) - len(broken)
    if not read:
        raise DataError("none of the photos can be read")
    results = {name: _mean(rows) for name, rows in found.items()}
    results[TONES] = _mean([results[name] for name, fault in FAULTS.items() if fault.mended_by in _TONE_KINDS])
    return read, results


def examine(calm: Calm, original: Picture, degraded: Picture, mended_by: str) -> Row:
    """Ask for suggestions on one degraded photo, follow them, and measure the result against the original.

    first, top2: 1 when the inverse edit is the first suggestion, or among the first two. first gains, composition
    gains: 1 when the photo scores higher with the first suggestion, or with all that `--apply` makes, actually applied.
    """
    found = calm.suggest(_png(degraded))
    kinds = [suggestion.edit.name for suggestion in found.suggestions]
    before = found.score.quality
    improved = retouch(degraded, found.composition)
    gain = calm.score(_png(improved)).quality - before if found.composition else 0.0
    first_gain = calm.score(_png(retouch(degraded, [found.suggestions[0].edit]))).quality - before if kinds else 0.0
    return {
        "first": float(mended_by in kinds[:1]),
        "top2": float(mended_by in kinds[:2]),
        "suggested": float(bool(kinds)),
        "first gains": float(first_gain > 0),
        "first gain": first_gain,
        "composition gains": float(gain > 0),
        "gain": gain,
        "nearer": float(_lab_distance(improved, original) < _lab_distance(degraded, original)),
        "distance before": _lab_distance(degraded, original),
        "distance after": _lab_distance(improved, original),
        "edits": float(len(found.composition)),
    }


def suggestion_table(results: dict[str, Row]) -> str:
    """Markdown: what the columns say, and a row per fault."""
    lines = [
        "Inverse edit: suggested first, and among the first two. Gains: the first suggestion, and the composition that",
        "`--apply` writes, raise the score when they are applied. Nearer: the improved picture is nearer to the untouched",
        "photo than the degraded one, by mean distance in L\\*a\\*b\\* (before -> after).",
        "",
        "| fault | inverse first | in top 2 | first gains | composition gains | mean gain | nearer | distance | edits |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in results.items():
        known = name != UNTOUCHED
        still = known and (name not in FAULTS or FAULTS[name].tones)
        shown = f"**mean over the {name}**" if name == TONES else name
        lines.append(
            f"| {shown} | {_share(row['first'], known)} | {_share(row['top2'], known)} | {row['first gains']:.0%} "
            f"| {row['composition gains']:.0%} | {row['gain']:+.2f} | {_share(row['nearer'], still)} "
            f"| {row['distance before']:.1f} -> {row['distance after']:.1f} | {row['edits']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def _original(calm: Calm, path: Path) -> Picture:
    """A photo at twice the model's size, as a user's photo is larger than what the model sees."""
    size = calm.bundle.manifest.photo.size
    whole = msgspec.structs.replace(calm.bundle.manifest.photo, size=calm.limits.max_pixels)
    picture = load_photo(path, whole, calm.limits)
    picture.thumbnail((2 * size, 2 * size), Image.Resampling.BICUBIC)
    return picture


def _lab_distance(one: Picture, other: Picture) -> float:
    """Mean CIE76 difference of two pictures of one size; of another size, `one` is scaled first."""
    if one.size != other.size:
        one = one.resize(other.size, Image.Resampling.BICUBIC)
    apart = to_lab(to_floats(np.asarray(one))) - to_lab(to_floats(np.asarray(other)))
    return float(np.linalg.norm(apart, axis=-1).mean())


def _png(picture: Picture) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _mean(rows: Sequence[Row]) -> Row:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def _share(value: float, meaningful: bool) -> str:
    return f"{value:.0%}" if meaningful else "-"
