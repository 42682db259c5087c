"""`calm triton build` and `calm triton serve`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from calm_runtime.bundle import DEFAULT_BUNDLE
from calm_runtime.triton_config import TARGETS, TritonOptions, TritonTarget

if TYPE_CHECKING:
    from calm_runtime.triton_server import TritonServer

_DEFAULTS = TritonOptions()


@click.group()
def triton() -> None:
    """Serve a bundle to many clients with NVIDIA Triton.

    \b
    Three steps:
      calm triton build BUNDLE -o repo                a model repository, for this or any other Triton server
      calm triton serve repo                          a server on this machine, until Ctrl-C
      calm score photo.jpg --engine grpc://127.0.0.1:8001

    Clients send the file's bytes to `calm_score` (score, spread, ratings, attributes) or `calm_text` (streamed
    words). The other models of the repository are parts of these two. docs/triton.md has the details.
    """


@triton.command()
@click.argument("bundle", required=False, type=click.Path(path_type=Path), metavar="[BUNDLE]")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to fill; replaced if ours."
)
@click.option(
    "--target",
    type=click.Choice(TARGETS),
    default="cpu",
    show_default=True,
    help="cpu: ONNX files for the onnxruntime backend. tensorrt: the bundle's plans, for the GPU they were built on.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    default=_DEFAULTS.max_batch,
    show_default=True,
    help="Photos per run of the model, at most: raise it on a GPU. Scores do not depend on it.",
)
@click.option(
    "--queue-size",
    type=click.IntRange(min=1),
    default=_DEFAULTS.queue_size,
    show_default=True,
    help="Photos that may wait; further ones are turned away at once, so that clients can go elsewhere.",
)
@click.option(
    "--instances",
    type=click.IntRange(min=1),
    default=_DEFAULTS.instances,
    show_default=True,
    help="Copies of each model that scores: 2 keep the server busy between batches, 1 saves memory.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads per model; default: half of this machine's cores."
)
def build(
    bundle: Path | None,
    output: Path,
    target: TritonTarget,
    max_batch: int,
    queue_size: int,
    instances: int,
    threads: int | None,
) -> int:
    """Fill a model repository with a bundle (default: the built-in one).

    Files are linked to the bundle's where the disk allows, so keep the bundle unchanged; copy the folder to move it.

    \b
    Examples:
      calm triton build -o repo                             the built-in model, on the CPU
      calm triton build my-bundle -o repo --target tensorrt --max-batch 32
    """
    from calm_runtime.triton_repository import build as fill

    options = TritonOptions(
        max_batch=max_batch, queue_size=queue_size, instances=instances, threads=threads or _DEFAULTS.threads
    )
    info = fill(bundle or DEFAULT_BUNDLE, output, target, options)
    click.echo(f"{output}: {info.model} for {info.target}, up to {info.max_batch} photos per batch")
    click.echo(f"Start it with: calm triton serve {output}")
    return 0


@triton.command()
@click.argument("repository", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 admits other machines: anyone there.")
@click.option("--http-port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one.")
@click.option("--grpc-port", type=click.IntRange(0, 65535), default=8001, show_default=True)
@click.option("--metrics-port", type=click.IntRange(0, 65535), default=8002, show_default=True)
@click.option("--verbose", is_flag=True, help="Show the server's own messages.")
def serve(repository: Path, host: str, http_port: int, grpc_port: int, metrics_port: int, verbose: bool) -> int:
    """Run tritonserver on a repository made by `calm triton build`, until Ctrl-C.

    The official server is used where it is installed (its container), else the development server of
    `pip install calm-edge[triton-server]`. There is no password: keep it behind your own gateway.
    """
    from calm_runtime.triton_server import serve as run

    click.echo(f"Loading {repository} ...", err=True)
    return run(repository, host, http_port, grpc_port, metrics_port, verbose=verbose, on_ready=_announce)


def _announce(server: TritonServer) -> None:
    where = server.addresses
    click.echo(f"Serving {server.info.model} at {server.url} (HTTP {where.http_port}, metrics {where.metrics_port})")
    click.echo(f"Try: calm score photo.jpg --engine {server.url}    Stop: Ctrl-C")
    sys.stdout.flush()
