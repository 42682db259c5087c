"""What do engines cost to build, and what do they need? Vision encoder and aligner of three sizes, random weights.

python benchmarks/engines.py     writes engines.json and engines.md beside itself

tiny is the size of the tests, nano the shipped recipe, full CLIP ViT-L/14 at 336 pixels with the alignment module of
the full recipe. The LLM is left out: no engine holds it. Needs no GPU.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import click
import torch

from calm_export.engines import write_sources
from calm_export.tensorrt import BUILDERS, EngineTarget, engine_profile, library_version, run_build
from calm_export.tensorrt_build import PORTABLE, BuildRequest
from calm_runtime.bundle import Stage
from calm_train.build import describe_config
from calm_train.config import CalmConfig
from calm_train.model import CalmForConditionalGeneration
from calm_train.recipe import load_recipe

HERE = Path(__file__).parent
TARGET: EngineTarget = "tensorrt-rtx"
STAGES: tuple[Stage, ...] = ("vision_encoder", "aligner")
BATCH = 8  # the default of `calm export`
BATCHES = (1, BATCH, 32)
SWEPT = "fp16"  # the other precisions are built for BATCH alone
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 48,
    "patch_size": 16,
}


def config_of(size: str) -> CalmConfig:
    """The configuration of a size, its LLM cut down to the width that the aligner needs."""
    config = (
        CalmConfig(
            TINY, {"hidden_size": 64}, queries=2, qformer_layers=1, qformer_heads=2, taps=(1, 2, 3), cue_width=16
        )
        if size == "tiny"
        else describe_config(load_recipe(size))
    )
    text = config.text_config
    text.num_hidden_layers, text.vocab_size, text.intermediate_size = 1, 32, 32
    text.num_attention_heads = text.num_key_value_heads = 1
    text.pad_token_id = text.bos_token_id = text.eos_token_id = 0
    return config


def export(size: str, precision: Any, folder: Path, answers: Any) -> None:
    """In a process of its own, so that its memory is gone before the builds start."""
    torch.manual_seed(0)
    model = CalmForConditionalGeneration(config_of(size)).eval()
    parts = {"vision_encoder": model.vision_encoder, "aligner": model.aligner}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    started = time.monotonic()
    write_sources(model, precision, folder)
    answers.put({"parameters": counts, "export_seconds": round(time.monotonic() - started, 1)})


def measure(size: str, precision: str, folder: Path, progress: Any) -> list[dict[str, Any]]:
    """One row per stage: the engine at BATCH, and activations at every batch that was built."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=export, args=(size, precision, folder, answers))
    process.start()
    written = answers.get(timeout=1800)
    process.join()
    rows = []
    for stage in STAGES:
        onnx, engine = folder / f"{stage}.onnx", folder / f"{stage}.engine"
        row: dict[str, Any] = {"model": size, "stage": stage, "precision": precision}
        row |= {"parameters": written["parameters"][stage], "export_seconds": written["export_seconds"]}
        activations = {}
        for batch in BATCHES if precision == SWEPT else (BATCH,):
            profile = engine_profile(onnx, (1, 1, batch))
            answer = run_build(BuildRequest(BUILDERS[TARGET].module, str(onnx), str(engine), PORTABLE, profile))
            if answer.fault:
                raise click.ClickException(f"{size} {stage} {precision}: {answer.reason}")
            activations[str(batch)] = answer.activation_bytes
            if batch == BATCH:
                row |= {
                    "network_layers": answer.network_layers,
                    "engine_layers": answer.engine_layers,
                    "fused_attention": answer.fused_attention,
                    "engine_bytes": engine.stat().st_size,
                    "build_seconds": round(answer.seconds, 1),
                    "peak_rss_bytes": answer.peak_rss_bytes,
                }
            progress(f"{size} {stage} {precision} up to batch {batch}: {answer.seconds:.1f} s")
        rows.append({**row, "activation_bytes": activations})
    return rows


def report(header: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """A Markdown table, a row per engine."""
    sweep = f"activations at batch {' / '.join(map(str, BATCHES))}"
    lines = [
        "# Engines: what they cost to build and what they need",
        "",
        f"{header['date']}, {header['machine']}, {header['library']}, target {header['device']}, random weights.",
        f"One build each. Nothing here was run: the machine has {header['gpu']}.",
        "",
        "Nodes -> kernels: layers before and after optimisation; attention: fused attention kernels among them. Memory:",
        f"of the process that builds, at its peak. These, seconds and size are of the engine for batches up to {BATCH}.",
        "Activations: device memory beside the weights at the largest batch, as the builder reports it.",
        "",
        f"| model | stage | precision | parameters | nodes -> kernels | attention | engine | build | memory | {sweep} |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        needed = [row["activation_bytes"].get(str(batch)) for batch in BATCHES]
        activations = " / ".join("-" if value is None else f"{value / 2**20:.0f}" for value in needed)
        lines.append(
            f"| {row['model']} | {row['stage']} | {row['precision']} | {row['parameters'] / 1e6:.1f} M "
            f"| {row['network_layers']} -> {row['engine_layers']} | {row['fused_attention']} "
            f"| {row['engine_bytes'] / 1e6:.1f} MB | {row['build_seconds']:.1f} s "
            f"| {row['peak_rss_bytes'] / 2**30:.1f} GiB | {activations} MiB |"
        )
    return "\n".join(lines) + "\n"


@click.command(help=__doc__)
@click.option("--model", "models", multiple=True, default=("tiny", "nano", "full"), show_default=True)
@click.option("--precision", "precisions", multiple=True, default=("fp16", "bf16", "fp32"), show_default=True)
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), default=HERE, show_default="beside this file"
)
def main(models: tuple[str, ...], precisions: tuple[str, ...], output: Path) -> None:
    from calm_runtime.hardware import probe_hardware

    capability = probe_hardware().compute_capability
    header = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "library": f"{BUILDERS[TARGET].title} {library_version(TARGET)}",
        "device": PORTABLE,
        "gpu": "no GPU" if capability is None else f"a GPU of compute capability {capability}",
    }
    rows = []
    for size in models:
        for precision in precisions:
            with tempfile.TemporaryDirectory(prefix="calm-engines-") as folder:
                rows += measure(size, precision, Path(folder), click.echo)
    output.mkdir(parents=True, exist_ok=True)
    (output / "engines.json").write_text(json.dumps({**header, "engines": rows}, indent=2) + "\n")
    (output / "engines.md").write_text(report(header, rows))
    click.echo(report(header, rows))


if __name__ == "__main__":
    main()
