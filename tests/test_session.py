"""Promises of engine selection (no hardware needed) and of ONNX Runtime sessions."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnxruntime import OrtValue

from calm_runtime.bundle import Graph, Manifest, Stage, Target, open_bundle
from calm_runtime.errors import EngineError, EngineMissing, UsageError
from calm_runtime.onnx_session import OnDevice, OnnxSession
from calm_runtime.session import STAGES, Hardware, Library, select_engine

CPU: frozenset[Library] = frozenset({"onnxruntime"})
GPU: frozenset[Library] = frozenset({"onnxruntime-gpu"})
RTX: frozenset[Library] = frozenset({"onnxruntime-gpu", "tensorrt_rtx"})
NO_GPU, ADA = Hardware(), Hardware("8.9")


def graph(stage: Stage, target: Target, device: str = "any") -> Graph:
    return Graph(stage, target, f"{stage}.{target}.{device}", "fp16", "0" * 64, device)


@pytest.fixture
def manifest(nano_bundle: Path) -> Manifest:
    """CPU and CUDA graphs for all stages, TensorRT-RTX engines for the two vision stages."""
    graphs = [graph(stage, target) for stage in STAGES for target in ("cpu", "cuda")]
    graphs += [graph(stage, "tensorrt-rtx", "portable") for stage in ("vision_encoder", "aligner")]
    graphs += [graph("vision_encoder", "tensorrt-rtx", "8.9")]
    return msgspec.structs.replace(open_bundle(nano_bundle, verify=False).manifest, graphs=tuple(graphs))


def only_cpu(manifest: Manifest) -> Manifest:
    return msgspec.structs.replace(manifest, graphs=tuple(g for g in manifest.graphs if g.target == "cpu"))


def test_auto_without_a_gpu_is_the_cpu(manifest: Manifest) -> None:
    for libraries in (CPU, GPU, RTX):
        choice = select_engine(manifest, libraries, NO_GPU)
        assert choice.engine == "cpu"
        assert {choice.vision_encoder.device, choice.aligner.device, choice.llm.device} == {"cpu"}
        assert choice.llm.graph.target == "cpu"


def test_auto_with_a_gpu_takes_tensorrt_for_vision_and_cuda_for_the_llm(manifest: Manifest) -> None:
    choice = select_engine(manifest, RTX, ADA)
    assert choice.engine == "tensorrt-rtx"
    assert choice.vision_encoder.graph.device == "8.9"
    assert choice.aligner.graph.device == "portable"
    assert choice.vision_encoder.library == "tensorrt_rtx"
    assert (choice.llm.graph.target, choice.llm.library) == ("cuda", "onnxruntime-gpu")


def test_an_engine_of_another_gpu_is_never_chosen(manifest: Manifest) -> None:
    assert select_engine(manifest, RTX, Hardware("12.0")).vision_encoder.graph.device == "portable"
    foreign = msgspec.structs.replace(manifest, graphs=tuple(g for g in manifest.graphs if g.device != "portable"))
    assert select_engine(foreign, RTX, Hardware("12.0")).engine == "cuda"
    with pytest.raises(EngineMissing, match=r"12\.0"):
        select_engine(foreign, RTX, Hardware("12.0"), "tensorrt-rtx")


def test_a_portable_engine_is_not_chosen_where_its_arithmetic_is_missing(manifest: Manifest) -> None:
    def as_portable(precision: str) -> Manifest:
        graphs = [msgspec.structs.replace(g, precision=precision) for g in manifest.graphs if g.device == "portable"]
        others = [g for g in manifest.graphs if g.target not in ("tensorrt-rtx", "tensorrt")]
        return msgspec.structs.replace(manifest, graphs=(*graphs, *others))

    assert select_engine(as_portable("fp8"), RTX, Hardware("8.9")).engine == "tensorrt-rtx"
    assert select_engine(as_portable("fp8"), RTX, Hardware("8.6")).engine == "cuda"
    assert select_engine(as_portable("fp16"), RTX, Hardware("8.6")).engine == "tensorrt-rtx"
    for other in ("7.5", "9.0", "10.0"):  # TensorRT-RTX refuses to load them there
        assert select_engine(as_portable("fp16"), RTX, Hardware(other)).engine == "cuda"
    assert select_engine(as_portable("fp16"), RTX, Hardware("12.1")).engine == "tensorrt-rtx"
    with pytest.raises(
        EngineMissing, match=r"none of the bundle's engines runs on compute capability 8\.6; use --engine"
    ):
        select_engine(as_portable("fp8"), RTX, Hardware("8.6"), "tensorrt-rtx")


def test_what_writes_runs_where_the_llm_runs(manifest: Manifest) -> None:
    assert select_engine(manifest, CPU, NO_GPU).llm_decode is None
    both = msgspec.structs.replace(manifest, graphs=(*manifest.graphs, graph("llm_decode", "cpu")))
    choice = select_engine(both, CPU, NO_GPU)
    assert choice.llm_decode is not None
    assert (choice.llm_decode.graph.stage, choice.llm_decode.device) == ("llm_decode", "cpu")
    assert list(choice.stages) == ["vision_encoder", "aligner", "llm", "llm_decode"]
    assert select_engine(both, GPU, ADA).llm_decode is None  # its caches would have to travel


def test_onnx_means_onnx_runtime_on_the_best_device(manifest: Manifest) -> None:
    assert select_engine(manifest, RTX, ADA, "onnx").engine == "cuda"
    assert select_engine(manifest, CPU, ADA, "onnx").engine == "cpu"
    assert select_engine(only_cpu(manifest), GPU, ADA, "onnx").engine == "cpu"


@pytest.mark.parametrize(
    ("installed", "hardware", "requested", "remedy"),
    [
        (frozenset(), ADA, "auto", r"pip install calm-edge\[cpu\]"),
        (CPU, ADA, "cuda", r"calm-edge\[gpu\]"),
        (GPU, NO_GPU, "cuda", "nvidia-smi"),
        (GPU, ADA, "tensorrt-rtx", r"calm-edge\[tensorrt-rtx\]"),
        (RTX, NO_GPU, "tensorrt-rtx", "nvidia-smi"),
        (frozenset({"onnxruntime", "tensorrt"}), ADA, "tensorrt", "--target tensorrt"),
    ],
)
def test_what_is_missing_comes_with_its_remedy(
    manifest: Manifest, installed: frozenset[Library], hardware: Hardware, requested: str, remedy: str
) -> None:
    with pytest.raises(EngineMissing, match=remedy):
        select_engine(manifest, installed, hardware, requested)


def test_a_bundle_without_cpu_graphs_says_so(manifest: Manifest) -> None:
    bare = msgspec.structs.replace(manifest, graphs=tuple(g for g in manifest.graphs if g.target != "cpu"))
    with pytest.raises(EngineMissing, match="--target cpu"):
        select_engine(bare, CPU, NO_GPU)


def test_an_unknown_engine_is_wrong_use(manifest: Manifest) -> None:
    with pytest.raises(UsageError, match="abacus"):
        select_engine(manifest, CPU, NO_GPU, "abacus")


@pytest.fixture
def aligner(nano_bundle: Path) -> OnnxSession:
    return OnnxSession(nano_bundle / "aligner.onnx", threads=1)


def test_only_what_is_asked_for_is_fetched_and_a_value_on_a_device_is_read_there(aligner: OnnxSession) -> None:
    rng = np.random.default_rng(0)
    shapes = {i.name: [2, *i.shape[1:]] for i in aligner._session.get_inputs()}
    feeds = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    everything = aligner.run(feeds)
    assert list(aligner.run(feeds, ["attribute_logits"])) == ["attribute_logits"]
    # On the CPU a device's memory is the host's; tests/test_gpu_onnx.py does the same on a GPU
    there = {name: OnDevice(OrtValue.ortvalue_from_numpy(value)) for name, value in feeds.items()}
    assert all(np.array_equal(np.asarray(there[name]), feeds[name]) for name in feeds)
    found = aligner.run(there)
    assert all(np.array_equal(found[name], everything[name]) for name in everything)


def test_a_wrong_feed_is_an_engine_error(aligner: OnnxSession) -> None:
    with pytest.raises(EngineError, match=r"aligner\.onnx"):
        aligner.run({})
    with pytest.raises(EngineError, match=r"aligner\.onnx"):
        aligner.run({name: np.zeros((1, 2), np.float32) for name in aligner.input_dtypes})


def test_a_closed_session_says_so(aligner: OnnxSession) -> None:
    aligner.close()
    aligner.close()
    with pytest.raises(EngineError, match="closed"):
        aligner.run({})


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no graph")
    for wrong in (path, tmp_path / "missing.onnx"):
        with pytest.raises(EngineError, match=wrong.name):
            OnnxSession(wrong)
