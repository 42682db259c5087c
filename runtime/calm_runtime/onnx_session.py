"""A graph on ONNX Runtime: CPU or CUDA."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from calm_runtime.errors import EngineError, EngineMissing
from calm_runtime.session import Array

_PROVIDERS = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"]}
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}
_LOG_ERRORS_ONLY = 3

Run = Callable[[Mapping[str, Array]], Array]


class OnDevice:
    """An output that stayed on the GPU. Another session reads it in place; `numpy.asarray` copies it to the host."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __array__(self, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("an array on the GPU cannot be read without a copy")
        return np.asarray(self.value.numpy(), dtype)


class OnnxSession:
    """`Session` over an ONNX file; weights in external files are found beside it.

    Feeds are cast to the graph's dtypes. spin: threads stay awake through a run, for graphs that run token by token.
    keep_on_device: outputs of a GPU stay there until someone reads them.
    Raises EngineMissing when ONNX Runtime or the device is not there, EngineError when the file cannot be loaded.
    """

    def __init__(
        self,
        path: Path,
        device: str = "cpu",
        threads: int | None = None,
        *,
        spin: bool = False,
        keep_on_device: bool = False,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise EngineMissing(f"ONNX Runtime cannot be imported ({error}); pip install calm-edge[cpu]") from error
        if device == "cuda" and hasattr(onnxruntime, "preload_dlls"):
            with redirect_stdout(StringIO()):  # it prints what it does not find; the session below says what that means
                onnxruntime.preload_dlls()  # CUDA and cuDNN where they are Python packages
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        # Between the products of one token there is no time to wake up. In the other graphs spinning gains one caller
        # less than it takes from two at once; and no thread may spin on when its graph has run, for the next one's sake.
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
        options.add_session_config_entry("session.force_spinning_stop", str(int(spin)))
        options.log_severity_level = _LOG_ERRORS_ONLY
        self.path = path
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=_PROVIDERS[device])
        except Exception as error:
            raise EngineError(f"{path}: ONNX Runtime cannot load it: {_first_line(error)}") from error
        # The library lists providers it was built with, not those that work: only the session knows.
        if device == "cuda" and "CUDAExecutionProvider" not in self._session.get_providers():
            raise EngineMissing(f"{path}: CUDA does not answer; check the driver and calm-edge[gpu], or use cpu")
        self._device = device
        self._kept = keep_on_device and device != "cpu"
        unknown = {i.type for i in self._session.get_inputs()} - _DTYPES.keys()
        if unknown:
            raise EngineError(f"{path}: inputs of type {', '.join(sorted(unknown))} cannot be fed; export it again")
        self._input_dtypes = {i.name: np.dtype(_DTYPES[i.type]) for i in self._session.get_inputs()}
        self._outputs = [output.name for output in self._session.get_outputs()]

    @property
    def device(self) -> str:
        return self._device

    @property
    def input_dtypes(self) -> Mapping[str, np.dtype[Any]]:
        return self._input_dtypes

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """outputs: names of those to fetch; None takes all."""
        session, wanted = self._session, outputs or self._outputs
        if session is None:
            raise EngineError(f"{self.path}: the session is closed; load the bundle again")
        typed = {
            name: value if isinstance(value, OnDevice) else self._typed(name, value) for name, value in feeds.items()
        }
        try:
            if self._kept or any(isinstance(value, OnDevice) for value in typed.values()):
                values = self._run_on_device(session, typed, wanted)
            else:
                values = session.run(wanted, typed)
        except Exception as error:
            raise EngineError(f"{self.path}: ONNX Runtime failed: {_first_line(error)}") from error
        return dict(zip(wanted, values, strict=True))

    def _typed(self, name: str, value: Array) -> Array:
        return np.ascontiguousarray(value, self._input_dtypes.get(name, value.dtype))

    def _run_on_device(self, session: Any, feeds: Mapping[str, Any], wanted: Sequence[str]) -> list[Any]:
        binding = session.io_binding()
        for name, value in feeds.items():
            if isinstance(value, OnDevice):
                binding.bind_ortvalue_input(name, value.value)
            else:
                binding.bind_cpu_input(name, value)
        for name in wanted:
            binding.bind_output(name, self._device if self._kept else "cpu")
        session.run_with_iobinding(binding)
        return [OnDevice(value) if self._kept else value.numpy() for value in binding.get_outputs()]

    def bind(self, name: str, fixed: Mapping[str, Array], written: Mapping[str, Array]) -> Run:
        """A run that reads `fixed` inputs and writes `written` outputs where they lie; memory may be in both.

        Feeds of the run are the other inputs, its result the output `name`. On the CPU the arrays themselves are read and
        written, on a GPU copies made now, which stay there. For one thread.
        """
        session = self._session
        if session is None:
            raise EngineError(f"{self.path}: the session is closed; load the bundle again")
        binding = session.io_binding()
        binding.bind_output(name, "cpu")  # the first that is bound is the first of get_outputs
        alive: object = (fixed, written)
        if self._device == "cpu":
            for key, value in fixed.items():
                binding.bind_input(key, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
            for key, value in written.items():
                binding.bind_output(key, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        else:
            from onnxruntime import OrtValue

            every = (*fixed.values(), *written.values())
            placed = {id(value): OrtValue.ortvalue_from_numpy(value, self._device, 0) for value in every}
            for key, value in fixed.items():
                binding.bind_ortvalue_input(key, placed[id(value)])
            for key, value in written.items():
                binding.bind_ortvalue_output(key, placed[id(value)])
            alive = (alive, placed)

        def run(feeds: Mapping[str, Array], *, _alive: object = alive) -> Array:
            if self._session is None:
                raise EngineError(f"{self.path}: the session is closed; load the bundle again")
            kept = {key: self._typed(key, value) for key, value in feeds.items()}
            for key, value in kept.items():
                binding.bind_cpu_input(key, value)
            binding.bind_output(name, "cpu")  # memory of its own for every run
            try:
                session.run_with_iobinding(binding)
            except Exception as error:
                raise EngineError(f"{self.path}: ONNX Runtime failed: {_first_line(error)}") from error
            return np.asarray(binding.get_outputs()[0].numpy())

        return run

    def close(self) -> None:
        self._session = None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
