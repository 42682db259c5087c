"""Open the sessions an EngineChoice names."""

from __future__ import annotations

from calm_runtime.bundle import Bundle
from calm_runtime.session import EngineChoice, Session, StageChoice

_TENSORRT = ("tensorrt", "tensorrt_rtx")


def hands_over(choice: EngineChoice) -> bool:
    """Whether the encoder's hidden states can stay in the GPU's memory: the aligner runs there, in the same library."""
    encoder, aligner = choice.vision_encoder.library, choice.aligner.library
    return encoder == aligner and encoder in _TENSORRT


def open_session(
    bundle: Bundle, choice: StageChoice, threads: int | None = None, *, keep_on_device: bool = False
) -> Session:
    """Load one stage's graph. threads: ONNX Runtime's threads on the CPU; None lets it decide.

    keep_on_device: outputs of an engine stay on the GPU until someone reads them. Raises EngineMissing, EngineError, or
    BundleCorrupt when the graph's file is not listed.
    """
    path = bundle.file(choice.graph.path)
    if choice.library in _TENSORRT:
        from calm_runtime.tensorrt_session import TensorRtSession

        return TensorRtSession(path, choice.library, keep_on_device=keep_on_device)
    from calm_runtime.onnx_session import OnnxSession

    return OnnxSession(path, choice.device, threads, spin=choice.graph.stage == "llm")
