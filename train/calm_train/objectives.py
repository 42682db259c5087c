"""Training objectives, one class each. All take logits in any float dtype and reduce to a scalar in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calm_runtime.attributes import SCALES
from calm_runtime.score import SCORE_HIGH, SCORE_LOW
from calm_train.config import CalmConfig
from calm_train.pretext.edits import EDITS
from calm_train.pretext.measures import QUANTITIES
from calm_train.pretext.patches import STATISTICS, patch_statistics
from calm_train.vision import HiddenStates, patch_grid

RARITY = 0.75  # weight of a photo falls with this power of how many of the batch share its level


class ContrastiveObjective(nn.Module):
    """Image-text contrast with many positives, per attribute (InfoNCE after CLIP, positives summed in the numerator).

    Every photo has exactly one level on each attribute, so the cues of other attributes are no negatives: photo to
    text runs over the paraphrases of all levels of one attribute, text to photo over the photos of the batch.
    """

    def forward(self, phrase_logits: Tensor, levels: Tensor) -> Tensor:
        """phrase_logits [B, A, L, K] scaled cosines, levels [B, A] int64 -> scalar."""
        logits = phrase_logits.float()
        count, phrases = logits.shape[2:]
        shown = F.one_hot(levels, count).sum(0)  # [A, L]
        weight = (
            (1 + shown).pow(-RARITY).expand(len(levels), -1, -1).gather(-1, levels[..., None]).squeeze(-1)
        )  # [B, A]
        positive = F.one_hot(levels, count).bool()[..., None].expand(-1, -1, -1, phrases)  # [B, A, L, K]
        masked = logits.masked_fill(~positive, float("-inf"))
        to_text = logits.flatten(2).logsumexp(-1) - masked.flatten(2).logsumexp(-1)  # [B, A]
        present = positive.any(dim=0)  # [A, L, K]: cues some photo of the batch shows
        over_photos = logits.logsumexp(0) - masked.logsumexp(0)  # [A, L, K]
        to_photo = over_photos[present].mean()
        return (to_text * weight).sum() / weight.sum() + 0.5 * to_photo


class MatchingObjective(nn.Module):
    """Does this cue match this photo? The positive against its hard negative: same attribute, most likely wrong level."""

    def forward(self, phrase_logits: Tensor, levels: Tensor) -> Tensor:
        """phrase_logits [B, A, L, K], levels [B, A] -> scalar binary cross-entropy on the pair's difference."""
        level_logits = phrase_logits.float().mean(-1)  # [B, A, L]
        right = level_logits.gather(-1, levels[..., None]).squeeze(-1)
        wrong = level_logits.scatter(-1, levels[..., None], float("-inf")).amax(-1)
        return F.softplus(wrong - right).mean()


class GenerationObjective(nn.Module):
    """Next-token cross-entropy; positions with label -100 do not count."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """logits [B, S, V] predicting labels [B, S] at the same positions -> scalar."""
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)


class RankingObjective(nn.Module):
    """The less damaged view of a pair must come out higher (logistic loss, RankNet)."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, better: Tensor, worse: Tensor, gap: Tensor) -> Tensor:
        """better, worse [P] values; gap [P] in 0..1: how much each pair counts -> scalar."""
        loss = F.softplus((worse.float() - better.float()) / self.temperature)
        return (loss * gap).mean()


class ScoreObjective(nn.Module):
    """Cross-entropy to the rating histogram, earth mover's distance (NIMA, with r = 2), and the mean's squared error."""

    def __init__(self, spread: float) -> None:
        super().__init__()
        self.spread = spread

    def target(self, ratings: Tensor) -> Tensor:
        """Mean ratings [B] -> histograms [B, 10]: a Gaussian of standard deviation `spread`."""
        return (-((_scale(ratings) - ratings[:, None]) ** 2) / (2 * self.spread**2)).softmax(dim=-1)

    def forward(self, score_logits: Tensor, histogram: Tensor) -> Tensor:
        """score_logits [B, 10], histogram [B, 10] -> scalar."""
        log_probability = score_logits.float().log_softmax(-1)
        cross_entropy = -(histogram * log_probability).sum(-1).mean()
        gap = (log_probability.exp() - histogram).cumsum(-1)
        emd = (gap.square().mean(-1) + 1e-8).sqrt().mean()
        away = gap.sum(
            -1
        )  # of the mean: votes crowd in the middle, and the order of photos is all in small differences
        return cross_entropy + 5.0 * emd + away.square().mean()


class PatchObjective(nn.Module):
    """Each token tells the statistics of its own patch: detail, direction, colour (mean squared error)."""

    def __init__(self, config: CalmConfig) -> None:
        super().__init__()
        self.side = config.tap_shapes.sides[0]
        self.patch_size = config.image_size // self.side
        width = config.hidden_size
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, STATISTICS))

    def forward(self, hidden_state: Tensor, pixel_values: Tensor) -> Tensor:
        """hidden_state [B, N, C] of pixel_values [B, 3, S, S] -> scalar."""
        patches = patch_grid(hidden_state, self.side).flatten(1, 2)  # [B, N, C]
        return F.mse_loss(self.head(patches).float(), patch_statistics(pixel_values, self.patch_size))


class ScaleHeads(nn.Module):
    """Linear heads on each tap's patches and on each Q-Former's outputs, by their mean and spread: six in all."""

    def __init__(self, config: CalmConfig, outputs: int) -> None:
        super().__init__()
        self.sides = dict(zip(SCALES, config.tap_shapes.sides, strict=False))
        width = 2 * config.hidden_size

        def heads() -> nn.ModuleDict:
            return nn.ModuleDict(
                {scale: nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs)) for scale in SCALES}
            )

        self.taps, self.queries = heads(), heads()

    def forward(self, hidden: HiddenStates, query_states: dict[str, Tensor]) -> Tensor:
        """hidden states [B, N, C], query outputs [B, Q, C] per scale -> [6, B, outputs] float32."""
        rows = []
        for scale in SCALES:
            patches = patch_grid(getattr(hidden, scale), self.sides[scale]).flatten(1, 2)
            for head, states in ((self.taps[scale], patches), (self.queries[scale], query_states[scale])):
                wide = states.float()
                rows.append(head(torch.cat([wide.mean(1), wide.std(1)], dim=-1)).float())  # [B, outputs]
        return torch.stack(rows)


class EditObjective(nn.Module):
    """Every tap and every Q-Former tells which edits were made, and how strongly (cross-entropy per edit).

    An edit that was made counts from 0.4 up, so that a mild one still differs from none.
    """

    def __init__(self, config: CalmConfig) -> None:
        super().__init__()
        self.heads = ScaleHeads(config, len(EDITS))

    def forward(self, hidden: HiddenStates, query_states: dict[str, Tensor], severities: Tensor) -> Tensor:
        """severities [B, E] (0 = not made) -> scalar."""
        target = torch.where(severities > 0, 0.4 + 0.6 * severities, 0.0)
        told = self.heads(hidden, query_states)
        return F.binary_cross_entropy_with_logits(told, target.expand_as(told))


class QuantityObjective(nn.Module):
    """Every tap and every Q-Former tells the measured quantities as numbers, not only as levels (Huber loss)."""

    def __init__(self, config: CalmConfig) -> None:
        super().__init__()
        self.heads = ScaleHeads(config, len(QUANTITIES))

    def forward(self, hidden: HiddenStates, query_states: dict[str, Tensor], quantities: Tensor) -> Tensor:
        """quantities [B, M], standardised -> scalar."""
        told = self.heads(hidden, query_states)
        return F.smooth_l1_loss(told, quantities.float().expand_as(told), beta=0.5)


def expected_score(score_logits: Tensor) -> Tensor:
    """Expectation of the softmax over the score tokens, [B, 10] -> [B] on the 1..10 scale."""
    return score_logits.float().softmax(-1) @ _scale(score_logits)


def _scale(like: Tensor) -> Tensor:
    """The ratings of the scale, [10] float32, on the device of `like`."""
    return torch.arange(SCORE_LOW, SCORE_HIGH + 1, device=like.device).float()
