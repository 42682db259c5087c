"""One engine build, in a process of its own: after a failed build the next one silently uses the failed target.

`python -m calm_export.tensorrt_build` is that process: a request as JSON on stdin, the answer as JSON on stdout.
TensorRT 10 and 11 and TensorRT-RTX have the same API here; what only one of them has is asked for by name.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

PORTABLE = "portable"
Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]
Fault = Literal["", "library", "graph", "operator", "profile", "precision", "builder"]

# What the builders write when a target lacks the arithmetic of a graph
_PRECISION = re.compile(
    r"HW-specific datatypes|GEMM is not supported|precision require hardware|hardware .{0,20}support"
)
_PROFILE = re.compile(r"optimization profile", re.IGNORECASE)
_OPERATOR = re.compile(r"Plugin not found|no importer registered|unsupported operator", re.IGNORECASE)


class BuildRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One engine to build. module: the library's import name; device: "portable" or a compute capability."""

    module: str
    onnx: str
    engine: str
    device: str
    profile: Profile


class BuildAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What came of it. fault is empty when the engine was written; reason says what the library said."""

    fault: Fault = ""
    reason: str = ""
    version: str = ""
    network_layers: int = 0
    engine_layers: int = 0
    fused_attention: int = 0
    activation_bytes: int = 0
    seconds: float = 0.0
    peak_rss_bytes: int = 0


class _Refused(Exception):
    def __init__(self, fault: Fault, reason: str) -> None:
        self.fault, self.reason = fault, reason


def classify(reason: str) -> Fault:
    """Which of the documented faults a builder's message describes."""
    if _OPERATOR.search(reason):
        return "operator"
    if _PRECISION.search(reason):
        return "precision"
    return "profile" if _PROFILE.search(reason) else "builder"


def build(request: BuildRequest) -> BuildAnswer:
    """Build in this process; failures become the answer's fault and reason."""
    try:
        trt: Any = importlib.import_module(request.module)
    except (ImportError, OSError) as error:
        return BuildAnswer("library", f"{request.module} cannot be imported ({error})")
    messages: list[tuple[str, str]] = []
    try:
        return _build(trt, request, messages)
    except _Refused as refused:
        return BuildAnswer(refused.fault, refused.reason or _faults(messages) or "the library gave no reason")


def _build(trt: Any, request: BuildRequest, messages: list[tuple[str, str]]) -> BuildAnswer:
    started = time.monotonic()
    logger = _logger(trt, messages)  # the library keeps the first logger of a process: there must be only one
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # how the bindings report a null pointer
        raise _Refused("library", _faults(messages) or str(error)) from error
    if builder is None:
        raise _Refused("library", _faults(messages))
    flags = trt.NetworkDefinitionCreationFlag  # a library that knows no other kind of network has no such flag
    typed = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    network = builder.create_network(typed)
    _parse(trt, logger, network, request, messages)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request.device != PORTABLE and hasattr(config, "num_compute_capabilities"):  # TensorRT-RTX
        config.num_compute_capabilities = 1
        capability = getattr(trt.ComputeCapability, "SM" + request.device.replace(".", ""))
        if not config.set_compute_capability(capability, 0):
            raise _Refused("builder", f"compute capability {request.device} was refused: {_faults(messages)}")
    _add_profile(builder, config, network, request.profile)
    layers = network.num_layers
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = _faults(messages)
        raise _Refused(classify(reason), reason)
    Path(request.engine).write_bytes(bytes(plan))
    seconds = time.monotonic() - started
    kernels, activation_bytes = _engine_layers(messages), _activation_bytes(messages)
    if not kernels:  # TensorRT does not log them, and its builder has a GPU to ask
        kernels, activation_bytes = _inspect(trt, logger, plan)
    return BuildAnswer(
        version=str(trt.__version__),
        network_layers=layers,
        engine_layers=len(kernels),
        fused_attention=sum("_mha" in name for name in kernels),
        activation_bytes=activation_bytes,
        seconds=seconds,
        peak_rss_bytes=_peak_rss(),
    )


def _logger(trt: Any, messages: list[tuple[str, str]]) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            messages.append((str(severity), message))

    return Log()


def _parse(trt: Any, logger: Any, network: Any, request: BuildRequest, messages: list[tuple[str, str]]) -> None:
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(request.onnx)
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    for error in errors:
        if classify(error.desc()) == "operator":
            raise _Refused("operator", f"node {error.node_name()!r} is a {error.node_operator()}: {error.desc()}")
    # Bytes that are no ONNX file parse as an empty network
    if not parsed or network.num_layers == 0 or network.num_outputs == 0:
        reasons = "; ".join(_located(error) for error in errors)
        raise _Refused("graph", reasons or _faults(messages) or "it is empty")


def _located(error: Any) -> str:
    return (
        f"node {error.node_name()!r} ({error.node_operator()}): {error.desc()}" if error.node_name() else error.desc()
    )


def _add_profile(builder: Any, config: Any, network: Any, wanted: Profile) -> None:
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    missing = [i.name for i in inputs if -1 in tuple(i.shape) and i.name not in wanted]
    if missing:
        raise _Refused("profile", f"no optimization profile for the dynamic input {', '.join(missing)}")
    profile = builder.create_optimization_profile()
    for name, shapes in wanted.items():
        profile.set_shape(name, *shapes)
    if config.add_optimization_profile(profile) < 0:
        raise _Refused("profile", f"the optimization profile {wanted} was refused")


def _inspect(trt: Any, logger: Any, plan: Any) -> tuple[list[str], int]:
    """Kernel names and activation bytes of a finished engine; only on the GPU it was built for."""
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    report = json.loads(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
    names = [layer["Name"] if isinstance(layer, dict) else str(layer) for layer in report["Layers"]]
    return names, int(engine.device_memory_size_v2)


def _faults(messages: Sequence[tuple[str, str]]) -> str:
    return "; ".join(text for severity, text in messages if "ERROR" in severity)[:2000]


def _engine_layers(messages: Sequence[tuple[str, str]]) -> list[str]:
    """Kernel names of the builder's `Layers:` message, which TensorRT-RTX logs."""
    for _, text in messages:
        head, mark, rest = text.partition("Layers:")
        if mark and len(head) < 40:
            return [line.partition(",")[0] for line in rest.splitlines() if line.startswith("Name:")]
    return []


def _activation_bytes(messages: Sequence[tuple[str, str]]) -> int:
    """Device memory an engine needs for activations at its largest batch."""
    for _, text in reversed(messages):
        found = re.search(r"Total Activation Memory:\s*(\d+)", text)
        if found:
            return int(found.group(1))
    return 0


def _peak_rss() -> int:
    """Most memory this process ever held, bytes; 0 where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Read a BuildRequest from stdin, build, write a BuildAnswer to stdout."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=BuildRequest)
    sys.stdout.buffer.write(b"\n" + msgspec.json.encode(build(request)) + b"\n")


if __name__ == "__main__":
    main()
