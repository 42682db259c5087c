"""A training stage as one module: a batch goes in, the losses its recipe weighs come out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calm_runtime.attributes import ATTRIBUTE_NAMES, ATTRIBUTES, SCALES
from calm_runtime.errors import DataError
from calm_runtime.in_context import RATING_MIDDLE
from calm_runtime.score import SCORE_LOW
from calm_train.aligner import Aligned
from calm_train.model import CalmForConditionalGeneration
from calm_train.objectives import (
    ContrastiveObjective,
    EditObjective,
    GenerationObjective,
    MatchingObjective,
    PatchObjective,
    QuantityObjective,
    RankingObjective,
    ScoreObjective,
    expected_score,
)
from calm_train.personal import RecentPhotos, personal_sequences, simulate_raters
from calm_train.recipe import LossWeights
from calm_train.taste_teacher import Teacher
from calm_train.vision import HiddenStates, MapEncoder, MapSummary

IMPRESSION = ATTRIBUTE_NAMES.index("impression")
Batch = dict[str, Tensor]
Losses = dict[str, Tensor]


class Stage(nn.Module):
    """The model, what of it is frozen, and the objectives.

    Stage 1 (text-guided self-supervision) weighs contrastive, matching, impression, cues, patches, edits and
    quantities; stage 2 (instruction tuning) adds score, technical, their rankings, generation and personal. `rating` and
    `caption` join when such data is given. teacher: labels the views with the votes people would give.
    """

    def __init__(
        self,
        model: CalmForConditionalGeneration,
        weights: LossWeights,
        frozen: tuple[str, ...],
        raters: int = 1,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__()
        if weights.score and teacher is None:
            raise DataError("the recipe weighs `score`, which needs a teacher: give --teacher, or weigh it 0")
        self.model = model
        self._teacher = [teacher]  # in a list: no part of what is trained and saved
        self.weights = weights
        self.raters = raters
        for name in frozen:
            model.get_submodule(name).requires_grad_(False)
        self.contrastive = ContrastiveObjective()
        self.matching = MatchingObjective()
        self.generation = GenerationObjective()
        self.scoring = ScoreObjective(spread=0.9)
        self.impression = RankingObjective(temperature=1.0)
        self.ranking = RankingObjective(temperature=0.5)
        self.votes = RankingObjective(temperature=0.3)
        self.patches = PatchObjective(model.config)
        self.edits = EditObjective(model.config)
        self.quantities = QuantityObjective(model.config)
        self.recent = RecentPhotos(model.config) if weights.personal else None

    def forward(self, **batch: Tensor) -> Losses:
        """Batch of `BatchCollator` -> losses by name, `loss` the weighted sum."""
        weights = self.weights
        hidden = self.hidden_states(batch)
        aligned = self.model.aligner(hidden)
        losses = self.cue_losses(aligned, batch)
        if weights.cues:
            losses["cues"] = self.cue_generation(aligned, batch)
        if weights.score or weights.score_ranking or weights.technical or weights.technical_ranking:
            losses |= self.score_losses(aligned, batch)
        if weights.generation:
            embeds = aligned.image_embeds[batch["text_rows"]]
            logits = self.answer_logits(embeds, batch["before"], batch["text_ids"])
            losses["generation"] = self.generation(logits[:, :-1], batch["text_labels"])
        if weights.patches:
            losses["patches"] = self.patches(hidden.low, batch["pixel_values"])
        if weights.edits:
            losses["edits"] = self.edits(hidden, aligned.query_states, batch["severities"])
        if weights.quantities:
            losses["quantities"] = self.quantities(hidden, aligned.query_states, batch["quantities"])
        if self.recent is not None:
            losses["personal"] = self.personal_loss(self.recent, aligned, batch)
        if "rated_pixels" in batch:
            losses["rating"] = self.rating_loss(batch)
        if "told_pixels" in batch:
            losses["caption"] = self.caption_loss(batch)
        return {"loss": self.total(losses), **losses}

    def hidden_states(self, batch: Batch) -> HiddenStates:
        """What the vision encoder makes of the views; of frozen encoders of maps their summaries may come ready."""
        encoder = self.model.vision_encoder
        if "grid_0" in batch and isinstance(encoder, MapEncoder):
            names = ("grid", "mean", "spread")
            ready = [
                MapSummary(*(batch[f"{name}_{tap}"].float() for name in names)) for tap in range(len(encoder.necks))
            ]
            return encoder.project(ready)
        return encoder(batch["pixel_values"])

    def total(self, losses: Losses) -> Tensor:
        """Weighted sum of the named losses."""
        return torch.stack([self.weights.of(name) * loss for name, loss in losses.items()]).sum()

    def cue_losses(self, aligned: Aligned, batch: Batch) -> Losses:
        """Contrast and matching per scale, and the ranking of a pair by the impression it gives."""
        levels = batch["levels"]
        logits = self.model.aligner.cues.phrase_logits(aligned.query_states)  # [2P, A, L, K]
        losses = {}
        for scale in SCALES:
            members = torch.tensor([i for i, a in enumerate(ATTRIBUTES) if a.scale == scale], device=levels.device)
            losses[f"contrastive_{scale}"] = self.contrastive(logits[:, members], levels[:, members])
            losses[f"matching_{scale}"] = self.matching(logits[:, members], levels[:, members])
        if self.weights.impression:
            shown = logits[:, IMPRESSION].mean(-1).float().log_softmax(-1)  # [2P, L]
            quality = shown[:, 2] - shown[:, 0]
            losses["impression"] = self.impression(quality[0::2], quality[1::2], batch["gap"])
        return losses

    def score_losses(self, aligned: Aligned, batch: Batch) -> Losses:
        """Both answers of one prefill: people's votes after the teacher, the known technical quality, each pair's order."""
        votes, technical = self.answers(aligned.image_embeds, batch)
        means = expected_score(votes), expected_score(technical)
        losses = {
            "technical": self.scoring(technical, self.scoring.target(batch["ratings"])),
            "technical_ranking": self.ranking(means[1][0::2], means[1][1::2], batch["gap"]),
            "score_ranking": self.votes(means[0][0::2], means[0][1::2], batch["disliked_gap"]),
        }
        if self.weights.score and self._teacher[0] is not None:
            losses["score"] = self.scoring(votes, self._teacher[0].pair_histograms(batch))
        return losses

    def personal_loss(self, recent: RecentPhotos, aligned: Aligned, batch: Batch) -> Tensor:
        """Simulated people's ratings, each predicted from the photos and ratings before it."""
        count = 3 * self.model.config.queries
        facts = torch.cat([batch["quantities"].float(), (batch["ratings"].float()[:, None] - RATING_MIDDLE) / 2], dim=1)
        queries, known = recent(aligned.image_embeds[:, :count], facts)
        rated = simulate_raters(queries, known, self.raters)
        ids = torch.tensor(self.model.config.score_token_ids, device=facts.device)
        embed = self.model.get_input_embeddings()
        tokens = embed(ids[rated.ratings.long() - SCORE_LOW])
        embeds, positions = personal_sequences(rated, embed(batch["before"]), embed(batch["example_after"]), tokens)
        hidden = self.model.llm.get_decoder()(inputs_embeds=embeds, use_cache=False).last_hidden_state
        logits = self.model.get_output_embeddings()(hidden[:, positions].flatten(0, 1))[:, ids]  # [R * L, 10]
        return self.scoring(logits, self.scoring.target(rated.ratings.flatten()))

    def rating_loss(self, batch: Batch) -> Tensor:
        """Human ratings (flow S): histograms where the data set has them, smoothed means elsewhere."""
        embeds = self.model.look(batch["rated_pixels"]).image_embeds
        return self.scoring(self.answers(embeds, batch)[0], batch["rated_histograms"])

    def caption_loss(self, batch: Batch) -> Tensor:
        """Human texts (flows G, C and questions): the answer, written from the photo and its instruction."""
        embeds = self.model.look(batch["told_pixels"]).image_embeds
        logits = self.answer_logits(embeds, batch["before"], batch["told_ids"])
        return self.generation(logits[:, :-1], batch["told_labels"])

    def cue_generation(self, aligned: Aligned, batch: Batch) -> Tensor:
        """Write each scale's cue from that scale's tokens alone."""
        count = self.model.config.queries
        scales = batch["cue_scales"]
        slots = scales[:, None] * count + torch.arange(count, device=scales.device)  # [N, Q]
        rows = aligned.image_embeds[batch["text_rows"]]
        tokens = rows.gather(1, slots[..., None].expand(-1, -1, rows.shape[-1]))
        logits = self.answer_logits(tokens, batch["before"], batch["cue_ids"])
        return self.generation(logits[:, :-1], batch["cue_labels"])

    def answers(self, image_embeds: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits of the ten score tokens and of the ten technical tokens at the answer position, each [B, 10]."""
        after = batch["score_after"].expand(image_embeds.shape[0], -1)
        last = self.answer_logits(image_embeds, batch["before"], after)[:, -1]
        return last[:, self.model.config.score_token_ids], last[:, self.model.config.technical_token_ids]

    def answer_logits(self, image_embeds: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Logits at the positions of `after` [B, S] and the one before it: [B, S + 1, V]."""
        embeds = self.model.prompt_embeds(image_embeds, before.expand(image_embeds.shape[0], -1), after)
        hidden = self.model.llm.get_decoder()(inputs_embeds=embeds, use_cache=False).last_hidden_state
        return self.model.get_output_embeddings()(hidden[:, -after.shape[1] - 1 :])
