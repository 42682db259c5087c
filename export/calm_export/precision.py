"""Half precision that keeps the features: weights and products in float16 or bfloat16, norms in float32."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


class Float32Norm(nn.LayerNorm):
    """A LayerNorm that computes in float32 and hands on the dtype it was given.

    Sums of squares overflow float16 in wide encoders; naive half conversion is known to break ViT features.
    Its weights are stored in the half type: callers ask them for the dtype to work in.
    """

    @classmethod
    def of(cls, norm: nn.LayerNorm) -> Float32Norm:
        """The same norm with this arithmetic; it shares the weights."""
        twin = cls(norm.normalized_shape, eps=norm.eps, elementwise_affine=norm.elementwise_affine)
        twin.weight, twin.bias = norm.weight, norm.bias
        return twin

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [..., C], any float dtype -> the same shape and dtype."""
        weight, bias = self.weight.float(), self.bias.float()
        return nn.functional.layer_norm(hidden.float(), self.normalized_shape, weight, bias, self.eps).to(hidden.dtype)


def in_half(module: Module, dtype: torch.dtype) -> Module:
    """Convert a module in place to float16 or bfloat16, its LayerNorms' arithmetic excepted; float32 leaves it alone.

    Softmax is float32 in eager attention.
    """
    if dtype == torch.float32:
        return module
    module.to(dtype)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.LayerNorm) and not isinstance(parent, Float32Norm):
                setattr(parent, name, Float32Norm.of(child))
    return module


def torch_dtype(precision: str) -> torch.dtype:
    """float32 for "fp32", float16 for "fp16", bfloat16 for "bf16"; KeyError for another name."""
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
