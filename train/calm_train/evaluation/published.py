"""Author-reported figures of other models, to stand beside ours. They were not measured by this project."""

from __future__ import annotations

AVA_TEST: dict[str, tuple[float, float]] = {  # model -> (PLCC, SRCC) on AVA's official test split
    "CALM (paper)": (0.829, 0.815),
    "Q-Align": (0.817, 0.822),
    "ArtiMuse-AVA": (0.826, 0.827),
    "ROC4MLLM": (0.832, 0.833),
    "UNIAA-LLaVA + MOS head": (0.838, 0.840),
    "RvTC": (0.842, 0.843),
    "TOPIQ-IAA": (0.790, 0.791),
    "MUSIQ": (0.738, 0.726),
    "NIMA": (0.636, 0.612),
}

AVA_CAPTIONS: dict[str, dict[str, float]] = {
    "VILA": {"bleu-1": 0.503},
    "ROC4MLLM": {"cider": 0.085, "spice": 0.066},
    "Qwen2-VL": {"cider": 0.089, "spice": 0.069},
}

PIAA_FLICKR_AES: dict[str, tuple[float, float]] = {  # model -> SRCC on FLICKR-AES's 37 test raters, k = 10 and k = 100
    "PAM": (0.520, 0.553),
    "BLG-PIAA": (0.561, 0.669),
    "TANet": (0.609, 0.717),
    "task-vector PIAA": (0.668, 0.748),
}
