"""A personal profile: one file that says how one person rates, and the scores it personalises."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import safetensors
from safetensors.numpy import save

from calm_runtime.aligner import PhotoFeatures
from calm_runtime.batch import Frames, Scored, Timings, score_in_batches
from calm_runtime.errors import CalmError, PhotoError, ProfileError
from calm_runtime.in_context import choose_examples, pack_cache, standardise
from calm_runtime.picture_statistics import picture_statistics
from calm_runtime.pipeline import Calm, Photo
from calm_runtime.ratings import PhotoRating, to_score_scale
from calm_runtime.score import SCORE_HIGH, SCORE_LOW, Score
from calm_runtime.taste import MAX_RATINGS, Features, Taste, learn_taste, personal_ratings, taste_features
from calm_runtime.worth import Worth, profile_worth

SUFFIX = ".calmprofile"
FORMAT = 6
MIN_RATINGS = 3
MAX_BYTES = 64_000_000
_KEY = "profile"


class ProfileInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a profile says about itself.

    bundle: digest of the bundle whose features it was learnt on. ratings: that were learnt from; examples: of them, how
    many stand in the prompt; context_weight: how much that reading counts beside the light head. worth: of the light head,
    on the person's own ratings. scale: worst and best rating the person could give. digest: SHA-256 of everything else in
    the file.
    """

    format: int
    bundle: str
    model: str
    ratings: int
    examples: int
    context_weight: float
    worth: Worth
    scale: tuple[float, float]
    mean: float
    std: float
    digest: str = ""


@dataclass(frozen=True)
class Profile:
    """A loaded profile. Apply it through `PersonalScorer`.

    taste: the light head. context: `pack_cache` of the person's examples; empty where the bundle reads none or their
    reading does not count.
    """

    info: ProfileInfo
    taste: Taste
    context: dict[str, npt.NDArray[np.float16]]

    def save(self, path: str | Path) -> None:
        """Write the profile as one file."""
        Path(path).write_bytes(_encode(self))


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
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a dict
        weights, centre = tensors.pop("weights"), tensors.pop("centre")
    except (safetensors.SafetensorError, KeyError, msgspec.DecodeError, OSError) as error:
        raise ProfileError(f"{file}: is not a profile made by `calm profile build` ({error})") from error
    if info.format != FORMAT:
        raise ProfileError(
            f"{file}: has format {info.format}, this version reads {FORMAT}; build it again: "
            f"calm profile build RATINGS.CSV -o {file}"
        )
    profile = Profile(info, Taste(weights, centre, info.mean, info.std), tensors)
    if _encode(profile) != data or not _is_finite(profile):
        raise ProfileError(f"{file}: has been changed since it was built; build it again")
    return profile


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
    seen: list[npt.NDArray[np.float32]] = []
    reader = calm.in_context
    for rating in ratings:
        try:
            pixels = calm.decode(rating.path).pixels
        except PhotoError as error:
            errors.append(error)
            continue
        _, features, looked = photo_features(calm, pixels[None])
        rows.append(features)
        seen.append(reader.queries(looked.aligned.image_embeds))
        kept.append(rating.rating)
    low, high = scale or (min(kept, default=0.0), max(kept, default=0.0))
    if len(kept) < MIN_RATINGS:
        raise ProfileError(f"{len(kept)} rated photos can be read; a profile needs at least {MIN_RATINGS}")
    if not low < high or min(kept) == max(kept):
        raise ProfileError("all ratings are equal: they tell nothing about what this person prefers")
    if min(kept) < low or max(kept) > high:
        raise ProfileError(f"ratings run from {min(kept):g} to {max(kept):g}, beyond the scale {low:g}..{high:g}")
    features = Features(*(np.concatenate(blocks) for blocks in zip(*rows, strict=True)))
    worth = profile_worth(features, np.array(kept))
    taste = learn_taste(features, np.array(kept))
    taste = taste._replace(weights=taste.weights.astype(np.float32), centre=taste.centre.astype(np.float32))
    opinion = standardise(kept)
    examples = example_rows(features, np.array(kept), reader.most_examples)
    shown = np.concatenate(seen)[examples]
    weight = reader.earned_weight(shown, opinion[examples]) if examples else 0.0
    context = pack_cache(reader.read(shown, opinion[examples])) if weight else {}
    manifest = calm.bundle.manifest
    info = ProfileInfo(
        FORMAT, manifest.digest, f"{manifest.model.name} {manifest.model.version}", len(kept),
        len(examples) if weight else 0, weight, worth, (low, high), taste.mean, taste.std,
    )  # fmt: skip
    return _signed(Profile(info, taste, context)), errors


class PersonalScorer:
    """Scores with a profile: the base score as ever, and beside it what this person would give."""

    def __init__(self, calm: Calm, profile: Profile) -> None:
        """Raises ProfileError when the profile was made with another bundle, or cannot have been made with this one."""
        if profile.info.bundle != calm.bundle.digest:
            raise ProfileError(
                f"the profile was made with {profile.info.model} (bundle {profile.info.bundle[:12]}), this is bundle "
                f"{calm.bundle.digest[:12]}; build it again with this one"
            )
        self.calm = calm
        self.profile = profile
        self.decode = calm.decode
        self._cache = calm.in_context.unpack(profile.context) if profile.context else None

    def score(self, photo: Photo) -> Score:
        """Score one photo. Raises PhotoError, EngineError or ScoreError."""
        pixels, timings, frame = self.decode(photo)
        return self.score_pixels(pixels[None], [timings], [frame])[0]

    def score_many(self, photos: Iterable[Photo], batch_size: int = 8) -> Iterator[Scored]:
        """As `Calm.score_many`, with `personal` set."""
        return score_in_batches(self, photos, batch_size)

    def score_pixels(self, pixels: npt.NDArray[np.float32], timings: Timings, frames: Frames = None) -> list[Score]:
        """As `Calm.score_pixels`, with `personal` set."""
        scores, features, seen = photo_features(self.calm, pixels, timings, frames)
        taste = self.profile.taste
        expected = personal_ratings(taste, features)
        if self._cache is not None:
            context = self.calm.in_context.rate(seen.aligned.image_embeds, self._cache)
            expected = blend(taste, expected, context, self.profile.info.context_weight)
        low, high = self.profile.info.scale
        mapped = np.clip(to_score_scale(expected, low, high), SCORE_LOW, SCORE_HIGH)
        return [replace(score, personal=float(value)) for score, value in zip(scores, mapped, strict=True)]


def example_rows(features: Features, ratings: npt.NDArray[np.float64], most: int) -> list[int]:
    """Which of the rated photos stand in the prompt: see `choose_examples`."""
    return choose_examples(features.statistics, standardise(ratings), most)


def blend(
    taste: Taste, head: npt.NDArray[np.float64], in_context: npt.NDArray[np.float64], weight: float
) -> npt.NDArray[np.float64]:
    """Expected ratings [N] from the light head's, and from those read in context (in standard deviations)."""
    return (1 - weight) * head + weight * (taste.mean + taste.std * in_context)


def photo_features(
    calm: Calm,
    pixels: npt.NDArray[np.float32],
    timings: Timings | None = None,
    frames: Frames = None,
) -> tuple[list[Score], Features, PhotoFeatures]:
    """What `Calm.score_pixels` takes -> the base scores, what taste is read from, and what that was made of."""
    seen = calm.see(pixels)
    scores = calm.score_aligned(seen.aligned, [own | seen.timings for own in timings or [{} for _ in pixels]], frames)
    manifest = calm.bundle.manifest
    return scores, taste_features(seen, scores, picture_statistics(pixels, manifest.photo), manifest.reference), seen


def _signed(profile: Profile) -> Profile:
    blank = replace(profile, info=msgspec.structs.replace(profile.info, digest=""))
    digest = hashlib.sha256(_serialise(blank)).hexdigest()
    return replace(profile, info=msgspec.structs.replace(profile.info, digest=digest))


def _encode(profile: Profile) -> bytes:
    return _serialise(_signed(profile))


def _serialise(profile: Profile) -> bytes:
    taste = profile.taste
    head: dict[str, npt.NDArray[Any]] = {"weights": np.asarray(taste.weights), "centre": np.asarray(taste.centre)}
    return save(head | profile.context, metadata={_KEY: msgspec.json.encode(profile.info).decode()})


def _is_finite(profile: Profile) -> bool:
    taste = profile.taste
    numbers = (
        taste.weights,
        taste.centre,
        np.array([taste.mean, taste.std, profile.info.context_weight]),
        *profile.context.values(),
    )
    return all(np.isfinite(values).all() for values in numbers)
