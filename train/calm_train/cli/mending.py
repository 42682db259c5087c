"""`calm train mending`."""

from __future__ import annotations

from pathlib import Path

import click

from calm_runtime.mending import WEIGHTS
from calm_train.library import find_photos, load_pictures
from calm_train.mending import make_examples, save_mending, train_mending


@click.command()
@click.option("--photos", type=click.Path(path_type=Path), required=True, help="Folder of untouched photos.")
@click.option("--source", required=True, help="What the photos are, for whoever reads the file.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=WEIGHTS, help="Default: the package's own file."
)
@click.option("--examples", default=60_000, show_default=True, help="Spoiled thumbnails to learn from.")
@click.option("--steps", default=16_000, show_default=True)
@click.option("--seed", default=1, show_default=True)
def mending(photos: Path, source: str, output: Path, examples: int, steps: int, seed: int) -> None:
    """Train the small network that proposes tone edits to `calm suggest`.

    It reads tone statistics of a thumbnail, needs no bundle and no LLM, and takes about half an hour on two cores.
    """
    pictures = load_pictures(find_photos(photos))
    net = train_mending(make_examples(pictures, examples, seed), steps, seed)
    save_mending(net, pictures, source, steps, output)
    click.echo(f"{output}: {len(pictures)} photos, {examples} examples, {steps} steps")
