"""An engine on TensorRT or TensorRT-RTX: one API shape, two libraries."""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from calm_runtime.cuda_driver import CudaDriver
from calm_runtime.cuda_graphs import RecentlyUsed, graph_mode, next_launch
from calm_runtime.device_memory import BlockPool, DeviceArray, Lease, PinnedBlock, TensorSpec, batch_rows, plan_buffers
from calm_runtime.engine_file import check_engine_file
from calm_runtime.errors import EngineError, EngineMissing
from calm_runtime.session import Array

logger = logging.getLogger(__name__)


@dataclass
class _Lane:
    """One set of shapes and addresses. TensorRT asks for a context per recorded graph; their memory is shared."""

    context: Any
    runs: int = 0
    graph: Any = None
    refused: bool = False


class TensorRtSession:
    """`Session` over a serialised engine. Batches above the engine's profile are run in slices of its maximum.

    Device and page-locked host memory for the largest batch are taken at once and never move, so that repeated
    batches can be CUDA graphs. keep_on_device: outputs are `DeviceArray`s where the batch fits the profile: a session
    of the same process reads them in place, `numpy.asarray` copies them. cuda_graphs: False runs every batch plainly.

    Raises EngineMissing without the library, the CUDA bindings or a GPU, EngineVersionMismatch when another version
    built the engine, EngineError when it does not fit the GPU.
    """

    def __init__(self, path: Path, library: str, *, keep_on_device: bool = False, cuda_graphs: bool = True) -> None:
        try:
            self._trt: Any = importlib.import_module(library)
        except (ImportError, OSError) as error:
            raise EngineMissing(f"{library} cannot be imported ({error}); install it or use --engine onnx") from error
        self.path = path
        check_engine_file(path, library, self._trt.__version__)
        self._lock = threading.Lock()  # an execution context serves one caller at a time
        self._keep = keep_on_device
        self._mode = graph_mode(self._trt, cuda_graphs)
        self._lanes: RecentlyUsed[_Lane] = RecentlyUsed()
        self._context: Any = None  # of every batch, unless lanes have their own
        # Without a GPU the library's own calls return nothing or crash: the driver is asked first.
        self._cuda = CudaDriver()
        self._cuda.activate()
        runtime = self._trt.Runtime(_logger(library))
        self._engine: Any = runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise EngineError(f"{path}: does not fit this {library} {self._trt.__version__} and GPU; export it again")
        self._inputs, self._outputs, self._most = _describe(self._trt, self._engine, path)
        self._plan = {"in": plan_buffers(self._inputs, self._most), "out": plan_buffers(self._outputs, self._most)}
        self._take_memory()

    @property
    def device(self) -> str:
        return "cuda"

    @property
    def input_dtypes(self) -> Mapping[str, np.dtype[Any]]:
        return {spec.name: spec.dtype for spec in self._inputs}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        rows = batch_rows(self._inputs, feeds, self.path)
        with self._lock:
            if self._engine is None:
                raise EngineError(f"{self.path}: the session is closed; load the bundle again")
            self._cuda.activate()
            if rows <= self._most:
                lease = self._execute(feeds, rows)
                return self._kept(lease, rows) if self._keep else self._fetched(lease, rows)
            whole = {spec.name: np.asarray(feeds[spec.name]) for spec in self._inputs}
            parts = []
            for start in range(0, rows, self._most):
                part = {name: value[start : start + self._most] for name, value in whole.items()}
                count = min(self._most, rows - start)
                parts.append(self._fetched(self._execute(part, count), count))
        return {spec.name: np.concatenate([part[spec.name] for part in parts]) for spec in self._outputs}

    def close(self) -> None:
        with self._lock:
            if self._engine is None:
                return
            self._cuda.activate()
            self._resources.close()
            self._engine = None

    def _take_memory(self) -> None:
        """Stream, staging for inputs, a pool of output blocks, their page-locked twins, and the engine's own memory."""
        cuda, own = self._cuda, self._mode == "capture"
        with contextlib.ExitStack() as held:
            try:
                self._stream = cuda.create_stream()
                held.callback(cuda.destroy_stream, self._stream)
                self._staging = cuda.allocate(self._plan["in"].nbytes)
                held.callback(cuda.free, self._staging)
                self._scratch = cuda.allocate(self._engine.device_memory_size_v2 if own else 0)
                held.callback(cuda.free, self._scratch)
                self._pool = BlockPool(cuda, self._plan["out"].nbytes)
                held.callback(self._pool.close)
                self._pinned_in = PinnedBlock(cuda, self._inputs, self._most)
                held.callback(self._pinned_in.close)
                self._pinned_out = PinnedBlock(cuda, self._outputs, self._most)
                held.callback(self._pinned_out.close)
                self._context = None if own else self._new_context()
                held.callback(self._forget)
            except EngineError as error:
                raise EngineError(
                    f"{self.path}: no room for batches of {self._most} ({error}); free GPU memory, or export the "
                    "engine with a smaller largest batch (--batch)"
                ) from error
            self._resources = held.pop_all()

    def _forget(self) -> None:
        """Graphs and contexts go before the memory they use."""
        for lane in self._lanes.clear():
            self._drop(lane)
        self._context = None

    def _new_context(self) -> Any:
        if self._mode == "library":
            config = self._engine.create_runtime_config()
            config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(config)
        elif self._mode == "capture":
            strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = self._engine.create_execution_context(strategy)
            if context is not None:
                context.set_device_memory(self._scratch, self._engine.device_memory_size_v2)
        else:
            context = self._engine.create_execution_context()
        if context is None:
            raise EngineError("the library made no execution context")
        return context

    def _execute(self, feeds: Mapping[str, Array], rows: int) -> Lease:
        """Run a batch that fits the profile; its outputs are complete in the block that is returned."""
        lease = self._pool.take()
        addresses = {spec.name: self._staged(spec, feeds[spec.name], rows) for spec in self._inputs}
        addresses |= {name: lease.address + offset for name, offset in self._plan["out"].offsets.items()}
        lane = self._lane(rows, addresses)
        self._launch(lane)
        self._cuda.synchronize(self._stream)
        return lease

    def _staged(self, spec: TensorSpec, value: Array | DeviceArray, rows: int) -> int:
        """Address an input is read from: where another engine left it, or our own once it is copied there."""
        if isinstance(value, DeviceArray) and value.dtype == spec.dtype:
            return value.address
        address = self._staging + self._plan["in"].offsets[spec.name]
        self._pinned_in.view(spec, rows)[...] = value
        self._cuda.to_device(address, self._pinned_in.address(spec), spec.nbytes(rows), self._stream)
        return address

    def _lane(self, rows: int, addresses: dict[str, int]) -> _Lane:
        """The lane of a batch: shapes and addresses are set, once where lanes are kept."""
        key = (rows, *addresses.values())
        known = self._lanes.get(key)
        if known is not None:
            return known
        lane = _Lane(self._context if self._context is not None else self._new_context())
        for spec in self._inputs:
            if not lane.context.set_input_shape(spec.name, spec.shape(rows)):
                raise EngineError(f"{self.path}: {spec.name} of {rows} rows is outside the engine's profile")
        for name, address in addresses.items():
            lane.context.set_tensor_address(name, address)
        if self._mode == "capture":
            for old in self._lanes.put(key, lane):
                self._drop(old)
        return lane

    def _launch(self, lane: _Lane) -> None:
        step = next_launch(lane.runs, lane.graph is not None, self._mode, lane.refused)
        lane.runs += 1
        if step == "capture":
            lane.graph = self._record(lane)
            lane.refused = lane.graph is None
        if lane.graph is not None:
            self._cuda.launch(lane.graph, self._stream)
        elif not lane.context.execute_async_v3(self._stream):
            raise EngineError(f"{self.path}: {self._trt.__name__} failed to run it")

    def _record(self, lane: _Lane) -> Any:
        """The lane's work as a CUDA graph, or None when it cannot be recorded."""
        self._cuda.begin_capture(self._stream)
        try:
            recorded = lane.context.execute_async_v3(self._stream)
        finally:
            try:
                graph = self._cuda.end_capture(self._stream)
            except EngineError as error:
                logger.info("%s: no CUDA graph (%s)", self.path.name, error)
                graph = None
        if graph is not None and not recorded:
            self._cuda.destroy_graph(graph)
            graph = None
        return graph

    def _drop(self, lane: _Lane) -> None:
        if lane.graph is not None:
            self._cuda.destroy_graph(lane.graph)

    def _kept(self, lease: Lease, rows: int) -> dict[str, Array]:
        offsets = self._plan["out"].offsets
        kept = {
            spec.name: DeviceArray(self._cuda, lease, lease.address + offsets[spec.name], spec.shape(rows), spec.dtype)
            for spec in self._outputs
        }
        return cast("dict[str, Array]", kept)

    def _fetched(self, lease: Lease, rows: int) -> dict[str, Array]:
        for spec in self._outputs:
            source = lease.address + self._plan["out"].offsets[spec.name]
            self._cuda.to_host(self._pinned_out.address(spec), source, spec.nbytes(rows), self._stream)
        self._cuda.synchronize(self._stream)
        return {spec.name: self._pinned_out.view(spec, rows).copy() for spec in self._outputs}


def _describe(trt: Any, engine: Any, path: Path) -> tuple[list[TensorSpec], list[TensorSpec], int]:
    """Inputs, outputs, and the largest batch every input's profile admits."""
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
        row = tuple(engine.get_tensor_shape(name))[1:]
        if any(side < 0 for side in row):
            raise EngineError(f"{path}: {name} is dynamic beyond its batch; export it again")
        spec = TensorSpec(name, np.dtype(trt.nptype(engine.get_tensor_dtype(name))), row)
        (inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs).append(spec)
    return inputs, outputs, min(int(engine.get_tensor_profile_shape(spec.name, 0)[2][0]) for spec in inputs)


@cache
def _logger(library: str) -> Any:
    """The library admits one logger per process."""
    trt = importlib.import_module(library)
    return trt.Logger(trt.Logger.ERROR)
