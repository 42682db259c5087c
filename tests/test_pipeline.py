"""Promises of scoring: the same photo, the same score, whatever shares its batch, its thread or its cache."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps

from calm_runtime import Calm, Score
from calm_runtime import llm as llm_module
from calm_runtime.batch import Decoded, Frames, Timings, score_in_batches
from calm_runtime.bundle import LlmSpec
from calm_runtime.errors import (
    CalmError,
    EngineError,
    PhotoNotFound,
    PhotoTooSmall,
    PhotoUnreadable,
    ScoreError,
    UsageError,
)
from calm_runtime.llm import LanguageModel, Sampling, draw
from calm_runtime.onnx_session import OnnxSession
from calm_runtime.photo import PhotoLimits
from calm_runtime.prompt import PROMPTS, Part
from calm_runtime.session import Array

BATCH_BOUND = 1e-4  # rating points


@pytest.fixture(scope="module")
def scores(calm: Calm, example_photos: list[Path]) -> dict[Path, Score]:
    return {photo: calm.score(photo) for photo in example_photos}


def test_a_score_tells_what_it_means_and_where_it_comes_from(calm: Calm, scores: dict[Path, Score]) -> None:
    manifest = calm.bundle.manifest
    for score in scores.values():
        assert score.scale == (1, 10)
        assert 1 <= score.mean <= 10
        assert score.std > 0
        assert 1 <= score.technical <= 10
        assert score.percentile == manifest.reference.percentile(score.mean)
        assert math.fsum(score.histogram) == pytest.approx(1)
        assert score.mean == pytest.approx(sum(k * p for k, p in enumerate(score.histogram, 1)))
        assert list(score.attributes) == [a.name for a in manifest.attributes]
        assert score.model == f"{manifest.model.name} {manifest.model.version}"
        assert score.bundle == manifest.digest
        assert set(score.timings) == {"decode", "vision", "aligner", "llm", "total"}


def test_the_technical_rating_is_read_at_the_same_place_from_tokens_of_its_own(
    calm: Calm, example_photos: list[Path], scores: dict[Path, Score]
) -> None:
    photo = example_photos[0]
    before, after = calm._prompt("score")
    image = calm.see(calm.decode(photo).pixels[None]).aligned.image_embeds[0]
    logits = calm._llm.logits(np.concatenate([calm._llm.embed(before), image, calm._llm.embed(after)])[None])[0]
    picked = logits[list(calm.bundle.manifest.technical.token_ids)].astype(np.float64)
    weights = np.exp(picked - picked.max())
    assert scores[photo].technical == pytest.approx(weights @ np.arange(1, 11) / weights.sum(), abs=1e-4)
    assert scores[photo].technical != pytest.approx(scores[photo].mean, abs=1e-3)


def test_a_frame_costs_a_photo_nothing_and_is_told(
    calm: Calm, example_photos: list[Path], scores: dict[Path, Score], tmp_path: Path
) -> None:
    photo = example_photos[0]
    with Image.open(photo) as picture:
        ImageOps.expand(picture, 60, "white").save(tmp_path / "framed.png")
    whole, plain = calm.score(tmp_path / "framed.png"), scores[photo]
    assert plain.frame is None
    assert whole.frame is not None
    assert min(whole.frame) > 0.02
    assert whole.mean == pytest.approx(plain.mean, abs=0.3)
    look = calm.look(tmp_path / "framed.png")
    assert look.score().frame == whole.frame
    batch = list(calm.score_many([photo, tmp_path / "framed.png"]))
    assert [result.score.frame for result in batch if result.score] == [None, whole.frame]
    assert look.suggest().score.mean == pytest.approx(whole.mean, abs=BATCH_BOUND)


def test_scores_differ_between_photos(scores: dict[Path, Score]) -> None:
    assert len({round(score.mean, 3) for score in scores.values()}) > len(scores) // 2


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_a_score_does_not_depend_on_its_batch(
    calm: Calm, example_photos: list[Path], scores: dict[Path, Score], batch_size: int
) -> None:
    for photos in (example_photos, example_photos[::-1], example_photos[3:] + example_photos[:3]):
        for photo, result in zip(photos, calm.score_many(photos, batch_size), strict=True):
            assert result.score is not None
            assert result.path == str(photo)
            assert abs(result.score.mean - scores[photo].mean) < BATCH_BOUND
            assert abs(result.score.std - scores[photo].std) < BATCH_BOUND


def test_one_good_photo_among_bad_ones_keeps_its_score(
    calm: Calm, example_photos: list[Path], scores: dict[Path, Score], tmp_path: Path
) -> None:
    good = example_photos[0]
    empty, cut = tmp_path / "empty.jpg", tmp_path / "cut.jpg"
    empty.touch()
    cut.write_bytes(good.read_bytes()[:2000])
    results = list(calm.score_many([empty, tmp_path / "missing.jpg", good, cut, b"junk"], batch_size=4))
    assert [type(r.error) for r in results] == [
        PhotoUnreadable, PhotoNotFound, type(None), PhotoUnreadable, PhotoUnreadable
    ]  # fmt: skip
    assert results[2].score is not None
    assert abs(results[2].score.mean - scores[good].mean) < BATCH_BOUND


def test_only_bad_photos_and_no_photos(calm: Calm) -> None:
    assert [type(r.error) for r in calm.score_many([b"a", b"b", b"c"] * 5, 2)] == [PhotoUnreadable] * 15
    assert list(calm.score_many([])) == []


def test_many_photos_are_read_lazily(calm: Calm, example_photos: list[Path]) -> None:
    taken = 0

    def photos() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield example_photos[0]

    results = calm.score_many(photos(), batch_size=2)
    for _ in range(3):
        assert next(results).score is not None
    results.close()  # type: ignore[attr-defined]
    assert taken <= 3 * 2 * 2


def test_a_wrong_batch_size_is_refused_at_once(calm: Calm) -> None:
    with pytest.raises(UsageError, match="batch size"):
        calm.score_many([], batch_size=0)


class OneBadRow:
    """A model that fails whenever a marked photo is in the batch."""

    def __init__(self, calm: Calm) -> None:
        self._calm = calm

    def decode(self, photo: str | Path | bytes) -> Decoded:
        decoded = self._calm.decode(Path(str(photo).removeprefix("bad:")))
        bad = str(photo).startswith("bad:")
        return decoded._replace(pixels=decoded.pixels * np.float32(np.nan)) if bad else decoded

    def score_pixels(self, pixels: npt.NDArray[np.float32], timings: Timings, frames: Frames = None) -> list[Score]:
        # Pixels that are no number come out of clipped activations as numbers: the fault is put behind them
        aligned = self._calm.see(np.nan_to_num(pixels)).aligned
        bad = np.isnan(pixels).any(axis=(1, 2, 3))
        embeds = np.where(bad[:, None, None], np.float32(np.nan), aligned.image_embeds)
        return self._calm.score_aligned(aligned._replace(image_embeds=embeds), timings, frames)


def test_a_nan_from_the_model_is_an_error_and_costs_no_neighbour(calm: Calm, example_photos: list[Path]) -> None:
    good = str(example_photos[0])
    first, bad, last = score_in_batches(OneBadRow(calm), [good, f"bad:{good}", good], batch_size=3)
    assert isinstance(bad.error, ScoreError)
    assert first.score is not None
    assert last.score is not None
    assert first.score.mean == pytest.approx(last.score.mean, abs=BATCH_BOUND)


def test_branches_of_a_look_equal_a_fresh_prefill(
    calm: Calm, example_photos: list[Path], scores: dict[Path, Score]
) -> None:
    photo = example_photos[1]
    look = calm.look(photo)
    cache = next(iter(look._caches.values()))
    before = [(key.copy(), value.copy()) for key, value in cache.layers]
    first = look.score()
    words = "".join(look.answer("comment", max_new_tokens=12))
    question = "".join(look.answer("ask", "Is the horizon straight?", max_new_tokens=12))
    assert abs(first.mean - scores[photo].mean) < BATCH_BOUND
    assert look.score().histogram == first.histogram
    assert "".join(look.answer("comment", max_new_tokens=12)) == words
    assert "".join(calm.look(photo).answer("comment", max_new_tokens=12)) == words
    assert "".join(calm.look(photo).answer("ask", "Is the horizon straight?", max_new_tokens=12)) == question
    for (key, value), (old_key, old_value) in zip(cache.layers, before, strict=True):
        assert np.array_equal(key, old_key)
        assert np.array_equal(value, old_value)
        with pytest.raises(ValueError, match="read-only"):
            key[:] = 0


def test_reading_in_pieces_equals_reading_at_once(calm: Calm) -> None:
    llm: LanguageModel = calm._llm
    ids = np.random.default_rng(0).integers(0, llm.spec.vocab_size, 40).tolist()
    whole, _ = llm.prefill(llm.embed(ids)[None])
    _, cache = llm.prefill(llm.embed(ids[:25])[None])
    _, cache = llm.prefill(llm.embed(ids[25:39])[None], cache)
    pieces, cache = llm.prefill(llm.embed(ids[39:])[None], cache)
    assert cache.length == 40
    assert np.abs(pieces - whole).max() < 1e-3


def test_decoding_in_place_equals_copying_and_leaves_the_shared_cache_alone(
    calm: Calm, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm: LanguageModel = calm._llm
    ids = np.random.default_rng(2).integers(0, llm.spec.vocab_size, 40).tolist()
    _, cache = llm.prefill(llm.embed(ids[:30])[None])
    before = [(key.copy(), value.copy()) for key, value in cache.layers]
    poisoned = np.empty
    monkeypatch.setattr(np, "empty", lambda *a, **k: np.full_like(poisoned(*a, **k), np.nan))
    for stride in (1, 3, 256):  # the buffer's unused end must not be read
        monkeypatch.setattr(llm_module, "_STRIDE", stride)
        in_place, copying = llm.decoder(cache, 10), llm._copying_decoder(llm._session, cache)
        for token in ids[30:]:
            assert np.array_equal(in_place(token), copying(token))
    for (key, value), (old_key, old_value) in zip(cache.layers, before, strict=True):
        assert np.array_equal(key, old_key)
        assert np.array_equal(value, old_value)
    closed = LanguageModel(OnnxSession(calm.bundle.file("llm/model.onnx")), calm._llm._table, llm.spec)
    stream = closed.generate(cache, ids[:1], 3, stop=())
    next(stream)
    closed.close()
    for late in (stream, closed.generate(cache, ids[:1], 3, stop=())):
        with pytest.raises(EngineError, match="closed"):
            next(late)


def test_rows_of_a_prefill_do_not_see_each_other(calm: Calm) -> None:
    llm: LanguageModel = calm._llm
    rows = np.random.default_rng(1).integers(0, llm.spec.vocab_size, (5, 20))
    together, _ = llm.prefill(np.stack([llm.embed(row.tolist()) for row in rows]))
    for row, logits in zip(rows, together, strict=True):
        alone, _ = llm.prefill(llm.embed(row.tolist())[None])
        assert np.abs(alone[0] - logits).max() < 1e-3


class Parrot:
    """A decoder of 8 tokens that likes token n + 1 best after token n, then token 7, then the others."""

    device = "cpu"
    input_dtypes: ClassVar = {"past_key_values.0.key": np.dtype(np.float32)}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        embeds, mask = feeds["inputs_embeds"], feeds["attention_mask"]
        past = feeds["past_key_values.0.key"]
        assert mask.shape[1] == past.shape[2] + embeds.shape[1]
        logits = np.zeros((len(embeds), 1, 8), np.float32)
        logits[:, :, 7] = 1
        logits[0, 0, (int(embeds[0, -1].argmax()) + 1) % 8] = 2
        present = np.zeros((len(embeds), 1, mask.shape[1], 1), np.float32)
        return {"logits": logits, "present.0.key": present, "present.0.value": present.copy()}

    def close(self) -> None: ...


@pytest.fixture
def parrot() -> LanguageModel:
    return LanguageModel(Parrot(), np.eye(8, dtype=np.float32), LlmSpec(8, 1, 1, 1, 8, 12, 0, 6, 0))


def test_generation_stops_at_a_stop_token_and_at_the_limits(parrot: LanguageModel) -> None:
    _, cache = parrot.prefill(parrot.embed([0])[None])
    assert list(parrot.generate(cache, [1], 20, stop={6})) == [2, 3, 4, 5]
    assert list(parrot.generate(cache, [1], 3, stop={6})) == [2, 3, 4]
    assert len(list(parrot.generate(cache, [1], 99, stop=()))) == 10  # the context of 12 is full
    with pytest.raises(UsageError, match="13 tokens"):
        parrot.prefill(parrot.embed([0] * 12)[None], cache)


def test_forbidden_tokens_are_never_drawn(parrot: LanguageModel) -> None:
    _, cache = parrot.prefill(parrot.embed([0])[None])
    assert list(parrot.generate(cache, [1], 3, stop=(), forbidden={3})) == [2, 7, 0]
    hot = Sampling(temperature=5.0, seed=0)
    for _ in range(20):
        assert {3, 7}.isdisjoint(parrot.generate(cache, [1], 9, stop=(), forbidden={3, 7}, sampling=hot))


def test_text_holds_no_rating_tokens(calm: Calm, example_photos: list[Path]) -> None:
    look = calm.look(example_photos[0])
    # After this prompt a score token is what the model wants to say.
    answer = "".join(look.answer("score", max_new_tokens=8))
    assert "<score_" not in answer
    assert "<technical_" not in answer
    spec = calm.bundle.manifest
    _, after = calm._prompt("score")
    barred = list(calm._llm.generate(next(iter(look._caches.values())), after, 8, (), spec.rating_tokens))
    assert set(barred).isdisjoint(spec.rating_tokens)


def test_sampling_is_repeatable_and_bounded(calm: Calm, example_photos: list[Path]) -> None:
    look = calm.look(example_photos[2])
    options = {"temperature": 1.0, "top_p": 0.9, "max_new_tokens": 10}
    one, two = ("".join(look.answer("comment", seed=7, **options)) for _ in range(2))  # type: ignore[arg-type]
    assert one == two
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
    random = np.random.default_rng(0)
    drawn = {draw(logits, Sampling(1.0, 0.7), random) for _ in range(200)}
    assert drawn == {0, 1}
    assert {draw(logits, Sampling(), random) for _ in range(5)} == {0}


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"temperature": float("nan")}])
def test_wrong_sampling_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Sampling(**wrong)  # type: ignore[arg-type]


def test_a_closed_stream_runs_the_model_no_further(
    calm: Calm, example_photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    look = calm.look(example_photos[0])
    whole = "".join(look.comment())
    embed, calls = calm._llm.embed, 0

    def counted(ids: Sequence[int]) -> object:
        nonlocal calls
        calls += 1
        return embed(ids)

    monkeypatch.setattr(calm._llm, "embed", counted)
    pieces = look.comment()
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    after_close = calls
    assert 0 < after_close < 12
    assert list(pieces) == []
    assert calls == after_close
    monkeypatch.undo()
    assert "".join(look.comment()) == whole


def test_wrong_questions_are_refused_at_once(calm: Calm, example_photos: list[Path]) -> None:
    look = calm.look(example_photos[0])
    with pytest.raises(UsageError, match="no task 'sing'"):
        look.answer("sing")
    if any(Part(slot="question") in prompt for prompt in calm.bundle.manifest.prompts.values()):
        assert PROMPTS["ask"]
        with pytest.raises(UsageError, match="needs a question"):
            look.answer("ask")
        with pytest.raises(UsageError, match="too long"):
            look.answer("ask", "why " * 5000)


def test_eight_threads_share_one_model(calm: Calm, example_photos: list[Path], scores: dict[Path, Score]) -> None:
    barrier = threading.Barrier(8)

    def work(index: int) -> tuple[Path, Score, str]:
        photo = example_photos[index % len(example_photos)]
        barrier.wait()
        look = calm.look(photo)
        return photo, look.score(), "".join(look.answer("comment", max_new_tokens=6))

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    for photo, score, words in results:
        assert abs(score.mean - scores[photo].mean) < BATCH_BOUND
        assert words == "".join(calm.look(photo).answer("comment", max_new_tokens=6))


def test_limits_are_the_callers(nano_bundle: Path, example_photos: list[Path]) -> None:
    with Calm.load(nano_bundle, limits=PhotoLimits(min_side=5000)) as strict, pytest.raises(PhotoTooSmall):
        strict.score(example_photos[0])


def test_a_closed_model_says_so(nano_bundle: Path, example_photos: list[Path]) -> None:
    model = Calm.load(nano_bundle)
    model.close()
    model.close()
    with pytest.raises(EngineError, match="closed"):
        model.score(example_photos[0])


@pytest.mark.parametrize("wrong", [{"engine": "abacus"}, {"threads": 0}])
def test_wrong_options_are_refused(nano_bundle: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Calm.load(nano_bundle, **wrong)  # type: ignore[call-overload]


def test_memory_does_not_grow(calm: Calm, example_photos: list[Path]) -> None:
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("reads /proc")

    def resident() -> int:
        return int(status.read_text().split()[1]) * 4096

    for result in calm.score_many(example_photos * 3, 4):
        assert not isinstance(result.error, CalmError)
    before = resident()
    for _ in calm.score_many(example_photos * 6, 4):
        pass
    assert resident() - before < 40_000_000
