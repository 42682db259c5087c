"""Personalised assessment by in-context learning: photos with a person's ratings in the prompt, then the next photo.

No data of real people is needed: raters are simulated. Each has a taste, a random weighing of what was measured on the
photos, and rates the photos of the batch and of the last batches; the LLM reads photo, rating, photo, rating, ... and
predicts every rating from those before it. A position is thus trained with 0, 1, 2, ... examples at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calm_runtime.in_context import RATING_MIDDLE, RATING_SPREAD
from calm_runtime.score import SCORE_HIGH, SCORE_LOW
from calm_train.config import CalmConfig
from calm_train.pretext.measures import QUANTITIES

FEWEST, EXAMPLES = 8, 48  # photos of one sequence: any number from the first to the second
FACTS = len(QUANTITIES) + 1  # what a simulated rater looks at: the quantities, and the pseudo rating
PLAIN = 0.5  # share of tastes that look at one fact only: reading them is learnt first, and leads to the others
ACTIVE = 2.0  # facts the other tastes weigh, on average
IDEAL = 0.3  # share of tastes that want a certain amount of something, not the most of it
NOISE = (0.0, 0.5)  # of a rater, in standard deviations of their ratings


class Rated(NamedTuple):
    """R people's photos in the order they are read: queries [R, L, 3Q, D], and simulated ratings [R, L], 1..10."""

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
    """Ratings [R, L] that R random tastes give photos of these facts [R, L, F]: standardised, noisy, whole numbers."""
    with torch.autocast(facts.device.type, enabled=False):  # ratings are labels: rounded once, not on the way
        return _rate(facts.float())


def _rate(facts: Tensor) -> Tensor:
    raters, count, width = facts.shape
    device = facts.device
    share = torch.where(torch.rand(raters, 1, device=device) < PLAIN, 0.0, ACTIVE / width)
    active = torch.rand(raters, width, device=device) < share
    active |= F.one_hot(torch.randint(width, (raters,), device=device), width).bool()
    weights = torch.randn(raters, width, device=device) * active
    chosen = torch.randint(count, (raters, 1, 1), device=device).expand(-1, 1, width)
    away = ((facts - facts.gather(1, chosen)).abs() @ weights.abs()[..., None])[..., 0]  # [R, L], from the ideal photo
    liking = torch.where(torch.rand(raters, 1, device=device) < IDEAL, -away, (facts @ weights[..., None])[..., 0])
    low, high = NOISE
    noise = (low + (high - low) * torch.rand(raters, 1, device=device)) * torch.randn(liking.shape, device=device)
    opinion = (liking - liking.mean(1, keepdim=True)) / (liking.std(1, keepdim=True) + 1e-4) + noise
    return (RATING_MIDDLE + RATING_SPREAD * opinion).round().clamp(SCORE_LOW, SCORE_HIGH)


def simulate_raters(queries: Tensor, facts: Tensor, raters: int) -> Rated:
    """FEWEST to EXAMPLES of the photos [N, ...], in an order and with the ratings of each of `raters` random people.

    Attention costs the square of the length: many short histories teach more per second than one long one.
    """
    count = min(len(queries), int(torch.randint(FEWEST, EXAMPLES + 1, ())))
    order = torch.rand(raters, len(queries), device=queries.device).argsort(1)[:, :count]  # [R, L]
    return Rated(queries[order], simulate_ratings(facts[order]))


def personal_sequences(rated: Rated, bos: Tensor, after: Tensor, rating_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """bos [S0, D], after [S1, D] (the text before a rating), rating_tokens [R, L, D], all embedded.

    Returns inputs_embeds [R, S, D] and the positions [L] at which each rating is to be predicted.
    """
    raters, photos, count = rated.queries.shape[:3]
    text = after.expand(raters, photos, -1, -1)
    segments = torch.cat([rated.queries.to(after.dtype), text, rating_tokens[:, :, None]], dim=2)  # [R, L, 3Q+S1+1, D]
    embeds = torch.cat([bos.expand(raters, -1, -1), segments.flatten(1, 2)], dim=1)
    step = segments.shape[2]
    positions = len(bos) + step * torch.arange(photos, device=embeds.device) + count + len(after) - 1
    return embeds, positions
