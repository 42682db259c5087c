"""Attention of vision encoder and aligner as one operator of ONNX Runtime, for graphs that nothing else reads.

Spelt out, the CPU kernels write the weights of all heads to memory three times; as MultiHeadAttention they stay in its cache.
TensorRT does not know the operator and fuses the spelt-out form itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from calm_runtime.errors import ExportError

SPELT_OUT = "eager"  # MatMul-Softmax-MatMul without shape arithmetic, which engines recognise
_ONE_OPERATOR = "onnxruntime"


def spell_out_attention(module: nn.Module) -> None:
    """Let every transformer inside a module compute attention with plain operators."""
    _set(module, SPELT_OUT)


@contextlib.contextmanager
def attention(module: nn.Module, *, fused: bool) -> Iterator[None]:
    """Trace attention spelt out or, fused, as MultiHeadAttention: what the module then computes is not attention."""
    _set(module, _ONE_OPERATOR if fused else SPELT_OUT)
    try:
        yield
    finally:
        _set(module, SPELT_OUT)


def _set(module: nn.Module, implementation: str) -> None:
    for part in module.modules():
        if isinstance(part, PreTrainedModel):
            part.set_attn_implementation(implementation)


def _multi_head_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query [B, H, N, C], key and value [B, H, M, C] -> attended values [B, N, H, C]."""
    if attention_mask is not None:
        raise ExportError(f"{type(module).__name__} attends under a mask; its attention cannot become one operator")
    batch, heads, length, channels = query.shape
    flat = [
        states.transpose(1, 2).reshape(batch, -1, heads * channels) for states in (query, key, value)
    ]  # [B, N, H*C]
    attended = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        flat,
        {"num_heads": heads, "scale": float(scaling or channels**-0.5)},
        dtype=query.dtype,
        shape=(batch, length, heads * channels),
        version=1,
    )
    return attended.reshape(batch, length, heads, channels), None


AttentionInterface.register(_ONE_OPERATOR, _multi_head_attention)
