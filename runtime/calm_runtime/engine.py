"""Open the sessions an EngineChoice names."""

from __future__ import annotations

from calm_runtime.bundle import LLM_STAGES, Bundle
from calm_runtime.llm import LanguageModel, read_embed_tokens
from calm_runtime.session import EngineChoice, Session, StageChoice

_TENSORRT = ("tensorrt", "tensorrt_rtx")


def hands_over(choice: EngineChoice) -> bool:
    """Whether the encoder's hidden states can stay in the GPU's memory: the aligner runs there, in the same library."""
    encoder, aligner = choice.vision_encoder, choice.aligner
    return encoder.library == aligner.library and encoder.device == aligner.device == "cuda"


def open_session(
    bundle: Bundle, choice: StageChoice, threads: int | None = None, *, keep_on_device: bool = False
) -> Session:
    """Load one stage's graph. threads: ONNX Runtime's threads on the CPU; None lets it decide.

    keep_on_device: outputs on a GPU stay there until someone reads them. Raises EngineMissing, EngineError, or
    BundleCorrupt when the graph's file is not listed.
    """
    path = bundle.file(choice.graph.path)
    if choice.library in _TENSORRT:
        from calm_runtime.tensorrt_session import TensorRtSession

        return TensorRtSession(path, choice.library, keep_on_device=keep_on_device)
    from calm_runtime.onnx_session import OnnxSession

    spin = choice.graph.stage in LLM_STAGES
    return OnnxSession(path, choice.device, threads, spin=spin, keep_on_device=keep_on_device)


def open_language_model(bundle: Bundle, choice: EngineChoice, threads: int | None = None) -> LanguageModel:
    """Load the LLM and its embeddings; the graph that writes, where there is one, with the first text.

    Raises as `open_session` does, and BundleCorrupt when the embeddings cannot be read.
    """
    decode = choice.llm_decode
    return LanguageModel(
        open_session(bundle, choice.llm, threads),
        read_embed_tokens(bundle.file("embed_tokens.safetensors")),
        bundle.manifest.llm,
        (lambda: open_session(bundle, decode, threads)) if decode else None,
    )
