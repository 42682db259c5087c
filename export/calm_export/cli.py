"""`calm export`: a checkpoint becomes a bundle; `calm export verify`: a bundle is compared with its checkpoint."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.console import Console

from calm_export.pack_cli import pack
from calm_export.tables import show, show_groups, stage_table
from calm_runtime.bundle import Precision
from calm_runtime.errors import CalmError, UsageError

if TYPE_CHECKING:
    from calm_export.llm import LlmPrecision

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
VERIFY = "verify"

WIDE = 150
FAST = {
    "encoder_precision": "int8",
    "half_weights": True,
    "llm_precision": "int8-dynamic",
    "llm_decode_precision": "int4",
    "llm_block": "auto",
}


def _prefer_fast(context: click.Context, _: click.Parameter, fast: bool) -> None:
    """Other defaults for the options of precision; what is given on the command line still wins."""
    if fast:
        context.default_map = {**(context.default_map or {}), **FAST}


class ExportCommand(click.Command):
    """A command with arguments of its own that hands over to `verify` or `pack` when that is its first word."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        for command in (verify, pack):
            if args and args[0] == command.name:
                return command.make_context(f"{info_name} {command.name}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)


@click.command(
    "export",
    cls=ExportCommand,
    epilog="The bundle appears only when every parity gate is met; the CPU graphs are always part of it. "
    "A checkpoint folder that is called verify or pack is given as ./verify or ./pack.",
)
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the new bundle.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    type=click.Choice(["cpu", "cuda", "tensorrt-rtx", "tensorrt", "web", "mobile"]),
    default=("cpu",),
    show_default=True,
    help="What to build for; may be given several times. web and mobile become packs beside the bundle.",
)
@click.option(
    "--fast",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_prefer_fast,
    help="For speed on a CPU: --encoder-precision int8 --half-weights --llm-precision int8-dynamic "
    "--llm-decode-precision int4 --llm-block auto. Options given beside it win.",
)
@click.option(
    "--llm-precision",
    type=click.Choice(["auto", "fp32", "int8", "int8-dynamic", "int4"]),
    default="auto",
    show_default=True,
    help="auto: the smallest of int4, int8, fp32 that passes the parity gate. int8-dynamic: the fastest to score with.",
)
@click.option(
    "--llm-decode-precision",
    type=click.Choice(["fp32", "int8", "int8-dynamic", "int4"]),
    help="A second LLM graph, for the tokens it writes; loaded with the first text. int4 beside int8-dynamic: fast at "
    "both, in the room of both.",
)
@click.option(
    "--llm-block",
    type=click.Choice(["auto", "32", "64", "128"]),
    default="32",
    show_default=True,
    help="Weights of an int4 or int8 LLM that share a scale. 128: smaller and faster, less exact; the gate decides. auto: "
    "the most of these that pass it.",
)
@click.option(
    "--encoder-precision",
    type=click.Choice(["fp32", "int8"]),
    default="fp32",
    show_default=True,
    help="Vision encoder and aligner on the CPU. int8 keeps the most sensitive products in float until the gate holds.",
)
@click.option(
    "--vision-precision",
    type=click.Choice(["auto", "fp32", "int8"]),
    default="auto",
    show_default=True,
    help="Of the vision encoder alone, beside --encoder-precision int8. auto: what is faster, float32 for convolutions.",
)
@click.option(
    "--half-weights/--no-half-weights",
    help="Store float32 weights of vision encoder and aligner in float16: half the file, computed in float32 all the same.",
)
@click.option(
    "--calibration",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with 8 photos or more whose values set the ranges of int8 and fp8; default: photos of the gate.",
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
    type=click.Choice(["fp16", "bf16", "fp32", "int8", "fp8", "int4"]),
    default="fp16",
    show_default=True,
    help="Weights of the engines, TensorRT-RTX or TensorRT; norms and softmax stay fp32; int8 and fp8 round products with weights, int4 their weights alone.",
)
@click.option(
    "--batch",
    "batches",
    type=(click.IntRange(min=1), click.IntRange(min=1)),
    default=(1, 8),
    show_default=True,
    metavar="BEST LARGEST",
    help="Batch the engines are optimised for, and the largest they take.",
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
@click.option(
    "--allow-drift",
    is_flag=True,
    help="Write the bundle even when it misses a gate. It is marked, and `calm check` fails it.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing bundle.")
@click.option("--verbose", is_flag=True, help="Log every step and parity figure.")
def export(
    checkpoint: Path,
    output: Path,
    targets: tuple[str, ...],
    llm_precision: str,
    llm_decode_precision: LlmPrecision | None,
    llm_block: str,
    encoder_precision: Precision,
    vision_precision: str,
    half_weights: bool,
    calibration: Path | None,
    devices: tuple[str, ...],
    engine_precision: Precision,
    batches: tuple[int, int],
    photos: Path | None,
    examples: Path | None,
    allow_drift: bool,
    overwrite: bool,
    verbose: bool,
) -> None:
    """Export CHECKPOINT to a bundle for `calm score`, or compare a bundle with its checkpoint.

    \b
    Examples:
      calm export models/calm-nano -o my-bundle
      calm export models/calm-nano -o my-bundle --target cpu --target tensorrt-rtx
      calm export models/calm-nano -o my-bundle --fast --calibration PHOTOS
      calm export models/calm-nano -o my-bundle --target web
      calm export verify my-bundle --checkpoint models/calm-nano --report report/
      calm export pack my-bundle -o my-pack --target mobile

    `calm export verify --help` explains the comparison, `calm export pack --help` what a pack is. docs/export.md says which target is for which device.
    """
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(message)s")
    console = _console(stderr=True)
    _require_packages()
    from calm_export.bundle import export_bundle
    from calm_export.options import ExportOptions

    try:
        options = ExportOptions(
            targets=tuple(dict.fromkeys(("cpu", *targets))),
            llm_precision=llm_precision,
            llm_decode_precision=llm_decode_precision,
            llm_block=None if llm_block == "auto" else int(llm_block),
            encoder_precision=encoder_precision,
            vision_precision=None if vision_precision == "auto" else vision_precision,  # type: ignore[arg-type]
            half_weights=half_weights,
            calibration=calibration,
            devices=tuple(dict.fromkeys(devices)),
            engine_precision=engine_precision,
            batches=(1, *batches),
            photos=photos,
            examples=_examples(examples),
            overwrite=overwrite,
            allow_drift=allow_drift,
        )
        with console.status("exporting") as status:
            manifest = export_bundle(checkpoint, output, options, status.update)
    except CalmError as error:
        raise click.ClickException(str(error)) from error
    show(console, output, manifest)
    show_groups(console, output)


@click.command(VERIFY)
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--checkpoint",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The checkpoint the bundle should compute the same as.",
)
@click.option(
    "--photos",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with 100 photos or more; default: edited examples, as in the export.",
)
@click.option(
    "--report", type=click.Path(path_type=Path), help="Folder for verify.json and verify.html; not inside the bundle."
)
@click.option("--json", "as_json", is_flag=True, help="One object per stage and line.")
@click.pass_context
def verify(
    ctx: click.Context, bundle: Path, checkpoint: Path, photos: Path | None, report: Path | None, as_json: bool
) -> None:
    """Compare BUNDLE with the checkpoint in PyTorch, stage by stage, on 100 photos or more.

    Stages: pixels, four hidden states, photo_embeds, image_embeds, attribute_logits, prefill logits, score, technical,
    greedy text. Each side goes its own way from the picture on, so the first stage that fails is where the two part. Quantised weights are
    also compared with the checkpoint's, rounded in the same way. Engines are listed with their builder's evidence.

    \b
    Examples:
      calm export verify my-bundle --checkpoint models/calm-nano
      calm export verify my-bundle --checkpoint models/calm-nano --photos PHOTOS --report report/

    Exit code: 0 every stage met its gate, 1 a stage did not, 2 wrong use.
    """
    console = _console(stderr=True)
    _require_packages()
    from calm_export.verify import verify_bundle
    from calm_export.verify_page import check_report_folder, write_report

    try:
        if report:
            check_report_folder(report, bundle)
        with console.status("verifying") as status:
            found = verify_bundle(bundle, checkpoint, photos, _examples(None), status.update)
        if report:
            write_report(report, found)
    except UsageError as error:
        raise click.UsageError(str(error), ctx) from error
    except CalmError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        for row in found.report.stages:
            click.echo(msgspec.json.encode(row))
    else:
        _console().print(stage_table(found.report))
    if not found.report.same_checkpoint:
        click.echo(f"calm: {bundle} was exported from another checkpoint than this one", err=True)
    if not found.report.passed:
        click.echo(f"calm: {bundle} fails at {found.report.first_failing_stage}", err=True)
        ctx.exit(1)


def _require_packages() -> None:
    """Raise ClickException with the remedy when a package of the export is missing; quieten those that are there."""
    try:
        from transformers.utils.logging import disable_progress_bar

        importlib.import_module("calm_export.bundle")
    except ImportError as error:
        raise click.ClickException(f"export needs more packages ({error}); pip install calm-edge[export]") from error
    disable_progress_bar()  # type: ignore[no-untyped-call]


def _console(*, stderr: bool = False) -> Console:
    """Where tables go: as wide as the terminal, or WIDE where a file or pipe has no width of its own."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=WIDE)


def _examples(folder: Path | None) -> tuple[Path, ...]:
    """The photos of a folder, or of the project's examples where they are at hand."""
    from calm_export.photos import photo_files

    chosen = folder or (EXAMPLES if EXAMPLES.is_dir() else None)
    return tuple(photo_files(chosen)) if chosen else ()
