"""A GPU and TensorRT on paper: device memory is host memory, an engine is a NumPy function, a graph is a list of calls.

What is tested with it is our own book-keeping: addresses, sizes, order, reuse, release. It says nothing about NVIDIA's.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from calm_runtime.cuda_driver import host_view
from calm_runtime.errors import EngineError

Function = Callable[[np.ndarray], np.ndarray]
F32 = np.dtype(np.float32)
VERSION = "10.13.3.9"
TAGS = {"tensorrt": b"ftrt", "tensorrt_rtx": b"vtrt"}


class PaperDriver:
    """Has every method of CudaDriver. Freed memory is poisoned, unknown addresses are errors."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.device: dict[int, Any] = {}
        self.host: dict[int, Any] = {}
        self.streams: set[int] = set()
        self.graphs: list[list[Callable[[], None]]] = []
        self.recording: list[Callable[[], None]] | None = None
        self.to_host_bytes = self.replays = self.created = 0
        self.room = room

    def activate(self) -> None: ...

    def allocate(self, size: int) -> int:
        if sum(map(len, list(self.device.values()))) + size > self.room:
            raise EngineError("the NVIDIA driver's cuMemAlloc failed with CUDA_ERROR_OUT_OF_MEMORY")
        return _new(self.device, size)

    def free(self, address: int) -> None:
        ctypes.memset(address, 0xFF, len(self.device[address]))
        del self.device[address]

    def allocate_host(self, size: int) -> int:
        return _new(self.host, size)

    def free_host(self, address: int) -> None:
        del self.host[address]

    def create_stream(self) -> int:
        self.created += 1
        self.streams.add(self.created)
        return self.created

    def destroy_stream(self, stream: int) -> None:
        self.streams.remove(stream)

    def to_device(self, address: int, host: int, size: int, stream: int) -> None:
        assert stream in self.streams
        _move(self.device, address, self.host, host, size)

    def to_host(self, host: int, address: int, size: int, stream: int) -> None:
        assert stream in self.streams
        self.to_host_bytes += size
        _move(self.host, host, self.device, address, size)

    def read(self, host: int, address: int, size: int) -> None:
        _check(self.device, address, size)
        self.to_host_bytes += size
        ctypes.memmove(host, address, size)

    def synchronize(self, stream: int) -> None:
        assert stream in self.streams

    def begin_capture(self, stream: int) -> None:
        assert self.recording is None
        self.recording = []

    def end_capture(self, stream: int) -> list[Callable[[], None]]:
        assert self.recording is not None
        graph, self.recording = self.recording, None
        self.graphs.append(graph)
        return graph

    def launch(self, graph: list[Callable[[], None]], stream: int) -> None:
        self.replays += 1
        for call in graph:
            call()

    def destroy_graph(self, graph: list[Callable[[], None]]) -> None:
        del self.graphs[next(i for i, known in enumerate(self.graphs) if known is graph)]

    @property
    def empty(self) -> bool:
        return not (self.device or self.host or self.streams or self.graphs)


def _new(memory: dict[int, Any], size: int) -> int:
    buffer = ctypes.create_string_buffer(max(1, size))
    memory[ctypes.addressof(buffer)] = buffer
    return ctypes.addressof(buffer)


def _check(memory: dict[int, Any], address: int, size: int) -> None:
    assert any(start <= address and address + size <= start + len(block) for start, block in list(memory.items()))


def _move(to: dict[int, Any], target: int, source_memory: dict[int, Any], source: int, size: int) -> None:
    _check(to, target, size)
    _check(source_memory, source, size)
    ctypes.memmove(target, source, size)


class PaperContext:
    def __init__(self, engine: PaperEngine) -> None:
        self.engine = engine
        self.rows = 0
        self.addresses: dict[str, int] = {}

    def set_device_memory(self, address: int, size: int) -> None:
        _check(self.engine.driver.device, address, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.rows = shape[0]
        return shape[1:] == self.engine.row and shape[0] <= self.engine.most

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        """Runs, or is recorded with the shapes and addresses of now, as on a GPU."""
        driver = self.engine.driver
        work = partial(self.engine.compute, self.rows, dict(self.addresses))
        if driver.recording is None:
            work()
        elif not self.engine.recordable:
            return False
        else:
            driver.recording.append(work)
        return True


class PaperEngine:
    """`x` [B, *row] -> `y` [B, *row] by a NumPy function, B at most `most`."""

    device_memory_size_v2 = 512
    num_io_tensors = 2

    def __init__(self, driver: PaperDriver, function: Function, most: int, names: tuple[str, str]) -> None:
        self.driver, self.function, self.most, self.names = driver, function, most, names
        self.row = (3,)
        self.recordable = True
        self.contexts: list[PaperContext] = []

    def compute(self, rows: int, addresses: dict[str, int]) -> None:
        for address in addresses.values():
            _check(self.driver.device, address, rows * 3 * F32.itemsize)
        source, target = (host_view(addresses[name], (rows, *self.row), F32) for name in self.names)
        target[...] = self.function(source)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name == self.names[0] else "output"

    def get_tensor_dtype(self, name: str) -> type[np.float32]:
        return np.float32

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *self.row)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(1, *self.row), (1, *self.row), (self.most, *self.row)]

    def create_runtime_config(self) -> Any:
        return types.SimpleNamespace(cuda_graph_strategy="off")

    def create_execution_context(self, setting: Any = None) -> PaperContext:
        self.contexts.append(PaperContext(self))
        self.setting = setting
        return self.contexts[-1]


def paper_library(engines: dict[bytes, PaperEngine], rtx: bool = False) -> types.ModuleType:
    """A module of TensorRT's shape; an engine file's last byte says which engine it is."""
    module = types.ModuleType("tensorrt_rtx" if rtx else "tensorrt")
    module.__version__ = VERSION  # type: ignore[attr-defined]
    module.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})  # type: ignore[attr-defined]
    module.Runtime = (
        lambda logger: types.SimpleNamespace(  # type: ignore[attr-defined]
            deserialize_cuda_engine=lambda data: engines.get(data[-1:])
        )
    )
    module.TensorIOMode = types.SimpleNamespace(INPUT="input")  # type: ignore[attr-defined]
    module.nptype = lambda dtype: dtype  # type: ignore[attr-defined]
    module.ExecutionContextAllocationStrategy = types.SimpleNamespace(USER_MANAGED="ours")  # type: ignore[attr-defined]
    if rtx:
        strategy = types.SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph")
        module.CudaGraphStrategy = strategy  # type: ignore[attr-defined]
    return module


def engine_bytes(which: bytes, library: str = "tensorrt", version: str = VERSION) -> bytes:
    """A file that begins like an engine."""
    return TAGS[library] + bytes(20) + bytes(int(part) for part in version.split(".")) + which
