"""photo (the file's bytes) -> pixel_values and the frame left out of them. A photo that cannot be read fails its own request and no other."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from calm_runtime.bundle import open_bundle
from calm_runtime.photo import leave_out_frame, load_photo, to_pixel_values
from calm_runtime.triton_wire import error_text


class TritonPythonModel:
    """The runtime's own photo loading, with its limits, behind Triton's batching."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        self.spec = open_bundle(folder, verify=False).manifest.photo  # only the manifest lies there

    def execute(self, requests: Sequence["pb_utils.InferenceRequest"]) -> list["pb_utils.InferenceResponse"]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: "pb_utils.InferenceRequest") -> "pb_utils.InferenceResponse":
        photos = pb_utils.get_input_tensor_by_name(request, "photo").as_numpy()  # [rows, 1] of bytes
        try:
            rows = [self._read(photo) for photo in photos[:, 0]]
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(error_text(error)))
        pixels, frames = (np.stack(values) for values in zip(*rows))  # [rows, 3, S, S], [rows, 4]
        return pb_utils.InferenceResponse([pb_utils.Tensor("pixel_values", pixels), pb_utils.Tensor("frame", frames)])

    def _read(self, photo: bytes) -> "tuple[np.ndarray, np.ndarray]":
        """pixel_values [3, S, S], and the shares [4] of the border that was left out, zeros for none."""
        picture, frame = leave_out_frame(load_photo(bytes(photo), self.spec), self.spec)
        return to_pixel_values(picture, self.spec), np.asarray(frame or (0, 0, 0, 0), np.float32)
