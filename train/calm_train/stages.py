"""The two training stages as modules: a batch goes in, named losses come out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calm_runtime.attributes import ATTRIBUTE_NAMES, ATTRIBUTES, SCALES
from calm_train.aligner import Aligned
from calm_train.model import CalmForConditionalGeneration
from calm_train.objectives import (
    ContrastiveObjective,
    GenerationObjective,
    MatchingObjective,
    RankingObjective,
    ScoreObjective,
    expected_score,
)
from calm_train.pretext.edits import EDITS
from calm_train.pretext.patches import STATISTICS, patch_statistics
from calm_train.recipe import LossWeights
from calm_train.vision import HiddenStates, patch_grid

IMPRESSION = ATTRIBUTE_NAMES.index("impression")
Batch = dict[str, Tensor]


class Stage(nn.Module):
    """Common to both stages: the model, what is frozen, and the losses on MFAM's cue space."""

    def __init__(self, model: CalmForConditionalGeneration, weights: LossWeights, frozen: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.weights = weights
        for name in frozen:
            getattr(model, name).requires_grad_(False)
        self.contrastive = ContrastiveObjective()
        self.matching = MatchingObjective()
        self.generation = GenerationObjective()
        width = model.config.vision_config.hidden_size
        self.patch_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, STATISTICS))
        self.edit_heads = nn.ModuleDict(
            {scale: nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, len(EDITS))) for scale in SCALES}
        )

    def dense_losses(self, hidden: HiddenStates, batch: Batch) -> dict[str, Tensor]:
        """What trains the encoder directly: patch statistics at the shallow tap, applied edits at every tap."""
        losses = {}
        if self.weights.patches:
            losses["patches"] = self.patch_loss(hidden.low, batch["pixel_values"])
        if self.weights.edits:
            losses["edits"] = self.edit_loss(hidden, batch["severities"])
        return losses

    def patch_loss(self, hidden_state: Tensor, pixel_values: Tensor) -> Tensor:
        """Each token of the shallow tap tells the statistics of its patch (mean squared error)."""
        config = self.model.config
        patches = patch_grid(hidden_state, config.patches_per_side).flatten(1, 2)  # [B, N, C]
        target = patch_statistics(pixel_values, config.vision_config.patch_size)
        return nn.functional.mse_loss(self.patch_head(patches).float(), target)

    def edit_loss(self, hidden: HiddenStates, severities: Tensor) -> Tensor:
        """Mean and spread of each tap's patches tell which edits were made, and how strongly [B, E].

        An edit that was made counts from 0.4 up, so that a mild one still differs from none.
        """
        target = torch.where(severities > 0, 0.4 + 0.6 * severities, 0.0)
        losses = []
        for scale in SCALES:
            patches = patch_grid(getattr(hidden, scale), self.model.config.patches_per_side).flatten(1, 2).float()
            pooled = torch.cat([patches.mean(1), patches.std(1)], dim=-1)  # [B, 2C]
            logits = self.edit_heads[scale](pooled).float()
            losses.append(nn.functional.binary_cross_entropy_with_logits(logits, target))
        return torch.stack(losses).mean()

    def cue_losses(self, aligned: Aligned, levels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Contrast and matching per scale, and the phrase logits [B, A, L, K] they were read from."""
        logits = self.model.aligner.cues.phrase_logits(aligned.query_states)
        losses = {}
        for scale in SCALES:
            members = torch.tensor([i for i, a in enumerate(ATTRIBUTES) if a.scale == scale], device=levels.device)
            losses[f"contrastive_{scale}"] = self.contrastive(logits[:, members], levels[:, members])
            losses[f"matching_{scale}"] = self.matching(logits[:, members], levels[:, members])
        return losses, logits

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """Weighted sum; a loss named `kind_scale` takes the weight of its kind."""
        return torch.stack([self.weights.of(name) * loss for name, loss in losses.items()]).sum()

    def answer_logits(self, image_embeds: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Logits at the positions of `after` [B, S] and the one before it: [B, S + 1, V]."""
        rows = image_embeds.shape[0]
        embeds = self.model.prompt_embeds(image_embeds, before.expand(rows, -1), after)
        hidden = self.model.llm.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        return self.model.llm.lm_head(hidden[:, -after.shape[1] - 1 :])


class PretrainStage(Stage):
    """Stage 1, text-guided self-supervision: contrast, matching, ranking, the dense losses,
    and generation through the frozen LLM."""

    def __init__(self, model: CalmForConditionalGeneration, weights: LossWeights, frozen: tuple[str, ...]) -> None:
        super().__init__(model, weights, frozen)
        self.ranking = RankingObjective(temperature=1.0)

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """Batch of `PairCollator` -> losses by name, `loss` the weighted sum."""
        hidden = self.model.vision_encoder(batch["pixel_values"])
        aligned = self.model.aligner(hidden)
        losses, logits = self.cue_losses(aligned, batch["levels"])
        impression = logits[:, IMPRESSION].mean(-1).float()  # [2P, L]
        quality = impression.log_softmax(-1)[:, 2] - impression.log_softmax(-1)[:, 0]
        losses["ranking"] = self.ranking(quality[0::2], quality[1::2], batch["different"])
        losses["generation"] = self.cue_generation(aligned, batch)
        losses |= self.dense_losses(hidden, batch)
        return {"loss": self.total(losses), **losses}

    def cue_generation(self, aligned: Aligned, batch: Batch) -> Tensor:
        """Write each scale's cue from that scale's tokens alone."""
        count = self.model.config.queries
        scales = batch["cue_scales"]
        slots = scales[:, None] * count + torch.arange(count, device=scales.device)  # [N, Q]
        rows = aligned.image_embeds[batch["text_rows"]]
        tokens = rows.gather(1, slots[..., None].expand(-1, -1, rows.shape[-1]))
        logits = self.answer_logits(tokens, batch["before"], batch["cue_ids"])
        return self.generation(logits[:, :-1], batch["cue_labels"])


class TuneStage(Stage):
    """Stage 2, instruction tuning: scores from every view, texts from some, the cue space kept alive."""

    def __init__(self, model: CalmForConditionalGeneration, weights: LossWeights, frozen: tuple[str, ...]) -> None:
        super().__init__(model, weights, frozen)
        self.scoring = ScoreObjective(spread=0.9)
        self.ranking = RankingObjective(temperature=0.5)

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """Batch of `PairCollator` -> losses by name, `loss` the weighted sum."""
        hidden = self.model.vision_encoder(batch["pixel_values"])
        aligned = self.model.aligner(hidden)
        losses, _ = self.cue_losses(aligned, batch["levels"])
        views = batch["pixel_values"].shape[0]
        after = batch["score_after"].expand(views, -1)
        last = self.answer_logits(aligned.image_embeds, batch["before"], after)[:, -1]
        score_logits = last[:, self.model.config.score_token_ids]
        losses["score"] = self.scoring(score_logits, self.scoring.target(batch["ratings"]))
        mean = expected_score(score_logits)
        losses["ranking"] = self.ranking(mean[0::2], mean[1::2], batch["different"])
        embeds = aligned.image_embeds[batch["text_rows"]]
        logits = self.answer_logits(embeds, batch["before"], batch["text_ids"])
        losses["generation"] = self.generation(logits[:, :-1], batch["text_labels"])
        losses |= self.dense_losses(hidden, batch)
        return {"loss": self.total(losses), **losses}
