"""What do untouched photos have in common? Measures the distribution that suggestions take as natural.

python benchmarks/natural_photos.py --photos UNTOUCHED_DIR     writes runtime/calm_runtime/natural_photos.json
"""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
import numpy as np

from calm_runtime.cli.inputs import find_photos
from calm_runtime.naturalness import DISTRIBUTION, Distribution, fine_detail, tone_statistics, tone_thumbnail
from calm_runtime.photo import PhotoSpec, load_photo
from calm_runtime.retouch import noise_level


@click.command(help=__doc__)
@click.option("--photos", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--source", required=True, help="What the photos are, for whoever reads the file.")
def main(photos: Path, source: str) -> None:
    size = PhotoSpec().size
    statistics, noises, details = [], [], []
    for path in find_photos([str(photos)]):
        picture = load_photo(path)
        statistics.append(tone_statistics(tone_thumbnail(picture)))
        picture.thumbnail((size, size))
        values = np.asarray(picture)
        noises.append(noise_level(values))
        details.append(fine_detail(values))
    rows = np.array(statistics)
    found = Distribution(
        photos=len(rows),
        source=source,
        mean=tuple(rows.mean(axis=0).round(4).tolist()),
        covariance=tuple(tuple(row) for row in np.cov(rows.T).round(5).tolist()),
        detail_size=size,
        noisy=round(float(np.percentile(noises, 90)), 5),
        soft=round(float(np.percentile(details, 10)), 5),
    )
    DISTRIBUTION.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=0) + b"\n")
    click.echo(f"{DISTRIBUTION}: {len(rows)} photos, noisy above {found.noisy}, soft below {found.soft}")


if __name__ == "__main__":
    main()
