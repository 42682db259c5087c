"""Batch norms folded into the convolutions and products around them: served graphs have none left."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from calm_train.vision import MapEncoder, Neck


def fold_batch_norms(encoder: MapEncoder) -> MapEncoder:
    """A copy of the encoder that computes the same without batch norms.

    Convolutional models of transformers keep a convolution and its norm as `convolution` and `normalization` of one layer;
    a norm that stands elsewhere stays a norm.
    """
    folded = copy.deepcopy(encoder).eval()
    for layer in list(folded.backbones.modules()):
        convolution, norm = getattr(layer, "convolution", None), getattr(layer, "normalization", None)
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            layer.convolution = fuse_conv_bn_eval(convolution, norm)
            layer.normalization = nn.Identity()
    for neck in folded.necks:
        assert isinstance(neck, Neck)
        _fold_neck(neck)
    return folded


@torch.no_grad()
def _fold_neck(neck: Neck) -> None:
    """Standardise nothing, and let the lateral convolution take channels as they come; the statistics keep their own way."""
    norm = neck.standardise
    assert norm.running_mean is not None and norm.running_var is not None  # it keeps statistics
    scale = (norm.running_var + norm.eps).rsqrt()
    weight, bias = neck.lateral.weight, neck.lateral.bias
    assert bias is not None
    bias.sub_((weight[:, :, 0, 0] * scale * norm.running_mean).sum(dim=1))
    weight.mul_(scale[None, :, None, None])
    neck.folded = True
