"""The few calls of NVIDIA's driver that an engine needs: no CUDA toolkit, no further package."""

from __future__ import annotations

import ctypes
import sys

from calm_runtime.errors import EngineError, EngineMissing
from calm_runtime.session import Array

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


class CudaDriver:
    """The first GPU in its primary context, the one TensorRT uses. Raises EngineMissing when none answers."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(_LIBRARY)
            self._call("cuInit", 0)
            self._device = ctypes.c_int()
            self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        except (OSError, EngineError) as error:
            raise EngineMissing(f"no NVIDIA GPU answers ({error}); check the driver (nvidia-smi)") from error
        self._context = ctypes.c_void_p()

    def compute_capability(self) -> str:
        """ "8.9" and the like."""
        parts = (ctypes.c_int(), ctypes.c_int())
        for value, attribute in zip(parts, (_CAPABILITY_MAJOR, _CAPABILITY_MINOR), strict=True):
            self._call("cuDeviceGetAttribute", ctypes.byref(value), attribute, self._device)
        return f"{parts[0].value}.{parts[1].value}"

    def activate(self) -> None:
        """Make the context current for the calling thread; every thread must, before anything below."""
        if not self._context:
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        """Address of `size` bytes of device memory."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(1, size)))
        return address.value

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def create_stream(self) -> int:
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), 0)
        return stream.value or 0

    def destroy_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy_v2", ctypes.c_void_p(stream))

    def to_device(self, address: int, array: Array, stream: int) -> None:
        """Copy a contiguous array; it must live until the stream is synchronised."""
        pointer = ctypes.c_void_p(array.ctypes.data)
        size = ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), pointer, size, ctypes.c_void_p(stream))

    def to_host(self, array: Array, address: int, stream: int) -> None:
        pointer = ctypes.c_void_p(array.ctypes.data)
        size = ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyDtoHAsync_v2", pointer, ctypes.c_uint64(address), size, ctypes.c_void_p(stream))

    def synchronize(self, stream: int) -> None:
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            raise EngineError(f"the NVIDIA driver's {name} failed with code {code}")
