"""A model to start from: parts with random weights after a recipe, or pretrained parts with a new MFAM between them."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.image_processing_base import ImageProcessingMixin

from calm_runtime.errors import DataError
from calm_runtime.photo import PhotoSpec
from calm_runtime.score import SCORE_LOW, SCORE_TOKENS, TECHNICAL_TOKENS
from calm_train.config import CalmConfig
from calm_train.feature_maps import is_backbone
from calm_train.language import train_tokenizer
from calm_train.model import CalmForConditionalGeneration
from calm_train.pretrained.open import part_source, read_part
from calm_train.recipe import ModelRecipe, Recipe

HIDDEN_VISION = "vision_config"  # two-tower models keep the vision encoder's config under this name


def build_model(recipe: Recipe, seed: int) -> tuple[CalmForConditionalGeneration, Tokenizer]:
    """Model and tokenizer of a recipe, before any training of ours.

    Raises DataError when a pretrained part cannot be read or has no fast tokenizer.
    """
    parts = recipe.model
    if "pretrained" in parts.text:
        tokenizer, text = _pretrained_text(parts.text["pretrained"])
    else:
        tokenizer, text = _own_text(recipe, seed)
    vision = _vision_config(parts.vision)
    second = None if parts.second_vision is None else _vision_config(parts.second_vision)
    score, technical = (tuple(_token_id(tokenizer, t) for t in names) for names in (SCORE_TOKENS, TECHNICAL_TOKENS))
    config = _config(parts, vision, second, text, score_token_ids=score, technical_token_ids=technical)
    model = CalmForConditionalGeneration(config)
    encoders = zip((parts.vision, parts.second_vision), config.encoder_taps, strict=False)
    for index, (part, (encoder, _)) in enumerate(encoders):
        if part is not None and "pretrained" in part:
            kind = AutoBackbone if is_backbone(encoder) else AutoModel
            loaded = read_part(kind, part["pretrained"], config=encoder, dtype=torch.float32)
            model.vision_encoder.set_backbone(index, loaded)
    if "pretrained" in parts.text:
        model.llm = _with_rating_tokens(parts.text["pretrained"], tokenizer, text)
    return model, tokenizer


def _config(
    parts: ModelRecipe, vision: PretrainedConfig, second: PretrainedConfig | None, text: PretrainedConfig, **ids: Any
) -> CalmConfig:
    """The model's configuration. Raises DataError where encoders and taps do not fit together."""
    try:
        config = CalmConfig(
            vision_config=vision,
            second_vision_config=second,
            text_config=text,
            queries=parts.queries,
            qformer_layers=parts.qformer_layers,
            qformer_heads=parts.qformer_heads,
            qformer_dropout=parts.qformer_dropout,
            taps=parts.taps,
            thematic_tap=parts.thematic_tap,
            second_taps=parts.second_taps,
            second_thematic_tap=parts.second_thematic_tap,
            neck_width=parts.neck_width,
            neck_pools=parts.neck_pools,
            **ids,
        )
        _ = config.tap_shapes
    except ValueError as error:
        raise DataError(f"recipe of {parts.name}: {error}") from error
    return config


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    assert found is not None  # added when the tokenizer was made
    return found


def describe_config(recipe: Recipe) -> CalmConfig:
    """The configuration as the recipe states it, without reading pretrained parts: enough to count parameters."""
    parts = recipe.model
    vision, second, text = (
        None if part is None else {k: v for k, v in part.items() if k != "pretrained"}
        for part in (parts.vision, parts.second_vision, parts.text)
    )
    if parts.vocabulary is not None and text is not None:
        text["vocab_size"] = parts.vocabulary
    configs = [None if part is None else _config_of(part) for part in (vision, second, text)]
    assert configs[0] is not None and configs[2] is not None  # a recipe has both
    return _config(parts, configs[0], configs[1], configs[2])


def photo_spec(recipe: Recipe) -> PhotoSpec:
    """How photos reach the encoder: its picture size, and the normalisation it was pretrained with."""
    vision = recipe.model.vision
    size, fit = int(_vision_config(vision).image_size), recipe.model.fit
    if "pretrained" not in vision:
        return PhotoSpec(size=size, fit=fit)
    try:
        values, _ = ImageProcessingMixin.get_image_processor_dict(part_source(vision["pretrained"]))
    except (OSError, ValueError) as error:
        raise DataError(f"{vision['pretrained']}: has no preprocessor_config.json to tell its normalisation") from error
    mean, std = tuple(values["image_mean"]), tuple(values["image_std"])
    pad = tuple(round(255 * m) for m in mean)
    return PhotoSpec(size=size, fit=fit, pad_color=pad, mean=mean, std=std)


def _config_of(values: dict[str, Any]) -> PretrainedConfig:
    values = dict(values)
    if "model_type" not in values:
        raise DataError("a part of the recipe's model names neither `model_type` nor `pretrained`")
    return AutoConfig.for_model(values.pop("model_type"), **values)


def _vision_config(part: dict[str, Any]) -> PretrainedConfig:
    if "pretrained" not in part:
        return _config_of(part)
    config = read_part(AutoConfig, part["pretrained"])
    return getattr(config, HIDDEN_VISION, config)


def _own_text(recipe: Recipe, seed: int) -> tuple[Tokenizer, PretrainedConfig]:
    if recipe.language is None or recipe.model.vocabulary is None:
        raise DataError("an LLM from scratch needs the recipe's `language` section and model.vocabulary")
    tokenizer = train_tokenizer(recipe.model.vocabulary, recipe.language.sentences, seed)
    special = {"bos_token_id": "<s>", "eos_token_id": "</s>", "pad_token_id": "<pad>"}
    ids = {key: tokenizer.token_to_id(token) for key, token in special.items()}
    return tokenizer, _config_of({**recipe.model.text, "vocab_size": tokenizer.get_vocab_size(), **ids})


def _pretrained_text(name: str) -> tuple[Tokenizer, PretrainedConfig]:
    """Tokenizer with the rating tokens added, and the LLM's config with its special tokens settled."""
    loaded = read_part(AutoTokenizer, name)
    if not isinstance(loaded, PreTrainedTokenizerFast):
        raise DataError(f"{name}: has no fast tokenizer (tokenizer.json), which the runtime needs")
    tokenizer: Tokenizer = loaded.backend_tokenizer
    added = (*SCORE_TOKENS, *TECHNICAL_TOKENS)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    config = read_part(AutoConfig, name)
    end = config.eos_token_id if config.eos_token_id is not None else loaded.eos_token_id
    config.eos_token_id = end[0] if isinstance(end, list) else end
    if config.eos_token_id is None:
        raise DataError(f"{name}: names no end-of-sequence token")
    for key in ("bos_token_id", "pad_token_id"):
        if getattr(config, key, None) is None:
            setattr(config, key, config.eos_token_id)
    config.vocab_size = max(config.vocab_size, tokenizer.get_vocab_size())
    return tokenizer, config


def _with_rating_tokens(name: str, tokenizer: Tokenizer, config: PretrainedConfig) -> Any:
    """The pretrained LLM with room for the rating tokens; each starts as the mean of the digits of its rating."""
    llm = read_part(AutoModelForCausalLM, name, dtype=torch.float32)
    if llm.get_input_embeddings().weight.shape[0] < config.vocab_size:
        llm.resize_token_embeddings(config.vocab_size, mean_resizing=False)
    with torch.no_grad():
        for table in {llm.get_input_embeddings(), llm.get_output_embeddings()}:
            for rating, tokens in enumerate(zip(SCORE_TOKENS, TECHNICAL_TOKENS, strict=True), start=SCORE_LOW):
                digits = tokenizer.encode(str(rating), add_special_tokens=False).ids
                for token in tokens:
                    table.weight[tokenizer.token_to_id(token)] = table.weight[digits].mean(dim=0)
    llm.config = config
    return llm
