"""ONNX Runtime as a Python-based Triton backend, for development servers that ship without the native one.

It serves model folders of the native backend's shape (config.pbtxt and 1/model.onnx, nothing else), so the same
model repository runs on both. The official container has the native backend and never loads this file.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when onnxruntime is imported
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

Tensors = list[npt.NDArray[np.float32]]


class TritonPythonModel:
    """One InferenceSession; the requests Triton hands over together run as one batch."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        file_name = config.get("default_model_filename") or "model.onnx"
        path = Path(args["model_repository"]) / args["model_version"] / file_name
        options = ort.SessionOptions()
        threads = config.get("parameters", {}).get("intra_op_thread_count", {}).get("string_value", "0")
        options.intra_op_num_threads = int(threads)
        # Several models share the cores: threads that spin while they wait would take them from the others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs: list[str] = [item["name"] for item in config["input"]]
        self.outputs: list[str] = [item["name"] for item in config["output"]]

    def execute(self, requests: Sequence["pb_utils.InferenceRequest"]) -> list["pb_utils.InferenceResponse"]:
        parts = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs]
            for request in requests
        ]
        rows = [len(part[0]) for part in parts]
        try:
            results = self._run(parts)
        except Exception as error:
            message = f"EngineError: ONNX Runtime failed: {error}"
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(message)) for _ in requests]
        ends = np.cumsum(rows)
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, result[end - count : end]) for name, result in zip(self.outputs, results)]
            )
            for end, count in zip(ends, rows)
        ]

    def _run(self, parts: list[Tensors]) -> Tensors:
        """Inputs of every request, each [rows, ...] -> outputs [all rows, ...]."""
        feeds = {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(self.inputs)}
        return [np.ascontiguousarray(result) for result in self.session.run(self.outputs, feeds)]
