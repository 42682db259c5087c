"""Vision encoder and aligner of a bundle: graphs for the CPU and engines, gated before they enter it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import onnx
import torch
from onnx import ModelProto

from calm_export import parity
from calm_export.aligner import export_aligner
from calm_export.calibrate import CPU_SCHEME, ENGINE_SCHEMES, Scheme, calibration_pixels
from calm_export.engines import STAGES, Sources, source_features, source_graphs, write_sources
from calm_export.graph import write_graph
from calm_export.half_weights import store_half
from calm_export.sensitivity import QUANTISATION, encode_report, quantise
from calm_export.tensorrt import BUILDERS, build_devices, build_engine
from calm_export.vision import export_vision
from calm_export.work import Work, engine_targets, tool_version
from calm_runtime.bundle import ParityRow, Precision, Stage
from calm_train.model import CalmForConditionalGeneration

EYES_CUDA = "eyes-cuda"
ENGINE_PHOTOS = 16  # float16 on a CPU is emulated and slow: enough photos to see an overflow


def cpu_graphs(model: CalmForConditionalGeneration, precision: Precision) -> dict[Stage, ModelProto]:
    """Vision encoder and aligner as they are for the CPU; int8 has still to be rounded."""
    fused = precision == "int8"  # beside products in fp32 the gain is lost in the noise: benchmarks/attention.md
    return {"vision_encoder": export_vision(model, fused=fused), "aligner": export_aligner(model, fused=fused)}


def export_eyes(
    work: Work, pixels: parity.Array, reference: parity.Seen, progress: Callable[[str], None]
) -> dict[str, parity.Array]:
    """Vision encoder and aligner for the CPU. Returns the features they see in the gate's photos."""
    precision, folder = work.options.encoder_precision, work.folder
    protos = cpu_graphs(work.model, precision)
    sources: Sources = {stage: folder / f"{stage}.onnx" for stage in STAGES}
    tool = _torch()
    if precision == "int8":
        tool += f", onnxruntime {tool_version('onnxruntime')}"
        photos = calibration_pixels(work.options.calibration, work.info.photo, pixels)
        rounded = rounded_stages(work)
        judges = (pixels, reference)
        work.rows += _quantise(work, "onnx", protos, sources, CPU_SCHEME, photos, judges, progress, rounded)
    else:
        rounded = ()
        for stage, path in sources.items():
            write_graph(protos[stage], path)
    if work.options.half_weights:
        for path in (path for stage, path in sources.items() if stage not in rounded):
            write_graph(store_half(onnx.load(str(path))), path)
    features = parity.onnx_features(sources["vision_encoder"], sources["aligner"], pixels)
    if precision != "int8":
        work.gate(parity.feature_rows(reference, features, precision), "the export of vision encoder and aligner")
    for stage, path in sources.items():
        work.add_onnx(stage, path.name, precision if stage in rounded else "fp32", tool)
    return features


def rounded_stages(work: Work) -> tuple[Stage, ...]:
    """Which stages int8 rounds: by default not convolutions, which ONNX Runtime computes faster in float32."""
    vision = work.options.vision_precision or ("fp32" if work.model.config.reads_maps else "int8")
    return STAGES if vision == "int8" else ("aligner",)


def _quantise(
    work: Work,
    what: str,
    protos: dict[Stage, ModelProto],
    sources: Sources,
    scheme: Scheme,
    photos: parity.Array,
    judges: tuple[parity.Array, parity.Seen],
    progress: Callable[[str], None],
    stages: Sequence[Stage] = STAGES,
) -> tuple[ParityRow, ...]:
    """Write rounded graphs that pass the gate of their precision. Returns its rows; the groups go into the bundle's report.

    photos: pixel_values [P, 3, S, S] to calibrate on. judges: those of the gate, and what PyTorch sees in them.
    """
    pixels, reference = judges
    prompt = work.info.prompts["score"]

    def judge(features: dict[str, parity.Array]) -> list[ParityRow]:
        ratings = parity.torch_ratings(work.model, features["image_embeds"], prompt, work.text)
        read = parity.rating_rows(reference, ratings, scheme.rounding)
        if len(ratings.scores) <= ENGINE_PHOTOS:
            read = [row for row in read if "SRCC" not in row.metric]  # that of so few says nothing
        return [
            *parity.feature_rows(reference, features, scheme.rounding),
            *(msgspec.structs.replace(row, stage="aligner", metric=f"{row.metric}, LLM in float32") for row in read),
        ]

    scratch = work.scratch / what
    work.quantised[what] = quantise(protos, photos, (pixels, judge), sources, scratch, scheme, progress, stages)
    (work.folder / QUANTISATION).write_bytes(encode_report(work.quantised))
    return work.quantised[what].rows


def export_engines(work: Work, pixels: parity.Array, reference: parity.Seen, progress: Callable[[str], None]) -> None:
    """Engines of vision encoder and aligner, from ONNX of their own whose weights carry the precision."""
    precision = work.options.engine_precision
    few = _few(pixels, reference)
    if precision in ENGINE_SCHEMES:
        protos = source_graphs(work.model, "fp16")
        sources = {stage: work.scratch / f"{precision}-{stage}.onnx" for stage in STAGES}
        photos = calibration_pixels(work.options.calibration, work.info.photo, pixels)
        scheme = ENGINE_SCHEMES[precision]
        rows = _quantise(work, "engines", protos, sources, scheme, photos, few, progress)
        work.rows += [msgspec.structs.replace(row, metric=f"{precision} engine source: {row.metric}") for row in rows]
    else:
        what = f"{precision} engine source"
        sources = _checked_sources(work, precision, work.scratch, what, *few, progress)
    for target in engine_targets(work.options):
        for device in build_devices(target, work.options.devices):
            for stage in STAGES:
                progress(f"building the {BUILDERS[target].title} engine of {stage} for {device}")
                graph, evidence = build_engine(
                    target, stage, sources[stage], work.folder, device, precision, work.options.batches
                )
                work.graphs.append(graph)
                work.engines.append(evidence)


def export_cuda_eyes(work: Work, pixels: parity.Array, reference: parity.Seen, progress: Callable[[str], None]) -> None:
    """Vision encoder and aligner in float16 for ONNX Runtime's CUDA kernels, judged as the sources of engines are."""
    folder = work.folder / EYES_CUDA
    folder.mkdir()
    sources = _checked_sources(work, "fp16", folder, "fp16 for cuda", *_few(pixels, reference), progress)
    for stage, path in sources.items():
        work.add_onnx(stage, f"{EYES_CUDA}/{path.name}", "fp16", _torch(), "cuda")


def _checked_sources(
    work: Work,
    precision: Precision,
    folder: Path,
    what: str,
    pixels: parity.Array,
    reference: parity.Seen,
    progress: Callable[[str], None],
) -> Sources:
    progress(f"checking vision encoder and aligner, {what}")
    sources = write_sources(work.model, precision, folder)
    features = source_features(work.model, precision, sources, pixels)
    rows = parity.feature_rows(reference, features, precision)
    work.gate([msgspec.structs.replace(row, metric=f"{what}: {row.metric}") for row in rows], f"the graph of {what}")
    return sources


def _few(pixels: parity.Array, reference: parity.Seen) -> tuple[parity.Array, parity.Seen]:
    """The first ENGINE_PHOTOS of the gate, and what PyTorch sees in them."""
    features = {name: values[:ENGINE_PHOTOS] for name, values in reference.features.items()}
    ratings = parity.Ratings(*(values[:ENGINE_PHOTOS] for values in reference.ratings))
    return pixels[:ENGINE_PHOTOS], parity.Seen(features, ratings)


def _torch() -> str:
    return f"torch {torch.__version__.partition('+')[0]}"
