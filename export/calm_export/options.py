"""What `calm export` is asked to build."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calm_export.calibrate import ENGINE_SCHEMES
from calm_export.llm import BLOCK_SIZE, BLOCK_SIZES, CHOICES, LlmPrecision
from calm_export.packs import PACK_TARGETS
from calm_export.tensorrt import BATCHES, Batches, check_batches, check_device
from calm_export.tensorrt_build import PORTABLE
from calm_runtime.bundle import Precision
from calm_runtime.errors import ExportError

TARGETS = ("cpu", "cuda", "tensorrt-rtx", "tensorrt", *PACK_TARGETS)
ENCODER_PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
ENGINE_PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16", "fp32", "int8", "fp8", "int4")


@dataclass(frozen=True)
class ExportOptions:
    """What to build. The graphs for the CPU are always part of a bundle: every engine falls back to them.

    llm_precision: "auto" takes the smallest of int4, int8 and fp32 that passes the gate. llm_decode_precision: of a second
    graph that reads what is written, token by token; None has one graph for all. llm_block: weights of int4 and int8
    that share a scale; None takes the most that pass the gate.
    encoder_precision: of vision encoder and aligner for the CPU. vision_precision: of the vision encoder alone, where int8
    is asked for; None: what is faster, int8 for encoders of tokens and fp32 for those of feature maps.
    half_weights: float32 weights of the two are stored in float16. calibration: folder of photos whose values set the
    ranges of int8 and fp8; None takes the gate's.
    devices: of TensorRT-RTX engines, "portable" or compute capabilities; TensorRT builds for the GPU at hand.
    engine_precision: weights of the engines of both. batches: smallest, optimised-for and largest of their profile.
    photos: folder with 100 photos or more for the gate; None edits `examples`. examples: photos with golden scores.
    allow_drift: write the bundle even when a gate is missed, marked as drifted.
    """

    targets: tuple[str, ...] = ("cpu",)
    llm_precision: str = "auto"
    llm_decode_precision: LlmPrecision | None = None
    llm_block: int | None = BLOCK_SIZE
    encoder_precision: Precision = "fp32"
    vision_precision: Precision | None = None
    half_weights: bool = False
    calibration: Path | None = None
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
        if self.llm_decode_precision not in (None, *CHOICES):
            raise ExportError(f"no precision {self.llm_decode_precision!r} to write; choose from {', '.join(CHOICES)}")
        if self.llm_decode_precision and self.llm_decode_precision == self.llm_precision:
            raise ExportError(
                f"a second graph as {self.llm_precision} would be the first again; leave out --llm-decode-precision "
                "(which --fast sets), or take another"
            )
        if self.llm_block not in (None, *BLOCK_SIZES):
            raise ExportError(f"no LLM block of {self.llm_block}; choose from {', '.join(map(str, BLOCK_SIZES))}")
        if self.encoder_precision not in ENCODER_PRECISIONS:
            choices = ", ".join(ENCODER_PRECISIONS)
            raise ExportError(f"no encoder precision {self.encoder_precision!r}; choose from {choices}")
        if self.vision_precision not in (None, *ENCODER_PRECISIONS):
            raise ExportError(f"no vision precision {self.vision_precision!r}; choose auto, fp32 or int8")
        if self.engine_precision not in ENGINE_PRECISIONS:
            choices = ", ".join(ENGINE_PRECISIONS)
            raise ExportError(f"no engine precision {self.engine_precision!r}; choose from {choices}")
        if self.calibration and not self._rounds:
            raise ExportError(
                "calibration photos serve int8, fp8 and int4; add --encoder-precision int8 or --engine-precision int8"
            )
        check_batches(self.batches)
        for device in self.devices:
            check_device(device)

    @property
    def _has_engines(self) -> bool:
        return bool({"tensorrt", "tensorrt-rtx"} & set(self.targets))

    @property
    def _rounds(self) -> bool:
        return self.encoder_precision == "int8" or (self._has_engines and self.engine_precision in ENGINE_SCHEMES)

    def recorded(self, llm_block: int | None) -> dict[str, str]:
        """The options as provenance: everything that shapes the bundle, no path of this machine.

        llm_block: what was chosen, where the LLM is in blocks.
        """
        engines = self._has_engines
        return {
            "targets": " ".join(target for target in self.targets if target not in PACK_TARGETS),
            "llm_precision": self.llm_precision,
            "llm_block": str(llm_block or self.llm_block or BLOCK_SIZE),
            "encoder_precision": self.encoder_precision,
            "vision_precision": self.vision_precision or "auto",
            "half_weights": "yes" if self.half_weights else "no",
            "calibration": ("a folder" if self.calibration else "photos of the gate") if self._rounds else "",
            "devices": " ".join(self.devices) if "tensorrt-rtx" in self.targets else "",
            "engine_precision": self.engine_precision if engines else "",
            "engine_batches": " ".join(map(str, self.batches)) if engines else "",
            "parity_photos": "edited examples" if self.photos is None else "a folder",
            "allow_drift": "yes" if self.allow_drift else "no",
        } | ({"llm_decode_precision": self.llm_decode_precision} if self.llm_decode_precision else {})
