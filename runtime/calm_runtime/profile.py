"""A personal profile: one file that says how one person rates, and the scores it personalises."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import safetensors
from safetensors.numpy import save

from calm_runtime.batch import Scored, score_in_batches
from calm_runtime.errors import CalmError, PhotoError, ProfileError
from calm_runtime.picture_statistics import picture_statistics
from calm_runtime.pipeline import Calm, Photo
from calm_runtime.ratings import PhotoRating, to_score_scale
from calm_runtime.score import SCORE_HIGH, SCORE_LOW, Score
from calm_runtime.taste import MAX_RATINGS, Features, Taste, learn_taste, personal_ratings, taste_features

SUFFIX = ".calmprofile"
FORMAT = 2
MIN_RATINGS = 3
MAX_BYTES = 4_000_000
_KEY = "profile"


class ProfileInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a profile says about itself.

    bundle: digest of the bundle whose features it was learnt on. scale: worst and best rating the person could give.
    digest: SHA-256 of everything else in the file.
    """

    format: int
    bundle: str
    model: str
    ratings: int
    scale: tuple[float, float]
    mean: float
    std: float
    digest: str = ""


@dataclass(frozen=True)
class Profile:
    """A loaded profile. Apply it through `PersonalScorer`."""

    info: ProfileInfo
    taste: Taste

    def save(self, path: str | Path) -> None:
        """Write the profile as one file."""
        Path(path).write_bytes(_encode(self.info, self.taste))


def load_profile(path: str | Path) -> Profile:
    """Read and check a profile. Raises ProfileError when it is no profile, too large or not as it was written."""
    file = Path(path)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ProfileError(f"{file}: larger than {MAX_BYTES:,} bytes, which no profile is")
        data = file.read_bytes()
    except OSError as error:
        raise ProfileError(f"{file}: cannot be read ({error.strerror})") from error
    try:
        with safetensors.safe_open(str(file), "numpy") as handle:
            info = msgspec.json.decode((handle.metadata() or {})[_KEY], type=ProfileInfo)
            weights, centre = handle.get_tensor("weights"), handle.get_tensor("centre")
    except (safetensors.SafetensorError, KeyError, msgspec.DecodeError, OSError) as error:
        raise ProfileError(f"{file}: is not a profile made by `calm profile build` ({error})") from error
    if info.format != FORMAT:
        raise ProfileError(f"{file}: has format {info.format}, this version reads {FORMAT}; build it again")
    taste = Taste(weights, centre, info.mean, info.std)
    if _encode(msgspec.structs.replace(info, digest=""), taste) != data or not _is_finite(taste):
        raise ProfileError(f"{file}: has been changed since it was built; build it again")
    return Profile(info, taste)


def build_profile(
    calm: Calm, ratings: Sequence[PhotoRating], scale: tuple[float, float] | None = None
) -> tuple[Profile, list[CalmError]]:
    """Learn a person's taste. Returns the profile and an error for each photo that could not be read.

    scale: worst and best rating the person could give; by default the least and the greatest in `ratings`.
    Raises ProfileError with fewer than MIN_RATINGS readable photos, more than MAX_RATINGS, or equal ratings.
    """
    if len(ratings) > MAX_RATINGS:
        raise ProfileError(f"{len(ratings)} ratings; a profile is learnt from at most {MAX_RATINGS}, leave some out")
    kept: list[float] = []
    errors: list[CalmError] = []
    rows: list[Features] = []
    for rating in ratings:
        try:
            pixels, _ = calm.decode(rating.path)
        except PhotoError as error:
            errors.append(error)
            continue
        rows.append(photo_features(calm, pixels[None])[1])
        kept.append(rating.rating)
    low, high = scale or (min(kept, default=0.0), max(kept, default=0.0))
    if len(kept) < MIN_RATINGS:
        raise ProfileError(f"{len(kept)} rated photos can be read; a profile needs at least {MIN_RATINGS}")
    if not low < high or min(kept) == max(kept):
        raise ProfileError("all ratings are equal: they tell nothing about what this person prefers")
    if min(kept) < low or max(kept) > high:
        raise ProfileError(f"ratings run from {min(kept):g} to {max(kept):g}, beyond the scale {low:g}..{high:g}")
    features = Features(*(np.concatenate(blocks) for blocks in zip(*rows, strict=True)))
    taste = learn_taste(features, np.array(kept))
    taste = taste._replace(weights=taste.weights.astype(np.float32), centre=taste.centre.astype(np.float32))
    manifest = calm.bundle.manifest
    info = ProfileInfo(
        FORMAT, manifest.digest, f"{manifest.model.name} {manifest.model.version}", len(kept), (low, high), taste.mean,
        taste.std,
    )  # fmt: skip
    return Profile(_signed(info, taste), taste), errors


class PersonalScorer:
    """Scores with a profile: the base score as ever, and beside it what this person would give."""

    def __init__(self, calm: Calm, profile: Profile) -> None:
        """Raises ProfileError when the profile was made with another bundle."""
        if profile.info.bundle != calm.bundle.digest:
            raise ProfileError(
                f"the profile was made with {profile.info.model} (bundle {profile.info.bundle[:12]}), this is bundle "
                f"{calm.bundle.digest[:12]}; build it again with this one"
            )
        self.calm = calm
        self.profile = profile
        self.decode = calm.decode

    def score(self, photo: Photo) -> Score:
        """Score one photo. Raises PhotoError, EngineError or ScoreError."""
        pixels, timings = self.decode(photo)
        return self.score_pixels(pixels[None], [timings])[0]

    def score_many(self, photos: Iterable[Photo], batch_size: int = 8) -> Iterator[Scored]:
        """As `Calm.score_many`, with `personal` set."""
        return score_in_batches(self, photos, batch_size)

    def score_pixels(self, pixels: npt.NDArray[np.float32], timings: Sequence[dict[str, float]]) -> list[Score]:
        """As `Calm.score_pixels`, with `personal` set."""
        scores, features = photo_features(self.calm, pixels, timings)
        expected = personal_ratings(self.profile.taste, features)
        low, high = self.profile.info.scale
        mapped = np.clip(to_score_scale(expected, low, high), SCORE_LOW, SCORE_HIGH)
        return [replace(score, personal=float(value)) for score, value in zip(scores, mapped, strict=True)]


def photo_features(
    calm: Calm, pixels: npt.NDArray[np.float32], timings: Sequence[dict[str, float]] | None = None
) -> tuple[list[Score], Features]:
    """pixel_values [B, 3, S, S] and timings so far per photo -> the base scores, and what taste is read from."""
    aligned, spent = calm.see(pixels)
    scores = calm.score_aligned(aligned, [own | spent for own in timings or [{} for _ in pixels]])
    manifest = calm.bundle.manifest
    statistics = picture_statistics(pixels, manifest.photo)
    return scores, taste_features(aligned, scores, statistics, manifest.visual_tokens.low)


def _signed(info: ProfileInfo, taste: Taste) -> ProfileInfo:
    blank = msgspec.structs.replace(info, digest="")
    return msgspec.structs.replace(blank, digest=hashlib.sha256(_serialise(blank, taste)).hexdigest())


def _encode(info: ProfileInfo, taste: Taste) -> bytes:
    return _serialise(_signed(info, taste), taste)


def _serialise(info: ProfileInfo, taste: Taste) -> bytes:
    tensors = {"weights": np.asarray(taste.weights), "centre": np.asarray(taste.centre)}
    return save(tensors, metadata={_KEY: msgspec.json.encode(info).decode()})


def _is_finite(taste: Taste) -> bool:
    numbers = (taste.weights, taste.centre, np.array([taste.mean, taste.std]))
    return all(np.isfinite(values).all() for values in numbers)
