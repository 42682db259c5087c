"""Frames found where frames are drawn, and nowhere else: false alarms on photographs, and frames of many kinds around them.

    python benchmarks/frames.py --photos DIR [--photos DIR ...] [--framed NAME ...] [--out FOLDER]

Writes frames.json and frames.md. The photographs of the committed figures are not shipped: any folder will do.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from statistics import fmean, median
from typing import Any

import click
import numpy as np
from PIL import Image, ImageOps

from calm_runtime.frame import FrameBox, find_frame

Colour = tuple[int, int, int]
Drawn = tuple[Image.Image, FrameBox]
WHITE, OFF_WHITE, BLACK, GREY = (255, 255, 255), (244, 240, 232), (0, 0, 0), (128, 128, 128)
MOST_WRONG = 0.015  # of the side: how far an inner edge may be from the drawn one
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def bordered(photo: Image.Image, colour: Colour, *widths: int) -> Drawn:
    """The photo inside a border of left, top, right, bottom pixels."""
    box = FrameBox(*(widths * 4 if len(widths) == 1 else widths))
    return ImageOps.expand(photo, tuple(box), colour), box


def around(inner: Drawn, colour: Colour, width: int) -> Drawn:
    """One more border around what is drawn."""
    return ImageOps.expand(inner[0], width, colour), FrameBox(*(side + width for side in inner[1]))


def share_of(photo: Image.Image, rng: random.Random, least: float = 0.02, most: float = 0.3) -> int:
    """A width of frame: a share of the photo's shorter side, small ones as likely as large ones."""
    return max(2, round(min(photo.size) * least * float((most / least) ** rng.random())))


def plain(colour: Colour) -> Callable[[Image.Image, random.Random], Drawn]:
    """A frame as wide on every side."""
    return lambda photo, rng: bordered(photo, colour, share_of(photo, rng))


def coloured(photo: Image.Image, rng: random.Random) -> Drawn:
    """A frame of a colour drawn at random."""
    return bordered(photo, (rng.randrange(256), rng.randrange(256), rng.randrange(256)), share_of(photo, rng))


def thin(photo: Image.Image, rng: random.Random) -> Drawn:
    """White or black, one percent of the shorter side."""
    return bordered(photo, rng.choice((WHITE, BLACK)), max(2, round(min(photo.size) * 0.01)))


def uneven(photo: Image.Image, rng: random.Random) -> Drawn:
    """Every side another width."""
    return bordered(photo, rng.choice((WHITE, BLACK)), *(share_of(photo, rng) for _ in range(4)))


def polaroid(photo: Image.Image, rng: random.Random) -> Drawn:
    """A thick bottom."""
    side = share_of(photo, rng, 0.04, 0.1)
    return bordered(photo, rng.choice((WHITE, OFF_WHITE)), side, side, side, round(side * rng.uniform(2.5, 4)))


def letterbox(photo: Image.Image, rng: random.Random) -> Drawn:
    """Black bars above and below."""
    width = share_of(photo, rng)
    return bordered(photo, BLACK, 0, width, 0, width)


def pillarbox(photo: Image.Image, rng: random.Random) -> Drawn:
    """Black bars left and right."""
    width = share_of(photo, rng)
    return bordered(photo, BLACK, width, 0, width, 0)


def squared(photo: Image.Image, rng: random.Random) -> Drawn:
    """On a white square, or on a portrait of 4:5 where the photo is square itself."""
    width, height = max(photo.size), max(photo.size)
    if abs(photo.width - photo.height) < 0.04 * width:
        height = round(1.25 * width)
    left, top = (width - photo.width) // 2, (height - photo.height) // 2
    return bordered(photo, WHITE, left, top, width - photo.width - left, height - photo.height - top)


def squared_with_margin(photo: Image.Image, rng: random.Random) -> Drawn:
    """On a white square with room on every side."""
    return around(squared(photo, rng), WHITE, share_of(photo, rng, 0.02, 0.1))


def lined(photo: Image.Image, rng: random.Random) -> Drawn:
    """A white mat, and a thin black line around the photo."""
    return around(bordered(photo, BLACK, rng.randint(1, 3)), WHITE, share_of(photo, rng))


def outlined(photo: Image.Image, rng: random.Random) -> Drawn:
    """A white mat, and a thin black line around the mat."""
    return around(bordered(photo, WHITE, share_of(photo, rng)), BLACK, rng.randint(1, 3))


def two_mats(photo: Image.Image, rng: random.Random) -> Drawn:
    """White, a black line, and white again."""
    inner = bordered(photo, WHITE, share_of(photo, rng, 0.03, 0.08))
    return around(around(inner, BLACK, rng.randint(2, 4)), WHITE, share_of(photo, rng))


def third(photo: Image.Image, rng: random.Random) -> Drawn:
    """A photo that takes a third of the canvas."""
    width = round(0.366 * min(photo.size))
    across = round(0.366 * max(photo.size))
    sides = (across, width) if photo.width >= photo.height else (width, across)
    return bordered(photo, rng.choice((WHITE, BLACK)), *sides, *sides)


KINDS: dict[str, Callable[[Image.Image, random.Random], Drawn]] = {
    "white": plain(WHITE),
    "off-white": plain(OFF_WHITE),
    "black": plain(BLACK),
    "grey": plain(GREY),
    "coloured": coloured,
    "thin (1%), white or black": thin,
    "uneven": uneven,
    "polaroid": polaroid,
    "letterbox": letterbox,
    "pillarbox": pillarbox,
    "squared on white": squared,
    "squared with a margin": squared_with_margin,
    "black line inside a white mat": lined,
    "black line outside a white mat": outlined,
    "white mat, black line, white mat": two_mats,
    "photo on a third of the canvas": third,
}


def as_drawn(drawn: Drawn) -> Drawn:
    """No compression after framing."""
    return drawn


def compressed(quality: int) -> Callable[[Drawn], Drawn]:
    """Saved as JPEG after framing."""

    def save(drawn: Drawn) -> Drawn:
        stream = BytesIO()
        drawn[0].save(stream, "JPEG", quality=quality)
        return Image.open(stream).convert("RGB"), drawn[1]

    return save


def resized(drawn: Drawn) -> Drawn:
    """Scaled to 70% after framing, then saved as JPEG of quality 75; inner edges fall between pixels."""
    picture, box = drawn
    small = picture.resize((round(picture.width * 0.7), round(picture.height * 0.7)), Image.Resampling.BICUBIC)
    return compressed(75)((small, FrameBox(*(round(side * 0.7) for side in box))))


SAVED: dict[str, Callable[[Drawn], Drawn]] = {
    "as drawn": as_drawn,
    "JPEG 90": compressed(90),
    "JPEG 75": compressed(75),
    "JPEG 60": compressed(60),
    "70%, JPEG 75": resized,
}


def edges_show(drawn: Drawn) -> bool:
    """Whether on every framed side the photo differs from the frame, by more than 16 levels along half of the edge."""
    pixels = np.asarray(drawn[0], np.int16)
    left, top, right, bottom = drawn[1]
    height, width = pixels.shape[:2]
    rows, columns = slice(top, height - bottom), slice(left, width - right)
    pairs = []
    if left and right:
        pairs += [(pixels[rows, left - 1], pixels[rows, left]), (pixels[rows, -right], pixels[rows, -right - 1])]
    if top and bottom:
        pairs += [
            (pixels[top - 1, columns], pixels[top, columns]),
            (pixels[-bottom, columns], pixels[-bottom - 1, columns]),
        ]
    return all(np.mean(np.abs(frame - photo).max(axis=-1) > 16) >= 0.5 for frame, photo in pairs)


def compare(drawn: Drawn) -> dict[str, float]:
    """Found, and pixels of photo lost and of frame left, per side and on average."""
    picture, box = drawn
    box_found = find_frame(picture)
    found = box_found or FrameBox(0, 0, 0, 0)
    sides = (picture.width, picture.height) * 2
    right = box_found is not None and all(
        abs(f - b) <= MOST_WRONG * side for f, b, side in zip(found, box, sides, strict=True)
    )
    lost = fmean(max(0, f - b) for f, b in zip(found, box, strict=True))
    left = fmean(max(0, b - f) for f, b in zip(found, box, strict=True))
    return {"found": float(right), "lost_px": lost, "left_px": left, "missed": float(box_found is None)}


def measure_drawn(photos: list[Path]) -> list[dict[str, Any]]:
    """One row per kind of frame and way of saving."""
    rows = []
    for kind, draw in KINDS.items():
        per_way: dict[str, list[dict[str, float]]] = {way: [] for way in SAVED}
        for number, path in enumerate(photos):
            drawn = draw(Image.open(path).convert("RGB"), random.Random(number))
            shows = float(edges_show(drawn))
            for way, save in SAVED.items():
                per_way[way].append({"shows": shows, **compare(save(drawn))})
        for way, results in per_way.items():
            kept = [result for result in results if result["found"]]
            rows.append(
                {
                    "kind": kind,
                    "saved": way,
                    "photos": len(results),
                    "found": sum(int(result["found"]) for result in results),
                    "photos_with_edges": sum(int(result["shows"]) for result in results),
                    "found_with_edges": sum(int(result["shows"] * result["found"]) for result in results),
                    "missed": sum(int(result["missed"]) for result in results),
                    "lost_px": round(fmean(result["lost_px"] for result in results), 3),
                    "lost_px_where_found": round(fmean(result["lost_px"] for result in kept), 3) if kept else None,
                    "left_px": round(fmean(result["left_px"] for result in results), 3),
                }
            )
    return rows


def measure_alarms(photos: list[Path]) -> tuple[list[dict[str, Any]], list[Path], float]:
    """Photos in which a frame is found as they are, those in which none is, and milliseconds per photo."""
    alarms, without, spent = [], [], []
    for path in photos:
        picture = Image.open(path).convert("RGB")
        picture.load()
        start = time.perf_counter()
        box = find_frame(picture)
        spent.append(1000 * (time.perf_counter() - start))
        if box is None:
            without.append(path)
        else:
            alarms.append({"photo": path.name, "size": list(picture.size), "box": list(box)})
    return alarms, without, median(spent)


def shares(rows: list[dict[str, Any]], suffix: str = "") -> str:
    """Cells of a table: what is found, per way of saving."""
    cells = []
    for way in SAVED:
        own = [row for row in rows if row["saved"] == way]
        found = sum(row["found" + suffix] for row in own)
        cells.append(f"{100 * found / sum(row['photos' + suffix] for row in own):.1f}%")
    return " | ".join(cells)


def pixels(rows: list[dict[str, Any]]) -> str:
    """Cells of a table: what is lost and left."""
    return f"{fmean(row['lost_px'] for row in rows):.2f} | {fmean(row['left_px'] for row in rows):.2f}"


def render(report: dict[str, Any]) -> str:
    """The page of a report."""
    rows, alarms = report["drawn"], report["alarms"]
    false = [alarm for alarm in alarms if not alarm["framed"]]
    counts = ", ".join(f"{count} of {name}" for name, count in report["photos"].items())
    lines = [
        "# Frames",
        "",
        f"Photographs: {counts}, as they are. A frame is found in {len(alarms)}; {len(alarms) - len(false)} of these do",
        f"have one, to the eye. {report['milliseconds']:.2f} ms each (median of one run, one CPU core).",
        "",
        "Then frames are drawn around the others, widths of 2 to 30% of the shorter side where a row says nothing else.",
        f"Found: every inner edge within {100 * MOST_WRONG:g}% of the side. Two pixels a side are cut off on purpose.",
        "",
        f"| frame | {' | '.join(SAVED)} | photo lost, px a side | frame left, px a side |",
        "| --- |" + " ---: |" * (len(SAVED) + 2),
    ]
    for kind in KINDS:
        own = [row for row in rows if row["kind"] == kind]
        lines.append(f"| {kind} | {shares(own)} | {pixels(own)} |")
    showing = 100 * sum(row["photos_with_edges"] for row in rows) / sum(row["photos"] for row in rows)
    lines += [
        f"| **all** | {shares(rows)} | {pixels(rows)} |",
        f"| **where edges show** | {shares(rows, '_with_edges')} | | |",
        "",
        f"Edges show in {showing:.1f}%: on every framed side the photo is more than 16 levels from the frame's colour along",
        "half of the edge. Among the others are products on white in a white frame and nights in a black one.",
    ]
    if alarms:
        lines += ["", "| a frame is found in | left, top, right, bottom | has one |", "| --- | --- | --- |"]
        lines += [
            f"| {a['photo']} ({a['size'][0]} x {a['size'][1]}) | {a['box']} | {'yes' if a['framed'] else 'no'} |"
            for a in alarms
        ]
    return "\n".join(lines) + "\n"


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--photos", multiple=True, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--framed", multiple=True, help="File name of a photo that has a frame, to the eye.")
@click.option("--out", default=Path(__file__).parent, show_default=True, type=click.Path(path_type=Path))
def main(photos: tuple[Path, ...], framed: tuple[str, ...], out: Path) -> None:
    """Measure, and write frames.json and frames.md."""
    folders = {folder: [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES] for folder in photos}
    paths = sorted(path for found in folders.values() for path in found)
    alarms, without, milliseconds = measure_alarms(paths)
    report = {
        "photos": {folder.name: len(found) for folder, found in folders.items()},
        "milliseconds": round(milliseconds, 3),
        "alarms": [{**alarm, "framed": alarm["photo"] in framed} for alarm in alarms],
        "drawn": measure_drawn(without),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "frames.json").write_text(json.dumps(report, indent=2) + "\n")
    (out / "frames.md").write_text(render(report))


if __name__ == "__main__":
    main()
