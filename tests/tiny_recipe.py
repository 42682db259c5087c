"""A recipe small enough to train in seconds, for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

STAGE: dict[str, Any] = {"pairs": 2, "learning_rate": 1e-3, "warmup_steps": 2, "precision": "fp32"}
TINY: dict[str, Any] = {
    "model": {
        "name": "tiny",
        "vision": {
            "model_type": "clip_vision_model",
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "image_size": 64,
            "patch_size": 16,
        },
        "text": {
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
        },
        "vocabulary": 512,
        "queries": 4,
        "qformer_layers": 1,
        "qformer_heads": 3,
        "taps": [1, 2, 3],
    },
    "language": {"steps": 12, "batch_size": 8, "learning_rate": 3e-3, "sentences": 2000},
    "pretrain": {
        **STAGE,
        "frozen": ["llm"],
        "steps": 8,
        "mask": 0.5,
        "weights": {
            "contrastive": 1,
            "matching": 1,
            "impression": 1,
            "cues": 1,
            "patches": 1,
            "edits": 1,
            "quantities": 1,
            "caption": 1,
        },
    },
    "tune": {
        **STAGE,
        "steps": 4,
        "weights": {
            "contrastive": 1,
            "technical": 1,
            "technical_ranking": 1,
            "score_ranking": 1,
            "generation": 1,
            "personal": 1,
            "rating": 1,
            "caption": 1,
        },
    },
    "adapt": {
        "pretrain": {**STAGE, "frozen": ["llm"], "steps": 3, "weights": {"contrastive": 1, "technical": 1, "score": 1}},
        "tune": {**STAGE, "steps": 6, "labelled": 2, "weights": {"rating": 1, "technical_ranking": 0.5}},
    },
}


def write_recipe(path: Path, **changes: Any) -> Path:
    """The tiny recipe as one YAML file, with top-level sections replaced."""
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return path
