"""Promises of engine sessions that hold without a GPU; tests/test_gpu.py holds those that need one."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from paper_gpu import F32, PaperDriver, PaperEngine, engine_bytes, paper_library

from calm_runtime import cuda_driver, tensorrt_session
from calm_runtime.bundle import Graph
from calm_runtime.cuda_driver import CudaDriver, compute_capability
from calm_runtime.cuda_graphs import RecentlyUsed, graph_mode, next_launch
from calm_runtime.device_memory import ALIGNMENT, BlockPool, DeviceArray, TensorSpec, plan_buffers
from calm_runtime.engine import hands_over
from calm_runtime.engine_file import check_engine_file
from calm_runtime.errors import EngineError, EngineMissing, EngineVersionMismatch
from calm_runtime.session import EngineChoice, Library, StageChoice
from calm_runtime.tensorrt_session import TensorRtSession

ENCODER, ALIGNER = b"e", b"a"


class Paper:
    """A paper GPU with an encoder (doubles) and an aligner (adds one), and the sessions opened on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.driver = PaperDriver()
        self.encoder = PaperEngine(self.driver, lambda x: x * 2, 4, ("x", "hidden"))
        self.aligner = PaperEngine(self.driver, lambda x: x + 1, 4, ("hidden", "y"))
        engines = {ENCODER: self.encoder, ALIGNER: self.aligner}
        for library, rtx in (("tensorrt", False), ("tensorrt_rtx", True)):
            monkeypatch.setitem(sys.modules, library, paper_library(engines, rtx))
        monkeypatch.setattr(tensorrt_session, "CudaDriver", lambda: self.driver)
        tensorrt_session._logger.cache_clear()
        self.folder = folder

    def open(self, which: bytes = ENCODER, library: str = "tensorrt", keep: bool = False) -> TensorRtSession:
        path = self.folder / f"{which.decode()}.engine"
        path.write_bytes(engine_bytes(which, library))
        return TensorRtSession(path, library, keep_on_device=keep)


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Paper:
    yield Paper(monkeypatch, tmp_path)
    tensorrt_session._logger.cache_clear()


def batch(rows: int, start: float = 0) -> np.ndarray:
    return np.arange(rows * 3, dtype=np.float32).reshape(rows, 3) + start


# Decisions


def test_a_plan_keeps_tensors_apart_and_aligned() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        count, most = random.integers(1, 6), int(random.integers(1, 40))
        specs = [
            TensorSpec(f"t{i}", np.dtype(random.choice(["f4", "f2", "i8"])), tuple(random.integers(1, 9, 2).tolist()))
            for i in range(count)
        ]
        plan = plan_buffers(specs, most)
        ends = [plan.offsets[spec.name] + spec.nbytes(most) for spec in specs]
        assert all(offset % ALIGNMENT == 0 for offset in plan.offsets.values())
        assert all(end <= plan.offsets[after.name] for end, after in zip(ends, specs[1:], strict=False))
        assert ends[-1] <= plan.nbytes < ends[-1] + ALIGNMENT


def test_a_plan_of_the_full_size_encoder() -> None:
    specs = [TensorSpec(name, F32, (577, 1024)) for name in ("low", "middle", "high", "thematic")]
    assert plan_buffers(specs, 8).nbytes == 8 * 4 * 577 * 1024 * 4


@pytest.mark.parametrize(
    ("runs", "recorded", "mode", "refused", "expected"),
    [
        (0, False, "capture", False, "run"),
        (1, False, "capture", False, "capture"),
        (2, True, "capture", False, "replay"),
        (2, False, "capture", True, "run"),
        (9, False, "library", False, "run"),
        (9, False, "off", False, "run"),
    ],
)
def test_a_batch_is_recorded_when_it_comes_again(
    runs: int, recorded: bool, mode: str, refused: bool, expected: str
) -> None:
    assert next_launch(runs, recorded, mode, refused) == expected  # type: ignore[arg-type]


def test_who_records_depends_on_the_library() -> None:
    assert graph_mode(paper_library({})) == "capture"
    assert graph_mode(paper_library({}, rtx=True)) == "library"
    assert graph_mode(paper_library({}), wanted=False) == "off"


def test_the_least_recently_used_goes_first() -> None:
    recent: RecentlyUsed[str] = RecentlyUsed(2)
    assert recent.put(1, "one") == recent.put(2, "two") == []
    assert recent.get(1) == "one"
    assert recent.put(3, "three") == ["two"]
    assert recent.get(2) is None
    assert recent.clear() == ["one", "three"]


def test_hidden_states_stay_on_the_gpu_only_within_one_library() -> None:
    def choice(library: Library, device: Literal["cpu", "cuda"] = "cuda") -> StageChoice:
        return StageChoice(Graph("aligner", "cpu", "x", "fp16", ""), library, device)

    both = EngineChoice("tensorrt", choice("tensorrt"), choice("tensorrt"), choice("onnxruntime-gpu"))
    assert hands_over(both)
    assert hands_over(replace(both, vision_encoder=choice("tensorrt_rtx"), aligner=choice("tensorrt_rtx")))
    assert not hands_over(replace(both, aligner=choice("onnxruntime-gpu")))
    assert hands_over(replace(both, vision_encoder=choice("onnxruntime-gpu"), aligner=choice("onnxruntime-gpu")))
    on_cpu = choice("onnxruntime-gpu", "cpu")
    assert not hands_over(replace(both, vision_encoder=on_cpu, aligner=on_cpu))
    assert not hands_over(replace(both, aligner=choice("tensorrt_rtx")))


# Errors before a GPU is asked


def test_another_version_or_library_is_named_with_both(tmp_path: Path) -> None:
    path = tmp_path / "x.engine"
    path.write_bytes(engine_bytes(ENCODER, "tensorrt", "10.13.3.9"))
    check_engine_file(path, "tensorrt", "10.13.3.9")
    check_engine_file(path, "tensorrt", "10.13.3.11")  # another build of the same release
    for library, version in (("tensorrt", "10.13.2.6"), ("tensorrt", "11.0.0.1"), ("tensorrt_rtx", "10.13.3.9")):
        with pytest.raises(EngineVersionMismatch, match=rf"tensorrt 10\.13\.3\.9, installed is {library} {version}"):
            check_engine_file(path, library, version)


@pytest.mark.parametrize("content", [b"", b"ftrt", b"no engine at all, but long enough for a header"])
def test_a_file_that_is_no_engine(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.engine"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"x\.engine: not a TensorRT"):
        check_engine_file(path, "tensorrt", "10.13.3.9")
    with pytest.raises(EngineError, match="cannot be read"):
        check_engine_file(tmp_path / "missing.engine", "tensorrt", "10.13.3.9")


def test_what_is_missing_comes_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineMissing, match="no_such_tensorrt"):
        TensorRtSession(tmp_path / "x.plan", "no_such_tensorrt")
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(EngineMissing, match="pip install cuda-bindings"):
        CudaDriver()


def test_the_runtime_imports_neither_cuda_nor_tensorrt() -> None:
    code = (
        "import sys, calm_runtime, calm_runtime.hardware as hardware; hardware.probe_hardware();"
        "print([name for name in sys.modules if name.partition('.')[0] in ('cuda', 'tensorrt', 'tensorrt_rtx')])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.skipif(compute_capability() is not None, reason="with a GPU the calls would be made")
def test_every_call_of_the_driver_has_the_form_the_bindings_want(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bindings check arguments before they look for the driver: a wrong number or type is a TypeError."""
    pytest.importorskip("cuda.bindings", reason="pip install cuda-bindings")
    with pytest.raises(EngineMissing, match="nvidia-smi"):
        CudaDriver()
    driver = CudaDriver.__new__(CudaDriver)
    driver._api, driver._context, driver._device = cuda_driver._bindings(), None, 0
    graph, executable = driver._api.CUgraph(1), driver._api.CUgraphExec(1)
    address, host, size, stream = 1 << 40, 1 << 41, 1 << 33, 1 << 42
    calls = {
        "activate": (),
        "free_bytes": (),
        "allocate": (size,),
        "free": (address,),
        "allocate_host": (size,),
        "free_host": (host,),
        "create_stream": (),
        "destroy_stream": (stream,),
        "to_device": (address, host, size, stream),
        "to_host": (host, address, size, stream),
        "read": (host, address, size),
        "synchronize": (stream,),
        "begin_capture": (stream,),
        "end_capture": (stream,),
        "launch": (executable, stream),
        "destroy_graph": (executable,),
    }
    public = {name for name, value in vars(CudaDriver).items() if callable(value) and not name.startswith("_")}
    assert public == calls.keys()
    for name, arguments in calls.items():
        with pytest.raises(EngineMissing, match="no NVIDIA driver"):
            getattr(driver, name)(*arguments)
    for name, inner in (("cuCtxSetCurrent", (0,)), ("cuGraphInstantiate", (graph, 0)), ("cuGraphDestroy", (graph,))):
        with pytest.raises(EngineMissing, match="no NVIDIA driver"):
            driver._call(name, *inner)
    with pytest.raises(TypeError):
        driver._call("cuMemcpyDtoH", host, address)


# Sessions on the paper GPU


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt_rtx"])
def test_large_batches_are_sliced_and_memory_stays_flat(paper: Paper, library: str) -> None:
    session = paper.open(library=library)
    held = (len(paper.driver.device), len(paper.driver.host))
    results = [(feed, session.run({"x": feed})["hidden"]) for feed in map(batch, (1, 4, 11, 2, 11))]
    for feed, result in results:  # compared at the end: results are the caller's own
        assert np.array_equal(result, feed * 2)
    assert (len(paper.driver.device), len(paper.driver.host)) == (held[0] + 1, held[1])  # + the first output block
    assert session.input_dtypes == {"x": F32}
    session.close()
    session.close()
    assert paper.driver.empty
    with pytest.raises(EngineError, match="closed"):
        session.run({"x": batch(1)})


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "no values for x"),
        (
            {"x": np.zeros((1, 4), np.float32)},
            r"x of shape \(1, 4\) is outside the engine's profile \[1 or more rows, 3",
        ),
        ({"x": np.zeros((0, 3), np.float32)}, "outside the engine's profile"),
        ({"x": np.zeros((3,), np.float32)}, "outside the engine's profile"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(paper: Paper, feeds: dict[str, np.ndarray], message: str) -> None:
    session = paper.open()
    with pytest.raises(EngineError, match=message):
        session.run(feeds)
    assert np.array_equal(session.run({"x": batch(2)})["hidden"], batch(2) * 2)  # and does no harm


def test_feeds_are_cast_to_the_engines_dtype(paper: Paper) -> None:
    feed = batch(2).astype(np.float64)[:, ::-1]
    assert np.array_equal(paper.open().run({"x": feed})["hidden"], feed * 2)


def test_a_batch_that_repeats_is_recorded_once_and_replayed(paper: Paper) -> None:
    session = paper.open()
    for start in range(5):
        for rows in (4, 1):
            assert np.array_equal(session.run({"x": batch(rows, start)})["hidden"], batch(rows, start) * 2)
    assert len(paper.driver.graphs) == 2
    assert paper.driver.replays == 2 * 4  # all but the first of each batch size
    assert len(paper.encoder.contexts) == 2
    assert paper.encoder.setting == "ours"
    session.close()
    assert paper.driver.empty


def test_recordings_are_limited_and_released(paper: Paper) -> None:
    paper.encoder.most = 20
    session = paper.open()
    for _ in range(2):
        for rows in range(1, 21):
            for _ in range(2):
                session.run({"x": batch(rows)})
    assert len(paper.driver.graphs) == 8
    session.close()
    assert paper.driver.empty


def test_tensorrt_rtx_records_by_itself(paper: Paper) -> None:
    session = paper.open(library="tensorrt_rtx")
    for _ in range(3):
        session.run({"x": batch(4)})
    assert paper.encoder.setting.cuda_graph_strategy == "whole graph"
    assert len(paper.encoder.contexts) == 1
    assert not paper.driver.graphs


def test_an_engine_that_cannot_be_recorded_runs_plainly(paper: Paper) -> None:
    paper.encoder.recordable = False
    session = paper.open()
    for start in range(4):
        assert np.array_equal(session.run({"x": batch(3, start)})["hidden"], batch(3, start) * 2)
    assert paper.driver.graphs == []
    assert paper.driver.recording is None


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt_rtx"])
def test_hidden_states_are_handed_over_without_crossing_to_the_host(paper: Paper, library: str) -> None:
    encoder, aligner = paper.open(ENCODER, library, keep=True), paper.open(ALIGNER, library)
    for start in range(4):
        hidden = encoder.run({"x": batch(4, start)})
        assert isinstance(hidden["hidden"], DeviceArray)
        before = paper.driver.to_host_bytes
        assert np.array_equal(aligner.run(hidden)["y"], batch(4, start) * 2 + 1)
        assert paper.driver.to_host_bytes - before == batch(4).nbytes  # the aligner's own output and nothing else
        del hidden
    blocks = len(paper.driver.device)
    assert np.array_equal(np.asarray(encoder.run({"x": batch(2)})["hidden"]), batch(2) * 2)
    assert len(paper.driver.device) == blocks  # the block came back every time
    encoder.close()
    aligner.close()
    assert paper.driver.empty


def test_hidden_states_of_two_callers_do_not_meet(paper: Paper) -> None:
    encoder, aligner = paper.open(ENCODER, keep=True), paper.open(ALIGNER)
    held = [encoder.run({"x": batch(4, start)}) for start in (0, 100, 200)]
    for start, hidden in zip((0, 100, 200), held, strict=True):
        assert np.array_equal(aligner.run(hidden)["y"], batch(4, start) * 2 + 1)
    encoder.close()
    assert np.array_equal(np.asarray(held[1]["hidden"]), batch(4, 100) * 2)  # readable until the holder lets go
    aligner.close()
    del held, hidden
    assert paper.driver.empty


def test_many_threads_get_their_own_answers(paper: Paper) -> None:
    encoder, aligner = paper.open(ENCODER, keep=True), paper.open(ALIGNER)

    def right(start: int) -> bool:
        answers = ((rows, aligner.run(encoder.run({"x": batch(rows, start)}))["y"]) for rows in (1, 4, 6, 2) * 10)
        return all(np.array_equal(found, batch(rows, start) * 2 + 1) for rows, found in answers)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(right, range(0, 4000, 1000)))
    encoder.close()
    aligner.close()
    assert paper.driver.empty


def test_a_batch_above_the_next_engines_profile_takes_the_way_over_the_host(paper: Paper) -> None:
    paper.aligner.most = 2
    encoder, aligner = paper.open(ENCODER, keep=True), paper.open(ALIGNER)
    for rows in (4, 9):
        assert np.array_equal(aligner.run(encoder.run({"x": batch(rows)}))["y"], batch(rows) * 2 + 1)


def test_a_full_gpu_is_an_error_with_a_remedy_and_leaves_nothing_behind(paper: Paper) -> None:
    paper.driver.room = 600
    with pytest.raises(EngineError, match=r"batches of 4 .*OUT_OF_MEMORY.*--batch"):
        paper.open()
    assert paper.driver.empty


def test_an_engine_of_another_gpu_says_so(paper: Paper) -> None:
    with pytest.raises(EngineError, match="export it again"):
        paper.open(b"?")


def test_a_pool_reuses_what_came_back() -> None:
    driver = PaperDriver()
    pool = BlockPool(driver, 64)  # type: ignore[arg-type]
    first, second = pool.take(), pool.take()
    known = {first.address, second.address}
    assert len(known) == 2
    del first, second
    assert pool.take().address in known
    pool.close()
    assert driver.empty
