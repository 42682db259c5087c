"""What the CPU graphs' forms of attention save: one operator in vision encoder and aligner, parts in an LLM that only reads.

python benchmarks/attention.py [--work runs/speed]

Writes attention.json and attention.md beside itself. Both forms run in turns in one process; times are medians. Sizes and
weights are those of speed.py, whose work folder is used. "spelt out": MatMul-Softmax-MatMul; "whole":
GroupQueryAttention over all positions.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from speed import header
from speed_models import EMBED, SIZES, calibration_pixels, checkpoint_of, prepare, read_shape

from calm_export.aligner import export_aligner
from calm_export.calibrate import CPU_SCHEME
from calm_export.graph import write_graph
from calm_export.sensitivity import calibrate_stages
from calm_export.vision import export_vision
from calm_runtime.aligner import Aligner
from calm_runtime.llm import LanguageModel, read_embed_tokens
from calm_runtime.onnx_session import OnnxSession
from calm_runtime.vision import VisionEncoder
from calm_train.checkpoint import load_checkpoint

HERE = Path(__file__).parent
BATCHES = (1, 8)
PROMPTS = (64, 128, 205, 256, 512)  # tokens
WHOLE, READING = "int8-dynamic", "int8-dynamic-reading"
SECONDS = 8.0  # of one comparison
Call = Callable[[], object]


def in_turns(calls: dict[str, Call]) -> dict[str, float]:
    """Median milliseconds of each call, warm, the calls taking turns."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    while sum(map(sum, spent.values())) < SECONDS or min(map(len, spent.values())) < 5:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            spent[name].append(time.perf_counter() - start)
    return {name: 1e3 * median(values) for name, values in spent.items()}


def write_eyes(size: str, folder: Path, place: Path) -> dict[tuple[str, str], Path]:
    """Vision encoder and aligner in fp32 and int8, both with either form of attention: (precision, form) -> folder."""
    model, _, _ = load_checkpoint(checkpoint_of(size, folder))
    pixels = calibration_pixels(folder)
    places = {}
    for form in ("spelt out", "one operator"):
        fused = form == "one operator"
        for precision in ("fp32", "int8"):
            target = place / f"{precision}-{form.replace(' ', '-')}"
            places[precision, form] = target
            graphs = {
                "vision_encoder": export_vision(model, fused=fused),
                "aligner": export_aligner(model, fused=fused),
            }
            if precision == "fp32":
                for stage, proto in graphs.items():
                    write_graph(proto, target / f"{stage}.onnx")
            else:
                for stage, part in calibrate_stages(graphs, pixels, place / f"scratch-{form}", CPU_SCHEME).items():
                    part.quantise(part.groups, target / f"{stage}.onnx")
    return places


def see(encoder: VisionEncoder, aligner: Aligner, pixels: Any) -> object:
    """pixel_values -> what the LLM reads."""
    return aligner(encoder(pixels))


def compare_eyes(size: str, folder: Path, place: Path) -> list[dict[str, Any]]:
    """Both stages on random pictures."""
    side = read_shape(folder).photo_size
    places = write_eyes(size, folder, place)
    rows = []
    for precision in ("fp32", "int8"):
        eyes = {
            form: (
                VisionEncoder(OnnxSession(path / "vision_encoder.onnx")),
                Aligner(OnnxSession(path / "aligner.onnx")),
            )
            for (which, form), path in places.items()
            if which == precision
        }
        for batch in BATCHES:
            pixels = np.random.default_rng(0).standard_normal((batch, 3, side, side), np.float32)
            calls = {form: partial(see, *pair, pixels) for form, pair in eyes.items()}
            rows.append({"size": size, "what": f"eyes, {precision}", "count": batch, "ms": in_turns(calls)})
    return rows


def compare_llm(size: str, folder: Path) -> list[dict[str, Any]]:
    """A prompt from nothing, to its logits."""
    spec = read_shape(folder).llm
    table = read_embed_tokens(folder / EMBED)
    forms = {"whole": WHOLE, "in parts": READING}
    llms = {
        form: LanguageModel(OnnxSession(folder / f"llm-{name}" / "model.onnx", spin=True), table, spec)
        for form, name in forms.items()
    }
    rows = []
    for length in PROMPTS:
        embeds = 0.05 * np.random.default_rng(0).standard_normal((1, length, spec.hidden_size), np.float32)
        calls = {form: partial(llm.logits, embeds) for form, llm in llms.items()}
        rows.append({"size": size, "what": "LLM, int8-dynamic", "count": length, "ms": in_turns(calls)})
    return rows


def render(report: dict[str, Any]) -> str:
    """The page."""
    lines = [
        "# Forms of attention on a CPU",
        "",
        f"{report['date']}, {report['machine']}; onnxruntime {report['versions']['onnxruntime']}.",
        "Medians in milliseconds, the two forms in turns.",
        "",
        "Eyes: vision encoder and aligner, attention spelt out or as one operator, by photos in a batch. LLM: a prompt of so many",
        "tokens, attention whole or in parts, the last layer for all positions or for the last one.",
        "",
        "| size | what | photos or tokens | spelt out, whole | one operator, in parts | times as fast |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in report["rows"]:
        before, after = row["ms"].values()
        lines.append(
            f"| {row['size']} | {row['what']} | {row['count']} | {before:,.1f} | {after:,.1f} | {before / after:.2f} |"
        )
    return "\n".join(lines) + "\n"


@click.command(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/speed"), show_default=True)
def main(work: Path) -> None:
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        prepare(size, work / size, {WHOLE, READING}, set(), False, click.echo)
        rows += compare_eyes(size, work / size, work / "attention" / size)
        rows += compare_llm(size, work / size)
    report = {**header(threads=os.cpu_count() or 1, cycles=1), "rows": rows}
    (HERE / "attention.json").write_text(json.dumps(report, indent=2) + "\n")
    page = render(report)
    (HERE / "attention.md").write_text(page)
    click.echo(page)


if __name__ == "__main__":
    main()
