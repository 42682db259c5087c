"""Visual tokens and attribute logits -> score. Requests that wait together share one prefill."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from calm_runtime.aligner import Aligned
from calm_runtime.errors import EngineError
from calm_runtime.score import Score
from calm_runtime.triton_language import load_language_half
from calm_runtime.triton_wire import error_text


class Elsewhere:
    """A stage that runs in another model of the ensemble, before this one."""

    device = "elsewhere"
    input_dtypes: Mapping[str, np.dtype] = {}

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise EngineError("this stage is not part of calm_llm")

    def close(self) -> None:
        pass


class TritonPythonModel:
    """The runtime's own scoring, fed by the ensemble."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"] / "bundle"
        threads = int(json.loads(args["model_config"])["parameters"]["intra_op_thread_count"]["string_value"])
        self.calm = load_language_half(folder, Elsewhere(), Elsewhere(), threads or None)

    def execute(self, requests: Sequence["pb_utils.InferenceRequest"]) -> list["pb_utils.InferenceResponse"]:
        rows = [_aligned(request) for request in requests]
        try:
            scores = self._score(Aligned(*(np.concatenate(parts) for parts in zip(*rows))))
        except Exception:
            # One request's numbers must not cost its neighbours their scores.
            return [self._alone(row) for row in rows]
        ends = np.cumsum([len(row.image_embeds) for row in rows])
        return [_response(scores[end - len(row.image_embeds) : end]) for end, row in zip(ends, rows)]

    def _score(self, aligned: Aligned) -> list[Score]:
        return self.calm.score_aligned(aligned, [{}] * len(aligned.image_embeds))

    def _alone(self, aligned: Aligned) -> "pb_utils.InferenceResponse":
        try:
            return _response(self._score(aligned))
        except Exception as error:
            pb_utils.Logger.log_error(f"calm_llm: {error!r}")
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(error_text(error)))


def _aligned(request: "pb_utils.InferenceRequest") -> Aligned:
    """image_embeds [rows, T, D] and attribute_logits [rows, A, 3] of one request."""
    return Aligned(
        pb_utils.get_input_tensor_by_name(request, "image_embeds").as_numpy(),
        pb_utils.get_input_tensor_by_name(request, "attribute_logits").as_numpy(),
    )


def _response(scores: Sequence[Score]) -> "pb_utils.InferenceResponse":
    levels = [[list(reading.probabilities.values()) for reading in s.attributes.values()] for s in scores]
    numbers = {
        "score": [[s.mean] for s in scores],
        "technical": [[s.technical] for s in scores],
        "percentile": [[s.percentile] for s in scores],
        "std": [[s.std] for s in scores],
        "histogram": [s.histogram for s in scores],
        "attributes": levels,
    }
    names = {"model": [[s.model.encode()] for s in scores], "bundle": [[s.bundle.encode()] for s in scores]}
    return pb_utils.InferenceResponse(
        [
            *(pb_utils.Tensor(name, np.asarray(value, np.float32)) for name, value in numbers.items()),
            *(pb_utils.Tensor(name, np.asarray(value, np.object_)) for name, value in names.items()),
        ]
    )
