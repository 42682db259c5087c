"""Running a stage with the Hugging Face Trainer: optimisation, checkpoints and resuming are its, not ours."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import save_fsdp_optimizer  # type: ignore[import-untyped]
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from safetensors.torch import load_model, save_model
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_utils import get_last_checkpoint

from calm_runtime.errors import DataError
from calm_train.precision import usable_precision
from calm_train.recipe import LoraRecipe, StageRecipe
from calm_train.sharding import (
    enable_sharding,
    gather_parameters,
    load_sharded,
    load_sharded_optimizer,
    save_gathered,
    sharding_arguments,
    widen_scalars,
)
from calm_train.stages import Stage

logger = logging.getLogger(__name__)

STAGE_STATE = "stage.safetensors"
OPTIMIZER_STATE = {False: "optimizer.pt", True: "optimizer.bin"}  # by sharded or not, as the libraries write it
TENSORBOARD = "tensorboard"
LOG_EVERY = 10


class StageTrainer(Trainer):
    """Trainer of a `Stage`: logs each named loss, and keeps the stage's weights as one safetensors file."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # losses are means already: accumulation divides them
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0

    def create_accelerator_and_postprocess(self) -> None:
        """Also shard on CPUs, and in the precision of the other ways of training."""
        super().create_accelerator_and_postprocess()
        if self.args.fsdp:
            enable_sharding(self.accelerator, self.args.fsdp_plugin_args)
            self.is_fsdp_enabled = True

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """The stage's weighted loss; the parts are averaged until the next log line."""
        with self.accelerator.autocast():
            losses = model(**inputs)
        for name, value in losses.items():
            if name != "loss":
                self._sums[name] = self._sums.get(name, 0.0) + value.detach()  # as a number it would wait for the GPU
        self._count += 1
        return losses["loss"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the averaged parts to every training log line."""
        if "loss" in logs and self._count:
            logs = {**logs, **{name: round(float(value) / self._count, 4) for name, value in self._sums.items()}}
            self._sums, self._count = {}, 0
        super().log(logs, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        file = Path(output_dir or str(self.args.output_dir)) / STAGE_STATE
        file.parent.mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model)
        if self.is_fsdp_enabled:
            save_gathered(model, state_dict, file)
        else:
            save_model(model, str(file))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # Not Transformers' own, which writes the whole model beside stage.safetensors once more.
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(cast(LRScheduler, self.lr_scheduler).state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        file = Path(checkpoint) / OPTIMIZER_STATE[True]
        model, optimizer = cast(nn.Module, self.model), cast(Optimizer, self.optimizer)
        load_sharded_optimizer(model, optimizer, file, reads=self.accelerator.is_main_process)
        cast(LRScheduler, self.lr_scheduler).load_state_dict(
            torch.load(file.with_name(SCHEDULER_NAME), weights_only=True)
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        file = Path(resume_from_checkpoint) / STAGE_STATE
        model = self.accelerator.unwrap_model(model or self.model)
        if self.is_fsdp_enabled:
            load_sharded(model, file, reads=self.accelerator.is_main_process)
        else:
            load_model(model, str(file))


def processes() -> int:
    """Processes of this run, as torchrun or accelerate started them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process writes the results."""
    return os.environ.get("RANK", "0") == "0"


def is_sharded(settings: StageRecipe) -> bool:
    """Whether this run shards: a single process has nothing to share."""
    return settings.sharding == "full" and processes() > 1


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


def _arguments(
    stage: Stage, settings: StageRecipe, output: Path, seed: int, save_every: int, workers: int
) -> TrainingArguments:
    cuda = torch.cuda.is_available()
    precision = usable_precision(settings.precision)
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
        bf16=precision == "bf16",
        fp16=precision == "fp16",
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
        report_to="none",
        ddp_backend=None if cuda or processes() == 1 else "gloo",
        ddp_find_unused_parameters=processes() > 1,
        **(sharding_arguments(stage) if is_sharded(settings) else {}),
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
    sharded = is_sharded(settings)
    if resume and last and not (Path(last) / OPTIMIZER_STATE[sharded]).is_file():
        raise DataError(
            f"{last}: was saved by a run that {'did not shard' if sharded else 'sharded'} its model; resume it with "
            "the `sharding` it was started with, and with more than one process if that is `full`"
        )
    if not torch.cuda.is_available():
        for part in (*stage.model.vision_encoder.backbones, stage.model.llm):
            part.set_attn_implementation("eager")  # fused attention's backward is the slower one on a CPU
    if settings.gradient_checkpointing:
        stage.model.llm.gradient_checkpointing_enable({"use_reentrant": False})
        for encoder in cast(Iterable[PreTrainedModel], stage.model.vision_encoder.backbones):
            if encoder.supports_gradient_checkpointing:
                encoder.gradient_checkpointing_enable({"use_reentrant": False})
    adapters = add_adapters(stage, settings.lora) if settings.lora else None
    scalars = widen_scalars(stage.model) if sharded else []
    arguments = _arguments(stage, settings, output, seed, save_every, workers)
    logs = [TensorBoardCallback(SummaryWriter(str(output.parent / TENSORBOARD)))] if is_main_process() else []
    trainer = StageTrainer(
        model=stage, args=arguments, train_dataset=dataset, data_collator=collator, callbacks=list(logs)
    )
    trainer.train(resume_from_checkpoint=last if resume else None)
    if sharded:
        gather_parameters(stage.model, scalars, keep=is_main_process())
    if adapters is not None and (is_main_process() or not sharded):
        stage.model.llm = cast(PreTrainedModel, adapters.merge_and_unload())
    return [entry for entry in trainer.state.log_history if "loss" in entry]
