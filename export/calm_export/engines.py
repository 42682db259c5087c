"""The graphs engines are built from: ONNX whose weights and arithmetic already have the engine's precision."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto

from calm_export import parity
from calm_export.aligner import ATTRIBUTE_LOGITS, IMAGE_EMBEDS, AlignerGraph, export_aligner
from calm_export.graph import write_graph
from calm_export.precision import torch_dtype
from calm_export.vision import VisionGraph, export_vision
from calm_runtime.bundle import Precision, Stage
from calm_runtime.vision import HIDDEN_STATES, VISION_OUTPUTS
from calm_train.model import CalmForConditionalGeneration

Sources = dict[Stage, Path]
STAGES: tuple[Stage, ...] = ("vision_encoder", "aligner")


def write_sources(model: CalmForConditionalGeneration, precision: Precision, folder: Path) -> Sources:
    """Write vision_encoder.onnx and aligner.onnx in a precision: fp32, fp16 or bf16. `model`'s weights are left as they were."""
    sources: Sources = {stage: folder / f"{stage}.onnx" for stage in STAGES}
    for stage, proto in source_graphs(model, precision).items():
        write_graph(proto, sources[stage])
    return sources


def source_graphs(model: CalmForConditionalGeneration, precision: Precision) -> dict[Stage, ModelProto]:
    """The graphs of `write_sources`, not yet written."""
    dtype = torch_dtype(precision)
    twin = model if precision == "fp32" else _twin(model)
    return {"aligner": export_aligner(twin, dtype), "vision_encoder": export_vision(twin, dtype)}


def source_features(
    model: CalmForConditionalGeneration, precision: Precision, sources: Sources, pixels: parity.Array
) -> dict[str, parity.Array]:
    """Features of pixel_values [P, 3, S, S] in an engine's precision, on the CPU: name -> [P, ...] f32.

    ONNX Runtime has no bfloat16 products on a CPU: PyTorch runs the modules that a bf16 graph was traced from.
    """
    if precision != "bf16":
        return parity.onnx_features(sources["vision_encoder"], sources["aligner"], pixels)
    twin, dtype = _twin(model), torch_dtype(precision)
    vision, aligner = VisionGraph(twin.vision_encoder, dtype), AlignerGraph(twin.aligner, dtype)
    rows: list[tuple[torch.Tensor, ...]] = []
    with torch.inference_mode():
        for row in pixels:
            seen = vision(torch.from_numpy(row[None]))
            rows.append((*seen, *aligner(*seen[: len(HIDDEN_STATES)])))
    names = (*VISION_OUTPUTS, IMAGE_EMBEDS, ATTRIBUTE_LOGITS)
    return {name: np.concatenate([values[i].numpy() for values in rows]) for i, name in enumerate(names)}


def _twin(model: CalmForConditionalGeneration) -> CalmForConditionalGeneration:
    """A copy whose vision encoder and aligner may be changed; the LLM, most of the model, is shared with it."""
    return copy.deepcopy(model, {id(model.llm): model.llm})
