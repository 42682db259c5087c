"""What `calm export` is asked to build."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calm_export.llm import CHOICES
from calm_export.packs import PACK_TARGETS
from calm_export.tensorrt import BATCHES, Batches, check_batches, check_device
from calm_export.tensorrt_build import PORTABLE
from calm_runtime.bundle import Precision
from calm_runtime.errors import ExportError

TARGETS = ("cpu", "cuda", "tensorrt-rtx", "tensorrt", *PACK_TARGETS)
ENGINE_PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16", "fp32")


@dataclass(frozen=True)
class ExportOptions:
    """What to build. The graphs for the CPU are always part of a bundle: every engine falls back to them.

    llm_precision: "auto" takes the smallest of int4, int8 and fp32 that passes the gate.
    devices: of TensorRT-RTX engines, "portable" or compute capabilities; TensorRT builds for the GPU at hand.
    engine_precision: weights of the engines of both. batches: smallest, optimised-for and largest of their profile.
    photos: folder with 100 photos or more for the gate; None edits `examples`. examples: photos with golden scores.
    allow_drift: write the bundle even when a gate is missed, marked as drifted.
    """

    targets: tuple[str, ...] = ("cpu",)
    llm_precision: str = "auto"
    devices: tuple[str, ...] = (PORTABLE,)
    engine_precision: Precision = "fp16"
    batches: Batches = BATCHES
    photos: Path | None = None
    examples: tuple[Path, ...] = ()
    overwrite: bool = False
    allow_drift: bool = False

    def __post_init__(self) -> None:
        unknown = set(self.targets) - set(TARGETS)
        if unknown:
            raise ExportError(f"no export target {', '.join(sorted(unknown))}; choose from {', '.join(TARGETS)}")
        if self.llm_precision not in ("auto", *CHOICES):
            raise ExportError(f"no LLM precision {self.llm_precision!r}; choose auto or {', '.join(CHOICES)}")
        if self.engine_precision not in ENGINE_PRECISIONS:
            choices = ", ".join(ENGINE_PRECISIONS)
            raise ExportError(f"no engine precision {self.engine_precision!r}; choose from {choices}")
        check_batches(self.batches)
        for device in self.devices:
            check_device(device)

    def recorded(self) -> dict[str, str]:
        """The options as provenance: everything that shapes the bundle, no path of this machine."""
        engines = bool({"tensorrt", "tensorrt-rtx"} & set(self.targets))
        return {
            "targets": " ".join(target for target in self.targets if target not in PACK_TARGETS),
            "llm_precision": self.llm_precision,
            "devices": " ".join(self.devices) if "tensorrt-rtx" in self.targets else "",
            "engine_precision": self.engine_precision if engines else "",
            "engine_batches": " ".join(map(str, self.batches)) if engines else "",
            "parity_photos": "edited examples" if self.photos is None else "a folder",
            "allow_drift": "yes" if self.allow_drift else "no",
        }
