"""A graph on ONNX Runtime: CPU or CUDA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


class OnnxSession:
    """`Session` over an ONNX file; weights in external files are found beside it.

    Feeds are cast to the graph's dtypes. spin: threads stay awake through a run, for graphs that run token by token.
    Raises EngineMissing when ONNX Runtime or the device is not there, EngineError when the file cannot be loaded.
    """

    def __init__(self, path: Path, device: str = "cpu", threads: int | None = None, *, spin: bool = False) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise EngineMissing(f"ONNX Runtime cannot be imported ({error}); pip install calm-edge[cpu]") from error
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

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        session = self._session
        if session is None:
            raise EngineError(f"{self.path}: the session is closed; load the bundle again")
        typed = {
            name: value.astype(self._input_dtypes.get(name, value.dtype), copy=False) for name, value in feeds.items()
        }
        try:
            values = session.run(self._outputs, typed)
        except Exception as error:
            raise EngineError(f"{self.path}: ONNX Runtime failed: {_first_line(error)}") from error
        return dict(zip(self._outputs, values, strict=True))

    def bind(self, name: str, fixed: Mapping[str, Array], written: Mapping[str, Array]) -> Run:
        """A run that reads `fixed` inputs and writes `written` outputs where they lie; memory may be in both.

        Feeds of the run are the other inputs, its result the output `name`. For the CPU alone, and for one thread.
        """
        session = self._session
        if session is None:
            raise EngineError(f"{self.path}: the session is closed; load the bundle again")
        binding = session.io_binding()
        binding.bind_output(name, "cpu")
        for key, value in fixed.items():
            binding.bind_input(key, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        for key, value in written.items():
            binding.bind_output(key, "cpu", 0, value.dtype, value.shape, value.ctypes.data)

        def run(feeds: Mapping[str, Array], *, _alive: object = (fixed, written)) -> Array:
            if self._session is None:
                raise EngineError(f"{self.path}: the session is closed; load the bundle again")
            kept = {key: np.ascontiguousarray(value, self._input_dtypes[key]) for key, value in feeds.items()}
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
