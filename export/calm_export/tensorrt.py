"""Engines of TensorRT-RTX, built ahead of time without a GPU, and of TensorRT, built on the GPU they are for.

Everything but the table below is the same for both. The build itself is `tensorrt_build`, one process per engine.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from calm_export.graph import graph_sha256
from calm_export.tensorrt_build import PORTABLE, BuildAnswer, BuildRequest, Fault, Profile
from calm_runtime.bundle import EngineEvidence, Graph, Precision, Stage
from calm_runtime.engine_file import check_engine_file
from calm_runtime.errors import (
    EngineBuildError,
    EngineError,
    ExportError,
    OperatorUnsupported,
    PrecisionUnsupported,
    ProfileMissing,
)
from calm_runtime.hardware import probe_hardware

EngineTarget = Literal["tensorrt-rtx", "tensorrt"]
Batches = tuple[int, int, int]
BATCHES: Batches = (1, 1, 8)  # smallest, optimised-for and largest batch of an engine


@dataclass(frozen=True)
class Builder:
    """What tells the two libraries apart.

    distributions: names its package may have. majors: versions whose API is spoken here.
    devices: compute capabilities it builds for anywhere; none means: only for the GPU at hand.
    """

    title: str
    module: str
    distributions: tuple[str, ...]
    majors: tuple[int, ...]
    suffix: str
    devices: tuple[str, ...]
    install: str


BUILDERS: dict[EngineTarget, Builder] = {
    "tensorrt-rtx": Builder(
        "TensorRT-RTX",
        "tensorrt_rtx",
        ("tensorrt-rtx", "tensorrt_rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
        (1,),
        ".engine",
        ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"),
        "pip install calm-edge[tensorrt-rtx]",
    ),
    "tensorrt": Builder(
        "TensorRT",
        "tensorrt",
        ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        (10, 11),
        ".plan",
        (),
        "pip install calm-edge[tensorrt]",
    ),
}
_ERRORS: dict[Fault, type[EngineBuildError]] = {
    "operator": OperatorUnsupported,
    "profile": ProfileMissing,
    "precision": PrecisionUnsupported,
}
_REMEDIES: dict[Fault, str] = {
    "operator": "export a model without this operator",
    "profile": "only the batch may be dynamic; export the graph again",
    "precision": "choose another --engine-precision or --device",
}


def library_version(target: EngineTarget) -> str:
    """Version of the installed library. Raises ExportError with the remedy: none, or one this code does not speak to."""
    builder = BUILDERS[target]
    if importlib.util.find_spec(builder.module) is None:
        raise ExportError(f"target {target} needs the package {builder.module}; {builder.install}")
    for name in builder.distributions:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        check_version(target, version)
        return version
    raise ExportError(f"the package {builder.module} has no version; reinstall it: {builder.install}")


def check_version(target: EngineTarget, version: str) -> None:
    """Raise ExportError unless this is a version the builder speaks to."""
    builder = BUILDERS[target]
    if version.partition(".")[0] not in map(str, builder.majors):
        known = " or ".join(map(str, builder.majors))
        raise ExportError(f"{builder.title} {version} is not supported, version {known} is; {builder.install}")


def check_device(device: str) -> None:
    """Raise ExportError unless TensorRT-RTX builds for it."""
    devices = BUILDERS["tensorrt-rtx"].devices
    if device != PORTABLE and device not in devices:
        raise ExportError(f"TensorRT-RTX has no target {device!r}; choose {PORTABLE} or one of {', '.join(devices)}")


def check_batches(batches: Batches) -> None:
    """Raise ExportError unless 1 <= smallest <= optimised-for <= largest."""
    low, middle, high = batches
    if not 1 <= low <= middle <= high:
        raise ExportError(f"batches {low}, {middle}, {high}: the largest and the optimised-for do not go together")


def build_devices(target: EngineTarget, asked: Sequence[str]) -> tuple[str, ...]:
    """Devices to build for: those asked for, or for TensorRT the GPU of this machine.

    Raises ExportError with the remedy when the library is missing or, for TensorRT, no GPU answers.
    """
    library_version(target)
    if BUILDERS[target].devices:
        for device in asked:
            check_device(device)
        return tuple(asked)
    capability = probe_hardware().compute_capability
    if capability is None:
        raise ExportError(
            f"target {target} builds on the GPU the engine is for, and no NVIDIA GPU answers; check the driver "
            "(nvidia-smi), or take --target tensorrt-rtx, which needs none"
        )
    return (capability,)


def engine_profile(onnx_path: Path, batches: Batches = BATCHES) -> Profile:
    """Input name -> smallest, optimum and largest shape: the graph's own, with `batches` as first dimension.

    Raises ProfileMissing for an input with another dynamic dimension, ExportError for a file that is not ONNX.
    """
    import onnx

    try:
        graph = onnx.load(str(onnx_path), load_external_data=False).graph
    except Exception as error:  # protobuf's DecodeError is not exported under one name
        raise ExportError(f"{onnx_path.name}: the ONNX file cannot be parsed: {error}") from error
    profile: Profile = {}
    for value in graph.input:
        row = tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim[1:])
        if 0 in row:
            raise ProfileMissing(
                f"{onnx_path.name}: no optimisation profile for {value.name}, whose shape is dynamic beyond the "
                f"batch; {_REMEDIES['profile']}"
            )
        low, middle, high = batches
        profile[value.name] = ((low, *row), (middle, *row), (high, *row))
    return profile


def engine_name(target: EngineTarget, stage: Stage, version: str, device: str, onnx_sha256: str) -> str:
    """File name that says what an engine needs: target, library version, device, and the ONNX it came from."""
    return f"{stage}.{target}-{version}.{device}.{onnx_sha256[:12]}{BUILDERS[target].suffix}"


def build_engine(
    target: EngineTarget,
    stage: Stage,
    onnx_path: Path,
    folder: Path,
    device: str,
    precision: Precision,
    batches: Batches = BATCHES,
) -> tuple[Graph, EngineEvidence]:
    """Build one engine into `folder`; the precision is the one the graph already has.

    device: of `build_devices`. Raises ExportError: OperatorUnsupported, ProfileMissing, PrecisionUnsupported or
    EngineBuildError with the library's reasons.
    """
    if BUILDERS[target].devices:
        check_device(device)
    check_batches(batches)
    version = library_version(target)
    digest = graph_sha256(onnx_path)
    engine = folder / engine_name(target, stage, version, device, digest)
    profile = engine_profile(onnx_path, batches)
    answer = run_build(BuildRequest(BUILDERS[target].module, str(onnx_path), str(engine), device, profile))
    what = f"{BUILDERS[target].title} cannot build {stage} as {precision} for {device}"
    if answer.fault:
        raise _error(target, answer, what)
    try:
        check_engine_file(engine, BUILDERS[target].module, answer.version)
    except EngineError as error:
        raise EngineBuildError(f"{what}: {error}") from error
    graph = Graph(stage, target, engine.name, precision, digest, device, f"{target} {version}", profile)
    evidence = EngineEvidence(
        path=engine.name,
        network_layers=answer.network_layers,
        engine_layers=answer.engine_layers,
        fused_attention=answer.fused_attention,
        activation_bytes=answer.activation_bytes,
        build_seconds=round(answer.seconds, 1),
    )
    return graph, evidence


def run_build(request: BuildRequest) -> BuildAnswer:
    """Build in a process of its own. A process that dies is an answer with fault "builder"."""
    result = subprocess.run(
        [sys.executable, "-m", "calm_export.tensorrt_build"],
        input=msgspec.json.encode(request),
        capture_output=True,
        check=False,
    )
    try:
        # The library's own messages may share stdout: the answer is the last line
        return msgspec.json.decode(result.stdout.splitlines()[-1], type=BuildAnswer)
    except (IndexError, msgspec.DecodeError):
        tail = " | ".join(result.stderr.decode(errors="replace").strip().splitlines()[-3:]) or "no message"
        return BuildAnswer("builder", f"the builder ended with code {result.returncode}: {tail}")


def _error(target: EngineTarget, answer: BuildAnswer, what: str) -> EngineBuildError:
    remedy = BUILDERS[target].install if answer.fault == "library" else _REMEDIES.get(answer.fault)
    kind = _ERRORS.get(answer.fault, EngineBuildError)
    reason = f"the ONNX file cannot be parsed: {answer.reason}" if answer.fault == "graph" else answer.reason
    return kind(f"{what}: {reason}" + (f"; {remedy}" if remedy else ""))
