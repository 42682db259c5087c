"""TensorRT-RTX engines, built ahead of time on a machine without a GPU, each in a process of its own.

`python -m calm_export.tensorrt_rtx` is that process: a request as JSON on stdin, the answer as JSON on stdout.
One build per process, because after a failed build the next one silently uses the failed target.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from calm_runtime.bundle import EngineEvidence, Graph, Precision, Stage, file_sha256
from calm_runtime.errors import ExportError

PACKAGE = "tensorrt-rtx"
MAGIC = b"vtrt"
PORTABLE = "portable"
BATCHES = (1, 1, 8)  # smallest, optimised-for and largest batch of an engine
DEVICES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
INSTALL = "pip install calm-edge[tensorrt-rtx]"

Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]


class BuildRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One engine to build. device: "portable" or a compute capability such as "8.9"."""

    onnx: str
    engine: str
    device: str
    profile: Profile


class BuildAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What came of it. error is empty when the engine was written; version is the library's."""

    error: str = ""
    version: str = ""
    network_layers: int = 0
    engine_layers: int = 0
    fused_attention: int = 0
    activation_bytes: int = 0
    seconds: float = 0.0


def tensorrt_version() -> str:
    """Version of the installed TensorRT-RTX. Raises ExportError with the remedy when there is none."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        raise ExportError(f"target {PACKAGE} needs the package tensorrt_rtx; {INSTALL}")
    for name in (PACKAGE, "tensorrt_rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise ExportError(f"the package tensorrt_rtx has no version; reinstall it: {INSTALL}")


def engine_profile(onnx_path: Path) -> Profile:
    """Input name -> smallest, optimum and largest shape: the graph's own, with BATCHES as first dimension."""
    import onnx

    graph = onnx.load(str(onnx_path), load_external_data=False).graph
    shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim[1:]) for v in graph.input}
    low, middle, high = BATCHES
    return {name: ((low, *rest), (middle, *rest), (high, *rest)) for name, rest in shapes.items()}


def engine_name(stage: Stage, version: str, device: str, onnx_sha256: str) -> str:
    """File name that says what an engine needs: target, TensorRT version, device, and the ONNX it came from."""
    return f"{stage}.{PACKAGE}-{version}.{device}.{onnx_sha256[:12]}.engine"


def check_device(device: str) -> None:
    """Raise ExportError unless TensorRT-RTX builds for it."""
    if device != PORTABLE and device not in DEVICES:
        raise ExportError(f"TensorRT-RTX has no target {device!r}; choose {PORTABLE} or one of {', '.join(DEVICES)}")


def build_engine(
    stage: Stage, onnx_path: Path, folder: Path, device: str, precision: Precision
) -> tuple[Graph, EngineEvidence]:
    """Build one engine into `folder`. Raises ExportError with the builder's reasons.

    device: "portable" (every GPU from Ampere on) or one of DEVICES.
    """
    check_device(device)
    version = tensorrt_version()
    digest = file_sha256(onnx_path)
    engine = folder / engine_name(stage, version, device, digest)
    profile = engine_profile(onnx_path)
    answer = _in_own_process(BuildRequest(str(onnx_path), str(engine), device, profile))
    if answer.error:
        raise ExportError(f"TensorRT-RTX cannot build {stage} for {device}: {answer.error}")
    with engine.open("rb") as handle:
        if handle.read(len(MAGIC)) != MAGIC:
            raise ExportError(f"{engine.name}: TensorRT-RTX wrote something that is not an engine")
    tool = f"{PACKAGE} {version}"
    graph = Graph(stage, "tensorrt-rtx", engine.name, precision, digest, device, tool, profile)
    evidence = EngineEvidence(
        path=engine.name,
        network_layers=answer.network_layers,
        engine_layers=answer.engine_layers,
        fused_attention=answer.fused_attention,
        activation_bytes=answer.activation_bytes,
        build_seconds=round(answer.seconds, 1),
    )
    return graph, evidence


def _in_own_process(request: BuildRequest) -> BuildAnswer:
    result = subprocess.run(
        [sys.executable, "-m", "calm_export.tensorrt_rtx"],
        input=msgspec.json.encode(request),
        capture_output=True,
        check=False,
    )
    try:
        # The library's own messages may share stdout: the answer is the last line
        return msgspec.json.decode(result.stdout.splitlines()[-1], type=BuildAnswer)
    except (IndexError, msgspec.DecodeError):
        tail = result.stderr.decode(errors="replace").strip().splitlines()[-3:]
        return BuildAnswer(error=f"the builder ended with code {result.returncode}: {' | '.join(tail) or 'no message'}")


def _build(request: BuildRequest) -> BuildAnswer:
    """Build in this process; failures become the answer's `error`."""
    try:
        trt: Any = importlib.import_module("tensorrt_rtx")
    except (ImportError, OSError) as error:
        return BuildAnswer(error=f"tensorrt_rtx cannot be imported ({error}); {INSTALL}")
    messages: list[tuple[str, str]] = []

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            messages.append((str(severity), message))

    started = time.monotonic()
    logger = Log()  # the library keeps the first logger of a process: there must be only one
    builder = trt.Builder(logger)
    if builder is None:
        return BuildAnswer(error=f"the library cannot start: {_faults(messages)}")
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(request.onnx)
    # Bytes that are no ONNX file parse as an empty network
    if not parsed or network.num_layers == 0 or network.num_outputs == 0:
        reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        return BuildAnswer(error=f"the ONNX file cannot be parsed: {reasons or _faults(messages) or 'it is empty'}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request.device != PORTABLE and hasattr(config, "num_compute_capabilities"):
        config.num_compute_capabilities = 1
        capability = getattr(trt.ComputeCapability, "SM" + request.device.replace(".", ""))
        if not config.set_compute_capability(capability, 0):
            return BuildAnswer(error=f"compute capability {request.device} was refused: {_faults(messages)}")
    profile = builder.create_optimization_profile()
    for name, shapes in request.profile.items():
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    layers = network.num_layers
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return BuildAnswer(error=_faults(messages) or "the builder gave no reason")
    Path(request.engine).write_bytes(bytes(plan))
    fused = _engine_layers(messages)
    return BuildAnswer(
        version=str(trt.__version__),
        network_layers=layers,
        engine_layers=len(fused),
        fused_attention=sum("_mha" in line.partition(",")[0] for line in fused),
        activation_bytes=_activation_bytes(messages),
        seconds=time.monotonic() - started,
    )


def _faults(messages: list[tuple[str, str]]) -> str:
    return "; ".join(text for severity, text in messages if "ERROR" in severity)[:2000]


def _engine_layers(messages: list[tuple[str, str]]) -> list[str]:
    """The lines of the builder's `Layers:` message, one per kernel of the engine."""
    for _, text in messages:
        head, mark, rest = text.partition("Layers:")
        if mark and len(head) < 40:
            return [line for line in rest.splitlines() if line.startswith("Name:")]
    return []


def _activation_bytes(messages: list[tuple[str, str]]) -> int:
    """Device memory an engine needs for activations at its largest batch."""
    for _, text in reversed(messages):
        found = re.search(r"Total Activation Memory:\s*(\d+)", text)
        if found:
            return int(found.group(1))
    return 0


def main() -> None:
    """Read a BuildRequest from stdin, build, write a BuildAnswer to stdout."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=BuildRequest)
    sys.stdout.buffer.write(b"\n" + msgspec.json.encode(_build(request)) + b"\n")


if __name__ == "__main__":
    main()
