"""vision_encoder.onnx: pixel_values -> the four hidden states the alignment module reads, and the photo as one vector."""

from __future__ import annotations

import torch
from onnx import ModelProto
from torch import Tensor, nn

from calm_export.attention import attention, spell_out_attention
from calm_export.batch_norm import fold_batch_norms
from calm_export.graph import OPSET, to_onnx
from calm_export.precision import in_half
from calm_runtime.vision import VISION_OUTPUTS
from calm_train.model import CalmForConditionalGeneration
from calm_train.vision import MapEncoder, VisionEncoder

PIXEL_VALUES = "pixel_values"
TANH_GELU = "gelu_pytorch_tanh"
GELU_OPSET = 20  # the first with the operator: spelt out, ONNX Runtime runs eight of them and takes three times as long


class VisionGraph(nn.Module):
    """The vision encoder with plain tensors at its border: f32 in, f32 out, whatever runs inside."""

    def __init__(self, vision_encoder: VisionEncoder, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if isinstance(vision_encoder, MapEncoder):
            vision_encoder = fold_batch_norms(vision_encoder)
        spell_out_attention(vision_encoder)
        self.vision_encoder = in_half(vision_encoder, dtype)
        self.dtype = dtype

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """pixel_values [B, 3, S, S] f32 -> four hidden states [B, N, C], photo_embeds [B, E], f32: VISION_OUTPUTS."""
        states = self.vision_encoder(pixel_values.to(self.dtype))
        # Equal taps give one tensor several names; ONNX wants one value per output
        return tuple(state.float().clone() for state in states)


def export_vision(
    model: CalmForConditionalGeneration, dtype: torch.dtype = torch.float32, *, fused: bool = False
) -> ModelProto:
    """Graph of the vision encoder, dynamic batch. Layers above the highest tap are not part of it.

    dtype: float32, or float16 or bfloat16 with norms and softmax in float32 (changes `model` in place: pass a copy).
    fused: attention as one operator, which only ONNX Runtime knows.
    """
    size = model.config.image_size
    graph = VisionGraph(model.vision_encoder, dtype)
    opset = GELU_OPSET if getattr(model.config.vision_config, "hidden_act", None) == TANH_GELU else OPSET
    with attention(graph, fused=fused):
        return to_onnx(graph, [torch.rand(2, 3, size, size)], [PIXEL_VALUES], VISION_OUTPUTS, opset)
