"""EfficientNet-lite: EfficientNet without squeeze-excite and with ReLU6, as a Hugging Face model.

Importing this module teaches `AutoConfig` and `AutoModel` the model type `efficientnet_lite`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndNoAttention

# Of each of the seven stages, alike in every variant: kernel, stride of its first block, expansion.
STAGES = ((3, 1, 1), (3, 2, 6), (5, 2, 6), (3, 2, 6), (5, 1, 6), (5, 2, 6), (3, 1, 6))


class EfficientNetLiteConfig(PretrainedConfig):
    """Configuration of `EfficientNetLiteModel`; the defaults are those of lite0.

    widths, depths: channels and blocks of each of the seven stages.
    stem_width: channels after the first convolution. hidden_size: channels of the last map.
    """

    model_type = "efficientnet_lite"

    def __init__(
        self,
        image_size: int = 224,
        num_channels: int = 3,
        stem_width: int = 32,
        widths: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320),
        depths: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1),
        hidden_size: int = 1280,
        batch_norm_eps: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        if len(widths) != len(STAGES) or len(depths) != len(STAGES):
            raise ValueError(f"widths and depths must have {len(STAGES)} entries, one per stage")
        self.image_size = image_size
        self.num_channels = num_channels
        self.stem_width = stem_width
        self.widths = list(widths)
        self.depths = list(depths)
        self.hidden_size = hidden_size
        self.batch_norm_eps = batch_norm_eps
        super().__init__(**kwargs)


class ConvNorm(nn.Module):
    """Convolution with TensorFlow's "SAME" padding, batch normalisation, and ReLU6 unless `linear`."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, eps: float, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        # At stride 1 "SAME" pads both sides alike, whatever the size.
        padding = kernel // 2 if stride == 1 else 0
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.normalization = nn.BatchNorm2d(outputs, eps=eps, momentum=0.01)
        self.activation = nn.Identity() if linear else nn.ReLU6()

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', ceil(H / stride), ceil(W / stride)]."""
        kernel, stride = self.convolution.kernel_size[0], self.convolution.stride[0]
        if stride > 1:
            (top, bottom), (left, right) = (_same(int(side), kernel, stride) for side in features.shape[-2:])
            features = nn.functional.pad(features, (left, right, top, bottom))
        return self.activation(self.normalization(self.convolution(features)))


def _same(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding before and after a side; TensorFlow puts the odd pixel after."""
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


class Block(nn.Module):
    """Inverted residual: expand, filter each channel, project; the input is added where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, eps: float) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = ConvNorm(inputs, inner, 1, eps) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(inner, inner, kernel, eps, stride=stride, groups=inner)
        self.project = ConvNorm(inner, outputs, 1, eps, linear=True)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', ceil(H / stride), ceil(W / stride)]."""
        out = self.project(self.depthwise(self.expand(features)))
        return out + features if self.residual else out


class EfficientNetLiteModel(PreTrainedModel):
    """The encoder, without a classifier."""

    config: EfficientNetLiteConfig
    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"
    input_modalities = "image"
    _no_split_modules = ["Block"]  # noqa: RUF012

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        eps = config.batch_norm_eps
        self.stem = ConvNorm(config.num_channels, config.stem_width, 3, eps, stride=2)
        self.stages = nn.ModuleList()
        width = config.stem_width
        for (kernel, stride, expansion), out, depth in zip(STAGES, config.widths, config.depths, strict=True):
            shapes = [(width, stride), *[(out, 1)] * (depth - 1)]
            self.stages.append(nn.Sequential(*(Block(w, out, kernel, s, expansion, eps) for w, s in shapes)))
            width = out
        self.head = ConvNorm(width, config.hidden_size, 1, eps)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        else:
            super()._init_weights(module)

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool = False, **_: Any
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        """pixel_values [B, 3, H, W] -> last_hidden_state [B, hidden_size, ceil(H / 32), ceil(W / 32)].

        pooler_output [B, hidden_size] is its mean. hidden_states, when asked for, are nine maps [B, C, h, w]: after the
        stem (a half of H), after stages 1 to 7 (1/2, 1/4, 1/8, 1/16, 1/16, 1/32, 1/32) and last_hidden_state.
        """
        maps = [self.stem(pixel_values)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        last = self.head(maps[-1])
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=last,
            pooler_output=torch.mean(last, dim=(2, 3)),
            hidden_states=(*maps, last) if output_hidden_states else None,
        )


AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel)
