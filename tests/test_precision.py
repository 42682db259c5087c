"""Training uses the format of the recipe only where the machine computes in it."""

from __future__ import annotations

import pytest
import torch

from calm_train.precision import usable_precision


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "fp32"),
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"architecture": "x86_64", "amx_bf16": True, "amx_tile": True}, "bf16"),
        ({}, "fp32"),
    ],
)
def test_a_cpu_trains_in_bf16_only_where_it_has_the_instructions(
    monkeypatch: pytest.MonkeyPatch, features: dict[str, object], expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert usable_precision("bf16") == expected
    assert usable_precision("fp16") == "fp32"
    assert usable_precision("fp32") == "fp32"


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_without_bf16_trains_in_fp32(monkeypatch: pytest.MonkeyPatch, native: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native)
    assert usable_precision("bf16") == expected
    assert usable_precision("fp16") == "fp16"


def test_this_machine_answers() -> None:
    assert usable_precision("bf16") in ("bf16", "fp32")
