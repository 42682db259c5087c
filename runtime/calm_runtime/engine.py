"""Open the sessions an EngineChoice names."""

from __future__ import annotations

from calm_runtime.bundle import Bundle
from calm_runtime.session import Session, StageChoice


def open_session(bundle: Bundle, choice: StageChoice, threads: int | None = None) -> Session:
    """Load one stage's graph. threads: ONNX Runtime's threads on the CPU; None lets it decide.

    Raises EngineMissing, EngineError, or BundleCorrupt when the graph's file is not listed.
    """
    path = bundle.file(choice.graph.path)
    if choice.library in ("tensorrt", "tensorrt_rtx"):
        from calm_runtime.tensorrt_session import TensorRtSession

        return TensorRtSession(path, choice.library)
    from calm_runtime.onnx_session import OnnxSession

    return OnnxSession(path, choice.device, threads)
