"""A model to start from: parts with random weights after a recipe, or pretrained parts with a new MFAM between them."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from transformers import (
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
from calm_runtime.score import SCORE_TOKENS
from calm_train.config import CalmConfig
from calm_train.language import train_tokenizer
from calm_train.model import CalmForConditionalGeneration
from calm_train.pretrained.fetch import fetch
from calm_train.pretrained.parts import PARTS
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
    vision = _vision_config(parts)
    model = CalmForConditionalGeneration(
        CalmConfig(
            vision_config=vision,
            text_config=text,
            queries=parts.queries,
            qformer_layers=parts.qformer_layers,
            qformer_heads=parts.qformer_heads,
            qformer_dropout=parts.qformer_dropout,
            taps=parts.taps,
            score_token_ids=tuple(_token_id(tokenizer, token) for token in SCORE_TOKENS),
        )
    )
    if "pretrained" in parts.vision:
        name = parts.vision["pretrained"]
        model.vision_encoder.model = _read(AutoModel, name, config=vision, dtype=torch.float32)
    if "pretrained" in parts.text:
        model.llm = _with_score_tokens(parts.text["pretrained"], tokenizer, text)
    return model, tokenizer


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    assert found is not None  # added when the tokenizer was made
    return found


def describe_config(recipe: Recipe) -> CalmConfig:
    """The configuration as the recipe states it, without reading pretrained parts: enough to count parameters."""
    parts = recipe.model
    vision, text = ({k: v for k, v in part.items() if k != "pretrained"} for part in (parts.vision, parts.text))
    if parts.vocabulary is not None:
        text["vocab_size"] = parts.vocabulary
    return CalmConfig(
        vision_config=_config_of(vision),
        text_config=_config_of(text),
        queries=parts.queries,
        qformer_layers=parts.qformer_layers,
        qformer_heads=parts.qformer_heads,
        qformer_dropout=parts.qformer_dropout,
        taps=parts.taps,
    )


def photo_spec(recipe: Recipe) -> PhotoSpec:
    """How photos reach the encoder: its picture size, and the normalisation it was pretrained with."""
    vision = recipe.model.vision
    size = int(_vision_config(recipe.model).image_size)
    if "pretrained" not in vision:
        return PhotoSpec(size=size)
    try:
        values, _ = ImageProcessingMixin.get_image_processor_dict(_source(vision["pretrained"]))
    except (OSError, ValueError) as error:
        raise DataError(f"{vision['pretrained']}: has no preprocessor_config.json to tell its normalisation") from error
    mean, std = tuple(values["image_mean"]), tuple(values["image_std"])
    pad = tuple(round(255 * m) for m in mean)
    return PhotoSpec(size=size, pad_color=pad, mean=mean, std=std)


def _source(name: str) -> str:
    """The folder of a registered part, fetched when it is missing; any other name is a local folder or a hub name."""
    return str(fetch(name)) if name in PARTS else name


def _read(kind: Any, name: str, **options: Any) -> Any:
    """`kind.from_pretrained` of a part; never code from the repository it names."""
    source = _source(name)
    try:
        return kind.from_pretrained(source, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{name}: cannot be read as a pretrained part ({reason}); give a local folder") from error


def _config_of(values: dict[str, Any]) -> PretrainedConfig:
    values = dict(values)
    if "model_type" not in values:
        raise DataError("a part of the recipe's model names neither `model_type` nor `pretrained`")
    return AutoConfig.for_model(values.pop("model_type"), **values)


def _vision_config(parts: ModelRecipe) -> PretrainedConfig:
    if "pretrained" not in parts.vision:
        return _config_of(parts.vision)
    config = _read(AutoConfig, parts.vision["pretrained"])
    return getattr(config, HIDDEN_VISION, config)


def _own_text(recipe: Recipe, seed: int) -> tuple[Tokenizer, PretrainedConfig]:
    if recipe.language is None or recipe.model.vocabulary is None:
        raise DataError("an LLM from scratch needs the recipe's `language` section and model.vocabulary")
    tokenizer = train_tokenizer(recipe.model.vocabulary, recipe.language.sentences, seed)
    special = {"bos_token_id": "<s>", "eos_token_id": "</s>", "pad_token_id": "<pad>"}
    ids = {key: tokenizer.token_to_id(token) for key, token in special.items()}
    return tokenizer, _config_of({**recipe.model.text, "vocab_size": tokenizer.get_vocab_size(), **ids})


def _pretrained_text(name: str) -> tuple[Tokenizer, PretrainedConfig]:
    """Tokenizer with the score tokens added, and the LLM's config with its special tokens settled."""
    loaded = _read(AutoTokenizer, name)
    if not isinstance(loaded, PreTrainedTokenizerFast):
        raise DataError(f"{name}: has no fast tokenizer (tokenizer.json), which the runtime needs")
    tokenizer: Tokenizer = loaded.backend_tokenizer
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SCORE_TOKENS])
    config = _read(AutoConfig, name)
    end = config.eos_token_id if config.eos_token_id is not None else loaded.eos_token_id
    config.eos_token_id = end[0] if isinstance(end, list) else end
    if config.eos_token_id is None:
        raise DataError(f"{name}: names no end-of-sequence token")
    for key in ("bos_token_id", "pad_token_id"):
        if getattr(config, key, None) is None:
            setattr(config, key, config.eos_token_id)
    config.vocab_size = max(config.vocab_size, tokenizer.get_vocab_size())
    return tokenizer, config


def _with_score_tokens(name: str, tokenizer: Tokenizer, config: PretrainedConfig) -> Any:
    """The pretrained LLM with room for the score tokens; each starts as the mean of the digits of its rating."""
    llm = _read(AutoModelForCausalLM, name, dtype=torch.float32)
    if llm.get_input_embeddings().weight.shape[0] < config.vocab_size:
        llm.resize_token_embeddings(config.vocab_size, mean_resizing=False)
    with torch.no_grad():
        for table in {llm.get_input_embeddings(), llm.get_output_embeddings()}:
            for rating, token in enumerate(SCORE_TOKENS, start=1):
                digits = tokenizer.encode(str(rating), add_special_tokens=False).ids
                table.weight[tokenizer.token_to_id(token)] = table.weight[digits].mean(dim=0)
    llm.config = config
    return llm
