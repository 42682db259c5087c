"""From a camera's file to pixel_values: the runtime's decoder against a full decode and one resize.

python benchmarks/decoding.py     writes decoding.json and decoding.md beside itself

The photos of examples/, enlarged to 12 and 48 megapixels and given fine grain as a sensor would, saved as JPEG, HEIC
(`pip install calm-edge[heif]`) and PNG. The naive way opens the file with Pillow, turns it upright and resizes the whole
picture. Both ways run alternately in one process; the times are medians, the ratio that of the medians. The score of
calm-nano is taken from both.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from io import BytesIO
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import pillow_heif
from PIL import Image, ImageOps
from rich.progress import track

from calm_runtime import Calm
from calm_runtime.photo import PhotoSpec, load_photo, to_pixel_values

HERE = Path(__file__).parent
PHOTOS = ("astronaut", "cat", "coffee", "rocket")
SIZES = {"12 MP": (4000, 3000), "48 MP": (8000, 6000)}
FORMATS: dict[str, dict[str, object]] = {
    "JPEG": {"quality": 92},
    "HEIF": {"quality": 80},
    "PNG": {"compress_level": 6},
}
NOT_MADE = ("HEIF", "48 MP")  # as one tile, which is how pillow-heif writes it, its decoder refuses such a picture
GRAIN = 3.0  # standard deviation of 8-bit levels
REPEATS = 5

Pixels = npt.NDArray[np.float32]


def camera_file(photo: Path, size: tuple[int, int], kind: str, folder: Path) -> Path:
    """A photo as a camera of that size would save it."""
    rng = np.random.default_rng(0)
    with Image.open(photo) as opened:
        wide = ImageOps.fit(opened.convert("RGB"), size, Image.Resampling.BICUBIC)
    grain = rng.normal(0, GRAIN, (size[1], size[0], 1)).astype(np.float32)
    picture = Image.fromarray((np.asarray(wide, np.float32) + grain).clip(0, 255).astype(np.uint8))
    file = folder / f"{photo.stem}-{size[0]}.{kind.lower()}"
    picture.save(file, format=kind, **FORMATS[kind])  # type: ignore[arg-type]
    return file


def naive(file: Path, spec: PhotoSpec) -> Pixels:
    """Decode everything, then resize once."""
    with Image.open(BytesIO(file.read_bytes())) as opened:
        return to_pixel_values(ImageOps.exif_transpose(opened).convert("RGB"), spec)


def ours(file: Path, spec: PhotoSpec) -> Pixels:
    """What `Calm` does."""
    return to_pixel_values(load_photo(file, spec), spec)


def timed(way: Callable[[Path, PhotoSpec], Pixels], file: Path, spec: PhotoSpec) -> float:
    """Milliseconds of one decode."""
    start = time.perf_counter()
    way(file, spec)
    return (time.perf_counter() - start) * 1e3


@click.command(help=__doc__)
@click.option("--repeats", default=REPEATS, show_default=True)
def main(repeats: int) -> None:
    pillow_heif.register_heif_opener(thumbnails=False)
    Image.MAX_IMAGE_PIXELS = None
    rows: list[dict[str, object]] = []
    cases = [(kind, size) for kind in FORMATS for size in SIZES if (kind, size) != NOT_MADE]
    with Calm.load() as calm, tempfile.TemporaryDirectory() as scratch:
        spec = calm.bundle.manifest.photo
        for kind, size in track(cases, "Decoding"):
            full, quick, apart, sizes = [], [], [], []
            for name in PHOTOS:
                file = camera_file(HERE.parent / "examples" / f"{name}.jpg", SIZES[size], kind, Path(scratch))
                sizes.append(file.stat().st_size / 1e6)
                pixels = np.stack([naive(file, spec), ours(file, spec)])
                scores = calm.score_pixels(pixels, [{}, {}])
                apart.append(abs(scores[0].mean - scores[1].mean))
                for _ in range(repeats):
                    full.append(timed(naive, file, spec))
                    quick.append(timed(ours, file, spec))
                file.unlink()
            before, after = statistics.median(full), statistics.median(quick)
            rows.append({
                "format": kind, "size": size, "file_mb": round(statistics.mean(sizes), 1), "naive_ms": round(before, 1),
                "runtime_ms": round(after, 1), "ratio": round(before / after, 2), "score_difference": round(max(apart), 3),
            })  # fmt: skip
    header = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Pillow {Image.__version__}, pillow-heif {pillow_heif.__version__}",
        "photos": len(PHOTOS),
        "repeats": repeats,
    }
    (HERE / "decoding.json").write_text(json.dumps({**header, "rows": rows}, indent=2) + "\n")
    lines = [
        "# From a camera's file to pixel_values",
        "",
        f"{header['date']}, {header['machine']}; {header['photos']} photos, {repeats} times each way. Milliseconds are medians.",
        "",
        "| format | size | file | full decode and resize | runtime | faster | largest score difference |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {r['format']} | {r['size']} | {r['file_mb']} MB | {r['naive_ms']} ms | {r['runtime_ms']} ms | "
            f"{r['ratio']}x | {r['score_difference']} |"
            for r in rows
        ),
        "",
    ]
    (HERE / "decoding.md").write_text("\n".join(lines))
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
