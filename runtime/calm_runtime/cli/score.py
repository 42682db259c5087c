"""`calm score`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from calm_runtime.cli.inputs import display_name, find_photos, load_model, model_options
from calm_runtime.errors import UsageError

if TYPE_CHECKING:
    from calm_runtime.batch import Scored

_MANY = 8  # from here on a progress bar is worth its line


@click.command(
    epilog="Exit code: 0 all scored, 1 some failed (the others are scored all the same), 2 wrong use.",
)
@click.argument("paths", nargs=-1, required=True, metavar="PATHS...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line, in input order.")
@click.option(
    "--sort",
    type=click.Choice(["input", "score"]),
    default="input",
    show_default=True,
    help="score: best first (by the profile, when one is given), failures last; waits for all photos.",
)
@click.option("--details", is_flag=True, help="Show every attribute, not only what stands out.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Photos per run of the model: raise it on a GPU. Scores do not depend on it, but for an int8-dynamic LLM.",
)
@click.option("--profile", metavar="FILE", help="Add what one person would give: a file of `calm profile build`.")
@model_options
def score(
    paths: tuple[str, ...],
    as_json: bool,
    sort: str,
    details: bool,
    batch_size: int,
    profile: str | None,
    bundle: str | None,
    engine: str,
    threads: int | None,
) -> int:
    """Score photos: files as given, folders at any depth.

    A score is the mean of the ratings, 1 to 10, the model expects of people; the spread tells how far they lie apart.
    "Better than 83 of 100" places it among photographs the model knows; "technical" says, on the same scale, how free of
    damage the picture is.

    \b
    Examples:
      calm score photo.jpg                       score, ratings and what stands out
      calm score photo.jpg --details             every attribute
      calm score holiday/ --sort score           the best first
      calm score holiday/ --json > scores.jsonl  for programs
      calm score holiday/ --profile me.calmprofile   your taste beside it
    """
    photos = find_photos(paths)
    model = load_model(bundle, engine, threads)
    if profile is not None:
        model = _personal(model, profile)
    results: Iterator[Scored] = model.score_many(photos, batch_size=batch_size)
    waits = sort == "score"
    results = _with_progress(results, len(photos), hidden=not waits and sys.stdout.isatty())
    if waits:
        results = iter(sorted(results, key=_sort_key))
    failed = 0
    if as_json:
        for result in results:
            failed += result.error is not None
            click.echo(json.dumps(json_record(result), allow_nan=False))
    else:
        from calm_runtime.cli.render import Table

        table = Table(details=details)
        for result in results:
            failed += result.error is not None
            table.add(display_name(result.path), result)
        table.close()
    return 1 if failed else 0


def _sort_key(result: Scored) -> float:
    if result.score is None:
        return float("inf")
    return -(result.score.mean if result.score.personal is None else result.score.personal)


def _personal(model: Any, profile: str) -> Any:
    from calm_runtime.pipeline import Calm
    from calm_runtime.profile import PersonalScorer, load_profile

    if not isinstance(model, Calm):
        raise UsageError("--profile needs the model in this process, not a grpc:// engine")
    return PersonalScorer(model, load_profile(profile))


def json_record(result: Scored) -> dict[str, object]:
    """The record of one photo: a score, or an error with type and message."""
    if result.score is not None:
        return {"path": result.path, **result.score.to_json()}
    error = {"type": type(result.error).__name__, "message": str(result.error)}
    return {"path": result.path, "error": error}


def _with_progress(results: Iterator[Scored], total: int, hidden: bool) -> Iterator[Scored]:
    """A bar on stderr; none where the rows themselves show the progress, or nobody watches."""
    if hidden or total < _MANY or not sys.stderr.isatty():
        yield from results
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TextColumn("photos,"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(results, total=total, description="Scoring")
