"""`calm train preview`."""

from __future__ import annotations

from pathlib import Path

import click

from calm_train.library import find_photos, load_pictures
from calm_train.preview import write_preview


@click.command()
@click.option("--photos", type=click.Path(path_type=Path), required=True, help="Folder of photos.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("runs/preview"), show_default=True)
@click.option("--count", type=click.IntRange(1, 200), default=8, show_default=True, help="Photos to show.")
@click.option("--seed", default=1, show_default=True, help="Same seed, same page.")
def preview(photos: Path, output: Path, count: int, seed: int) -> None:
    """Show what the model is taught: photos, their edits, pseudo-labels and texts, as one HTML page."""
    pictures = load_pictures(find_photos(photos)[:count])
    click.echo(write_preview(pictures, output, seed))
