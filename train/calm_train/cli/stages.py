"""`calm train language|pretrain|tune`: options in, one checkpoint out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from calm_train.plan import render
from calm_train.recipe import StageName, load_recipe
from calm_train.run import RunOptions, language_checkpoint, plan_run, run_stage

FC = TypeVar("FC", bound=Callable[..., Any])

RECIPE = click.option("--recipe", default="nano", show_default=True, help="nano, edge, full, a .yaml file or a folder.")
SEED = click.option("--seed", default=1, show_default=True, help="Same seed, same run.")


@click.command()
@RECIPE
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("runs/language"), show_default=True)
@SEED
def language(recipe: str, output: Path, seed: int) -> None:
    """Tokenizer and LLM from scratch, before any photo. `pretrain` does this by itself where it is needed."""
    click.echo(language_checkpoint(load_recipe(recipe), output, seed))


def _stage_options(stage: StageName, init_help: str) -> Callable[[FC], FC]:
    options = [
        RECIPE,
        click.option(
            "-o", "--output", type=click.Path(path_type=Path), default=Path("runs") / stage, show_default=True,
            help="Checkpoint folder; the training report goes there too.",
        ),
        SEED,
        click.option("--photos", type=click.Path(path_type=Path), help="Folder of unlabelled photos."),
        click.option(
            "--data", multiple=True, metavar="NAME=ROOT", help="Labelled data set, e.g. ava=/data/AVA; may be repeated."
        ),
        click.option(
            "--teacher", type=click.Path(path_type=Path), metavar="DIR",
            help="Teacher of taste (calm train teacher) that labels the views with votes; default: a finished model keeps its own taste.",
        ),
        click.option(
            "--ratings", type=click.Path(path_type=Path), help="CSV file with the columns path,rating: someone's taste."
        ),
        click.option(
            "--rating-scale", type=float, nargs=2, default=(1, 10), show_default=True, help="Worst and best rating."
        ),
        click.option("--init", metavar="CHECKPOINT", help=init_help),
        click.option("--name", help="Name of the model; default: the recipe's, with `adapted` when a finished one goes on."),
        click.option("--max-steps", type=click.IntRange(1), help="Instead of the recipe's number of steps; a language stage before it is cut to as many."),
        click.option("--save-every", default=200, show_default=True, help="Steps between resumable checkpoints."),
        click.option("--resume", is_flag=True, help="Go on from the last resumable checkpoint in the output folder."),
        click.option("--workers", default=0, show_default=True, help="Processes that prepare photos."),
        click.option("--dry-run", is_flag=True, help="Print what would be done - settings, parameters, memory - and stop."),
    ]  # fmt: skip

    def decorate(function: FC) -> FC:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _run(stage: StageName, dry_run: bool, **options: object) -> None:
    run = RunOptions(stage=stage, **options)  # type: ignore[arg-type]
    click.echo(render(plan_run(run)) if dry_run else run_stage(run))


@click.command()
@_stage_options("pretrain", "Checkpoint to start from; default: from nothing. `calm-nano` is the shipped one.")
def pretrain(dry_run: bool, **options: object) -> None:
    """Stage 1: text-guided self-supervision on unlabelled photos.

    From nothing, or, with --init of a finished model, a gentle adaptation of it to your photos. Labelled data sets
    of image-text pairs join as further flows.
    """
    _run("pretrain", dry_run, **options)


@click.command()
@_stage_options("tune", "Checkpoint to start from; default: the shipped calm-nano.")
def tune(dry_run: bool, **options: object) -> None:
    """Stage 2: instruction tuning on scores, critiques, suggestions and questions.

    Truth comes from known edits of unlabelled photos, and from human ratings and texts where they are given. With
    --init of a finished model (the default) it adapts gently, for example to one person's --ratings.
    """
    _run("tune", dry_run, **options)
