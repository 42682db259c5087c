"""What the loaders of this package return: one small record per use, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from calm_runtime.errors import DataError, PhotoTooLarge, PhotoUnreadable
from calm_runtime.photo import PhotoLimits
from calm_runtime.score import SCORE_HIGH, SCORE_LEVELS, SCORE_LOW

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class TarMember:
    """A photo inside an uncompressed tar file: `size` bytes from `offset` of `archive`."""

    archive: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}"

    def read(self, limits: PhotoLimits | None = None) -> bytes:
        """The photo's file bytes. Raises PhotoTooLarge, or PhotoUnreadable when the archive has changed."""
        limits = limits or PhotoLimits()
        if self.size > limits.max_bytes:
            raise PhotoTooLarge(f"{self}: {self.size:,} bytes, the limit is {limits.max_bytes:,}; save it smaller")
        try:
            with self.archive.open("rb") as handle:
                handle.seek(self.offset)
                data = handle.read(self.size)
        except OSError as error:
            raise PhotoUnreadable(f"{self}: cannot be read ({error}); check the archive and the disk") from error
        if len(data) != self.size:
            raise PhotoUnreadable(f"{self}: the archive ends too early; copy it again")
        return data


PhotoSource = Path | TarMember


def photo_input(source: PhotoSource) -> Path | bytes:
    """The source in the form `calm_runtime.photo.load_photo` takes."""
    return source.read() if isinstance(source, TarMember) else source


@dataclass(frozen=True, slots=True)
class RatedPhoto:
    """A photo with a rating on the scale of `calm_runtime.score`, of many raters or of one.

    mean: 1..10. histogram: probability of each whole rating 1..10, or None where only the mean is published.
    rater: who rated, when the record is one person's rating. split: "train", "val", "test" or None.
    Raises DataError when a value is out of range.
    """

    path: PhotoSource
    mean: float
    histogram: tuple[float, ...] | None = None
    rater: str | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        _check_split(self.path, self.split)
        if not SCORE_LOW <= self.mean <= SCORE_HIGH:
            raise DataError(f"{self.path}: expected a mean rating of {SCORE_LOW} to {SCORE_HIGH}, found {self.mean}")
        if self.histogram is not None and (
            len(self.histogram) != SCORE_LEVELS
            or not all(0 <= p <= 1 for p in self.histogram)
            or not math.isclose(sum(self.histogram), 1.0, abs_tol=1e-6)
        ):
            raise DataError(f"{self.path}: expected {SCORE_LEVELS} probabilities that sum to one")


@dataclass(frozen=True, slots=True)
class CaptionedPhoto:
    """A photo with the texts people or models wrote about it; no texts where none came with it."""

    path: PhotoSource
    texts: tuple[str, ...]
    split: str | None = None

    def __post_init__(self) -> None:
        _check_split(self.path, self.split)


class Turn(NamedTuple):
    """One utterance of a conversation."""

    speaker: Literal["human", "gpt"]
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation about one photo: human and gpt in turn, human first, gpt last.

    The texts hold no image marker: prompts place the photo by slot. A human's text may be empty.
    """

    path: PhotoSource
    turns: tuple[Turn, ...]
    split: str | None = None

    def __post_init__(self) -> None:
        _check_split(self.path, self.split)
        speakers = [turn.speaker for turn in self.turns]
        if not speakers or speakers != ["human", "gpt"] * (len(speakers) // 2):
            found = ", ".join(speakers) or "none"
            raise DataError(f"{self.path}: expected human and gpt in turn, human first, found {found}")


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo and nothing else."""

    path: PhotoSource
    split: str | None = None

    def __post_init__(self) -> None:
        _check_split(self.path, self.split)


Record = RatedPhoto | CaptionedPhoto | Conversation | Photo


def _check_split(path: PhotoSource, split: str | None) -> None:
    if split is not None and split not in SPLITS:
        raise DataError(f"{path}: expected a split of {', '.join(SPLITS)}, found '{split}'")
