"""A pretrained part by name, opened: a registered name, a Hugging Face id or a local folder."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

import calm_train.pretrained.efficientnet_lite  # noqa: F401 - teaches AutoModel the model type
from calm_runtime.errors import DataError
from calm_train.pretrained.fetch import fetch
from calm_train.pretrained.parts import PARTS


def part_source(name: str) -> str:
    """The folder of a registered part, fetched when it is missing; any other name is a local folder or a hub name."""
    return str(fetch(name)) if name in PARTS else name


def read_part(kind: Any, name: str, **options: Any) -> Any:
    """`kind.from_pretrained` of a part; never code from the repository it names. Raises DataError."""
    source = part_source(name)
    try:
        return kind.from_pretrained(source, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{name}: cannot be read as a pretrained part ({reason}); give a local folder") from error


def open_part(name: str) -> PreTrainedModel:
    """An encoder with its own weights, float32, in evaluation mode. Raises DataError."""
    encoder: PreTrainedModel = read_part(AutoModel, name, config=read_part(AutoConfig, name), dtype=torch.float32)
    return encoder.eval()
