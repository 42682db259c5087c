"""CalmConfig: which vision encoder, which LLM, and the shape of the alignment module between them."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PretrainedConfig

from calm_runtime.score import SCORE_LEVELS


class CalmConfig(PretrainedConfig):
    """Configuration of `CalmForConditionalGeneration`.

    vision_config: config (or dict) of any CLIP/SigLIP-style vision encoder.
    text_config: config (or dict) of any causal LM; its vocabulary already holds the score tokens and the technical ones.
    queries: learnable queries per Q-Former.
    qformer_layers, qformer_heads: depth and heads of each Q-Former; its width is the vision encoder's.
    qformer_dropout: of its activations and attention, in training.
    taps: hidden state each Q-Former attends to, as index into the encoder's `hidden_states` (0 = embeddings,
        k = output of layer k, negative from the end). Equal taps give the "last only" ablation.
    thematic_tap: hidden state whose patches the thematic branch projects (LLaVA takes the penultimate).
    thematic_pool: n merges n x n neighbouring patches into one thematic token.
    cue_width: width of the space in which photos meet their text cues.
    cue_phrases: paraphrases per attribute level in that space.
    score_token_ids: ids of `<score_1>`..`<score_10>`. technical_token_ids: of `<technical_1>`..`<technical_10>`.
    """

    model_type = "calm"
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": AutoConfig, "text_config": AutoConfig}

    def __init__(
        self,
        vision_config: PretrainedConfig | dict[str, Any] | None = None,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        queries: int = 8,
        qformer_layers: int = 2,
        qformer_heads: int = 3,
        qformer_dropout: float = 0.0,
        taps: tuple[int, int, int] = (3, 5, 8),
        thematic_tap: int = -2,
        thematic_pool: int = 2,
        cue_width: int = 128,
        cue_phrases: int = 4,
        score_token_ids: tuple[int, ...] = tuple(range(SCORE_LEVELS)),
        technical_token_ids: tuple[int, ...] = tuple(range(SCORE_LEVELS, 2 * SCORE_LEVELS)),
        **kwargs: Any,
    ) -> None:
        self.vision_config = _as_config(vision_config, "clip_vision_model")
        self.text_config = _as_config(text_config, "llama")
        self.queries = queries
        self.qformer_layers = qformer_layers
        self.qformer_heads = qformer_heads
        self.qformer_dropout = qformer_dropout
        self.taps = list(taps)
        self.thematic_tap = thematic_tap
        self.thematic_pool = thematic_pool
        self.cue_width = cue_width
        self.cue_phrases = cue_phrases
        self.score_token_ids = list(score_token_ids)
        self.technical_token_ids = list(technical_token_ids)
        kwargs.setdefault("tie_word_embeddings", self.text_config.tie_word_embeddings)
        super().__init__(**kwargs)

    @property
    def patches_per_side(self) -> int:
        """Patches along one side of the picture."""
        return int(self.vision_config.image_size // self.vision_config.patch_size)

    @property
    def thematic_tokens(self) -> int:
        """Number of thematic tokens."""
        return (-(-self.patches_per_side // self.thematic_pool)) ** 2

    @property
    def image_tokens(self) -> int:
        """Visual tokens of one photo in the prompt: low, middle, high, thematic."""
        return 3 * self.queries + self.thematic_tokens


def _as_config(config: PretrainedConfig | dict[str, Any] | None, default_type: str) -> PretrainedConfig:
    if isinstance(config, PretrainedConfig):
        return config
    values = dict(config or {})
    return AutoConfig.for_model(values.pop("model_type", default_type), **values)
