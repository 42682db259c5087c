"""NVIDIA's driver: a probe that needs no package, and the calls an engine needs, through the CUDA Python bindings."""

from __future__ import annotations

import ctypes
import math
import sys
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from calm_runtime.errors import EngineError, EngineMissing

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


def compute_capability() -> str | None:
    """ "8.9" and the like of the first GPU, or None when none answers. Asks the driver itself: nothing is imported."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    for value, attribute in ((major, _CAPABILITY_MAJOR), (minor, _CAPABILITY_MINOR)):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
    return f"{major.value}.{minor.value}"


class CudaDriver:
    """The first GPU in its primary context, the one TensorRT uses.

    Addresses are integers, sizes are bytes. Raises EngineMissing without the bindings or a GPU; every method raises
    EngineError when the driver refuses.
    """

    def __init__(self) -> None:
        self._api = _bindings()
        self._context: Any = None
        try:
            self._call("cuInit", 0)
            self._device = self._call("cuDeviceGet", 0)
        except EngineMissing:
            raise
        except EngineError as error:
            raise EngineMissing(f"no NVIDIA GPU answers ({error}); check the driver (nvidia-smi)") from error

    def activate(self) -> None:
        """Make the context current for the calling thread; every thread must, before anything below."""
        if self._context is None:
            self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        self._call("cuCtxSetCurrent", self._context)

    def free_bytes(self) -> int:
        """Device memory nobody holds."""
        free, _ = self._call("cuMemGetInfo")
        return int(free)

    def allocate(self, size: int) -> int:
        """Address of device memory, aligned to 256 bytes or more."""
        return int(self._call("cuMemAlloc", max(1, size)))

    def free(self, address: int) -> None:
        self._call("cuMemFree", address)

    def allocate_host(self, size: int) -> int:
        """Address of page-locked host memory: copies to and from it need no detour through the driver's own."""
        return int(self._call("cuMemHostAlloc", max(1, size), 0))

    def free_host(self, address: int) -> None:
        self._call("cuMemFreeHost", address)

    def create_stream(self) -> int:
        return int(self._call("cuStreamCreate", int(self._api.CUstream_flags.CU_STREAM_NON_BLOCKING)))

    def destroy_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy", stream)

    def to_device(self, address: int, host: int, size: int, stream: int) -> None:
        """Start a copy; the host memory must live until the stream is synchronised."""
        self._call("cuMemcpyHtoDAsync", address, host, size, stream)

    def to_host(self, host: int, address: int, size: int, stream: int) -> None:
        self._call("cuMemcpyDtoHAsync", host, address, size, stream)

    def read(self, host: int, address: int, size: int) -> None:
        """Copy to the host and wait for it."""
        self._call("cuMemcpyDtoH", host, address, size)

    def synchronize(self, stream: int) -> None:
        """Wait until everything started on the stream is done."""
        self._call("cuStreamSynchronize", stream)

    def begin_capture(self, stream: int) -> None:
        """From here on the stream records what it is given instead of doing it. Other threads are not concerned."""
        self._call("cuStreamBeginCapture", stream, self._api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)

    def end_capture(self, stream: int) -> Any:
        """What the stream recorded, ready to be launched."""
        graph = self._call("cuStreamEndCapture", stream)
        try:
            return self._call("cuGraphInstantiate", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)

    def launch(self, graph: Any, stream: int) -> None:
        self._call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        self._call("cuGraphExecDestroy", graph)

    def _call(self, name: str, *arguments: Any) -> Any:
        """One call of the driver: its result, its results as a tuple, or None."""
        try:
            code, *results = getattr(self._api, name)(*arguments)
        except RuntimeError as error:  # the bindings look for the driver's library at the first call
            raise EngineMissing(f"no NVIDIA driver answers ({error}); check it (nvidia-smi)") from error
        if code != self._api.CUresult.CUDA_SUCCESS:
            raise EngineError(f"the NVIDIA driver's {name} failed with {code.name}")
        return results[0] if len(results) == 1 else tuple(results) or None


def host_view(address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Host memory as an array; it must outlive the array."""
    memory = (ctypes.c_uint8 * (math.prod(shape) * dtype.itemsize)).from_address(address)
    return np.ctypeslib.as_array(memory).view(dtype).reshape(shape)


def _bindings() -> ModuleType:
    try:
        from cuda.bindings import driver
    except (ImportError, RuntimeError) as error:
        raise EngineMissing(
            f"the CUDA Python bindings cannot be imported ({error}); pip install cuda-bindings, or use --engine onnx"
        ) from error
    module: ModuleType = driver
    return module
