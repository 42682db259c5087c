"""What every engine offers, and which engine runs a bundle here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from calm_runtime.bundle import Graph, Manifest, Stage, Target
from calm_runtime.errors import EngineMissing, UsageError

Array = npt.NDArray[Any]
Engine = Literal["auto", "onnx", "cpu", "cuda", "tensorrt", "tensorrt-rtx"]
Library = Literal["onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt_rtx"]
ENGINES: tuple[str, ...] = get_args(Engine)
STAGES: tuple[Stage, ...] = ("vision_encoder", "aligner", "llm")  # those every bundle has

_TENSORRT_LIBRARY: dict[Target, Library] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_PORTABLE = ((8, 0), (8, 6), (8, 9))  # below 12.0
_INSTALL = {
    "onnxruntime": "pip install calm-edge[cpu]",
    "onnxruntime-gpu": "pip uninstall onnxruntime, then pip install calm-edge[gpu]",
    "tensorrt": "install TensorRT's Python package of the version the bundle was built with",
    "tensorrt_rtx": "pip install calm-edge[tensorrt-rtx]",
}


class Session(Protocol):
    """One loaded graph. Safe to run from several threads at once."""

    @property
    def device(self) -> str:
        """Where it runs: "cpu" or "cuda"."""
        ...

    @property
    def input_dtypes(self) -> Mapping[str, np.dtype[Any]]:
        """Input name -> dtype, in the graph's order."""
        ...

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name. Raises EngineError when the engine refuses the feeds or fails."""
        ...

    def close(self) -> None:
        """Free the engine's memory; a later run raises EngineError."""
        ...


@dataclass(frozen=True)
class Hardware:
    """What the machine answers: the first GPU's compute capability ("8.9"), or None without a usable GPU."""

    compute_capability: str | None = None

    @property
    def has_gpu(self) -> bool:
        return self.compute_capability is not None


@dataclass(frozen=True)
class StageChoice:
    """One stage's graph and the library and device that run it."""

    graph: Graph
    library: Library
    device: Literal["cpu", "cuda"]


@dataclass(frozen=True)
class EngineChoice:
    """Which engine runs each stage. llm_decode: None where the LLM's one graph also writes."""

    engine: str
    vision_encoder: StageChoice
    aligner: StageChoice
    llm: StageChoice
    llm_decode: StageChoice | None = None

    @property
    def stages(self) -> dict[Stage, StageChoice]:
        """The stages that have a graph, in the order a photo takes."""
        always: dict[Stage, StageChoice] = {
            "vision_encoder": self.vision_encoder,
            "aligner": self.aligner,
            "llm": self.llm,
        }
        return always | ({"llm_decode": self.llm_decode} if self.llm_decode else {})


def select_engine(
    manifest: Manifest, installed: frozenset[Library], hardware: Hardware, requested: str = "auto"
) -> EngineChoice:
    """Choose the engine of each stage from facts alone: nothing is loaded and nothing is probed.

    "auto" takes the fastest of TensorRT, TensorRT-RTX, CUDA and CPU that the bundle, the libraries and the hardware
    all offer; "onnx" does so among ONNX Runtime's; a name takes that engine or raises. The LLM always runs on ONNX
    Runtime, and a stage without a graph for the chosen engine falls back to it.
    Raises UsageError (no such engine) or EngineMissing (with the remedy).
    """
    if requested not in ENGINES:
        raise UsageError(f"no engine {requested!r}; choose one of {', '.join(ENGINES)}")
    if not installed & {"onnxruntime", "onnxruntime-gpu"}:
        raise EngineMissing(
            f"ONNX Runtime is not installed; {_INSTALL['onnxruntime']} (or calm-edge[gpu] with an NVIDIA GPU)"
        )
    for name in ("tensorrt", "tensorrt-rtx", "cuda", "cpu"):
        if requested not in (name, "auto") and not (requested == "onnx" and name in ("cuda", "cpu")):
            continue
        reason = _obstacle(manifest, installed, hardware, name)
        if reason is None:
            return _assemble(manifest, installed, hardware, name)
        if requested == name or name == "cpu":
            raise EngineMissing(f"engine {name}: {reason}")
    raise AssertionError(requested)  # the CPU row of the loop has returned or raised


def _obstacle(manifest: Manifest, installed: frozenset[Library], hardware: Hardware, engine: str) -> str | None:
    """Why an engine cannot run here, with the remedy; None when it can."""
    if engine == "cpu":
        missing = [stage for stage in STAGES if _graph(manifest, stage, "cpu", hardware) is None]
        if missing:
            return f"the bundle has no CPU graph for {', '.join(missing)}; export it with --target cpu"
        return None
    target: Target = engine  # type: ignore[assignment]
    library = _TENSORRT_LIBRARY.get(target, "onnxruntime-gpu")
    if library not in installed:
        return f"{library} is not installed; {_INSTALL[library]}"
    if not hardware.has_gpu:
        return "no NVIDIA GPU answers; check the driver (nvidia-smi) or use --engine cpu"
    wanted: tuple[Stage, ...] = STAGES if engine == "cuda" else ("vision_encoder",)
    if not any(_graph(manifest, stage, target, hardware) for stage in wanted):
        if engine != "cuda" and any(graph.target == target for graph in manifest.graphs):
            return (
                f"none of the bundle's engines runs on compute capability {hardware.compute_capability}; use --engine "
                f"onnx, or export with an engine for it where {engine} has one"
            )
        return (
            f"the bundle has no {engine} graph for compute capability {hardware.compute_capability}; "
            f"export it with --target {engine}"
        )
    return None


def _assemble(manifest: Manifest, installed: frozenset[Library], hardware: Hardware, engine: str) -> EngineChoice:
    def choose(stage: Stage) -> StageChoice:
        order: list[Target] = [engine] if engine != "cpu" else []  # type: ignore[list-item]
        if stage == "llm":
            order = [t for t in order if t not in _TENSORRT_LIBRARY]
        if engine != "cpu" and "onnxruntime-gpu" in installed:
            order.append("cuda")
        for target in (*order, "cpu"):
            graph = _graph(manifest, stage, target, hardware)
            if graph is not None:
                gpu = target != "cpu"
                onnx: Library = "onnxruntime-gpu" if "onnxruntime-gpu" in installed else "onnxruntime"
                return StageChoice(graph, _TENSORRT_LIBRARY.get(target, onnx), "cuda" if gpu else "cpu")
        raise EngineMissing(f"the bundle has no graph for {stage} that runs here; export it with --target cpu")

    llm = choose("llm")
    decode = _graph(manifest, "llm_decode", llm.graph.target, hardware)  # the other's caches have to fit
    return EngineChoice(
        engine,
        choose("vision_encoder"),
        choose("aligner"),
        llm,
        StageChoice(decode, llm.library, llm.device) if decode else None,
    )


def _runs(graph: Graph, hardware: Hardware) -> bool:
    """Whether a portable engine runs on this GPU; one for a single GPU was refused there when it was built.

    Of capabilities 9.0 and 10.x, data-centre GPUs, TensorRT-RTX says when it loads an engine that it never will.
    """
    if graph.device != "portable" or hardware.compute_capability is None:
        return True
    major, minor = (int(part) for part in hardware.compute_capability.split("."))
    return major >= 12 or (major, minor) in _PORTABLE and (graph.precision != "fp8" or (major, minor) >= (8, 9))


def _graph(manifest: Manifest, stage: Stage, target: Target, hardware: Hardware) -> Graph | None:
    """The graph for this very GPU, else a portable one, else none."""
    for device in (hardware.compute_capability, "any", "portable"):
        for graph in manifest.graphs:
            if (graph.stage, graph.target, graph.device) == (stage, target, device) and _runs(graph, hardware):
                return graph
    return None
