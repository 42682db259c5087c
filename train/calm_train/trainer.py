"""Running a stage with the Hugging Face Trainer: optimisation, checkpoints and resuming are its, not ours."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from calm_runtime.errors import DataError
from calm_train.recipe import StageRecipe
from calm_train.stages import Stage

logger = logging.getLogger(__name__)

STAGE_STATE = "stage.safetensors"


class StageTrainer(Trainer):
    """Trainer of a `Stage`: logs each named loss, and keeps the stage's weights as one safetensors file."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sums: dict[str, float] = {}
        self._count = 0

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """The stage's weighted loss; the parts are averaged until the next log line."""
        losses = model(**inputs)
        for name, value in losses.items():
            if name != "loss":
                self._sums[name] = self._sums.get(name, 0.0) + float(value.detach())
        self._count += 1
        return losses["loss"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the averaged parts to every training log line."""
        if "loss" in logs and self._count:
            logs = {**logs, **{name: round(value / self._count, 4) for name, value in self._sums.items()}}
            self._sums, self._count = {}, 0
        super().log(logs, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        stage = self.accelerator.unwrap_model(self.model)
        stage.model.save_pretrained(folder)
        save_file(_own_state(stage), folder / STAGE_STATE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        stage = model or self.model
        stored = type(stage.model).from_pretrained(resume_from_checkpoint, dtype="float32")
        stage.model.load_state_dict(stored.state_dict())
        stage.load_state_dict(load_file(Path(resume_from_checkpoint) / STAGE_STATE), strict=False)


def _own_state(stage: Stage) -> dict[str, torch.Tensor]:
    """What a stage learns beside the model: heads that exist for training only."""
    return {name: value for name, value in stage.state_dict().items() if not name.startswith("model.")}


def train_stage(
    stage: Stage,
    settings: StageRecipe,
    dataset: Dataset[dict[str, Any]],
    collator: Any,
    output: Path,
    *,
    seed: int,
    save_every: int,
    resume: bool,
    workers: int,
) -> float:
    """Train one stage to its last step. Returns the final logged loss.

    Raises DataError when `resume` is asked for and the output folder holds no checkpoint to resume.
    """
    last = get_last_checkpoint(str(output)) if output.is_dir() else None
    if resume and last is None:
        raise DataError(f"{output}: nothing to resume there; run without --resume")
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun and accelerate
    if settings.pairs % processes:
        raise DataError(f"{settings.pairs} pairs per step cannot be shared among {processes} processes")
    arguments = TrainingArguments(
        output_dir=str(output),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.pairs // processes,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(settings.warmup_steps, settings.steps // 5),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.bf16,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        logging_steps=10,
        save_steps=save_every,
        save_total_limit=2,
        dataloader_num_workers=workers,
        dataloader_persistent_workers=workers > 0,
        dataloader_drop_last=True,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        report_to=[],
        adam_beta2=0.98,
        ddp_backend=None if torch.cuda.is_available() or processes == 1 else "gloo",
        ddp_find_unused_parameters=processes > 1,
    )
    trainer = StageTrainer(model=stage, args=arguments, train_dataset=dataset, data_collator=collator)
    trainer.train(resume_from_checkpoint=last if resume else None)
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return float(history[-1]) if history else float("nan")
