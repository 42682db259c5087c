"""CalmConfig: which vision encoder or encoders, which LLM, and the shape of the alignment module between them."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PretrainedConfig

import calm_train.pretrained.efficientnet_lite  # noqa: F401 - teaches AutoConfig the model type
from calm_runtime.score import SCORE_LEVELS
from calm_train.feature_maps import MapShapes, gives_maps, map_shapes


class CalmConfig(PretrainedConfig):
    """Configuration of `CalmForConditionalGeneration`.

    vision_config: config (or dict) of a vision encoder. A token encoder (CLIP/SigLIP-style) gives hidden states of one
        grid; a map encoder (a convolutional model or an `AutoBackbone`) gives feature maps of falling resolution.
    second_vision_config: a map encoder beside the first, which must be one, too; their maps are joined channel by channel.
    text_config: config (or dict) of any causal LM; its vocabulary already holds the score and technical tokens.
    queries: learnable queries per Q-Former.
    qformer_layers, qformer_heads: depth and heads of each Q-Former; its width is that of the hidden states.
    qformer_dropout: of its activations and attention, in training.
    taps: what each Q-Former attends to, as index into the encoder's `hidden_states` or maps (of a token encoder 0 =
        embeddings, k = output of layer k; negative from the end). Equal taps give the "last only" ablation.
    thematic_tap: what the thematic branch projects (of a token encoder LLaVA takes the penultimate).
    second_taps, second_thematic_tap: the same for the second encoder.
    neck_width: width to which feature maps are projected; a token encoder keeps its own. neck_pools: n averages n x n
        cells of the map at each tap before that.
    thematic_pool: n merges n x n neighbouring patches into one thematic token.
    cue_width: width of the space in which photos meet their text cues.
    cue_phrases: paraphrases per attribute level in that space.
    score_token_ids: ids of `<score_1>`..`<score_10>`. technical_token_ids: of `<technical_1>`..`<technical_10>`.
    """

    model_type = "calm"
    sub_configs: ClassVar[dict[str, Any]] = {
        "vision_config": AutoConfig,
        "second_vision_config": AutoConfig,
        "text_config": AutoConfig,
    }

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
        second_vision_config: PretrainedConfig | dict[str, Any] | None = None,
        second_taps: tuple[int, int, int] | None = None,
        second_thematic_tap: int | None = None,
        neck_width: int = 192,
        neck_pools: tuple[int, int, int, int] = (1, 1, 1, 1),
        thematic_pool: int = 2,
        cue_width: int = 128,
        cue_phrases: int = 4,
        score_token_ids: tuple[int, ...] = tuple(range(SCORE_LEVELS)),
        technical_token_ids: tuple[int, ...] = tuple(range(SCORE_LEVELS, 2 * SCORE_LEVELS)),
        **kwargs: Any,
    ) -> None:
        self.vision_config = _as_config(vision_config, "clip_vision_model")
        self.second_vision_config = (
            None if second_vision_config is None else _as_config(second_vision_config, "clip_vision_model")
        )
        self.text_config = _as_config(text_config, "llama")
        self.queries = queries
        self.qformer_layers = qformer_layers
        self.qformer_heads = qformer_heads
        self.qformer_dropout = qformer_dropout
        self.taps = list(taps)
        self.thematic_tap = thematic_tap
        self.second_taps = None if second_taps is None else list(second_taps)
        self.second_thematic_tap = second_thematic_tap
        self.neck_width = neck_width
        self.neck_pools = list(neck_pools)
        self.thematic_pool = thematic_pool
        self.cue_width = cue_width
        self.cue_phrases = cue_phrases
        self.score_token_ids = list(score_token_ids)
        self.technical_token_ids = list(technical_token_ids)
        kwargs.setdefault("tie_word_embeddings", self.text_config.tie_word_embeddings)
        super().__init__(**kwargs)

    @property
    def reads_maps(self) -> bool:
        """Whether the vision encoder gives feature maps instead of one grid of tokens."""
        return gives_maps(self.vision_config)

    @property
    def encoder_taps(self) -> list[tuple[PretrainedConfig, tuple[int, int, int, int]]]:
        """Each encoder's config with its four taps: low, middle, high, thematic."""
        low, middle, high = self.taps
        found = [(self.vision_config, (low, middle, high, self.thematic_tap))]
        if self.second_vision_config is not None:
            if self.second_taps is None or self.second_thematic_tap is None:
                raise ValueError("a second vision encoder needs second_taps and second_thematic_tap")
            low, middle, high = self.second_taps
            found.append((self.second_vision_config, (low, middle, high, self.second_thematic_tap)))
        return found

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states that the alignment module reads."""
        return self.neck_width if self.reads_maps else int(self.vision_config.hidden_size)

    @property
    def image_size(self) -> int:
        """Side of the picture the encoder takes, in pixels."""
        return int(self.vision_config.image_size)

    @property
    def tap_shapes(self) -> MapShapes:
        """Of the joined maps at the four taps: channels, and side after pooling."""
        if not self.reads_maps:
            side = int(self.vision_config.image_size // self.vision_config.patch_size)
            return MapShapes((self.hidden_size,) * 4, (side,) * 4)
        shapes = [map_shapes(config, taps, self.image_size) for config, taps in self.encoder_taps]
        sides = shapes[0].sides
        if any(other.sides != sides for other in shapes):
            raise ValueError(f"the encoders' maps differ in size at the taps: {[list(s.sides) for s in shapes]}")
        channels = tuple(sum(column) for column in zip(*(s.channels for s in shapes), strict=True))
        if any(side % pool for side, pool in zip(sides, self.neck_pools, strict=True)):
            raise ValueError(f"neck_pools {self.neck_pools} do not divide the maps' sides {list(sides)}")
        return MapShapes(channels, tuple(side // pool for side, pool in zip(sides, self.neck_pools, strict=True)))

    @property
    def thematic_tokens(self) -> int:
        """Number of thematic tokens: merged patches and, of maps, the mean and spread ahead of them."""
        return (-(-self.tap_shapes.sides[3] // self.thematic_pool)) ** 2 + (2 if self.reads_maps else 0)

    @property
    def image_tokens(self) -> int:
        """Visual tokens of one photo in the prompt: low, middle, high, thematic."""
        return 3 * self.queries + self.thematic_tokens


def _as_config(config: PretrainedConfig | dict[str, Any] | None, default_type: str) -> PretrainedConfig:
    if isinstance(config, PretrainedConfig):
        return config
    values = dict(config or {})
    return AutoConfig.for_model(values.pop("model_type", default_type), **values)
