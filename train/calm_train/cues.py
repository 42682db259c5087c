"""The space where photos meet text cues: which level of each attribute does a photo show?"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from calm_runtime.attributes import ATTRIBUTES, LEVELS_PER_ATTRIBUTE, SCALES
from calm_train.config import CalmConfig

MAX_LOGIT_SCALE = math.log(100.0)  # CLIP's bound on the temperature


class CueSpace(nn.Module):
    """Per scale, projections of the Q-Former's pooled output and of the cue texts into one unit sphere.

    `features` holds the cue texts as the frozen LLM encoded them before stage 1 (mean over token states), in the
    order of `ATTRIBUTES`; they stay fixed, so the text side needs no LLM at inference.
    """

    features: Tensor  # [A, L, K, D]

    def __init__(self, config: CalmConfig) -> None:
        super().__init__()
        width, llm_width = config.hidden_size, config.text_config.hidden_size
        self.photo = nn.ModuleDict(
            {scale: nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.cue_width)) for scale in SCALES}
        )
        self.text = nn.ModuleDict({scale: nn.Linear(llm_width, config.cue_width) for scale in SCALES})
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        shape = (len(ATTRIBUTES), LEVELS_PER_ATTRIBUTE, config.cue_phrases, llm_width)
        self.register_buffer("features", torch.zeros(shape))

    def photo_embeds(self, query_states: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scale -> [B, Q, C] to scale -> unit vectors [B, P]."""
        return {
            scale: nn.functional.normalize(self.photo[scale](states.mean(dim=1)), dim=-1)
            for scale, states in query_states.items()
        }

    def text_embeds(self) -> Tensor:
        """Unit vectors of all cue phrases, [A, L, K, P]."""
        rows = [self.text[attribute.scale](self.features[i]) for i, attribute in enumerate(ATTRIBUTES)]
        return nn.functional.normalize(torch.stack(rows), dim=-1)

    def scale_factor(self) -> Tensor:
        """Inverse temperature of the contrastive softmax."""
        return self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()

    def phrase_logits(self, query_states: dict[str, Tensor]) -> Tensor:
        """Scaled cosine of each photo with each cue phrase of each attribute, [B, A, L, K]."""
        photo = self.photo_embeds(query_states)
        text = self.text_embeds()
        rows = [torch.einsum("bp,lkp->blk", photo[attribute.scale], text[i]) for i, attribute in enumerate(ATTRIBUTES)]
        return self.scale_factor() * torch.stack(rows, dim=1)

    def forward(self, query_states: dict[str, Tensor]) -> Tensor:
        """attribute_logits [B, A, L]: mean over the paraphrases of each level."""
        return self.phrase_logits(query_states).mean(dim=-1)
