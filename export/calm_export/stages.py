"""What `calm export verify` reports: one row per stage, one per photo, and how rows come from distances."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
import numpy as np

from calm_export.figures import Values, cosine_per_photo
from calm_runtime.rank_correlation import srcc

_RANKED_VALUES = 4096  # of one photo's feature: ranks of more say nothing new and take long


class StageRow(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of one engine against the checkpoint.

    reference: what it is compared with, the checkpoint in float32 or rounded to the weights of the graph.
    cosine, srcc: smallest over the photos (the score's SRCC: over all photos together). max_difference: largest
    absolute difference. agreement: share of the engine's greedy tokens that torch would choose at the same place.
    None: does not apply, or is not a finite number. passed: None when the engine was not run.
    """

    stage: str
    engine: str
    precision: str
    reference: str | None = None
    photos: int = 0
    cosine: float | None = None
    max_difference: float | None = None
    srcc: float | None = None
    agreement: float | None = None
    gate: str | None = None
    passed: bool | None = None
    note: str = ""


class PhotoRow(msgspec.Struct, frozen=True):
    """One photo: its score on both sides, the bundle's greedy text and the share of it that torch would write."""

    name: str
    torch_score: float
    bundle_score: float
    text: str
    agreement: float

    @property
    def difference(self) -> float:
        """Distance of the two scores, in ratings."""
        return abs(self.torch_score - self.bundle_score)


class VerifyReport(msgspec.Struct, frozen=True):
    """verify.json. same_checkpoint: the bundle says that it was exported from exactly these files."""

    bundle: str
    model: str
    checkpoint_sha256: str
    same_checkpoint: bool
    passed: bool
    first_failing_stage: str | None
    stages: tuple[StageRow, ...]
    photos: tuple[PhotoRow, ...]


@dataclass
class Distance:
    """How far two sides are apart in one stage, photo by photo."""

    cosines: list[float] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)
    ranks: list[float] = field(default_factory=list)

    def add(self, reference: Values, found: Values) -> None:
        """One photo's values, of any shape, the same on both sides."""
        left, right = reference.reshape(1, -1), found.reshape(1, -1)
        step = -(-left.size // _RANKED_VALUES)
        self.cosines.append(float(cosine_per_photo(left, right)[0]))
        self.differences.append(float(np.abs(left.astype(np.float64) - right).max()))
        self.ranks.append(srcc(left[0, ::step], right[0, ::step]))

    def row(
        self,
        stage: str,
        engine: str,
        precision: str,
        reference: str,
        *,
        min_cosine: float | None = None,
        max_difference: float | None = None,
    ) -> StageRow:
        """The stage's row; it passes when it meets every gate that is given."""
        cosine, difference = least(self.cosines), most(self.differences)
        gates = [f"cosine >= {min_cosine:g}"] if min_cosine is not None else []
        gates += [f"difference <= {max_difference:g}"] if max_difference is not None else []
        return StageRow(
            stage=stage,
            engine=engine,
            precision=precision,
            reference=reference,
            photos=len(self.cosines),
            cosine=number(cosine),
            max_difference=number(difference),
            srcc=number(least(self.ranks)),
            gate=", ".join(gates),
            # A NaN compares false: it never passes
            passed=(min_cosine is None or cosine >= min_cosine)
            and (max_difference is None or difference <= max_difference),
        )


def least(values: Iterable[float]) -> float:
    """The smallest value; NaN when one is NaN."""
    return float(np.min(np.fromiter(values, np.float64)))


def most(values: Iterable[float]) -> float:
    """The largest value; NaN when one is NaN."""
    return float(np.max(np.fromiter(values, np.float64)))


def number(value: float) -> float | None:
    """A figure as it is stored: six significant digits after the point, None when it is not finite."""
    return round(value, 6) if math.isfinite(value) else None
