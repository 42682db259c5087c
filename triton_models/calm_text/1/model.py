"""photo and a task -> text, streamed. The stages before the language model run in their own Triton models (BLS)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from calm_runtime.errors import EngineError, UsageError
from calm_runtime.pipeline import MAX_NEW_TOKENS
from calm_runtime.triton_language import load_language_half
from calm_runtime.triton_wire import error_text
from calm_runtime.vision import HIDDEN_STATES, VISION_OUTPUTS

LAST = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonStage:
    """`Session` over another model of this server."""

    device = "triton"

    def __init__(self, model: str, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self.model = model
        self.input_dtypes: Mapping[str, np.dtype] = {name: np.dtype(np.float32) for name in inputs}
        self.outputs = list(outputs)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        request = pb_utils.InferenceRequest(
            model_name=self.model,
            requested_output_names=self.outputs,
            inputs=[pb_utils.Tensor(name, value) for name, value in feeds.items()],
        )
        response = request.exec()
        if response.has_error():
            raise EngineError(f"{self.model} failed: {response.error().message()}")
        return {name: pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in self.outputs}

    def close(self) -> None:
        pass


class TritonPythonModel:
    """The runtime's own text generation. Faults become error responses of their request."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"] / "bundle"
        threads = int(json.loads(args["model_config"])["parameters"]["intra_op_thread_count"]["string_value"])
        vision = TritonStage("calm_vision_encoder", ["pixel_values"], VISION_OUTPUTS)
        aligner = TritonStage("calm_aligner", HIDDEN_STATES, ["image_embeds", "attribute_logits"])
        self.calm = load_language_half(folder, vision, aligner, threads or None)

    def execute(self, requests: Sequence["pb_utils.InferenceRequest"]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._stream(request, sender)
            except Exception as error:
                pb_utils.Logger.log_warn(f"calm_text: {error!r}")
                sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(error_text(error))), flags=LAST)
            else:
                sender.send(flags=LAST)

    def _stream(self, request: "pb_utils.InferenceRequest", sender: Any) -> None:
        task = _optional_text(request, "task") or "comment"
        if task == "score":
            raise UsageError("scores come from the model calm_score")
        tensor = pb_utils.get_input_tensor_by_name(request, "max_tokens")
        limit = int(tensor.as_numpy().item()) if tensor is not None else MAX_NEW_TOKENS
        if limit < 1:
            raise UsageError(f"max_tokens must be 1 or more, not {limit}")
        photo = bytes(pb_utils.get_input_tensor_by_name(request, "photo").as_numpy().item())
        look = self.calm.look(photo)
        for piece in look.answer(task, _optional_text(request, "question"), limit):
            if sender.is_cancelled():
                return
            text = pb_utils.Tensor("text", np.array([[piece.encode()]], np.object_))
            sender.send(pb_utils.InferenceResponse([text]))


def _optional_text(request: "pb_utils.InferenceRequest", name: str) -> str | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else bytes(tensor.as_numpy().item()).decode("utf-8", errors="replace")
