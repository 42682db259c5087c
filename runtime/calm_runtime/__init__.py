"""CALM Edge runtime: how good does this photo look, why, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calm_runtime import no_telemetry  # noqa: F401 - before any import of onnxruntime

if TYPE_CHECKING:
    from calm_runtime.batch import Scored
    from calm_runtime.errors import CalmError
    from calm_runtime.pipeline import Calm, Look
    from calm_runtime.score import Score
    from calm_runtime.suggest import Suggestion, Suggestions

__all__ = ["Calm", "CalmError", "Look", "Score", "Scored", "Suggestion", "Suggestions"]
_HOMES = {
    "Calm": "pipeline", "CalmError": "errors", "Look": "pipeline", "Score": "score", "Scored": "batch",
    "Suggestion": "suggest", "Suggestions": "suggest",
}  # fmt: skip


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
