"""Promises that need an NVIDIA GPU: engines give the CPU's answers, faster, in flat memory. Skipped where none answers.

python -m pytest -m gpu tests/test_gpu.py -s     exports calm-nano with engines for this GPU, checks, prints the times

CALM_GPU_BUNDLE names a bundle with such engines to take instead, their largest batch 8.
docs/export.md, "On a machine with a GPU", says what to install.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from gpu_figures import cosine, seconds

from calm_runtime import Calm
from calm_runtime.bundle import Bundle, Graph, Stage, open_bundle
from calm_runtime.cuda_driver import CudaDriver, compute_capability, host_view
from calm_runtime.device_memory import DeviceArray
from calm_runtime.errors import EngineError
from calm_runtime.onnx_session import OnnxSession
from calm_runtime.photo import load_photo, to_pixel_values
from calm_runtime.session import Array, Session
from calm_runtime.tensorrt_session import TensorRtSession

CHECKPOINT = Path(__file__).resolve().parents[1] / "models" / "calm-nano"
LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # export target -> import name
LARGEST = 8
MIN_COSINE = 0.999  # the gate of fp16
MAX_SCORE_DIFFERENCE = 0.05
MEBIBYTE = 2**20


def _target() -> str | None:
    """The engine target this machine can build and run, TensorRT first."""
    return next((target for target, module in LIBRARIES.items() if importlib.util.find_spec(module)), None)


def _obstacle() -> str | None:
    if compute_capability() is None:
        return "no NVIDIA GPU answers"
    if _target() is None:
        return "neither tensorrt nor tensorrt_rtx is installed"
    return None if importlib.util.find_spec("cuda") else "cuda-bindings is not installed"


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(1800),  # the export compares 100 photos on the CPU
    pytest.mark.skipif(_obstacle() is not None, reason=str(_obstacle())),
]


@dataclass(frozen=True)
class Made:
    """A bundle with engines for this GPU."""

    bundle: Bundle
    target: str

    def graph(self, stage: Stage) -> Graph:
        found = self.bundle.graph(stage, self.target)  # type: ignore[arg-type]
        assert found is not None
        return found

    def engine(self, stage: Stage, **options: bool) -> TensorRtSession:
        return TensorRtSession(self.bundle.file(self.graph(stage).path), LIBRARIES[self.target], **options)

    def onnx(self, stage: Stage) -> OnnxSession:
        return OnnxSession(self.bundle.file(f"{stage}.onnx"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, example_photos: list[Path]) -> Made:
    target = _target()
    assert target is not None
    if given := os.environ.get("CALM_GPU_BUNDLE"):
        return Made(open_bundle(given), target)
    from calm_export.bundle import ExportOptions, export_bundle

    folder = tmp_path_factory.mktemp("gpu") / "bundle"
    options = ExportOptions(
        targets=("cpu", target), llm_precision="int4", batches=(1, LARGEST, LARGEST), examples=tuple(example_photos)
    )
    export_bundle(CHECKPOINT, folder, options)
    return Made(open_bundle(folder), target)


@pytest.fixture(scope="module")
def pixels(made: Made, example_photos: list[Path]) -> np.ndarray:
    spec = made.bundle.manifest.photo
    return np.stack([to_pixel_values(load_photo(path, spec), spec) for path in example_photos[:LARGEST]])


@pytest.fixture
def opened(made: Made) -> Iterator[Callable[..., TensorRtSession]]:
    sessions: list[TensorRtSession] = []

    def make(stage: Stage, **options: bool) -> TensorRtSession:
        sessions.append(made.engine(stage, **options))
        return sessions[-1]

    yield make
    for session in sessions:
        session.close()


def chained(encoder: Session, aligner: Session, pixel_values: Array) -> dict[str, Array]:
    hidden = encoder.run({"pixel_values": pixel_values})
    return aligner.run({name: hidden[name] for name in aligner.input_dtypes})


def test_what_is_copied_to_the_gpu_comes_back() -> None:
    cuda = CudaDriver()
    cuda.activate()
    values = np.random.default_rng(0).random(1 << 20, np.float32)
    size = values.nbytes
    stream, device, host = cuda.create_stream(), cuda.allocate(size), cuda.allocate_host(size)
    view = host_view(host, values.shape, values.dtype)
    view[...] = values
    cuda.to_device(device, host, size, stream)
    cuda.synchronize(stream)
    view[...] = 0
    cuda.to_host(host, device, size, stream)
    cuda.synchronize(stream)
    assert np.array_equal(view, values)
    read = np.empty_like(values)
    cuda.read(read.ctypes.data, device, size)
    assert np.array_equal(read, values)
    cuda.free(device)
    cuda.free_host(host)
    cuda.destroy_stream(stream)
    with pytest.raises(EngineError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        cuda.allocate(1 << 50)


@pytest.mark.parametrize("rows", [1, 3, LARGEST])
def test_engines_see_what_the_cpu_sees(
    made: Made, pixels: np.ndarray, opened: Callable[..., TensorRtSession], rows: int
) -> None:
    hidden = made.onnx("vision_encoder").run({"pixel_values": pixels[:rows]})
    seen = opened("vision_encoder").run({"pixel_values": pixels[:rows]})
    assert {name: cosine(seen[name], hidden[name]) > MIN_COSINE for name in hidden} == dict.fromkeys(hidden, True)
    states = {name: hidden[name] for name in made.onnx("aligner").input_dtypes}
    aligned = made.onnx("aligner").run(states)
    found = opened("aligner").run(states)
    assert {name: cosine(found[name], aligned[name]) > MIN_COSINE for name in aligned} == dict.fromkeys(aligned, True)


def test_scores_are_the_cpus(made: Made, example_photos: list[Path]) -> None:
    with Calm.load(made.bundle.path, engine="cpu") as cpu, Calm.load(made.bundle.path, engine=made.target) as gpu:
        assert gpu.engine.vision_encoder.graph.target == made.target
        expected = np.array([cpu.score(photo).mean for photo in example_photos])
        alone = np.array([gpu.score(photo).mean for photo in example_photos])
        many = [scored.score for scored in gpu.score_many(example_photos, LARGEST)]
    assert None not in many
    together = np.array([score.mean for score in many if score is not None])
    assert np.abs(alone - expected).max() < MAX_SCORE_DIFFERENCE
    assert np.abs(together - alone).max() < MAX_SCORE_DIFFERENCE


def test_handed_over_hidden_states_give_the_same(pixels: np.ndarray, opened: Callable[..., TensorRtSession]) -> None:
    kept, fetched, aligner = opened("vision_encoder", keep_on_device=True), opened("vision_encoder"), opened("aligner")
    assert all(isinstance(value, DeviceArray) for value in kept.run({"pixel_values": pixels}).values())
    for rows in (LARGEST, 1, LARGEST, LARGEST):
        expected = chained(fetched, aligner, pixels[:rows])
        found = chained(kept, aligner, pixels[:rows])
        assert min(cosine(found[name], expected[name]) for name in expected) > 0.99999


def test_recorded_batches_give_the_same(pixels: np.ndarray, opened: Callable[..., TensorRtSession]) -> None:
    recorded, plain = opened("vision_encoder"), opened("vision_encoder", cuda_graphs=False)
    for shift in range(4):
        for rows in (LARGEST, 1):
            feed = {"pixel_values": np.roll(pixels, shift, axis=0)[:rows]}
            expected, found = plain.run(feed), recorded.run(feed)
            assert min(cosine(found[name], expected[name]) for name in expected) > 0.99999


def test_threads_get_their_own_answers(made: Made, pixels: np.ndarray, opened: Callable[..., TensorRtSession]) -> None:
    encoder, aligner = opened("vision_encoder", keep_on_device=True), opened("aligner")
    expected = [chained(encoder, aligner, pixels[i : i + 1])["image_embeds"] for i in range(4)]

    def worst(i: int) -> float:
        found = (chained(encoder, aligner, pixels[i : i + 1])["image_embeds"] for _ in range(30))
        return min(cosine(embeds, expected[i]) for embeds in found)

    with ThreadPoolExecutor(4) as threads:
        assert min(threads.map(worst, range(4))) > 0.99999


def test_memory_is_flat_and_given_back(made: Made, pixels: np.ndarray) -> None:
    cuda = CudaDriver()
    cuda.activate()

    def cycle(runs: int) -> int:
        encoder, aligner = made.engine("vision_encoder", keep_on_device=True), made.engine("aligner")
        for i in range(20):
            chained(encoder, aligner, pixels[: 1 + i % LARGEST])
        before = cuda.free_bytes()
        for i in range(runs):
            chained(encoder, aligner, pixels[: 1 + i % LARGEST])
        grown = before - cuda.free_bytes()
        encoder.close()
        aligner.close()
        return grown

    cycle(0)  # what the library keeps for the life of the process
    free = cuda.free_bytes()
    assert cycle(200) < 4 * MEBIBYTE
    assert free - cuda.free_bytes() < 32 * MEBIBYTE


def test_engines_are_faster_than_the_cpu(
    made: Made, pixels: np.ndarray, opened: Callable[..., TensorRtSession]
) -> None:
    encoder, kept, aligner = opened("vision_encoder"), opened("vision_encoder", keep_on_device=True), opened("aligner")
    plain, plain_aligner = (
        opened("vision_encoder", keep_on_device=True, cuda_graphs=False),
        opened("aligner", cuda_graphs=False),
    )
    cpu = made.onnx("vision_encoder"), made.onnx("aligner")
    for rows in (1, LARGEST):
        batch = pixels[:rows]
        times = {
            "CPU": seconds(lambda batch=batch: chained(*cpu, batch), runs=5),
            "engines, hidden states over the host": seconds(lambda batch=batch: chained(encoder, aligner, batch)),
            "engines, without CUDA graphs": seconds(lambda batch=batch: chained(plain, plain_aligner, batch)),
            "engines": seconds(lambda batch=batch: chained(kept, aligner, batch)),
        }
        for name, spent in times.items():
            print(f"{made.target}, batch {rows}, {name}: {spent * 1e3:.2f} ms, {rows / spent:.0f} photos/s")
        assert times["engines"] < times["CPU"]
        assert times["engines"] < 1.1 * times["engines, hidden states over the host"]
        assert times["engines"] < 1.1 * times["engines, without CUDA graphs"]
