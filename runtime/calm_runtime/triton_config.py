"""From a bundle to the values of triton_models/*/config.pbtxt: every shape comes from the bundle, none is typed in."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any, Literal

from calm_runtime.attributes import LEVELS_PER_ATTRIBUTE
from calm_runtime.bundle import Bundle, Graph, Stage
from calm_runtime.errors import BundleCorrupt, EngineError, EngineMissing, UsageError
from calm_runtime.vision import HIDDEN_STATES, PHOTO_EMBEDS

TritonTarget = Literal["cpu", "tensorrt"]
TARGETS: tuple[TritonTarget, ...] = ("cpu", "tensorrt")


@dataclass(frozen=True)
class TritonOptions:
    """How the server shares its work out.

    max_batch: photos per forward pass, at most. batch_delay_us: how long the vision encoder waits for company.
    instances: copies of each model of the score path. The server pauses between the batches of a model whose queue
    has limits, and a second copy works on meanwhile; 1 saves its memory.
    queue_size, queue_timeout_us: requests that may wait per model, and for how long, before they are rejected.
    threads: ONNX Runtime threads per model on CPU; 0 takes every core. Half of them by default: the vision encoder of
    one batch and the language model of another run at the same time.
    """

    max_batch: int = 8
    batch_delay_us: int = 2_000
    instances: int = 2
    queue_size: int = 128
    queue_timeout_us: int = 30_000_000
    threads: int = field(default_factory=lambda: max(1, (os.cpu_count() or 2) // 2))

    def __post_init__(self) -> None:
        if min(self.max_batch, self.queue_size, self.instances) < 1:
            raise UsageError("max_batch, queue_size and instances are at least 1")
        if min(self.batch_delay_us, self.queue_timeout_us, self.threads) < 0:
            raise UsageError("delays, timeouts and threads are not negative")


def stage_graphs(bundle: Bundle, stage: Stage, target: TritonTarget) -> tuple[Graph, ...]:
    """The files that serve a stage: all plans of the stage (one per compute capability), else its ONNX file.

    Raises UsageError when the bundle has no plan of the vision encoder, or no ONNX file of the stage.
    """
    plans = tuple(g for g in bundle.manifest.graphs if g.stage == stage and g.target == "tensorrt")
    if target == "tensorrt" and plans:
        return plans
    if target == "tensorrt" and stage == "vision_encoder":
        raise UsageError(f"{bundle.path}: no TensorRT plan inside; export it with `calm export --target tensorrt`")
    onnx = bundle.graph(stage, "cpu")
    if onnx is None:
        raise UsageError(f"{bundle.path}: no CPU graph of the {stage}; export it with `calm export --target cpu`")
    return (onnx,)


def served_file(graph: Graph, siblings: int) -> str:
    """Name of a graph's file in the model's version folder."""
    if graph.target != "tensorrt":
        return "model.onnx"
    return "model.plan" if siblings == 1 else f"model_{graph.device}.plan"


def config_values(bundle: Bundle, target: TritonTarget, options: TritonOptions) -> dict[str, dict[str, str]]:
    """Values of the templates' placeholders: model name -> placeholder -> text.

    Raises UsageError, EngineMissing (ONNX Runtime reads the shapes), or BundleCorrupt when a graph and the manifest
    disagree.
    """
    manifest = bundle.manifest
    vision, aligner = (stage_graphs(bundle, stage, target) for stage in ("vision_encoder", "aligner"))
    shapes = {name: _row_shape(bundle, name) for name in HIDDEN_STATES} | {PHOTO_EMBEDS: _photo_shape(bundle)}
    tokens = (manifest.visual_tokens.total, manifest.visual_tokens.width)
    levels = (len(manifest.attributes), LEVELS_PER_ATTRIBUTE)
    size = manifest.photo.size
    max_batch = min([options.max_batch, *(_profile_batch(g) for g in (*vision, *aligner) if g.profile)])
    common = {
        "max_batch": str(max_batch),
        "batch_delay_us": str(options.batch_delay_us),
        "queue_size": str(options.queue_size),
        "queue_timeout_us": str(options.queue_timeout_us),
        "threads": str(options.threads),
        "instances": str(options.instances),
        "ratings": str(len(manifest.score.token_ids)),
        "pixel_values": f"3, {size}, {size}",
        "image_embeds": _dims(tokens),
        "attribute_logits": _dims(levels),
        "scale": f"{manifest.score.low},{manifest.score.high}",
        "attribute_names": _quoted(
            [[a.name, a.scale, [level.name for level in a.levels]] for a in manifest.attributes]
        ),
        **{name: _dims(shape) for name, shape in shapes.items()},
    }
    return {
        "calm_score": common,
        "calm_text": common,
        "calm_preprocess": common,
        "calm_vision_encoder": common | _engine(vision, target, options),
        "calm_aligner": common | _engine(aligner, target, options),
        "calm_llm": common,
    }


def render(template: str, values: dict[str, str]) -> str:
    """Fill in a config.pbtxt template. Raises KeyError for a placeholder without a value."""
    return Template(template).substitute(values)


def _engine(graphs: Sequence[Graph], target: TritonTarget, options: TritonOptions) -> dict[str, str]:
    if graphs[0].target == "tensorrt":
        lines = ['platform: "tensorrt_plan"', f'default_model_filename: "{served_file(graphs[0], len(graphs))}"']
        if len(graphs) > 1:
            lines += [
                f'cc_model_filenames {{ key: "{g.device}" value: "{served_file(g, len(graphs))}" }}' for g in graphs
            ]
        return {"engine": "\n".join(lines), "engine_kind": "KIND_GPU"}
    threads = f'parameters {{ key: "intra_op_thread_count" value: {{ string_value: "{options.threads}" }} }}'
    return {
        "engine": f'backend: "onnxruntime"\ndefault_model_filename: "model.onnx"\n{threads}',
        "engine_kind": "KIND_GPU" if target == "tensorrt" else "KIND_CPU",
    }


def _row_shape(bundle: Bundle, tensor: str) -> tuple[int, ...]:
    """Shape of one row of a hidden state: from an engine's profile where there is one, else from the aligner's ONNX."""
    for graph in bundle.manifest.graphs:
        if graph.stage == "aligner" and tensor in graph.profile:
            return graph.profile[tensor][1][1:]
    return _onnx_row(bundle, "aligner", tensor, ("N", "C"))


def _photo_shape(bundle: Bundle) -> tuple[int, ...]:
    """Shape of one row of photo_embeds: no engine's profile tells it, outputs have none."""
    return _onnx_row(bundle, "vision_encoder", PHOTO_EMBEDS, ("E",))


def _onnx_row(bundle: Bundle, stage: Stage, tensor: str, sides: tuple[str, ...]) -> tuple[int, ...]:
    graph = bundle.graph(stage, "cpu")
    if graph is None:
        raise UsageError(f"{bundle.path}: no CPU graph of the {stage}; export it with `calm export --target cpu`")
    shape = _onnx_shapes(bundle.path / graph.path).get(tensor)
    if shape is None or len(shape) != 1 + len(sides) or not all(isinstance(side, int) for side in shape[1:]):
        expected = ", ".join(("batch", *sides))
        raise BundleCorrupt(f"{graph.path}: {tensor} has shape {shape}, expected [{expected}]; export it again")
    return tuple(shape[1:])


def _onnx_shapes(path: Path) -> dict[str, list[Any]]:
    """Shapes of a graph's inputs and outputs."""
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineMissing(f"ONNX Runtime cannot be imported ({error}); pip install calm-edge[cpu]") from error
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EngineError(f"{path}: ONNX Runtime cannot load it: {error}") from error
    return {item.name: list(item.shape) for item in (*session.get_inputs(), *session.get_outputs())}


def _profile_batch(graph: Graph) -> int:
    return min((maximum[0] for _, _, maximum in graph.profile.values()), default=math.inf)  # type: ignore[return-value]


def _dims(shape: Sequence[int]) -> str:
    return ", ".join(str(side) for side in shape)


def _quoted(value: object) -> str:
    """JSON inside a text-format string: quotes and backslashes escaped."""
    return json.dumps(value).replace("\\", "\\\\").replace('"', '\\"')
