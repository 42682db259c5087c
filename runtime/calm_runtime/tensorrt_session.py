"""An engine on TensorRT or TensorRT-RTX: one API shape, two libraries."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from calm_runtime.cuda_driver import CudaDriver
from calm_runtime.errors import EngineError, EngineMissing
from calm_runtime.session import Array


class TensorRtSession:
    """`Session` over a serialised engine. Batches above the engine's profile are run in slices of its maximum.

    Raises EngineMissing without the library or a GPU, EngineError when the engine does not belong to this library
    version and GPU.
    """

    def __init__(self, path: Path, library: str) -> None:
        try:
            self._trt: Any = importlib.import_module(library)
        except ImportError as error:
            raise EngineMissing(f"{library} cannot be imported ({error}); install it or use --engine onnx") from error
        self.path = path
        self._lock = threading.Lock()  # an execution context serves one caller at a time
        # Without a GPU the library's own calls return nothing or crash: the driver is asked first.
        self._cuda = CudaDriver()
        self._cuda.activate()
        runtime = self._trt.Runtime(_logger(library))
        self._engine: Any = runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise EngineError(f"{path}: does not fit this {library} {self._trt.__version__} and GPU; export it again")
        self._context: Any = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"{path}: the GPU has not enough memory for it")
        self._stream = self._cuda.create_stream()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._dtypes = {name: np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name))) for name in names}
        is_input = self._trt.TensorIOMode.INPUT
        self._inputs = [name for name in names if self._engine.get_tensor_mode(name) == is_input]
        self._outputs = [name for name in names if name not in self._inputs]
        self._buffers: dict[str, tuple[int, int]] = {}  # name -> address, size

    @property
    def device(self) -> str:
        return "cuda"

    @property
    def input_dtypes(self) -> Mapping[str, np.dtype[Any]]:
        return {name: self._dtypes[name] for name in self._inputs}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        missing = [name for name in self._inputs if name not in feeds]
        if missing:
            raise EngineError(f"{self.path}: no values for {', '.join(missing)}")
        with self._lock:
            if self._context is None:
                raise EngineError(f"{self.path}: the session is closed; load the bundle again")
            self._cuda.activate()
            first = self._inputs[0]
            rows = len(feeds[first])
            most = int(self._engine.get_tensor_profile_shape(first, 0)[2][0])
            slices = [self._run({n: feeds[n][i : i + most] for n in self._inputs}) for i in range(0, rows, most)]
        return {name: np.concatenate([part[name] for part in slices]) for name in self._outputs}

    def close(self) -> None:
        with self._lock:
            if self._context is None:
                return
            self._cuda.activate()
            for address, _ in self._buffers.values():
                self._cuda.free(address)
            self._cuda.destroy_stream(self._stream)
            self._buffers.clear()
            self._context = self._engine = None

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        context = self._context
        sources = {name: np.ascontiguousarray(value, self._dtypes[name]) for name, value in feeds.items()}
        for name, source in sources.items():
            if not context.set_input_shape(name, source.shape):
                raise EngineError(f"{self.path}: {name} of shape {source.shape} is outside the engine's profile")
            address = self._buffer(name, source.nbytes)
            self._cuda.to_device(address, source, self._stream)
            context.set_tensor_address(name, address)
        results = {n: np.empty(tuple(context.get_tensor_shape(n)), self._dtypes[n]) for n in self._outputs}
        for name, result in results.items():
            context.set_tensor_address(name, self._buffer(name, result.nbytes))
        if not context.execute_async_v3(self._stream):
            raise EngineError(f"{self.path}: TensorRT failed to run it")
        for name, result in results.items():
            self._cuda.to_host(result, self._buffers[name][0], self._stream)
        self._cuda.synchronize(self._stream)
        return results

    def _buffer(self, name: str, size: int) -> int:
        """Device memory that grows and is kept, so that memory stays flat over many runs."""
        address, held = self._buffers.get(name, (0, -1))
        if size > held:
            if held >= 0:
                self._cuda.free(address)
            address = self._cuda.allocate(size)
            self._buffers[name] = (address, size)
        return address


@cache
def _logger(library: str) -> Any:
    """The library admits one logger per process."""
    trt = importlib.import_module(library)
    return trt.Logger(trt.Logger.ERROR)
