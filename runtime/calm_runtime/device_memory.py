"""Where an engine's tensors lie: a plan of offsets, and blocks of device memory that outlive the run that filled them."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from calm_runtime.cuda_driver import CudaDriver, host_view
from calm_runtime.errors import EngineError
from calm_runtime.session import Array

ALIGNMENT = 256  # bytes; what the driver's own allocations have and TensorRT asks of addresses


class TensorSpec(NamedTuple):
    """One input or output of an engine: [batch, *row] of a dtype."""

    name: str
    dtype: np.dtype[Any]
    row: tuple[int, ...]

    def shape(self, rows: int) -> tuple[int, ...]:
        return (rows, *self.row)

    def nbytes(self, rows: int) -> int:
        return rows * math.prod(self.row) * self.dtype.itemsize


@dataclass(frozen=True)
class BufferPlan:
    """Tensors side by side in one block. offsets: name -> bytes from its start; nbytes: of the whole block."""

    offsets: dict[str, int]
    nbytes: int


def plan_buffers(tensors: Sequence[TensorSpec], most: int) -> BufferPlan:
    """Room for batches of up to `most` rows.

    A smaller batch uses the same offsets, so that an address never changes: a recorded CUDA graph holds addresses.
    """
    offsets, end = {}, 0
    for tensor in tensors:
        offsets[tensor.name] = end
        end += -(-tensor.nbytes(most) // ALIGNMENT) * ALIGNMENT
    return BufferPlan(offsets, end)


class Lease:
    """A block of device memory; it goes back to its pool when nothing refers to the lease any more."""

    def __init__(self, address: int) -> None:
        self.address = address


class BlockPool:
    """Device blocks of one size. One caller at a time needs one; a block per caller is kept and reused.

    `take` wants the calling thread's context active.
    """

    def __init__(self, cuda: CudaDriver, nbytes: int) -> None:
        self._cuda = cuda
        self._nbytes = nbytes
        self._idle: list[int] = []
        self._closed = False

    def take(self) -> Lease:
        """A block nobody else reads or writes. Raises EngineError when the GPU's memory is full."""
        lease = Lease(self._idle.pop() if self._idle else self._cuda.allocate(self._nbytes))
        weakref.finalize(lease, self._give_back, lease.address).atexit = False
        return lease

    def close(self) -> None:
        """Free what nobody holds; the rest is freed when it comes back."""
        self._closed = True
        while self._idle:
            self._cuda.free(self._idle.pop())

    def _give_back(self, address: int) -> None:
        if not self._closed:
            self._idle.append(address)  # atomic: whoever drops the last reference may be any thread
            return
        self._cuda.activate()
        self._cuda.free(address)


class DeviceArray:
    """An output that stayed on the GPU. Another engine reads it in place; `numpy.asarray` copies it to the host."""

    def __init__(self, cuda: CudaDriver, lease: Lease, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]):
        self._cuda = cuda
        self._lease = lease
        self.address = address
        self.shape = shape
        self.dtype = dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("an array on the GPU cannot be read without a copy")
        result = np.empty(self.shape, self.dtype)
        self._cuda.activate()
        self._cuda.read(result.ctypes.data, self.address, result.nbytes)
        return result if dtype is None else result.astype(dtype, copy=False)


class PinnedBlock:
    """Page-locked host memory, seen as the tensors of a plan."""

    def __init__(self, cuda: CudaDriver, tensors: Sequence[TensorSpec], most: int) -> None:
        self._cuda = cuda
        self._plan = plan_buffers(tensors, most)
        self._address = cuda.allocate_host(self._plan.nbytes)

    def address(self, tensor: TensorSpec) -> int:
        return self._address + self._plan.offsets[tensor.name]

    def view(self, tensor: TensorSpec, rows: int) -> Array:
        return host_view(self.address(tensor), tensor.shape(rows), tensor.dtype)

    def close(self) -> None:
        self._cuda.free_host(self._address)


def batch_rows(specs: Sequence[TensorSpec], feeds: Mapping[str, Array], path: object) -> int:
    """Rows of a batch whose tensors all fit the engine. Raises EngineError naming the tensor that does not.

    feeds: arrays or DeviceArrays. A batch may be larger than the profile's: it is run in slices.
    """
    missing = [spec.name for spec in specs if spec.name not in feeds]
    if missing:
        raise EngineError(f"{path}: no values for {', '.join(missing)}")
    rows = len(feeds[specs[0].name])
    for spec in specs:
        shape = tuple(feeds[spec.name].shape)
        if rows < 1 or shape != spec.shape(rows):
            wanted = ", ".join(["1 or more rows", *(str(side) for side in spec.row)])
            raise EngineError(f"{path}: {spec.name} of shape {shape} is outside the engine's profile [{wanted}]")
    return rows
