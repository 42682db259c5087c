"""Which photos the arguments name, and the options every command with a model shares."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from calm_runtime.errors import UsageError
from calm_runtime.photo import PHOTO_SUFFIXES
from calm_runtime.session import ENGINES

_F = TypeVar("_F", bound=Callable[..., Any])


def find_photos(paths: Iterable[str]) -> list[str]:
    """Files as given, folders walked to any depth in name order for photo suffixes; hidden entries are skipped.

    Raises UsageError when nothing is left to score.
    """
    given = list(paths)
    found = [photo for path in given for photo in (_walk(path) if os.path.isdir(path) else [path])]
    if not found:
        raise UsageError(f"no photos in {', '.join(given)}; looked for {', '.join(sorted(PHOTO_SUFFIXES))}")
    return found


def _walk(folder: str) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in PHOTO_SUFFIXES:
                yield os.path.join(root, name)


def display_name(path: str) -> str:
    """A path that can always be printed, whatever bytes the file system holds."""
    return os.fsencode(path).decode("utf-8", "replace")


def model_options(command: _F) -> _F:
    """--bundle, --engine, --threads."""
    for option in (
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads of the model; default: all cores."),
        click.option(
            "--engine",
            default="auto",
            show_default=True,
            metavar="NAME",
            help=f"{', '.join(ENGINES)}, or grpc://HOST:PORT for a Triton server.",
        ),
        click.option(
            "--bundle", metavar="FOLDER", help="Model bundle made by `calm export`; default: the one that is built in."
        ),
    ):
        command = option(command)
    return command


def writing_options(command: _F) -> _F:
    """--max-tokens, --temperature, --top-p, --seed, --stop."""
    for option in (
        click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; may be repeated."),
        click.option("--seed", type=int, help="Same seed, same words; matters with --temperature."),
        click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True,
                     help="Draw from the likeliest tokens that hold this much of the probability."),
        click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True,
                     help="0: always the likeliest words; above, the words vary."),
        click.option("--max-tokens", type=click.IntRange(1), help="Longest answer, in tokens of the model."),
    ):  # fmt: skip
        command = option(command)
    return command


def write_answer(look: Any, task: str, question: str | None, writing: dict[str, Any]) -> Iterator[str]:
    """The words of a `Look` or `RemoteLook` on a task. writing: the values of `writing_options`.

    Raises UsageError for what a server cannot do, and what `answer` raises.
    """
    from calm_runtime.pipeline import MAX_NEW_TOKENS, Look
    from calm_runtime.text import until

    limit = writing["max_tokens"]
    if isinstance(look, Look):
        return look.answer(
            task, question, limit or MAX_NEW_TOKENS, writing["temperature"], writing["top_p"], writing["seed"],
            writing["stop"],
        )  # fmt: skip
    if writing["temperature"]:
        raise UsageError("a server writes the likeliest words; --temperature works with a bundle in this process")
    pieces: Iterator[str] = look.answer(task, question, limit)
    return until(pieces, writing["stop"])


def load_model(bundle: str | None, engine: str, threads: int | None) -> Any:
    """`Calm`, or `RemoteCalm` when the engine is a grpc:// address. Raises UsageError, BundleError or EngineError."""
    from calm_runtime.pipeline import REMOTE_SCHEME, Calm

    if engine.startswith(REMOTE_SCHEME):
        if bundle is not None:
            raise UsageError("--bundle and a grpc:// engine exclude each other: the server has its own bundle")
        return Calm.load(engine)
    return Calm.load(bundle, engine=engine, threads=threads)
