"""Attributes whose level is known because we made the fault: which edit, and from which strength it is a strong one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """Levels strong (0), mild (1) and absent (2) of an attribute, by the severity of one edit."""

    attribute: str
    edit: str
    strong_from: float

    def level(self, severities: Mapping[str, float]) -> int:
        """Level index for the severities of the edits made."""
        severity = severities.get(self.edit, 0.0)
        return 2 if severity == 0 else 1 if severity < self.strong_from else 0


@dataclass(frozen=True)
class Direction:
    """Levels of an attribute with two opposite faults: `first` (0), neither (1), `second` (2)."""

    attribute: str
    first: str
    second: str

    def level(self, severities: Mapping[str, float]) -> int:
        """Level index for the severities of the edits made."""
        return 1 - int(self.first in severities) + int(self.second in severities)


FAULTS: tuple[Fault | Direction, ...] = (
    Fault("sharpness", "blurred", 0.3),
    Fault("noise", "noisy", 0.3),
    Fault("compression", "compressed", 0.4),
    Fault("vignetting", "vignetted", 0.4),
    Direction("horizon", "tilt left", "tilt right"),
)
