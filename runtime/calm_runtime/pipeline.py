"""Photo in, score and words out: the models of one bundle, loaded once."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Self, overload

import numpy as np
import numpy.typing as npt

from calm_runtime.aligner import Aligned, Aligner, PhotoFeatures
from calm_runtime.batch import Decoded, Frames, Scored, Timings, score_in_batches
from calm_runtime.bundle import DEFAULT_BUNDLE, Bundle, open_bundle
from calm_runtime.errors import BundleCorrupt, UsageError
from calm_runtime.in_context import InContextReader
from calm_runtime.llm import KvCache, LanguageModel, Sampling
from calm_runtime.photo import PhotoLimits, leave_out_frame, load_photo, photo_name, to_pixel_values
from calm_runtime.prompt import EXAMPLE, PERSONAL, split_prompt
from calm_runtime.readout import read_scores
from calm_runtime.score import SCORE_HIGH, SCORE_LOW, Frame, Score
from calm_runtime.session import EngineChoice, select_engine
from calm_runtime.text import TextTokenizer, until, without_leading_space
from calm_runtime.vision import PHOTO_EMBEDS, VisionEncoder

if TYPE_CHECKING:
    from PIL import Image

    from calm_runtime.remote import RemoteCalm
    from calm_runtime.suggest import Suggestions

Photo = str | Path | bytes
REMOTE_SCHEME = "grpc://"
MAX_NEW_TOKENS = 160


class Calm:
    """One bundle's models. Safe to use from several threads; `close` or a with-block frees the engines."""

    def __init__(
        self,
        bundle: Bundle,
        engine: EngineChoice,
        vision: VisionEncoder,
        aligner: Aligner,
        llm: LanguageModel,
        text: TextTokenizer,
        limits: PhotoLimits,
    ) -> None:
        self.bundle = bundle
        self.engine = engine
        self.limits = limits
        self._vision = vision
        self._aligner = aligner
        self._llm = llm
        self._text = text
        before, after = self._prompt("score")
        self._before_embeds = llm.embed(before)
        self._score_embeds = llm.embed(after)

    @overload
    @classmethod
    def load(cls, source: Path | None = None, engine: str = ..., threads: int | None = ...,
             limits: PhotoLimits | None = ..., verify: bool = ...) -> Calm: ...  # fmt: skip

    @overload
    @classmethod
    def load(cls, source: str, engine: str = ..., threads: int | None = ...,
             limits: PhotoLimits | None = ..., verify: bool = ...) -> Calm | RemoteCalm: ...  # fmt: skip

    @classmethod
    def load(
        cls,
        source: str | Path | None = None,
        engine: str = "auto",
        threads: int | None = None,
        limits: PhotoLimits | None = None,
        verify: bool = True,
    ) -> Calm | RemoteCalm:
        """Load a bundle, or connect to a Triton server.

        source: None for the bundled model, a bundle's folder, or "grpc://host:port".
        engine: one of `session.ENGINES`. threads: CPU threads, None lets ONNX Runtime decide.
        verify: check the digest of every file first.
        Raises BundleNotFound, BundleCorrupt, EngineMissing, EngineError, UsageError, or RemoteError.
        """
        if isinstance(source, str) and source.startswith(REMOTE_SCHEME):
            from calm_runtime.remote import RemoteCalm

            return RemoteCalm(source)
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be 1 or more, not {threads}")
        from calm_runtime.engine import hands_over, open_language_model, open_session
        from calm_runtime.hardware import installed_libraries, probe_hardware

        bundle = open_bundle(source or DEFAULT_BUNDLE, verify=verify)
        manifest = bundle.manifest
        if (manifest.score.low, manifest.score.high) != (SCORE_LOW, SCORE_HIGH):
            raise BundleCorrupt(f"{bundle.path}: rates from {manifest.score.low} to {manifest.score.high}, not 1 to 10")
        choice = select_engine(manifest, installed_libraries(), probe_hardware(), engine)
        return cls(
            bundle,
            choice,
            VisionEncoder(open_session(bundle, choice.vision_encoder, threads, keep_on_device=hands_over(choice))),
            Aligner(open_session(bundle, choice.aligner, threads)),
            open_language_model(bundle, choice, threads),
            TextTokenizer(bundle.file("tokenizer.json"), manifest.llm.bos_token_id),
            limits or PhotoLimits(),
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the bundle can be asked about one photo."""
        return tuple(task for task in self.bundle.manifest.prompts if task not in (PERSONAL, EXAMPLE))

    def look(self, photo: Photo) -> Look:
        """Decode and read a photo once; the answers to every question branch off from there. Raises PhotoError."""
        picture, (pixels, timings, frame) = self._open(photo)
        seen = self.see(pixels[None])
        return Look(self, photo_name(photo), picture, seen.aligned, timings | seen.timings, frame)

    def score(self, photo: Photo) -> Score:
        """Score one photo. Raises PhotoError, EngineError or ScoreError."""
        pixels, timings, frame = self.decode(photo)
        return self.score_pixels(pixels[None], [timings], [frame])[0]

    def score_many(self, photos: Iterable[Photo], batch_size: int = 8) -> Iterator[Scored]:
        """Score any number of photos lazily, in order, one `Scored` each; a bad photo is an error of its own."""
        return score_in_batches(self, photos, batch_size)

    def comment(self, photo: Photo) -> Iterator[str]:
        """Comment on one photo, piece by piece. Raises PhotoError before the first piece."""
        return self.look(photo).comment()

    def suggest(self, photo: Photo) -> Suggestions:
        """What to do about one photo: edits that were tried and raise its score. Raises as `Look.suggest`, or PhotoError."""
        return self.look(photo).suggest()

    def decode(self, photo: Photo) -> Decoded:
        """The photo as the model reads it. Raises PhotoError."""
        return self._open(photo)[1]

    def score_pixels(self, pixels: npt.NDArray[np.float32], timings: Timings, frames: Frames = None) -> list[Score]:
        """Score a batch: pixel_values [B, 3, S, S] f32, timings so far and frame left out per photo. One prefill reads it all.

        A photo's time per stage is its share of the batch. Raises EngineError or ScoreError for the whole batch.
        """
        seen = self.see(pixels)
        return self.score_aligned(seen.aligned, [own | seen.timings for own in timings], frames)

    def see(self, pixels: npt.NDArray[np.float32]) -> PhotoFeatures:
        """pixel_values [B, 3, S, S] f32 -> what vision encoder and aligner make of them. Raises EngineError."""
        start = perf_counter()
        seen = self._vision(pixels)
        middle = perf_counter()
        aligned = self._aligner(seen)
        batch = len(pixels)
        timings = {"vision": (middle - start) * 1e3 / batch, "aligner": _ms_since(middle) / batch}
        return PhotoFeatures(aligned, seen[PHOTO_EMBEDS], timings)

    def score_aligned(self, aligned: Aligned, timings: Timings, frames: Frames = None) -> list[Score]:
        """Score a batch of B photos the aligner has read; per photo as for `score_pixels`, which it raises as."""
        batch = len(aligned.image_embeds)
        start = perf_counter()
        parts = (self._before_embeds[None].repeat(batch, 0), aligned.image_embeds,
                 self._score_embeds[None].repeat(batch, 0))  # fmt: skip
        logits = self._llm.logits(np.concatenate(parts, axis=1))
        spent = {"llm": _ms_since(start) / batch}
        return self._read(logits, aligned, [own | spent for own in timings], frames)

    @property
    def in_context(self) -> InContextReader:
        """What reads a person's rated photos from the prompt."""
        return InContextReader(self._llm, self._text, self.bundle.manifest)

    def close(self) -> None:
        """Free the engines. Idempotent."""
        self._vision.close()
        self._aligner.close()
        self._llm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open(self, photo: Photo) -> tuple[Image.Image, Decoded]:
        start = perf_counter()
        spec = self.bundle.manifest.photo
        picture, frame = leave_out_frame(load_photo(photo, spec, self.limits), spec)
        return picture, Decoded(to_pixel_values(picture, spec), {"decode": _ms_since(start)}, frame)

    def _read(self, logits: npt.NDArray[np.float32], aligned: Aligned, timings: Timings, frames: Frames) -> list[Score]:
        rounded = [{stage: round(ms, 3) for stage, ms in row.items()} for row in timings]
        total = [row | {"total": round(sum(row.values()), 3)} for row in rounded]
        return read_scores(logits, aligned.attribute_logits, self.bundle.manifest, total, frames)

    def _prompt(self, task: str, question: str | None = None) -> tuple[list[int], list[int]]:
        if task not in self.tasks:
            raise UsageError(f"the model has no task {task!r}; it has {', '.join(self.tasks)}")
        return split_prompt(self.bundle.manifest.prompts[task], self._text, question)


class Look:
    """One photo, read once. Every answer branches off its KV cache, which is never changed."""

    def __init__(
        self,
        calm: Calm,
        photo: str,
        picture: Image.Image,
        aligned: Aligned,
        timings: dict[str, float],
        frame: Frame | None = None,
    ) -> None:
        self.photo = photo
        self._calm = calm
        self._picture = picture  # without its frame
        self._aligned = aligned
        self._frame = frame
        self._caches: dict[tuple[int, ...], KvCache] = {}
        self._lock = threading.Lock()
        before, _ = calm._prompt("score")
        start = perf_counter()
        self._cache(before)
        self._timings = timings | {"image": _ms_since(start)}

    def score(self) -> Score:
        """The photo's score. Raises EngineError or ScoreError."""
        before, after = self._calm._prompt("score")
        start = perf_counter()
        logits = self._calm._llm.logits(self._calm._llm.embed(after)[None], self._cache(before))
        timings = self._timings | {"llm": _ms_since(start)}
        return self._calm._read(logits, self._aligned, [timings], [self._frame])[0]

    def comment(self) -> Iterator[str]:
        """A critique, piece by piece."""
        return self.answer("comment")

    def suggest(self) -> Suggestions:
        """Edits that were tried on the photo and raise its score, best first. Raises EngineError or ScoreError."""
        from calm_runtime.suggest import find_suggestions

        words = "".join(self.answer("suggest")) if "suggest" in self._calm.tasks else ""
        spec = self._calm.bundle.manifest.photo
        return find_suggestions(self._calm, spec, self.photo, self._picture, words, self.score())

    def answer(
        self,
        task: str,
        question: str | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """The model's words on a task, piece by piece; rating tokens never appear in them.

        temperature 0 always gives the same words; else the same seed does. top_p keeps the likeliest tokens. stop: texts
        that end the answer and are left out. Closing the iterator ends the generation. Raises UsageError at once for an unknown task, a missing question or one that does not fit.
        """
        calm = self._calm
        sampling = Sampling(temperature, top_p, seed)
        before, after = calm._prompt(task, question)
        cache = self._cache(before)
        spec = calm.bundle.manifest.llm
        if cache.length + len(after) >= spec.context_length:
            raise UsageError(f"the question is too long: {len(after)} tokens; ask a shorter one")
        tokens = calm._llm.generate(
            cache,
            after,
            max_new_tokens,
            stop={spec.eos_token_id},
            forbidden={*calm.bundle.manifest.rating_tokens, spec.bos_token_id, spec.pad_token_id} - {spec.eos_token_id},
            sampling=sampling,
        )
        return until(without_leading_space(calm._text.stream(tokens)), stop)

    def _cache(self, before: list[int]) -> KvCache:
        """The cache after the image, for the tokens a prompt puts before it; the same for all tasks by default."""
        with self._lock:
            key = tuple(before)
            if key not in self._caches:
                embeds = np.concatenate([self._calm._llm.embed(before)[None], self._aligned.image_embeds], axis=1)
                _, self._caches[key] = self._calm._llm.prefill(embeds)
            return self._caches[key]


def _ms_since(start: float) -> float:
    return (perf_counter() - start) * 1e3
