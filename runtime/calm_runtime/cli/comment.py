"""`calm comment`."""

from __future__ import annotations

import json
from typing import Any

import click

from calm_runtime.cli.inputs import display_name, find_photos, load_model, model_options, write_answer, writing_options
from calm_runtime.errors import PhotoError, RemoteError, ScoreError


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATHS...")
@click.option("--json", "as_json", is_flag=True, help='One {"path", "comment"} object per line, in input order.')
@writing_options
@model_options
def comment(
    paths: tuple[str, ...], as_json: bool, bundle: str | None, engine: str, threads: int | None, **writing: Any
) -> int:
    """Say in words what a photo does well and badly, as the model writes it.

    \b
    Examples:
      calm comment photo.jpg
      calm comment holiday/ --json > comments.jsonl
      calm comment photo.jpg --temperature 0.7 --seed 3      other words for the same photo
    """
    photos = find_photos(paths)
    model = load_model(bundle, engine, threads)
    failed = 0
    for number, path in enumerate(photos):
        if not as_json and len(photos) > 1:
            click.echo(("\n" if number else "") + click.style(display_name(path), bold=True))
        try:
            pieces = write_answer(model.look(path), "comment", None, writing)
            if as_json:
                click.echo(json.dumps({"path": path, "comment": "".join(pieces)}))
                continue
            for piece in pieces:
                click.echo(piece, nl=False)
            click.echo()
        except (PhotoError, ScoreError, RemoteError) as error:
            failed += 1
            if as_json:
                click.echo(json.dumps({"path": path, "error": {"type": type(error).__name__, "message": str(error)}}))
            else:
                click.echo(f"calm: {display_name(str(error))}", err=True)
    return 1 if failed else 0
