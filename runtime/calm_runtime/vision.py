"""The vision encoder: pixels to the hidden states of four depths, and to one vector per photo."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from calm_runtime.session import Array, Session

HIDDEN_STATES: tuple[str, ...] = ("hidden_low", "hidden_middle", "hidden_high", "hidden_thematic")
PHOTO_EMBEDS = "photo_embeds"
VISION_OUTPUTS: tuple[str, ...] = (*HIDDEN_STATES, PHOTO_EMBEDS)


class VisionEncoder:
    """pixel_values [B, 3, S, S] f32 -> HIDDEN_STATES, each [B, N, C], for the aligner; PHOTO_EMBEDS [B, E], pooled."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __call__(self, pixel_values: npt.NDArray[np.float32]) -> dict[str, Array]:
        seen = self._session.run({"pixel_values": pixel_values})
        return {name: seen[name] for name in VISION_OUTPUTS}

    def close(self) -> None:
        self._session.close()
