"""What an NVIDIA GPU gains: ONNX Runtime's CUDA kernels beside PyTorch on the same GPU and this runtime on the CPU.

python benchmarks/gpu.py [--sizes nano,edge] [--engines cuda,torch] [--work runs/speed] [--output DIR]

Writes gpu.json and gpu.md. Sizes and graphs are those of speed.py, in the same work folder; what is missing there is
made, which needs calm-edge[train,export]. From pixel_values in the host's memory to the logits of the score.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
from speed_engines import CalmEngine, TorchEngine
from speed_models import SIZES, Shape, read_shape

HERE = Path(__file__).parent
BATCHES = (1, 8, 32, 128)
LARGEST_ON_CPU = 8
PROMPT = 256  # tokens of the LLM's prefill
TOKENS = 64
LONGEST = 3.0  # seconds for the repeats of one figure
TITLES = {
    "cuda": "this runtime, CUDA, fp16",
    "torch": "PyTorch eager, fp16",
    "torch-fp32": "PyTorch eager, fp32",
    "cpu": "this runtime, CPU, LLM int4",
}

FORMS = {"cuda": ("eyes-fp16", "cuda"), "cpu": ("eyes-fp32", "int4")}


def milliseconds(call: Callable[[], object]) -> float:
    """Median of a call, after two to warm up."""
    spent: list[float] = []
    while len(spent) < 7 or (sum(spent) < LONGEST and len(spent) < 100):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return 1e3 * statistics.median(spent[2:])


def open_engine(name: str, folder: Path, shape: Shape) -> Any:
    threads = os.cpu_count() or 1
    if name.startswith("torch"):
        dtype = "float32" if name.endswith("fp32") else "float16"
        return TorchEngine(folder, shape, threads, dtype, compiled=False, device="cuda")
    eyes, llm = FORMS[name]
    return CalmEngine(folder, shape, threads, eyes.removeprefix("eyes-"), llm, device=name)


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Milliseconds of a batch by its size; tokens per second read and written."""
    shape = read_shape(folder)
    engine = open_engine(name, folder, shape)
    rng = np.random.default_rng(0)
    batches: dict[str, float] = {}
    for batch in BATCHES:
        if name == "cpu" and batch > LARGEST_ON_CPU:
            break
        pixels = rng.standard_normal((batch, 3, shape.photo_size, shape.photo_size), np.float32)
        batches[str(batch)] = milliseconds(lambda pixels=pixels: engine.score(pixels))
    embeds = 0.05 * rng.standard_normal((1, PROMPT, shape.llm.hidden_size), np.float32)
    prefill = 1e3 * PROMPT / milliseconds(lambda: engine.prefill(embeds))

    def write() -> None:
        engine.prefill(embeds)
        engine.decode(TOKENS)

    spent = milliseconds(write) - 1e3 * PROMPT / prefill
    return {"engine": name, "batch_ms": batches, "prefill_tok_s": prefill, "decode_tok_s": 1e3 * TOKENS / spent}


def page(report: dict[str, Any]) -> str:
    """The Markdown page."""
    lines = [
        "# On a GPU",
        "",
        f"{report['date']}, {report['gpu']}, {report['machine']}; onnxruntime-gpu {report['onnxruntime']}, torch {report['torch']}.",
        "Milliseconds per batch, from pixel_values in the host's memory to the logits of the score; medians.",
    ]
    for size, rows in report["sizes"].items():
        shape = report["shapes"][size]
        lines += ["", f"## {shape['name']}: {shape['parameters'] / 1e6:.0f} M parameters", ""]
        lines += [
            f"| engine | {' | '.join(f'batch {b}' for b in BATCHES)} | photos/s, batch {BATCHES[-1]} | prefill tok/s | decode tok/s |"
        ]
        lines += ["| --- |" + " ---: |" * (len(BATCHES) + 3)]
        for row in rows:
            times = [row["batch_ms"].get(str(batch)) for batch in BATCHES]
            cells = ["-" if ms is None else f"{ms:.1f}" for ms in times]
            rate = "-" if times[-1] is None else f"{1e3 * BATCHES[-1] / times[-1]:,.0f}"
            lines.append(
                f"| {TITLES[row['engine']]} | {' | '.join(cells)} | {rate} "
                f"| {row['prefill_tok_s']:,.0f} | {row['decode_tok_s']:,.0f} |"
            )
    return "\n".join(lines) + "\n"


@click.command(help=__doc__)
@click.option("--sizes", default=",".join(SIZES), show_default=True)
@click.option("--engines", default=",".join(TITLES), show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/speed"), show_default=True)
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), default=HERE, show_default="beside this file"
)
def main(sizes: str, engines: str, work: Path, output: Path) -> None:
    found: dict[str, list[dict[str, Any]]] = {}
    shapes: dict[str, Any] = {}
    for size in sizes.split(","):
        folder = work / size
        forms = [form for engine, pair in FORMS.items() if engine in engines.split(",") for form in pair]
        if subprocess.run([sys.executable, HERE / "speed_models.py", size, folder, *forms], check=False).returncode:
            raise click.ClickException(f"{size} cannot be prepared")
        shapes[size] = json.loads((folder / "shape.json").read_bytes())
        found[size] = []
        for name in engines.split(","):
            found[size].append(measure(name, folder))
            click.echo(f"{size}, {name}: {found[size][-1]}", err=True)
    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    report = {
        "date": date.today().isoformat(),
        "gpu": subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0],
        "machine": f"{os.cpu_count()} {platform.machine()} cores, Python {platform.python_version()}",
        "onnxruntime": importlib.metadata.version("onnxruntime-gpu"),
        "torch": importlib.metadata.version("torch"),
        "shapes": shapes,
        "sizes": found,
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "gpu.json").write_text(json.dumps(report, indent=2) + "\n")
    (output / "gpu.md").write_text(page(report))
    click.echo(page(report))


if __name__ == "__main__":
    main()
