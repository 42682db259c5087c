"""`calm suggest`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from calm_runtime.cli.inputs import display_name, find_photos, load_model, model_options
from calm_runtime.errors import PhotoError, ScoreError, UsageError
from calm_runtime.pipeline import REMOTE_SCHEME
from calm_runtime.retouch import Crop, Edit, Rotation, WhiteBalance

if TYPE_CHECKING:
    from calm_runtime.improve import Improved
    from calm_runtime.suggest import Suggestions


@click.command(epilog="Exit code: 0 all good, 1 some photos failed, 2 wrong use.")
@click.argument("paths", nargs=-1, required=True, metavar="PATHS...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line, in input order.")
@click.option(
    "--apply",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="OUTDIR",
    help="Write one improved picture per photo here, and before/after pictures in its subfolder before-after.",
)
@model_options
def suggest(
    paths: tuple[str, ...], as_json: bool, folder: Path | None, bundle: str | None, engine: str, threads: int | None
) -> int:
    """Say what to change in a photo and how much: every edit is tried, and its gain measured.

    \b
    Examples:
      calm suggest photo.jpg
      calm suggest holiday/ --json > suggestions.jsonl
      calm suggest --apply improved/ holiday/    improved copies; the originals stay as they are
    """
    if engine.startswith(REMOTE_SCHEME):
        raise UsageError("calm suggest tries its edits on a model on this machine; leave out the grpc:// engine")
    named = _named_photos(paths, folder)
    outputs: dict[str, Path] = {}
    if folder is not None:
        from calm_runtime.improve import plan_outputs

        outputs = plan_outputs(named, folder)
    model = load_model(bundle, engine, threads)
    failed = 0
    for number, (path, _) in enumerate(named):
        written: Improved | None = None
        try:
            found: Suggestions = model.suggest(path)
            if outputs:
                from calm_runtime.improve import write_improved

                written = write_improved(model, path, found, outputs[path])
        except (PhotoError, ScoreError) as error:
            failed += 1
            if as_json:
                click.echo(json.dumps({"path": path, "error": {"type": type(error).__name__, "message": str(error)}}))
            else:
                click.echo(f"calm: {display_name(str(error))}", err=True)
            continue
        if as_json:
            record = found.to_json() | ({"written": written.to_json()} if written else {})
            click.echo(json.dumps(record, allow_nan=False))
        else:
            click.echo("\n" * bool(number) + "\n".join(_lines(found, written)))
    return 1 if failed else 0


def describe(edit: Edit) -> str:
    """An edit for people: what and how much."""
    if isinstance(edit, WhiteBalance):
        return f"white balance: warmth {edit.warmth:+.2f}, tint {edit.tint:+.2f} EV"
    if isinstance(edit, Rotation):
        return f"rotation: {abs(edit.degrees):.1f} degrees {'counter-' if edit.degrees > 0 else ''}clockwise"
    if isinstance(edit, Crop):
        edges = (edit.left, edit.top, 1 - edit.right, 1 - edit.bottom)
        return "crop: {:.0%} off the left, {:.0%} top, {:.0%} right, {:.0%} bottom".format(*edges)
    decimals = 2 if edit.unit == "EV" else 0
    return f"{edit.name}: {edit.amount:+.{decimals}f} {edit.unit}"


def _lines(found: Suggestions, written: Improved | None) -> list[str]:
    before = found.score.quality
    lines = [click.style(display_name(found.photo), bold=True) + f"  {before:.1f}"]
    for number, suggestion in enumerate(found.suggestions, 1):
        gain = click.style(f"{suggestion.gain:+.1f}", fg="green")
        lines.append(
            f"  {number}. {describe(suggestion.edit)}  {before:.1f} -> {suggestion.quality_after:.1f} ({gain})"
        )
    if not found.suggestions:
        lines.append("  nothing that was tried gains; leave it as it is")
    if written:
        lines.append(f"  wrote {display_name(str(written.path))}  {before:.1f} -> {written.quality:.1f}")
        if written.edits:
            lines.append("    with " + "; ".join(describe(edit) for edit in written.edits))
        else:
            lines.append("    with no edit: the photo as it is, written again")
    return lines


def _named_photos(paths: tuple[str, ...], folder: Path | None) -> list[tuple[str, str]]:
    """Photos and what to call them under the output folder: their place below the folder that was given.

    Earlier results inside a given folder are not taken for photos. Raises UsageError when nothing is left.
    """
    out = folder.resolve() if folder is not None else None
    named = []
    for path in paths:
        is_folder = os.path.isdir(path)
        holds_results = out is not None and is_folder and Path(path).resolve() != out
        for photo in find_photos([path]):
            if not (holds_results and out is not None and Path(photo).resolve().is_relative_to(out)):
                named.append((photo, os.path.relpath(photo, path) if is_folder else os.path.basename(photo)))
    if not named:
        raise UsageError(f"no photos in {', '.join(paths)} outside {folder}")
    return named
