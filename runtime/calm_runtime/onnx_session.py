"""A graph on ONNX Runtime: CPU or CUDA."""

from __future__ import annotations

from collections.abc import Mapping
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


class OnnxSession:
    """`Session` over an ONNX file; weights in external files are found beside it.

    Feeds are cast to the graph's dtypes. Raises EngineMissing when ONNX Runtime or the device is not there,
    EngineError when the file cannot be loaded.
    """

    def __init__(self, path: Path, device: str = "cpu", threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise EngineMissing(f"ONNX Runtime cannot be imported ({error}); pip install calm-edge[cpu]") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        # A bundle has three sessions: threads that spin after their graph has run take the next graph's cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
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

    def close(self) -> None:
        self._session = None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
