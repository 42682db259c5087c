"""Running a stage with the Hugging Face Trainer: optimisation, checkpoints and resuming are its, not ours."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from safetensors.torch import load_model, save_model
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from calm_runtime.errors import DataError
from calm_train.recipe import LoraRecipe, StageRecipe
from calm_train.stages import Stage

logger = logging.getLogger(__name__)

STAGE_STATE = "stage.safetensors"
TENSORBOARD = "tensorboard"
LOG_EVERY = 10


class StageTrainer(Trainer):
    """Trainer of a `Stage`: logs each named loss, and keeps the stage's weights as one safetensors file."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # losses are means already: accumulation divides them
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
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.accelerator.unwrap_model(self.model), str(folder / STAGE_STATE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_model(model or self.accelerator.unwrap_model(self.model), str(Path(resume_from_checkpoint) / STAGE_STATE))


def processes() -> int:
    """Processes of this run, as torchrun or accelerate started them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process writes the results."""
    return os.environ.get("RANK", "0") == "0"


def add_adapters(stage: Stage, settings: LoraRecipe) -> LoraModel:
    """Freeze the LLM and put low-rank adapters into it; `merge_and_unload` of the result folds them in."""
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
    )
    stage.model.llm.requires_grad_(False)
    return LoraModel(stage.model.llm, config, "default")


def _arguments(settings: StageRecipe, output: Path, seed: int, save_every: int, workers: int) -> TrainingArguments:
    cuda = torch.cuda.is_available()
    share = processes() * settings.accumulate
    if settings.pairs % share:
        raise DataError(
            f"{settings.pairs} pairs per step cannot be shared among {processes()} processes with "
            f"{settings.accumulate} micro-batches each; make `pairs` a multiple of {share}"
        )
    return TrainingArguments(
        output_dir=str(output),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.pairs // share,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(settings.warmup_steps, settings.steps // 5),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        adam_beta2=0.98,
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16" and cuda,
        use_cpu=not cuda,
        seed=seed,
        logging_steps=min(LOG_EVERY, settings.steps),
        save_steps=save_every,
        save_total_limit=2,
        dataloader_num_workers=workers,
        dataloader_persistent_workers=workers > 0,
        dataloader_drop_last=True,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        report_to=["tensorboard"],
        ddp_backend=None if cuda or processes() == 1 else "gloo",
        ddp_find_unused_parameters=processes() > 1,
    )


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
) -> list[dict[str, float]]:
    """Train one stage to its last step. Returns the log: an entry every LOG_EVERY steps, with every named loss.

    Raises DataError when `resume` is asked for and the output folder holds no checkpoint to resume.
    """
    last = get_last_checkpoint(str(output)) if output.is_dir() else None
    if resume and last is None:
        raise DataError(f"{output}: nothing to resume there; run without --resume")
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(output.parent / TENSORBOARD))
    arguments = _arguments(settings, output, seed, save_every, workers)
    if not torch.cuda.is_available():
        for part in (stage.model.vision_encoder.model, stage.model.llm):
            part.set_attn_implementation("eager")  # fused attention's backward is the slower one on a CPU
    if settings.gradient_checkpointing:
        stage.model.llm.gradient_checkpointing_enable({"use_reentrant": False})
        stage.model.vision_encoder.model.gradient_checkpointing_enable({"use_reentrant": False})
    adapters = add_adapters(stage, settings.lora) if settings.lora else None
    trainer = StageTrainer(model=stage, args=arguments, train_dataset=dataset, data_collator=collator)
    trainer.train(resume_from_checkpoint=last if resume else None)
    if adapters is not None:
        stage.model.llm = cast(PreTrainedModel, adapters.merge_and_unload())
    return [entry for entry in trainer.state.log_history if "loss" in entry]
