"""A checkpoint: the folder training leaves behind and export, evaluation and further training pick up."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
from tokenizers import Tokenizer

from calm_runtime.bundle import ModelInfo
from calm_runtime.errors import DataError
from calm_runtime.photo import PhotoSpec
from calm_runtime.prompt import PROMPTS, Prompt
from calm_runtime.reference import Reference
from calm_runtime.score import SCORE_LEVELS, SCORE_TOKENS, TECHNICAL_TOKENS
from calm_train.model import CalmForConditionalGeneration

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
INFO = "calm.json"

SHIPPED = Path(__file__).resolve().parents[2] / "models"  # of a source checkout; the wheel does not carry checkpoints


class CheckpointInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a checkpoint says about itself beside its weights; model, photo, prompts and reference travel into the bundle.

    reference: scores of known photographs by this model; without it the export takes those of its parity gate.
    stage: the last stage it went through. A `tune`d checkpoint is finished: more training adapts it.
    """

    model: ModelInfo
    photo: PhotoSpec
    prompts: dict[str, Prompt] = msgspec.field(default_factory=lambda: dict(PROMPTS))
    stage: Literal["language", "pretrain", "tune"] = "tune"
    reference: Reference | None = None


def find_checkpoint(name: str | Path) -> Path:
    """A checkpoint folder by path, or by the name of one shipped with the source. Raises DataError."""
    path = Path(name)
    if path.is_dir():
        return path
    if path.name == str(name) and (SHIPPED / name).is_dir():
        return SHIPPED / name
    known = ", ".join(sorted(entry.name for entry in SHIPPED.iterdir() if entry.is_dir())) if SHIPPED.is_dir() else ""
    hint = f"shipped checkpoints: {known}" if known else "shipped checkpoints come with the source, not with the wheel"
    raise DataError(f"{name}: no such checkpoint folder; {hint}")


def save_checkpoint(
    folder: str | Path, model: CalmForConditionalGeneration, tokenizer: Tokenizer, info: CheckpointInfo
) -> None:
    """Write config.json, model.safetensors, tokenizer.json and calm.json into `folder` (made if needed)."""
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(root)
    tokenizer.save(str(root / TOKENIZER))
    write_info(root, info)


def write_info(folder: str | Path, info: CheckpointInfo) -> None:
    """Write calm.json alone."""
    (Path(folder) / INFO).write_bytes(msgspec.json.format(msgspec.json.encode(info), indent=2) + b"\n")


def load_checkpoint(folder: str | Path) -> tuple[CalmForConditionalGeneration, Tokenizer, CheckpointInfo]:
    """Model (fp32, evaluation mode, on the CPU), tokenizer and description of a checkpoint.

    Raises DataError when a file is missing or does not follow the expected form.
    """
    root = Path(folder)
    missing = [name for name in (CONFIG, TOKENIZER, INFO) if not (root / name).is_file()]
    if not any(root.glob("model*.safetensors")):
        missing.append(WEIGHTS)
    if missing:
        raise DataError(f"{root}: not a checkpoint of `calm train`, without {', '.join(missing)}")
    try:
        info = msgspec.json.decode((root / INFO).read_bytes(), type=CheckpointInfo)
    except msgspec.DecodeError as error:
        raise DataError(f"{root / INFO}: {error}") from error
    try:
        tokenizer = Tokenizer.from_file(str(root / TOKENIZER))
    except Exception as error:  # `tokenizers` raises bare Exception
        raise DataError(f"{root / TOKENIZER}: not a tokenizer: {error}") from error
    try:
        model = CalmForConditionalGeneration.from_pretrained(root, dtype="float32", use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{root}: the weights do not fit the configuration: {error}") from error
    model.train(False)
    _check_rating_tokens(root, model, tokenizer)
    size = model.config.image_size
    if info.photo.size != size:
        raise DataError(f"{root / INFO}: photo size {info.photo.size}, but the vision encoder takes {size}")
    return model, tokenizer, info


def _check_rating_tokens(root: Path, model: CalmForConditionalGeneration, tokenizer: Tokenizer) -> None:
    scores, technical = model.config.score_token_ids, model.config.technical_token_ids
    for what, ids in (("score", scores), ("technical", technical)):
        if len(ids) != SCORE_LEVELS:
            raise DataError(f"{root / CONFIG}: {len(ids)} {what} token ids, expected {SCORE_LEVELS}")
    for name, expected in zip((*SCORE_TOKENS, *TECHNICAL_TOKENS), (*scores, *technical), strict=True):
        found = tokenizer.token_to_id(name)
        if found != expected:
            raise DataError(f"{root / TOKENIZER}: {name} has id {found}, the configuration says {expected}")
