"""Recipes: every choice of a training run, as data with strict keys."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import yaml

from calm_runtime.errors import DataError


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class LossWeights(_Strict):
    """Weight of each kind of loss; 0 drops it from the sum."""

    contrastive: float = 0.0
    matching: float = 0.0
    generation: float = 0.0
    ranking: float = 0.0
    score: float = 0.0
    patches: float = 0.0
    edits: float = 0.0

    def of(self, name: str) -> float:
        """Weight of a loss named `kind` or `kind_scale`."""
        return float(getattr(self, name.split("_")[0]))


class ModelRecipe(_Strict):
    """Model made from scratch: Hugging Face configs of encoder and LLM, and MFAM's shape."""

    vision: dict[str, Any]
    text: dict[str, Any]
    vocabulary: int
    queries: int
    qformer_layers: int
    qformer_heads: int
    taps: tuple[int, int, int]


class LanguageRecipe(_Strict):
    """Training of a from-scratch LLM on cue texts."""

    steps: int
    batch_size: int
    learning_rate: float
    sentences: int


class StageRecipe(_Strict):
    """One stage. pairs: photo pairs per step (twice as many views). text_every: one text task per so many views."""

    steps: int
    pairs: int
    learning_rate: float
    weights: LossWeights
    frozen: tuple[str, ...] = ()
    text_every: int = 3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    bf16: bool = True


class Recipe(_Strict):
    """A whole run, from nothing to a checkpoint."""

    name: str
    model: ModelRecipe
    language: LanguageRecipe
    pretrain: StageRecipe
    tune: StageRecipe


def load_recipe(name: str) -> Recipe:
    """A shipped recipe by name, or a YAML file by path. Raises DataError naming the file and the key at fault."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise DataError(f"{path}: no such recipe file")
        text, source = path.read_text(), str(path)
    else:
        shipped = resources.files("calm_train") / "recipes"
        entry = shipped / f"{name}.yaml"
        if not entry.is_file():
            known = ", ".join(sorted(e.name.removesuffix(".yaml") for e in shipped.iterdir()))
            raise DataError(f"no recipe {name!r}; shipped recipes: {known}. Or give the path of a .yaml file")
        text, source = entry.read_text(), f"recipe {name}"
    try:
        return msgspec.convert(yaml.safe_load(text), Recipe)
    except (msgspec.ValidationError, yaml.YAMLError) as error:
        raise DataError(f"{source}: {error}") from error
