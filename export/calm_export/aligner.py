"""aligner.onnx: the four hidden states -> visual tokens of the LLM and logits of the attributes' levels."""

from __future__ import annotations

import torch
from onnx import ModelProto
from torch import Tensor, nn

from calm_export.attention import attention, spell_out_attention
from calm_export.graph import to_onnx
from calm_export.precision import in_half
from calm_runtime.attributes import ATTRIBUTES
from calm_runtime.vision import HIDDEN_STATES
from calm_train.aligner import MFAM
from calm_train.model import CalmForConditionalGeneration
from calm_train.vision import HiddenStates

IMAGE_EMBEDS = "image_embeds"
ATTRIBUTE_LOGITS = "attribute_logits"


class AlignerGraph(nn.Module):
    """MFAM with the text side of the cue space folded into one constant."""

    text: Tensor  # [A, P, L]

    def __init__(self, mfam: MFAM, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        with torch.no_grad():
            # The mean over paraphrases of (photo . phrase) is photo . (mean phrase): one product per level is left
            text = mfam.cues.scale_factor() * mfam.cues.text_embeds().mean(dim=2)  # [A, L, P]
        self.register_buffer("text", text.transpose(1, 2).contiguous())
        spell_out_attention(mfam)
        self.mfam = in_half(mfam, dtype)
        self.dtype = dtype

    def forward(self, low: Tensor, middle: Tensor, high: Tensor, thematic: Tensor) -> tuple[Tensor, Tensor]:
        """Four hidden states [B, N, C] f32 -> image_embeds [B, T, D] f32, attribute_logits [B, A, L] f32."""
        states = [state.to(self.dtype) for state in (low, middle, high, thematic)]
        states.append(states[0][:, 0])  # in the place of photo_embeds, which MFAM does not read
        hidden = HiddenStates(*states)
        aligned = self.mfam(hidden)
        photo = self.mfam.cues.photo_embeds(aligned.query_states)  # scale -> [B, P]
        rows = torch.stack([photo[attribute.scale] for attribute in ATTRIBUTES], dim=1)  # [B, A, P]
        if self.dtype == torch.float32:
            logits = (rows.unsqueeze(2) @ self.text).squeeze(2)
        else:  # a product in float32 all the same, but not as a matrix product: compute capability 7.5 has none
            logits = (rows.float().unsqueeze(3) * self.text).sum(dim=2)
        return aligned.image_embeds.float(), logits  # [B, A, L]


def export_aligner(
    model: CalmForConditionalGeneration, dtype: torch.dtype = torch.float32, *, fused: bool = False
) -> ModelProto:
    """Graph of the alignment module, dynamic batch.

    dtype: float32, or float16 or bfloat16 with norms and softmax in float32 (changes `model` in place: pass a copy).
    fused: attention as one operator, which only ONNX Runtime knows.
    """
    size = model.config.image_size
    with torch.no_grad():
        sample = model.vision_encoder.float()(torch.rand(2, 3, size, size))
    hidden = [torch.rand_like(state) for state in sample[: len(HIDDEN_STATES)]]  # [B, N, C]
    graph = AlignerGraph(model.aligner, dtype)
    with attention(graph, fused=fused):
        return to_onnx(graph, hidden, HIDDEN_STATES, (IMAGE_EMBEDS, ATTRIBUTE_LOGITS))
