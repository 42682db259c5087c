"""Tiny random checkpoints and photos for the export tests; deterministic, made in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPVisionConfig, LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config, SiglipVisionConfig

from calm_runtime.bundle import ModelInfo
from calm_runtime.photo import PhotoSpec
from calm_runtime.score import SCORE_TOKENS, TECHNICAL_TOKENS
from calm_train.checkpoint import CheckpointInfo, save_checkpoint
from calm_train.config import CalmConfig
from calm_train.model import CalmForConditionalGeneration

SPECIALS = ["<pad>", "<s>", "</s>", *SCORE_TOKENS, *TECHNICAL_TOKENS]
SENTENCES = [
    "Can you give me the aesthetic score?", "Answer:", "Comment on this photo.", "How can this photo be improved?",
    "The colours are warm and the light is soft.", "The horizon is tilted to the left; straighten it by two degrees.",
    "Raise the exposure by about one stop.", "Is the horizon straight?", "The subject stands out from the background.",
]  # fmt: skip


def make_tokenizer(vocab_size: int) -> Tokenizer:
    """ByteLevel BPE whose first ids are the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(s, special=True, normalized=False) for s in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def _llm(kind: str, **sizes: Any) -> PretrainedConfig:
    classes = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
    return classes[kind](bos_token_id=1, eos_token_id=2, pad_token_id=0, max_position_embeddings=512, **sizes)


def make_config(vision: str = "clip", llm: str = "llama", size: str = "tiny") -> CalmConfig:
    """CalmConfig of a tiny (seconds on one core) or nano (the shipped shape) model."""
    nano = size == "nano"
    shape: dict[str, Any] = (
        {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 3,
         "image_size": 224, "patch_size": 16}
        if nano
        else {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2,
              "image_size": 48, "patch_size": 16}
    )  # fmt: skip
    vision_config = CLIPVisionConfig(**shape) if vision == "clip" else SiglipVisionConfig(**shape)
    text: dict[str, Any] = (
        {"vocab_size": 1024, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 2}
        if nano
        else {"vocab_size": 384, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2}
    )  # fmt: skip
    if llm == "qwen3":
        text["head_dim"] = text["hidden_size"] // 4
    return CalmConfig(
        vision_config,
        _llm(llm, tie_word_embeddings=True, **text),
        queries=8 if nano else 2,
        qformer_layers=2 if nano else 1,
        qformer_heads=3 if nano else 2,
        taps=(3, 5, 8) if nano else (1, 2, 3),
        thematic_tap=-2,
        cue_width=128 if nano else 16,
        score_token_ids=tuple(range(3, 13)),
        technical_token_ids=tuple(range(13, 23)),
    )


def make_checkpoint(folder: Path, vision: str = "clip", llm: str = "llama", size: str = "tiny", seed: int = 0) -> Path:
    """A checkpoint with random weights whose scores spread over the scale."""
    torch.manual_seed(seed)
    config = make_config(vision, llm, size)
    model = CalmForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.aligner.cues.features.normal_()
        # Random heads give nearly equal scores; rank agreement means something only when photos differ.
        for scale in model.aligner.projections.values():
            scale.weight.mul_(20.0)
        model.aligner.thematic.fc2.weight.mul_(20.0)
        model.get_input_embeddings().weight[[*config.score_token_ids, *config.technical_token_ids]] *= 5.0
    info = CheckpointInfo(
        model=ModelInfo(
            f"calm-{size}-random", "0", "Apache-2.0", "random weights, no data", "none: random weights", "tests"
        ),
        photo=PhotoSpec(size=config.vision_config.image_size),
    )
    save_checkpoint(folder, model, make_tokenizer(config.text_config.vocab_size), info)
    return folder


def make_photo(seed: int) -> Image.Image:
    """A synthetic picture: gradient, shapes, blur and grain drawn from the seed."""
    rng = np.random.default_rng(seed)
    width, height = (int(v) for v in rng.integers(90, 400, 2))
    top, bottom = rng.integers(0, 256, (2, 3))
    ramp = np.linspace(0, 1, height)[:, None, None]
    pixels = np.broadcast_to(top * (1 - ramp) + bottom * ramp, (height, width, 3))
    picture = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(1, 8))):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        radius = int(rng.integers(5, 90))
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
    if rng.random() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 4))))
    noisy = np.asarray(picture, np.float32) + rng.normal(0, rng.uniform(0, 20), (height, width, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def make_photos(folder: Path, count: int, name: Callable[[int], str] = "{:03d}.jpg".format) -> Path:
    """`count` JPEG files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        make_photo(seed).save(folder / name(seed), quality=90)
    return folder
