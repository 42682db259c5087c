"""The vision encoder: pixels to the hidden states of four depths."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from calm_runtime.session import Array, Session

HIDDEN_STATES: tuple[str, ...] = ("hidden_low", "hidden_middle", "hidden_high", "hidden_thematic")


class VisionEncoder:
    """pixel_values [B, 3, S, S] f32 -> {"hidden_low" | "hidden_middle" | "hidden_high" | "hidden_thematic": [B, N, C]}."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __call__(self, pixel_values: npt.NDArray[np.float32]) -> dict[str, Array]:
        hidden = self._session.run({"pixel_values": pixel_values})
        return {name: hidden[name] for name in HIDDEN_STATES}

    def close(self) -> None:
        self._session.close()
