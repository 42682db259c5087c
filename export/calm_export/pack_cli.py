"""`calm export pack`: a finished bundle becomes a folder for an app without Python."""

from __future__ import annotations

from pathlib import Path

import click

from calm_runtime.errors import CalmError

PACK_COMMAND = "pack"


@click.command(PACK_COMMAND)
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path), required=False)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the new pack.")
@click.option(
    "--target",
    required=True,
    type=click.Choice(["web", "mobile"]),
    help="web: ONNX files for Node.js and browsers. mobile: ORT format and the operators a reduced build needs.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing pack.")
def pack(bundle: Path | None, output: Path, target: str, overwrite: bool) -> None:
    """Make a pack of BUNDLE, or of the built-in model, for apps that have no Python.

    \b
    Examples:
      calm export pack -o examples/web/pack --target web
      calm export pack my-bundle -o my-pack --target mobile

    docs/embedding.md says how to use one in Node.js, a browser, Kotlin, Swift or C++.
    """
    try:
        from calm_export.packs import make_pack
        from calm_runtime.bundle import DEFAULT_BUNDLE, open_bundle
    except ImportError as error:
        raise click.ClickException(f"export needs more packages ({error}); pip install calm-edge[export]") from error

    try:
        made = make_pack(
            open_bundle(bundle or DEFAULT_BUNDLE), "mobile" if target == "mobile" else "web", output, overwrite
        )
    except CalmError as error:
        raise click.ClickException(str(error)) from error
    size = sum(entry.bytes for entry in made.files.values())
    click.echo(f"{output}: {size / 1e6:.1f} MB for {target}, of bundle {made.bundle[:12]}", err=True)
