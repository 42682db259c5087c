"""What int8 and, for engines, fp8 and int4 buy and cost: size, latency and quality of vision encoder and aligner in three sizes.

python benchmarks/quantisation.py [--sizes nano] [--photos DIR] [--calibration DIR]

Writes quantisation.json, .md and .png beside itself. A size that quantisation.json has already is left as it is, unless
--again. nano is the shipped checkpoint; tiny (that of the tests) and full (CLIP ViT-L/14 at 336 pixels and its alignment
module) have random weights, so their figures say what it costs, not how well a trained model bears it.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import torch
from engines import config_of

from calm_export import parity
from calm_export.calibrate import CPU_SCHEME, ENGINE_SCHEME, ENGINE_SCHEMES, calibration_pixels
from calm_export.engines import STAGES, Sources, source_graphs
from calm_export.eyes import cpu_graphs
from calm_export.figures import cosine_per_photo
from calm_export.graph import write_graph
from calm_export.photos import parity_photos, photo_files
from calm_export.sensitivity import Quantised, calibrate_stages, quantise
from calm_export.tensorrt import BUILDERS, engine_profile, run_build
from calm_export.tensorrt_build import PORTABLE, BuildRequest
from calm_runtime.aligner import Aligner
from calm_runtime.onnx_session import OnnxSession
from calm_runtime.photo import PhotoSpec
from calm_runtime.rank_correlation import srcc
from calm_runtime.text import TextTokenizer
from calm_runtime.vision import VisionEncoder
from calm_train.checkpoint import load_checkpoint
from calm_train.model import CalmForConditionalGeneration

HERE = Path(__file__).parent
ROOT = HERE.parent
CHECKPOINT = ROOT / "models" / "calm-nano"
JUDGES = {"tiny": 100, "nano": 100, "full": 8}  # photos of the gate
RUNS = {"tiny": 200, "nano": 60, "full": 10}
HALF_PHOTOS = 8  # float16 is emulated on a CPU


class Subject:
    """A model of one size, and how its scores are read where it is trained."""

    def __init__(self, size: str) -> None:
        torch.manual_seed(0)
        self.read: Any = None
        if size == "nano":
            self.model, _, info = load_checkpoint(CHECKPOINT)
            self.spec = info.photo
            text = TextTokenizer(CHECKPOINT / "tokenizer.json", self.model.config.text_config.bos_token_id)
            self.read = lambda embeds: parity.torch_ratings(self.model, embeds, info.prompts["score"], text)
        else:
            self.model = CalmForConditionalGeneration(config_of(size)).eval()
            self.spec = PhotoSpec(size=self.model.config.vision_config.image_size)

    def seen(self, features: dict[str, parity.Array]) -> parity.Seen:
        none = parity.Ratings(np.empty(0), np.empty(0))
        return parity.Seen(features, self.read(features["image_embeds"]) if self.read else none)


def measure(size: str, photos: Path | None, calibration: Path | None, engines: bool, say: Any) -> dict[str, Any]:
    """Everything about one size."""
    subject = Subject(size)
    gate = parity_photos(subject.spec, photos, photo_files(ROOT / "examples"))
    judged = parity.pixel_batch(
        (photo.picture for _, photo in zip(range(JUDGES[size]), gate, strict=False)), subject.spec
    )
    chosen = calibration_pixels(calibration, subject.spec, judged)
    with tempfile.TemporaryDirectory(prefix="calm-quantisation-") as name:
        work = Path(name)
        plain, coarse = ({stage: work / f"{kind}-{stage}.onnx" for stage in STAGES} for kind in ("fp32", "int8"))
        say("tracing")
        for stage, proto in cpu_graphs(subject.model, "fp32").items():
            write_graph(proto, plain[stage])
        reference = subject.seen(parity.onnx_features(plain["vision_encoder"], plain["aligner"], judged))

        def judge(features: dict[str, parity.Array]) -> list[Any]:
            rows = parity.feature_rows(reference, features, "int8")
            read = parity.rating_rows(reference, subject.seen(features).ratings, "int8") if subject.read else []
            return rows + read

        protos = cpu_graphs(subject.model, "int8")
        found = quantise(protos, chosen, (judged, judge), coarse, work / "cpu", CPU_SCHEME, say)
        protos.clear()
        say("timing")
        times = latencies({"fp32": plain, "int8": coarse}, judged[:1], RUNS[size])
        rows = []
        for precision, sources in (("fp32", plain), ("int8", coarse)):
            side = subject.seen(parity.onnx_features(sources["vision_encoder"], sources["aligner"], judged))
            cost = {stage: sum(f.stat().st_size for f in work.glob(f"{sources[stage].name}*")) for stage in STAGES}
            rows.append({"precision": precision, "bytes": cost, "ms": times[precision], **quality(reference, side)})
        built = built_engines(subject, chosen[:HALF_PHOTOS], judged[:HALF_PHOTOS], found, work, say) if engines else []
    return {
        "weights": "trained" if subject.read else "random",
        "photos": len(judged),
        "calibration": f"{len(chosen)} photos of {'a folder' if calibration else 'the gate'}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "date": date.today().isoformat(),
        "precisions": rows,
        "engines": built,
        "groups": msgspec.to_builtins(found.groups),
    }


def latencies(precisions: dict[str, Sources], pixels: parity.Array, runs: int) -> dict[str, float]:
    """Median milliseconds of both stages on one photo [1, 3, S, S]; the precisions take turns."""
    sides = {
        name: (VisionEncoder(OnnxSession(s["vision_encoder"])), Aligner(OnnxSession(s["aligner"])))
        for name, s in precisions.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(runs + 2):
        for name, (encoder, mfam) in sides.items():
            started = time.perf_counter()
            mfam(encoder(pixels))
            taken[name].append(1000 * (time.perf_counter() - started))
    return {name: round(statistics.median(values[2:]), 3) for name, values in taken.items()}


def quality(reference: parity.Seen, found: parity.Seen) -> dict[str, float | None]:
    """Smallest cosine of the features; difference and rank correlation of the scores where there are some."""
    cosines = [float(cosine_per_photo(reference.features[name], value).min()) for name, value in found.features.items()]
    row: dict[str, float | None] = {"cosine": round(min(cosines), 6), "score_difference": None, "srcc": None}
    expected, scores = reference.ratings.scores, found.ratings.scores
    if len(scores):
        row["score_difference"] = round(float(np.abs(expected - scores).max()), 4)
        row["srcc"] = round(srcc(expected, scores), 5)
    return row


def built_engines(
    subject: Subject, chosen: parity.Array, judged: parity.Array, found: Quantised, work: Path, say: Any
) -> list[dict[str, Any]]:
    """TensorRT-RTX engines, built, not run: fp16, int8 with the groups that the CPU's pass chose, fp8 and int4 with all."""
    calibrated = calibrate_stages(source_graphs(subject.model, "fp16"), chosen, work / "half", ENGINE_SCHEME, say)
    half: Sources = {stage: calibrated[stage].graph for stage in STAGES}
    mixed: Sources = {}
    for stage in STAGES:
        groups = [row.group for row in found.groups if row.stage == stage and row.decision == "int8"]
        mixed[stage] = calibrated[stage].quantise(groups, work / f"mixed-{stage}.onnx") if groups else half[stage]
    expected = parity.onnx_features(half["vision_encoder"], half["aligner"], judged)
    precisions = {"fp16": half, "int8": mixed}
    for rounding in ("fp8", "int4"):
        photos = chosen if rounding == "fp8" else chosen[:1]  # int4 rounds weights alone
        graphs = source_graphs(subject.model, "fp16")
        parts = calibrate_stages(graphs, photos, work / rounding, ENGINE_SCHEMES[rounding], say)
        precisions[rounding] = {
            stage: part.quantise(part.groups, work / f"{rounding}-{stage}.onnx") for stage, part in parts.items()
        }
    rows = []
    for precision, sources in precisions.items():
        features = parity.onnx_features(sources["vision_encoder"], sources["aligner"], judged)
        cosine = min(float(cosine_per_photo(expected[name], value).min()) for name, value in features.items())
        for stage in STAGES:
            say(f"building the {precision} engine of {stage}")
            onnx, engine = sources[stage], work / "built.engine"
            module = BUILDERS["tensorrt-rtx"].module
            answer = run_build(BuildRequest(module, str(onnx), str(engine), PORTABLE, engine_profile(onnx)))
            if answer.fault:
                raise click.ClickException(f"{precision} engine of {stage}: {answer.reason}")
            rows.append(
                {
                    "stage": stage,
                    "precision": precision,
                    "bytes": engine.stat().st_size,
                    "cosine_to_fp16": round(cosine, 6),
                }
                | {"fused_attention": answer.fused_attention, "activation_bytes": answer.activation_bytes}
                | {"build_seconds": round(answer.seconds, 1)}
            )
    return rows


def page(results: dict[str, Any]) -> str:
    """The Markdown page."""

    def figure(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    lines = ["# Rounded vision encoder and aligner: size, latency, quality", ""]
    for size, result in results.items():
        lines += [
            f"{size}: {result['weights']} weights, {result['photos']} photos,",
            f"calibrated on {result['calibration']}; {result['date']}, {result['machine']}.",
            "",
        ]
    lines += [
        "Latency is the median of both stages on one photo, in turns. Quality is against the fp32 graphs: smallest cosine of",
        "all features; scores with the LLM in float32. Of random weights the attribute logits lie near zero, where a cosine says",
        "little: the smallest of size full are theirs.",
        "",
        "| model | precision | size | latency | to fp32 | cosine | score difference | SRCC |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for size, result in results.items():
        plain = result["precisions"][0]
        for row in result["precisions"]:
            lines.append(
                f"| {size} | {row['precision']} | {sum(row['bytes'].values()) / 1e6:.1f} MB | {row['ms']:.1f} ms "
                f"| {row['ms'] / plain['ms']:.2f} | {row['cosine']:.5f} | {figure(row['score_difference'], 3)} "
                f"| {figure(row['srcc'], 4)} |"
            )
    lines += [
        "",
        "TensorRT-RTX engines, portable, built and not run; cosine of the graphs they are built from. int8: with the groups chosen above; fp8 and int4: with all.",
        "",
    ]
    lines += ["| model | stage | precision | engine | fused attention | activations | build | cosine to fp16 |"]
    lines += ["| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    for size, result in results.items():
        lines += [
            f"| {size} | {row['stage']} | {row['precision']} | {row['bytes'] / 1e6:.1f} MB | {row['fused_attention']} "
            f"| {row['activation_bytes'] / 2**20:.0f} MiB | {row['build_seconds']:.1f} s | {row['cosine_to_fp16']:.5f} |"
            for row in result["engines"]
        ]
    for size, result in results.items():
        lines += ["", f"## {size}: every group alone as int8, the most sensitive first", ""]
        lines += ["| stage | group | weights | cosine | SNR | decision | reason |"]
        lines += ["| --- | --- | ---: | ---: | ---: | --- | --- |"]
        lines += [
            f"| {row['stage']} | {row['group']} | {row['parameters']:,} | {row['cosine']:.5f} "
            f"| {figure(row['snr_db'], 1)} dB | {row['decision']} | {row['reason']} |"
            for row in result["groups"]
        ]
    return "\n".join(lines) + "\n"


def plot(results: dict[str, Any], path: Path) -> None:
    """Size against latency, and size against what is lost: a line per model from fp32 to int8."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for size, result in results.items():
        rows = result["precisions"]
        megabytes = [sum(row["bytes"].values()) / 1e6 for row in rows]
        left.plot(megabytes, [row["ms"] for row in rows], marker="o", label=size)
        right.plot(megabytes, [max(1 - row["cosine"], 1e-7) for row in rows], marker="o", label=size)
        for row, x in zip(rows, megabytes, strict=True):
            left.annotate(row["precision"], (x, row["ms"]), textcoords="offset points", xytext=(4, 5), fontsize=8)
            at = (x, max(1 - row["cosine"], 1e-7))
            right.annotate(row["precision"], at, textcoords="offset points", xytext=(4, 5), fontsize=8)
    right.axhline(1 - parity.MIN_COSINE["int8"], linestyle="--", linewidth=1, color="grey", label="gate of int8")
    for axis, title in ((left, "milliseconds per photo"), (right, "1 - smallest cosine")):
        axis.set(xscale="log", yscale="log", xlabel="megabytes", ylabel=title)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


@click.command(help=__doc__)
@click.option("--sizes", multiple=True, type=click.Choice(list(RUNS)), default=tuple(RUNS), show_default=True)
@click.option("--photos", type=click.Path(exists=True, file_okay=False, path_type=Path), help="100 photos or more.")
@click.option("--calibration", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--engines/--no-engines", default=True, show_default=True, help="Build TensorRT-RTX engines.")
@click.option("--again", is_flag=True, help="Measure sizes that quantisation.json has already.")
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), default=HERE, show_default="beside this file"
)
def main(
    sizes: tuple[str, ...], photos: Path | None, calibration: Path | None, engines: bool, again: bool, output: Path
) -> None:
    output.mkdir(parents=True, exist_ok=True)
    file = output / "quantisation.json"
    started = time.monotonic()

    def say(text: str) -> None:
        click.echo(f"{time.monotonic() - started:7.1f} s  {text}")

    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for size in sizes:
        if size in results and not again:
            continue
        results[size] = measure(size, photos, calibration, engines, say)
        results = {name: results[name] for name in RUNS if name in results}
        file.write_text(json.dumps(results, indent=2) + "\n")
        (output / "quantisation.md").write_text(page(results))
        plot(results, output / "quantisation.png")
    click.echo(page(results))


if __name__ == "__main__":
    main()
