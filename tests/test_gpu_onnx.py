"""Promises of the CUDA graphs on an NVIDIA GPU: the CPU's answers, from several threads, faster, in flat memory.

python -m pytest -m gpu tests/test_gpu_onnx.py -s     exports calm-nano with --target cuda, checks, prints the times

CALM_GPU_BUNDLE names a bundle with target cuda to take instead: such a machine need not be able to export.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from gpu_figures import cosine, seconds

from calm_runtime import Calm
from calm_runtime.bundle import Bundle, open_bundle
from calm_runtime.cuda_driver import CudaDriver, compute_capability
from calm_runtime.hardware import installed_libraries
from calm_runtime.llm import LanguageModel
from calm_runtime.onnx_session import OnDevice, OnnxSession

CHECKPOINT = Path(__file__).resolve().parents[1] / "models" / "calm-nano"
MAX_SCORE_DIFFERENCE = 0.2  # the gates of fp16 on the GPU and of the CPU's int4, one after the other
MEBIBYTE = 2**20


def _obstacle() -> str | None:
    if compute_capability() is None:
        return "no NVIDIA GPU answers"
    return None if "onnxruntime-gpu" in installed_libraries() else "onnxruntime-gpu is not installed"


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(1800),  # the export compares 100 photos on the CPU
    pytest.mark.skipif(_obstacle() is not None, reason=str(_obstacle())),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, example_photos: list[Path]) -> Bundle:
    if given := os.environ.get("CALM_GPU_BUNDLE"):
        return open_bundle(given)
    from calm_export.bundle import ExportOptions, export_bundle

    folder = tmp_path_factory.mktemp("gpu") / "bundle"
    export_bundle(CHECKPOINT, folder, ExportOptions(targets=("cpu", "cuda"), examples=tuple(example_photos)))
    return open_bundle(folder)


@pytest.fixture(scope="module")
def gpu(bundle: Bundle) -> Iterator[Calm]:
    with Calm.load(bundle.path, engine="cuda") as model:
        yield model


@pytest.fixture(scope="module")
def cpu(bundle: Bundle) -> Iterator[Calm]:
    with Calm.load(bundle.path, engine="cpu") as model:
        yield model


@pytest.fixture(scope="module")
def same_on_the_cpu(bundle: Bundle, gpu: Calm) -> LanguageModel:
    """The very graph of the GPU on the CPU's kernels."""
    graph = bundle.graph("llm", "cuda")
    assert graph is not None
    return LanguageModel(OnnxSession(bundle.file(graph.path)), gpu._llm._table, gpu._llm.spec)


def test_every_stage_runs_on_the_gpu(gpu: Calm) -> None:
    assert {choice.device for choice in gpu.engine.stages.values()} == {"cuda"}


def test_the_eyes_see_what_the_cpus_see(cpu: Calm, gpu: Calm, example_photos: list[Path]) -> None:
    pixels = np.stack([cpu.decode(photo)[0] for photo in example_photos[:8]])
    for rows in (1, 3, 8):
        expected, found = cpu.see(pixels[:rows])[0], gpu.see(pixels[:rows])[0]
        assert cosine(found.image_embeds, expected.image_embeds) > 0.999
        assert cosine(found.attribute_logits, expected.attribute_logits) > 0.999


def test_hidden_states_that_stay_on_the_gpu_give_the_same(
    bundle: Bundle, gpu: Calm, example_photos: list[Path]
) -> None:
    pixels = np.stack([gpu.decode(photo)[0] for photo in example_photos[:8]])
    stay = gpu._vision(pixels)
    assert all(isinstance(value, OnDevice) for value in stay.values())
    fetched = OnnxSession(bundle.file(gpu.engine.vision_encoder.graph.path), "cuda").run({"pixel_values": pixels})
    assert min(cosine(np.asarray(stay[name]), fetched[name]) for name in fetched) > 0.99999
    for found, expected in zip(gpu._aligner(stay), gpu._aligner(fetched), strict=True):
        assert cosine(found, expected) > 0.99999


def test_scores_are_the_cpus_alone_and_in_a_batch(cpu: Calm, gpu: Calm, example_photos: list[Path]) -> None:
    expected = np.array([cpu.score(photo).mean for photo in example_photos])
    alone = np.array([gpu.score(photo).mean for photo in example_photos])
    many = [scored.score for scored in gpu.score_many(example_photos, 8)]
    assert None not in many
    together = np.array([score.mean for score in many if score is not None])
    assert np.abs(alone - expected).max() < MAX_SCORE_DIFFERENCE
    assert np.abs(together - alone).max() < 0.02


def test_the_llm_reads_and_writes_as_its_graph_does_on_the_cpu(
    gpu: Calm, same_on_the_cpu: LanguageModel, example_photos: list[Path]
) -> None:
    llm = gpu._llm
    before, after = gpu._prompt("comment")
    for photo in example_photos[:4]:
        image = gpu.see(gpu.decode(photo)[0][None])[0].image_embeds
        embeds = np.concatenate([llm.embed(before)[None], image], axis=1)
        caches = [model.prefill(embeds)[1] for model in (llm, same_on_the_cpu)]
        logits = [model.prefill(llm.embed(after)[None], cache)[0]
                  for model, cache in zip((llm, same_on_the_cpu), caches, strict=True)]  # fmt: skip
        assert cosine(*logits) > 0.999
        words = [list(model.generate(cache, after, 12, ())) for model, cache in
                 zip((llm, same_on_the_cpu), caches, strict=True)]  # fmt: skip
        assert words[0][:4] == words[1][:4]


def test_a_cache_that_stays_on_the_gpu_gives_what_a_copied_one_gives(
    gpu: Calm, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = gpu._llm
    ids = np.random.default_rng(2).integers(0, llm.spec.vocab_size, 60).tolist()
    _, cache = llm.prefill(llm.embed(ids[:30])[None])
    before = [(key.copy(), value.copy()) for key, value in cache.layers]
    plain = np.empty
    monkeypatch.setattr(np, "empty", lambda *a, **k: np.full_like(plain(*a, **k), np.nan))  # the unused end
    stays, copied = llm.decoder(cache, 30), llm._copying_decoder(llm._session, cache)
    for token in ids[30:]:
        assert cosine(stays(token), copied(token)) > 0.9999
    for (key, value), (old_key, old_value) in zip(cache.layers, before, strict=True):
        assert np.array_equal(key, old_key)
        assert np.array_equal(value, old_value)


def test_threads_get_their_own_answers(gpu: Calm, example_photos: list[Path]) -> None:
    expected = [gpu.score(photo).mean for photo in example_photos[:4]]
    words = ["".join(gpu.look(photo).answer("comment", max_new_tokens=8)) for photo in example_photos[:4]]

    def worst(index: int) -> float:
        scores = [gpu.score(example_photos[index]).mean for _ in range(10)]
        assert "".join(gpu.look(example_photos[index]).answer("comment", max_new_tokens=8)) == words[index]
        return max(abs(score - expected[index]) for score in scores)

    with ThreadPoolExecutor(4) as threads:
        assert max(threads.map(worst, range(4))) < 0.02


def test_memory_is_flat(gpu: Calm, example_photos: list[Path]) -> None:
    cuda = CudaDriver()
    cuda.activate()
    pixels = np.stack([gpu.decode(photo)[0] for photo in example_photos[:8]])

    def use() -> None:
        for rows in (8, 1, 5):
            gpu.score_pixels(pixels[:rows], [{}] * rows)
        "".join(gpu.look(example_photos[0]).answer("comment", max_new_tokens=8))

    for _ in range(10):
        use()
    free = cuda.free_bytes()
    for _ in range(100):
        use()
    assert free - cuda.free_bytes() < 8 * MEBIBYTE


def test_it_is_faster_than_the_cpu(cpu: Calm, gpu: Calm, example_photos: list[Path]) -> None:
    pixels = np.stack([cpu.decode(photo)[0] for photo in example_photos[:8]])
    for rows in (1, 8):
        batch, timings = pixels[:rows], [{}] * rows
        times = {
            name: seconds(lambda model=model: model.score_pixels(batch, timings))  # noqa: B023
            for name, model in (("CPU", cpu), ("CUDA", gpu))
        }
        for name, spent in times.items():
            print(f"batch {rows}, {name}: {spent * 1e3:.2f} ms, {rows / spent:.0f} photos/s")
    assert times["CUDA"] < times["CPU"]  # in batches; one small photo at a time a CPU can be as fast
