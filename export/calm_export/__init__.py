"""Export: torch checkpoint -> ONNX and TensorRT graphs -> bundle."""

from calm_runtime import no_telemetry  # noqa: F401 - before any import of onnxruntime
