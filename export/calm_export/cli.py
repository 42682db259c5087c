"""`calm export`: a checkpoint becomes a bundle."""

from __future__ import annotations

import logging
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from calm_runtime.bundle import Manifest
from calm_runtime.errors import CalmError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@click.command(
    "export",
    epilog="The bundle appears only when every parity gate is met; the CPU graphs are always part of it.",
)
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the new bundle.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    type=click.Choice(["cpu", "cuda", "tensorrt-rtx"]),
    default=("cpu",),
    show_default=True,
    help="What to build for; may be given several times.",
)
@click.option(
    "--llm-precision",
    type=click.Choice(["auto", "fp32", "int8", "int4"]),
    default="auto",
    show_default=True,
    help="auto: the smallest that passes the parity gate.",
)
@click.option(
    "--device",
    "devices",
    multiple=True,
    default=("portable",),
    show_default=True,
    help="TensorRT-RTX engine: portable (Ampere and later) or a compute capability such as 8.9.",
)
@click.option(
    "--engine-precision",
    type=click.Choice(["fp16", "fp32"]),
    default="fp16",
    show_default=True,
    help="Weights of the TensorRT-RTX engines; norms and softmax stay fp32.",
)
@click.option(
    "--photos",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with 100 photos or more for the parity gate; default: edited examples.",
)
@click.option(
    "--examples",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Photos whose scores the bundle carries for `calm check`; default: the project's examples.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing bundle.")
@click.option("--verbose", is_flag=True, help="Log every step and parity figure.")
def export(
    checkpoint: Path,
    output: Path,
    targets: tuple[str, ...],
    llm_precision: str,
    devices: tuple[str, ...],
    engine_precision: str,
    photos: Path | None,
    examples: Path | None,
    overwrite: bool,
    verbose: bool,
) -> None:
    """Export CHECKPOINT to a bundle for `calm score`."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(message)s")
    console = Console(stderr=True)
    try:
        from transformers.utils.logging import disable_progress_bar

        from calm_export.bundle import ExportOptions, export_bundle
        from calm_export.photos import photo_files
    except ImportError as error:
        raise click.ClickException(f"export needs more packages ({error}); pip install calm-edge[export]") from error
    disable_progress_bar()  # type: ignore[no-untyped-call]
    folder = examples or (EXAMPLES if EXAMPLES.is_dir() else None)
    try:
        options = ExportOptions(
            targets=tuple(dict.fromkeys(("cpu", *targets))),
            llm_precision=llm_precision,
            devices=tuple(dict.fromkeys(devices)),
            engine_precision="fp16" if engine_precision == "fp16" else "fp32",
            photos=photos,
            examples=tuple(photo_files(folder)) if folder else (),
            overwrite=overwrite,
        )
        with console.status("exporting") as status:
            manifest = export_bundle(checkpoint, output, options, status.update)
    except CalmError as error:
        raise click.ClickException(str(error)) from error
    _show(console, output, manifest)


def _show(console: Console, output: Path, manifest: Manifest) -> None:
    table = Table("stage", "figure", "value", "gate", title=f"parity on {manifest.parity[0].photos} photos")
    for row in manifest.parity:
        table.add_row(row.stage, row.metric, f"{row.value:.5f}", f"{row.gate:g}")
    console.print(table)
    for engine in manifest.engines:
        console.print(
            f"{engine.path}: {engine.network_layers} layers became {engine.engine_layers}, "
            f"{engine.fused_attention} fused attention, {engine.activation_bytes / 2**20:.0f} MiB at the largest batch"
        )
    size = sum(entry.bytes for entry in manifest.files.values())
    precision = next(graph.precision for graph in manifest.graphs if graph.stage == "llm")
    console.print(f"{output}: {size / 1e6:.1f} MB, LLM {precision}, digest {manifest.digest[:12]}")
