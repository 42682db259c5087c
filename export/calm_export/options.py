"""What `calm export` is asked to build."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calm_export.llm import PRECISIONS
from calm_export.tensorrt_rtx import PORTABLE, check_device
from calm_runtime.bundle import Precision
from calm_runtime.errors import ExportError

TARGETS = ("cpu", "cuda", "tensorrt-rtx")


@dataclass(frozen=True)
class ExportOptions:
    """What to build. The graphs for the CPU are always part of a bundle: every engine falls back to them.

    llm_precision: "auto" takes the smallest that passes the gate.
    devices: TensorRT-RTX engines, "portable" or compute capabilities. engine_precision: their weights.
    photos: folder with 100 photos or more for the gate; None edits `examples`. examples: photos with golden scores.
    allow_drift: write the bundle even when a gate is missed, marked as drifted.
    """

    targets: tuple[str, ...] = ("cpu",)
    llm_precision: str = "auto"
    devices: tuple[str, ...] = (PORTABLE,)
    engine_precision: Precision = "fp16"
    photos: Path | None = None
    examples: tuple[Path, ...] = ()
    overwrite: bool = False
    allow_drift: bool = False

    def __post_init__(self) -> None:
        unknown = set(self.targets) - set(TARGETS)
        if unknown:
            raise ExportError(f"no export target {', '.join(sorted(unknown))}; choose from {', '.join(TARGETS)}")
        if self.llm_precision not in ("auto", *PRECISIONS):
            raise ExportError(f"no LLM precision {self.llm_precision!r}; choose auto or {', '.join(PRECISIONS)}")
        if self.engine_precision not in ("fp16", "fp32"):
            raise ExportError(f"no engine precision {self.engine_precision!r}; choose fp16 or fp32")
        for device in self.devices:
            check_device(device)

    def recorded(self) -> dict[str, str]:
        """The options as provenance: everything that shapes the bundle, no path of this machine."""
        return {
            "targets": " ".join(self.targets),
            "llm_precision": self.llm_precision,
            "devices": " ".join(self.devices) if "tensorrt-rtx" in self.targets else "",
            "engine_precision": self.engine_precision if "tensorrt-rtx" in self.targets else "",
            "parity_photos": "edited examples" if self.photos is None else "a folder",
            "allow_drift": "yes" if self.allow_drift else "no",
        }
