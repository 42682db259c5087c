"""Which products may be rounded: every group is tried alone, and the most sensitive stay float until the gate holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import onnx
from onnx import ModelProto

from calm_export import parity
from calm_export.calibrate import Array, Calibrated, Rounding, Scheme, calibrate, evenly
from calm_export.engines import STAGES, Sources
from calm_export.figures import cosine_per_photo, signal_to_noise
from calm_export.graph import write_graph
from calm_runtime.aligner import Aligner
from calm_runtime.bundle import ParityRow, Stage
from calm_runtime.errors import ExportError
from calm_runtime.onnx_session import OnnxSession
from calm_runtime.vision import HIDDEN_STATES, VisionEncoder

QUANTISATION = "quantisation.json"
PROBE_PHOTOS = 8  # every group costs a quantisation and a run of these

Features = dict[str, Array]
Decision = Literal[Rounding, "float"]
Gate = Callable[[Features], Sequence[ParityRow]]


class GroupRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One group of products: what it alone, rounded, does to the features, and what became of it.

    cosine: the smallest over photos and features. snr_db: of the feature it disturbs most; null when it changes nothing.
    """

    stage: Stage
    group: str
    products: int
    parameters: int
    cosine: float
    snr_db: float | None
    decision: Decision
    reason: str


@dataclass(frozen=True)
class Quantised:
    """Graphs with rounded products, the figures of their gate, and every group, the most sensitive first."""

    rows: tuple[ParityRow, ...]
    groups: tuple[GroupRow, ...]


@dataclass(frozen=True)
class Probe:
    """One group alone, rounded: the smallest cosine of the features, and the noise of the feature it disturbs most."""

    stage: Stage
    group: str
    cosine: float
    snr_db: float


def quantise(
    protos: dict[Stage, ModelProto],
    pixels: Array,
    gate: tuple[Array, Gate],
    sources: Sources,
    scratch: Path,
    scheme: Scheme,
    progress: Callable[[str], None] = lambda message: None,
    stages: Sequence[Stage] = STAGES,
) -> Quantised:
    """Write both stages to `sources`; those of `stages` rounded, with as few groups left float as the gate asks for.

    pixels: pixel_values [P, 3, S, S] of the calibration photos; PROBE_PHOTOS of them also measure the groups.
    gate: pixel_values of the photos that judge, and the rows their features have to pass.
    Raises ExportError when the graphs miss the gate with any group rounded, or cannot be quantised.
    """
    calibrated = calibrate_stages(protos, pixels, scratch, scheme, progress)
    probes = sensitivities(calibrated, pixels[evenly(len(pixels), PROBE_PHOTOS)], scratch, progress, stages)
    judged, judge = gate

    def attempt(kept: int) -> tuple[ParityRow, ...]:
        progress(f"{scheme.rounding} with {kept} of {len(probes)} groups in float")
        for stage in STAGES:
            chosen = [probe.group for probe in probes[kept:] if probe.stage == stage]
            if chosen:
                calibrated[stage].quantise(chosen, sources[stage])
            else:
                write_graph(onnx.load(str(calibrated[stage].graph)), sources[stage])
        return tuple(judge(parity.onnx_features(sources["vision_encoder"], sources["aligner"], judged)))

    rows, missed, kept = _fewest(attempt, len(probes), scheme.rounding)
    return Quantised(rows, tuple(_rows(calibrated, probes, kept, missed)))


def _fewest(
    attempt: Callable[[int], tuple[ParityRow, ...]], groups: int, rounding: Rounding
) -> tuple[tuple[ParityRow, ...], str, int]:
    """The smallest number of groups in float that passes, by halving: its rows, what one fewer missed, and the number."""
    rows = attempt(0)
    missed = parity.describe(rows)
    if not missed:
        return rows, "", 0
    low, high, last = 0, groups, 0  # low misses; all in float is not rounded any more
    while high - low > 1:
        last = (low + high) // 2
        rows = attempt(last)
        if now := parity.describe(rows):
            low, missed = last, now
        else:
            high = last
    if high == groups:
        raise ExportError(
            f"as {rounding} the graphs miss the gate whatever stays float: {missed}; take fp32 or fp16 instead"
        )
    return (rows if last == high else attempt(high)), missed, high


def calibrate_stages(
    protos: dict[Stage, ModelProto],
    pixels: Array,
    scratch: Path,
    scheme: Scheme,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[Stage, Calibrated]:
    """Ranges of both stages over pixel_values [P, 3, S, S]; the aligner sees the hidden states of the float encoder."""
    progress(f"calibrating on {len(pixels)} photos")
    vision = calibrate(
        protos["vision_encoder"],
        [{"pixel_values": row[None]} for row in pixels],
        scratch / "float-vision_encoder.onnx",
        scheme,
    )
    encoder = VisionEncoder(OnnxSession(vision.graph))
    seen = [encoder(row[None]) for row in pixels]
    encoder.close()
    hidden = [{name: states[name] for name in HIDDEN_STATES} for states in seen]
    aligner = calibrate(protos["aligner"], hidden, scratch / "float-aligner.onnx", scheme)
    return {"vision_encoder": vision, "aligner": aligner}


def sensitivities(
    calibrated: dict[Stage, Calibrated],
    pixels: Array,
    scratch: Path,
    progress: Callable[[str], None] = lambda message: None,
    stages: Sequence[Stage] = STAGES,
) -> list[Probe]:
    """Every group alone rounded, all else float, measured on pixel_values [P, 3, S, S]; the most sensitive first."""
    encoder = VisionEncoder(OnnxSession(calibrated["vision_encoder"].graph))
    mfam = Aligner(OnnxSession(calibrated["aligner"].graph))
    hidden = [encoder(row[None]) for row in pixels]
    encoder.close()  # hundreds of megabytes at full size
    expected = _stacked([{**states, **mfam(states)._asdict()} for states in hidden])
    probe = scratch / "probe.onnx"
    probes = []
    for stage in stages:
        for group in calibrated[stage].groups:
            progress(f"{stage}: {group} alone as {calibrated[stage].scheme.rounding}")
            tried = OnnxSession(calibrated[stage].quantise([group], probe))
            if stage == "vision_encoder":
                encoder = VisionEncoder(tried)
                found = _stacked([parity.bundle_features(encoder, mfam, row[None]) for row in pixels])
            else:
                found = _stacked([Aligner(tried)(states)._asdict() for states in hidden])
            tried.close()
            cosine = min(float(cosine_per_photo(expected[name], value).min()) for name, value in found.items())
            noise = min(signal_to_noise(expected[name], value) for name, value in found.items())
            if math.isnan(cosine):
                cosine, noise = -1.0, -math.inf
            probes.append(Probe(stage, group, cosine, noise))
    return sorted(probes, key=lambda probe: (probe.cosine, probe.stage, probe.group))


def _stacked(rows: Sequence[Features]) -> Features:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def encode_report(parts: Mapping[str, Quantised]) -> bytes:
    """JSON of quantisation.json: graphs -> their groups."""
    return (
        msgspec.json.format(msgspec.json.encode({name: part.groups for name, part in parts.items()}), indent=2) + b"\n"
    )


def read_report(path: Path) -> dict[str, list[GroupRow]]:
    """The groups of a bundle's quantisation.json: graphs -> groups. Raises msgspec.DecodeError for another file."""
    return msgspec.json.decode(path.read_bytes(), type=dict[str, list[GroupRow]])


def _rows(calibrated: dict[Stage, Calibrated], probes: Sequence[Probe], kept: int, missed: str) -> Iterable[GroupRow]:
    for rank, probe in enumerate(probes, start=1):
        rounding = calibrated[probe.stage].scheme.rounding
        decision: Decision = "float" if rank <= kept else rounding
        reason = f"the gate holds with it as {rounding}"
        if decision == "float":
            reason = f"sensitivity rank {rank} of {len(probes)}; with {kept - 1} groups in float: {missed}"
        part = calibrated[probe.stage]
        yield GroupRow(
            stage=probe.stage,
            group=probe.group,
            products=len(part.groups[probe.group]),
            parameters=part.parameters[probe.group],
            cosine=round(probe.cosine, 6),
            snr_db=round(probe.snr_db, 1) if math.isfinite(probe.snr_db) else None,
            decision=decision,
            reason=reason,
        )
