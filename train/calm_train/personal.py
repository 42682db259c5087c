"""Personalised assessment by in-context learning: photos with a person's ratings in the prompt, then the next photo.

No data of real people is needed: raters are simulated. Each has a taste, a random weighing of what was measured on the
photos, and rates the photos of the batch and of the last batches; the LLM reads photo, rating, photo, rating, ... and
predicts every rating from those before it. A position is thus trained with 0, 1, 2, ... examples at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from calm_runtime.in_context import RATING_MIDDLE, RATING_SPREAD
from calm_runtime.score import SCORE_HIGH, SCORE_LOW
from calm_train.config import CalmConfig
from calm_train.pretext.measures import QUANTITIES

FEWEST, EXAMPLES = 8, 48  # photos of one sequence: any number from the first to the second
FACTS = len(QUANTITIES) + 1  # what a simulated rater looks at: the quantities, and the pseudo rating
ACTIVE = 2.0  # facts a taste weighs, on average
IDEAL = 0.3  # share of tastes that want a certain amount of something, not the most of it
NOISE = (0.1, 0.6)  # of a rater, in standard deviations of their ratings


class Rated(NamedTuple):
    """Photos in the order they are read: queries [L, 3Q, D], and the simulated ratings [L] on the 1..10 scale."""

    queries: Tensor
    ratings: Tensor


class RecentPhotos(nn.Module):
    """The photos of the last batches: a batch alone is too short a history of a person's ratings."""

    queries: Tensor  # [M, 3Q, D]
    facts: Tensor  # [M, F]
    count: Tensor

    def __init__(self, config: CalmConfig, room: int = 2 * EXAMPLES) -> None:
        super().__init__()
        self.register_buffer("queries", torch.zeros(room, 3 * config.queries, config.text_config.hidden_size))
        self.register_buffer("facts", torch.zeros(room, FACTS))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, queries: Tensor, facts: Tensor) -> tuple[Tensor, Tensor]:
        """Photos of this batch, with their gradient, behind those remembered; then remembers them too."""
        known = int(self.count)
        joined = torch.cat([self.queries[:known].to(queries.dtype), queries]), torch.cat([self.facts[:known], facts])
        room = len(self.queries)
        kept = min(room, known + len(queries))
        with torch.no_grad():
            for memory, values in ((self.queries, joined[0]), (self.facts, joined[1])):
                memory[:kept].copy_(values[-kept:].detach())
            self.count.fill_(kept)
        return joined


def simulate_ratings(facts: Tensor) -> Tensor:
    """Ratings [L] that one random taste gives photos of these facts [L, F]: standardised, noisy, whole numbers."""
    active = torch.rand(facts.shape[1], device=facts.device) < ACTIVE / facts.shape[1]
    active[torch.randint(facts.shape[1], (1,))] = True
    weights = torch.randn(facts.shape[1], device=facts.device) * active
    if torch.rand(()) < IDEAL:
        ideal = facts[torch.randint(len(facts), (1,))]
        liking = -((facts - ideal).abs() * weights.abs()).sum(1)
    else:
        liking = facts @ weights
    low, high = NOISE
    noise = (low + (high - low) * torch.rand((), device=facts.device)) * torch.randn(len(facts), device=facts.device)
    opinion = (liking - liking.mean()) / (liking.std() + 1e-4) + noise
    return (RATING_MIDDLE + RATING_SPREAD * opinion).round().clamp(SCORE_LOW, SCORE_HIGH)


def simulate_rater(queries: Tensor, facts: Tensor) -> Rated:
    """FEWEST to EXAMPLES of the photos [N, ...] in random order, with one random person's ratings.

    Attention costs the square of the length: many short histories teach more per second than one long one.
    """
    count = int(torch.randint(FEWEST, EXAMPLES + 1, ()))
    order = torch.randperm(len(queries), device=queries.device)[:count]
    return Rated(queries[order], simulate_ratings(facts[order]))


def personal_sequence(rated: Rated, bos: Tensor, after: Tensor, rating_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """bos [S0, D], after [S1, D] (the text before a rating), rating_tokens [L, D], all embedded.

    Returns inputs_embeds [1, S, D] and the positions [L] at which each rating is to be predicted.
    """
    photos, count = rated.queries.shape[:2]
    text = after.expand(photos, -1, -1)
    segments = torch.cat([rated.queries.to(after.dtype), text, rating_tokens[:, None]], dim=1)  # [L, 3Q + S1 + 1, D]
    embeds = torch.cat([bos, segments.flatten(0, 1)])[None]
    step = segments.shape[1]
    positions = len(bos) + step * torch.arange(photos, device=embeds.device) + count + len(after) - 1
    return embeds, positions
