"""`calm ask`."""

from __future__ import annotations

import json
from typing import Any

import click

from calm_runtime.cli.inputs import display_name, load_model, model_options, write_answer, writing_options
from calm_runtime.errors import PhotoError, RemoteError, ScoreError


@click.command()
@click.argument("photo", metavar="PHOTO")
@click.argument("question", metavar="QUESTION")
@click.option("--json", "as_json", is_flag=True, help='One {"path", "question", "answer"} object.')
@writing_options
@model_options
def ask(
    photo: str, question: str, as_json: bool, bundle: str | None, engine: str, threads: int | None, **writing: Any
) -> int:
    """Ask a question about a photo; the answer appears as the model writes it.

    The built-in calm-nano answers about the attributes that `calm score --details` lists, in the words "How is the X?",
    "What about the X?", "Tell me about the X." or "Is the X right?". Asked anything else it talks of something else.

    \b
    Examples:
      calm ask photo.jpg "How is the contrast?"
      calm ask photo.jpg "Is the tint right?" --json
    """
    model = load_model(bundle, engine, threads)
    try:
        pieces = write_answer(model.look(photo), "ask", question, writing)
        if as_json:
            click.echo(json.dumps({"path": photo, "question": question, "answer": "".join(pieces)}))
            return 0
        for piece in pieces:
            click.echo(piece, nl=False)
        click.echo()
    except (PhotoError, ScoreError, RemoteError) as error:
        if as_json:
            click.echo(json.dumps({"path": photo, "error": {"type": type(error).__name__, "message": str(error)}}))
        else:
            click.echo(f"calm: {display_name(str(error))}", err=True)
        return 1
    return 0
