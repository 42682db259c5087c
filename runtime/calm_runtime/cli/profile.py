"""`calm profile`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from calm_runtime.cli.inputs import display_name, load_model, model_options
from calm_runtime.errors import UsageError


@click.group()
def profile() -> None:
    """Learn one person's taste from their ratings.

    \b
    calm profile build ratings.csv -o me.calmprofile
    calm score holiday/ --profile me.calmprofile
    """


@profile.command()
@click.argument("ratings", type=click.Path(path_type=Path), metavar="RATINGS.CSV")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("me.calmprofile"), show_default=True)
@click.option(
    "--scale", type=float, nargs=2, metavar="WORST BEST", help="Default: the least and the greatest rating in the file."
)
@model_options
def build(
    ratings: Path, output: Path, scale: tuple[float, float] | None, bundle: str | None, engine: str, threads: int | None
) -> int:
    """Build a profile from a CSV file with the columns path,rating.

    Any scale of ratings will do; three are the minimum, ten begin to tell, a hundred are good. Says what the profile is
    worth. Paths are relative to the file. The photos themselves are not kept. Exit code 1 when some could not be read.
    """
    from calm_runtime.pipeline import Calm
    from calm_runtime.profile import build_profile
    from calm_runtime.ratings import read_ratings
    from calm_runtime.worth import verdict

    rows = read_ratings(ratings)
    model = load_model(bundle, engine, threads)
    if not isinstance(model, Calm):
        raise UsageError("a profile is built in this process, not by a grpc:// engine")
    built, errors = build_profile(model, rows, scale)
    built.save(output)
    for error in errors:
        click.echo(f"calm: left out: {display_name(str(error))}", err=True)
    click.echo(f"{display_name(str(output))}: learnt from {built.info.ratings} ratings with {built.info.model}")
    click.echo(verdict(built.info.ratings, built.info.worth))
    return 1 if errors else 0


@profile.command()
@click.argument("file", type=click.Path(path_type=Path))
def show(file: Path) -> None:
    """Print what a profile was made of, as JSON."""
    import msgspec

    from calm_runtime.profile import load_profile

    click.echo(json.dumps({"path": str(file), **msgspec.to_builtins(load_profile(file).info)}))
