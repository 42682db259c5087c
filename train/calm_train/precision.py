"""Which floating-point format a machine can train in without losing speed."""

from __future__ import annotations

import torch

from calm_train.recipe import Precision


def usable_precision(wanted: Precision) -> Precision:
    """`wanted` where the machine computes in it, else fp32: emulated bf16 is six times slower than fp32 on a CPU."""
    if torch.cuda.is_available():
        native = wanted != "bf16" or torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        features = torch.cpu.get_capabilities()
        native = wanted == "bf16" and any(value is True for name, value in features.items() if "bf16" in name)
    return wanted if wanted == "fp32" or native else "fp32"
