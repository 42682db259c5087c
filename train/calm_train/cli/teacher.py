"""`calm train teacher`."""

from __future__ import annotations

from pathlib import Path

import click

from calm_train.taste_fit import teacher_from_ratings


@click.command()
@click.option(
    "--ratings",
    "files",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    metavar="CSV",
    help="Rated photos, columns path,rating: mean ratings of many people. Several files are several sets, each on a scale of its own.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("runs/teacher"), show_default=True)
def teacher(files: tuple[Path, ...], output: Path) -> None:  # fmt: skip
    """Fit a teacher of taste to rated photos, for `calm train tune --teacher`.

    The teacher looks at photos through frozen pretrained encoders (fetched by name) and learns from a few hundred ratings
    which of them people like; a model then learns from its votes on as many crops and edits as it is shown.
    """
    click.echo(teacher_from_ratings(files, output))
