"""Recipes: every choice of a training run, as data with strict keys."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml

from calm_runtime.attributes import SCALES
from calm_runtime.errors import DataError

StageName = Literal["pretrain", "tune"]
Precision = Literal["fp32", "bf16", "fp16"]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class LossWeights(_Strict, frozen=True):
    """Weight of each kind of loss; one of weight 0 is not computed."""

    contrastive: float = 0.0
    matching: float = 0.0
    impression: float = 0.0
    cues: float = 0.0
    patches: float = 0.0
    edits: float = 0.0
    quantities: float = 0.0
    score: float = 0.0
    score_ranking: float = 0.0
    technical: float = 0.0
    technical_ranking: float = 0.0
    generation: float = 0.0
    personal: float = 0.0
    rating: float = 0.0
    caption: float = 0.0

    def of(self, name: str) -> float:
        """Weight of a loss named `kind` or `kind_scale`."""
        kind, _, scale = name.rpartition("_")
        return float(getattr(self, kind if scale in SCALES else name))


class ModelRecipe(_Strict, frozen=True):
    """Encoder, LLM and MFAM's shape.

    vision, second_vision, text: a Hugging Face config (`model_type` and its fields) for a part from scratch. With
    `pretrained: NAME` (a name of `calm train fetch --list`, a hub name or a local folder) weights and config come from
    there, and the fields given here serve the dry run. second_vision: a second encoder of feature maps beside the first.
    fit: how a photo comes to be square (`PhotoSpec`). taps, thematic_tap, second_taps, second_thematic_tap, neck_width, neck_pools: as `CalmConfig` has them.
    vocabulary: of the tokenizer trained for a from-scratch LLM.
    """

    vision: dict[str, Any]
    text: dict[str, Any]
    queries: int
    qformer_layers: int
    qformer_heads: int
    taps: tuple[int, int, int]
    thematic_tap: int = -2
    second_vision: dict[str, Any] | None = None
    second_taps: tuple[int, int, int] | None = None
    second_thematic_tap: int | None = None
    neck_width: int = 192
    neck_pools: tuple[int, int, int, int] = (1, 1, 1, 1)
    fit: Literal["pad", "stretch"] = "pad"
    vocabulary: int | None = None
    qformer_dropout: float = 0.0
    name: str = "calm"


class LanguageRecipe(_Strict, frozen=True):
    """Training of a from-scratch LLM on cue texts."""

    steps: int
    batch_size: int
    learning_rate: float
    sentences: int


class LoraRecipe(_Strict, frozen=True):
    """Low-rank adapters on the LLM instead of tuning its own weights (PEFT); merged when the stage ends."""

    rank: int
    alpha: int
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


class StageRecipe(_Strict, frozen=True):
    """One stage.

    pairs: photo pairs per optimiser step over all processes (twice as many views). text_every: one text task per so
    many views. labelled: photos of each labelled flow per pair. raters: simulated people per micro-batch and process,
    where `personal` is weighted. accumulate: micro-batches per optimiser step.
    frozen: parts of the model that do not learn. sharding: "none" copies the model into every process, "full" spreads
    weights, gradients and moments over the processes.
    """

    steps: int
    pairs: int
    learning_rate: float
    weights: LossWeights
    frozen: tuple[str, ...] = ()
    text_every: int = 3
    mask: float = 0.0
    labelled: int = 1
    raters: Annotated[int, msgspec.Meta(ge=1)] = 1
    warmup_steps: int = 100
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    accumulate: int = 1
    precision: Precision = "bf16"
    gradient_checkpointing: bool = False
    sharding: Literal["none", "full"] = "none"
    lora: LoraRecipe | None = None


class AdaptRecipe(_Strict, frozen=True):
    """The gentler stages that adapt a finished model to someone's photos or ratings."""

    pretrain: StageRecipe
    tune: StageRecipe


class Recipe(_Strict, frozen=True):
    """A whole run, from nothing to a checkpoint. language: only for an LLM from scratch."""

    model: ModelRecipe
    pretrain: StageRecipe
    tune: StageRecipe
    language: LanguageRecipe | None = None
    adapt: AdaptRecipe | None = None

    def stage(self, name: StageName, *, adapt: bool) -> StageRecipe:
        """Settings of a stage; `adapt` picks the gentle ones. Raises DataError when the recipe has none."""
        if not adapt:
            return self.pretrain if name == "pretrain" else self.tune
        if self.adapt is None:
            raise DataError(f"the recipe of {self.model.name} has no `adapt` section to adapt a finished model with")
        return self.adapt.pretrain if name == "pretrain" else self.adapt.tune


def shipped_recipes() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(entry.name for entry in (resources.files("calm_train") / "recipes").iterdir() if entry.is_dir())


def load_recipe(name: str) -> Recipe:
    """A shipped recipe by name, a folder of section files (model.yaml, pretrain.yaml, ...), or one YAML file.

    Raises DataError naming the file and the key at fault.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise DataError(f"{path}: no such recipe file")
        return _convert(_read(path), str(path))
    folder: Traversable = path
    if not path.is_dir():
        if name not in shipped_recipes():
            known = ", ".join(shipped_recipes())
            raise DataError(f"no recipe {name!r}; shipped recipes: {known}. Or give a .yaml file or a folder of them")
        folder = resources.files("calm_train") / "recipes" / name
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".yaml")), key=lambda entry: entry.name)
    return _convert({entry.name.removesuffix(".yaml"): _read(entry) for entry in files}, f"recipe {name}")


def _read(file: Traversable) -> Any:
    try:
        return yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise DataError(f"{file}: not YAML: {error}") from error


def _convert(values: Any, source: str) -> Recipe:
    try:
        return msgspec.convert(values, Recipe)
    except msgspec.ValidationError as error:
        raise DataError(f"{source}: {error}") from error
